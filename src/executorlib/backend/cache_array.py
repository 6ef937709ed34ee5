"""An element of an array of batch jobs: it runs its own task, and helps with short ones that wait behind it.

Slurm starts a few jobs a second, so that an array of many short calls would mostly wait for its turn. Each element has
a task of its own. When that was short the element goes on with the next task that nobody has begun, each in a process
of its own. An element whose task was done by another ends at once, or is taken from the queue before it begins.

Who begins a task makes a file for it in the array's directory, which only one can, with its own number. The file is
touched while the task runs: it counts for nothing when that has stopped, because the helper was killed.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time
from collections.abc import Iterator

from executorlib.backend.cache_call import work
from executorlib.backend.calls import flush_output
from executorlib.standalone.cache_paths import CachePaths, array_mark, remove_array
from executorlib.standalone.cache_trust import open_own, open_own_directory, open_trusted
from executorlib.standalone.command import RUN_TIME_VARIABLE

# Help is for tasks that are shorter than the way through the queue.
_SHORT_SECONDS = 1.0
_HELP_SECONDS = 60.0
# Whoever needs more time than a tenth of the limit might be ended in the middle of another's task.
_LIMIT_SHARE = 0.1
_TOUCH_SECONDS = 5.0
_DEAD_SECONDS = 30.0
_PAUSE = 0.2


def read_inputs(listing: str) -> list[CachePaths]:
    """The tasks of an array, from the file that lists their inputs with a null character between them."""
    with open(open_trusted(listing), "rb") as file:
        return [CachePaths.of_file(os.fsdecode(path)) for path in file.read().split(b"\0")]


def own_number() -> int:
    """The number of this element."""
    return int(os.environ["SLURM_ARRAY_TASK_ID"])


def enter(paths: CachePaths, folder: str) -> None:
    """Make this process that of a task: what it prints goes to the task's log, and if nobody asked for a working
    directory it has one of its own, as a single job does; not that of the array.
    """
    if os.path.realpath(os.getcwd()) == os.path.realpath(folder):
        directory = open_own_directory(paths.job_directory)
        os.fchdir(directory)
        os.close(directory)
    flush_output()
    log = open_own(paths.log, os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


class Element:
    """An element of an array.

    Args:
        listing: the file that lists the inputs of the array's tasks
    """

    def __init__(self, listing: str) -> None:
        self._folder = os.path.dirname(listing)
        self._tasks = read_inputs(listing)
        self._own = own_number()
        self._start = time.monotonic()
        limit = os.environ.pop(RUN_TIME_VARIABLE, None)
        self._limit = None if limit is None else float(limit)

    def run(self) -> int:
        """Run the own task, and those of others as long as there is time; returns the exit code of the own."""
        code = self._run_own()
        if code == 0:
            for number in self._others():
                begun = time.monotonic()
                if self._begin(number) and self._run(number) != 0:
                    # Its own element is to fail of it, for the right future.
                    self._let_go(number)
                    break
                if time.monotonic() - begun > _SHORT_SECONDS:
                    break
        self._clear_away()
        return code

    def _run_own(self) -> int:
        begun = time.monotonic()
        while not self._begin(self._own):
            # Done by another, or called off: its helper may be gone too.
            if os.path.exists(self._tasks[self._own].output) or not os.path.exists(self._tasks[self._own].input):
                return 0
            if self._is_abandoned(self._own):
                self._let_go(self._own)
            else:
                time.sleep(_PAUSE)
        code = self._run(self._own)
        if time.monotonic() - begun > _SHORT_SECONDS:
            self._start = float("-inf")  # no time for others
        return code

    def _others(self) -> Iterator[int]:
        count = len(self._tasks)
        for step in range(1, count):
            elapsed = time.monotonic() - self._start
            if elapsed > _HELP_SECONDS or (self._limit is not None and elapsed > _LIMIT_SHARE * self._limit):
                return
            number = (self._own + step) % count
            # Those that were called off, and the directory of an array that is done with, are no longer there.
            if os.path.exists(self._tasks[number].input):
                yield number

    def _run(self, number: int) -> int:
        """Run a task in a process of its own; returns its exit code, or that of a shell for a signal."""
        flush_output()
        pid = os.fork()
        if pid == 0:
            code = 70
            try:
                enter(self._tasks[number], self._folder)
                code = work(self._tasks[number])
            finally:
                os._exit(code)
        status = self._wait(pid, number)
        with contextlib.suppress(OSError):  # the function has files there
            os.rmdir(self._tasks[number].job_directory)
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else 128 - code

    def _wait(self, pid: int, number: int) -> int:
        try:
            descriptor = os.pidfd_open(pid)
        except (AttributeError, OSError):  # before Linux 5.3
            return os.waitpid(pid, 0)[1]
        try:
            while not select.select([descriptor], [], [], _TOUCH_SECONDS)[0]:
                try:
                    os.utime(self._mark(number))
                except OSError:  # the program has called it off
                    pass
        finally:
            os.close(descriptor)
        return os.waitpid(pid, 0)[1]

    def _clear_away(self) -> None:
        """The last removes the array's directory: the program that has made it may have ended."""
        if not any(os.path.exists(task.input) for task in self._tasks):
            remove_array(self._folder)

    def _mark(self, number: int) -> str:
        return array_mark(self._folder, number)

    def _begin(self, number: int) -> bool:
        try:
            descriptor = os.open(self._mark(number), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return False
        except FileNotFoundError:  # the array is done with
            return number == self._own
        try:
            os.write(descriptor, str(self._own).encode())  # whoever cancels the task ends this element
        finally:
            os.close(descriptor)
        return True

    def _let_go(self, number: int) -> None:
        try:
            os.unlink(self._mark(number))
        except OSError:
            pass

    def _is_abandoned(self, number: int) -> bool:
        """Whether nobody has touched the mark for long, by the clock of the file system."""
        clock = os.path.join(self._folder, f"{self._own}.clock")
        try:
            os.close(open_own(clock, os.O_WRONLY))
            os.utime(clock)
            age = os.stat(clock).st_mtime - os.stat(self._mark(number)).st_mtime
            os.unlink(clock)
        except OSError:
            return False
        return age > _DEAD_SECONDS


def main(listing: str) -> int:
    """Run an element; returns its exit code."""
    with contextlib.suppress(ImportError):
        import cloudpickle.cloudpickle  # noqa: F401  # once for all processes
    try:
        element = Element(listing)
    except FileNotFoundError:  # all is done, and cleared away
        print("executorlib: the array is done with", file=sys.stderr)
        return 0
    return element.run()
