"""The tasks of an executor that works through files: each from its admission over its job to its output."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any, Protocol, cast

from executorlib.standalone import cache_file, temporary_file
from executorlib.standalone.cache_file import CacheFileError
from executorlib.standalone.cache_outcome import (
    Outcome,
    UnknownOutcomeError,
    read_call,
    read_outcome,
    remove,
    write_outcome,
)
from executorlib.standalone.cache_paths import remember_alias
from executorlib.standalone.cache_queue import JobNumber
from executorlib.standalone.cache_trust import make_private_directory
from executorlib.standalone.callbacks import user_code
from executorlib.standalone.errors import TaskRemovedError, WorkerDiedError
from executorlib.standalone.select import will_end
from executorlib.standalone.serialize import dumps
from executorlib.task_scheduler.file.launcher import (
    Job,
    JobChange,
    JobLauncher,
    JobState,
    LeftJob,
    NotNowError,
    described,
)
from executorlib.task_scheduler.file.observed import ObservedJobs
from executorlib.task_scheduler.file.task import Call, FileFuture, FileTask, OpenCall, task_future
from executorlib.task_scheduler.file.watch import OutputWatch
from executorlib.task_scheduler.observer import Observer
from executorlib.task_scheduler.tally import Tally

_LOG = logging.getLogger("executorlib")
# The pause between two attempts to find the jobs of tasks.
_ASK_SECONDS = 5.0
# They go on a command line, and a queueing system looks at all of them again and again.
_MOST_DEPENDENCIES = 500


class Owner(Protocol):
    """The dispatcher, to which the futures of the tasks belong."""

    def post(self, item: Callable[[], None]) -> None:
        """Have something done in the thread that owns the tasks."""


class FileTasks:
    """Every task from its admission to its end. Owned by the dispatcher's thread.

    Args:
        owner: the dispatcher
        launcher: runs the jobs
        refresh_rate: shortest pause between two looks into the cache directory, in seconds
        observer: hears of what happens
    """

    def __init__(self, owner: Owner, launcher: JobLauncher, refresh_rate: float, observer: Observer | None) -> None:
        self._owner = owner
        self._launcher = launcher
        self._observed = None if observer is None else ObservedJobs(observer, launcher.slots)
        self._watch = OutputWatch(refresh_rate)
        self._tasks: dict[str, FileTask] = {}  # by output file
        self._open: dict[int, FileTask] = {}  # whose calls have no name yet
        self._jobs: dict[JobNumber, FileTask] = {}
        self._unasked: dict[int, FileTask] = {}  # which may have a job, while the queue cannot be asked
        self._ask_at = 0.0
        self._gathered: list[FileTask] | None = None  # while tasks are admitted that were submitted together
        self._late: list[FileTask] = []  # whose job has ended, and whose output may come into sight
        self._ended = self._failed = self._dropped = 0
        self._directories: set[str] = set()

    def __bool__(self) -> bool:
        """Whether there is a task that has not ended."""
        return bool(self._tasks or self._open)

    @property
    def due(self) -> float | None:
        """When `look` wants to be called next (monotonic clock)."""
        moments = (self._watch.due, self._ask_at if self._unasked else None)
        return min((moment for moment in moments if moment is not None), default=None)

    def tally(self) -> Tally:
        """How far the run is. May be read from any thread: a number may be that of a moment before."""
        ended = self._ended
        running = sum(task.begun for task in list(self._jobs.values()))
        known = len(self._tasks) + len(self._open)
        return Tally(known + ended, ended, self._failed, self._dropped, running, running)

    def close(self, reason: BaseException | None) -> None:
        """Fail what is left, at the end of the dispatcher. The jobs go on: the next program finds them."""
        for task in [*self._tasks.values(), *self._open.values()]:
            goes_on = "" if task.job is None else "; the job goes on, and the same call, submitted again, finds it"
            self._let_go(task)
            self._finish(task, Outcome(False, RuntimeError(f"The executor has failed: {reason!r}{goes_on}")))
        if self._observed is not None:
            self._observed.close()

    # A task begins

    def admit(self, task: FileTask) -> None:
        """Take on a task."""
        if self._observed is not None:
            self._observed.submitted(task)
        if isinstance(task.call, OpenCall):
            self._open[task.number] = task
            self._wait_for_inputs(task)
        else:
            self._enter(task)

    def admit_together(self, tasks: Sequence[FileTask]) -> None:
        """Admit tasks, and submit together the jobs of those that need one now."""
        self._gather(self.admit, tasks)

    def _gather(self, work: Callable[[FileTask], None], tasks: Sequence[FileTask]) -> None:
        self._gathered = []
        try:
            for task in tasks:
                work(task)
        finally:
            gathered, self._gathered = self._gathered, None
        if gathered := [task for task in gathered if task.futures]:
            numbers: Sequence[JobNumber | Exception]
            try:
                numbers = self._launcher.submit_together([self._job(task) for task in gathered])
            except Exception as error:
                numbers = [error] * len(gathered)
            for task, number in zip(gathered, numbers, strict=True):
                if isinstance(number, Exception):
                    self.fail(task, number)
                else:
                    self._has_job(task, number)

    def _enter(self, task: FileTask) -> None:
        """A task has its name: find it in the cache, or put it there."""
        paths = task.files
        known = self._tasks.get(paths.output)
        if known is not None:
            self._join(known, task)
            return
        self._tasks[paths.output] = task
        self._find_job(task)

    def _find_job(self, task: FileTask) -> None:
        """See whether another program has started a job for a new task; start one otherwise."""
        paths = task.files
        if self._tasks.get(paths.output) is not task:  # it has ended while the queue could not be asked
            return
        try:
            self._prepare(paths.directory)
            if self._settle(task, fresh=True):
                return
            task.job = self._launcher.find(self._job(task))
            if task.job is None and isinstance(task.call, Call):
                content = {name: [data] for name, data in task.call.datasets.items()}
                # What a power failure takes is submitted again.
                cache_file.write(paths.input, content, flush=False)
        except NotNowError:
            self._unasked[task.number] = task
            self._ask_at = time.monotonic() + _ASK_SECONDS
            return
        except Exception as error:
            self.fail(task, error)
            return
        self._watch.add(paths)
        if isinstance(task.call, Call):  # what is written need not be kept in memory
            task.call = Call(task.call.paths, {}, task.call.alias)
        if task.job is not None:
            self._has_job(task, task.job)
        elif task.open_inputs:
            self._wait_for_inputs(task)
            self._submit_early(task)
        else:
            self._submit(task, ())

    def _join(self, known: FileTask, task: FileTask) -> None:
        self._ended += 1
        if self._observed is not None:
            self._observed.ended(task, True)
        for future in task.futures:
            future.bind(self._owner, cast(Any, known))
            future.queue_id = known.job
            known.futures.append(future)
            if known.begun:
                with user_code():
                    future.begin()

    def _prepare(self, directory: str) -> None:
        if directory not in self._directories:
            self._directories.add(directory)
            make_private_directory(directory)
            temporary_file.remove_abandoned(directory)

    def _wait_for_inputs(self, task: FileTask) -> None:
        for future in task.inputs:
            future.add_done_callback(lambda done: self._owner.post(functools.partial(self._input_done, task, done)))

    def _input_done(self, task: FileTask, future: Future[Any]) -> None:
        task.open_inputs -= 1
        if task.number not in self._open and (task.paths is None or self._tasks.get(task.paths.output) is not task):
            return  # it has ended
        if future.cancelled():
            self.fail(task, CancelledError())
        elif (error := future.exception()) is not None:
            self._input_failed(task, future, error)
        elif task.open_inputs:
            return
        elif task.number in self._open:
            self._close_call(task)
        elif task.job is None and task.number not in self._unasked:
            self._submit(task, ())

    def _close_call(self, task: FileTask) -> None:
        del self._open[task.number]
        try:
            task.close_call(self._owner)
        except BaseException as error:  # pickling is the user's code
            self.fail(task, error if isinstance(error, Exception) else RuntimeError(repr(error)))
        else:
            self._enter(task)

    def _input_failed(self, task: FileTask, future: Future[Any], error: BaseException) -> None:
        """A task cannot run. If that is so for ever, because a function has raised, the cache is to know it."""
        if task.job is not None and self._settle(task):  # its job was started after it, and has found the same
            return
        origin = task_future(future)
        if task.paths is not None and origin is not None and (origin.kept or origin.exception() is None):
            outcome = {"error": dumps(error).data, "runtime": dumps(0.0).data}
            with contextlib.suppress(Exception):  # it is not worth more than the future's exception
                write_outcome(task.paths, read_call(task.paths), outcome)
                for waiting in task.futures:
                    waiting.kept = True
                if task.job is not None:
                    self._jobs.pop(task.job, None)
                    self._launcher.withdraw(task.job)
                    task.job = None
        self.fail(task, error)

    def _submit_early(self, task: FileTask) -> None:
        """Leave it to the queueing system to start a job after others."""
        if not self._launcher.orders_jobs:
            return
        jobs = []
        for future in task.inputs:
            if future.done():
                continue
            origin = task_future(future)
            known = self._tasks.get(origin.paths.output) if origin is not None and origin.paths is not None else None
            if known is None or known.job is None:
                return
            jobs.append(known.job)
        if len(jobs) <= _MOST_DEPENDENCIES:
            self._submit(task, tuple(jobs))

    def _submit(self, task: FileTask, depends_on: tuple[JobNumber, ...]) -> None:
        if self._gathered is not None and not depends_on:
            self._gathered.append(task)
            return
        try:
            job = self._launcher.submit(self._job(task, depends_on))
        except Exception as error:
            self.fail(task, error)
        else:
            if self._observed is not None and task.inputs:
                self._observed.ready(task)
            self._has_job(task, job)

    def _has_job(self, task: FileTask, job: JobNumber) -> None:
        task.has_job(job)
        self._jobs[job] = task

    def _job(self, task: FileTask, depends_on: tuple[JobNumber, ...] = ()) -> Job:
        return Job(task.files, task.resources, depends_on, task.name)

    # A task ends

    def changed(self, change: JobChange) -> None:
        """A job has begun or ended."""
        task = self._jobs.get(change.job)
        if task is None:
            return
        if change.state is JobState.BEGUN:
            if self._observed is not None:
                self._observed.begun(task)
            task.begin()
            return
        del self._jobs[change.job]
        task.job = None
        if not task.futures:  # its output was seen before
            return
        self._watch.hurry()
        late = change.error is None and self._launcher.output_seconds > 0
        if self._settle(task, last=not late):
            return
        task.cause, task.where = change.cause, change.where
        paths = task.files
        if change.error is not None:
            self.fail(task, change.error)
        elif not os.path.exists(paths.input) and os.path.isdir(paths.folder):
            self._gone(task)
        elif late:
            task.ended_at = time.monotonic()
            self._late.append(task)
        else:
            self._died(task)

    def look(self) -> None:
        """Look which outputs have come into sight, if it is time to."""
        if self._unasked and self._ask_at <= time.monotonic():
            again, self._unasked = self._unasked, {}
            self._gather(self._find_job, list(again.values()))
        if self._watch.due is None or self._watch.due > time.monotonic():
            return
        seen = self._watch.look()
        for output in seen.ended:
            if output in self._tasks:
                self._settle(self._tasks[output])
        for output in seen.gone:
            if output in self._tasks:
                self._gone(self._tasks[output])
        for output in seen.lost:
            if output in self._tasks:
                self._lost(self._tasks[output])
        if self._late:
            oldest = time.monotonic() - self._launcher.output_seconds
            for task in self._late:
                if task.ended_at is None or task.ended_at >= oldest or not os.path.isdir(task.files.folder):
                    continue
                if not self._settle(task, last=True):
                    self._died(task)
            self._late = [task for task in self._late if task.files.output in self._tasks]

    def _settle(self, task: FileTask, *, fresh: bool = False, last: bool = False) -> bool:
        """End a task whose output is there; returns whether it is.

        Args:
            task: the task
            fresh: it is new here: an output that cannot be read is an old one, and its job will replace it
            last: its job has ended: an output that cannot be read will stay so
        """
        paths = task.files
        try:
            outcome = read_outcome(paths.output)
        except FileNotFoundError:
            return False
        except CacheFileError as error:
            if last or isinstance(error, UnknownOutcomeError):
                self.fail(task, error)
                return True
            if fresh:
                _LOG.warning("the call is run again: %s", error)
            return False
        except Exception as error:  # the file server has lost it for a moment, or there is not enough memory
            if isinstance(error, OSError) and not (fresh or last):
                return False
            self.fail(task, error)
            return True
        for future in task.futures:
            future.kept = not outcome.succeeded
        if outcome.succeeded and isinstance(task.call, Call) and task.call.alias is not None:
            remember_alias(paths, task.call.alias)
        if fresh:  # an input beside it is that of a worker that was killed between the two
            remove(paths.input)
        if task.job is not None and self._tell(self._launcher.settled, task.job):
            self._jobs.pop(task.job, None)
        self._finish(task, outcome)
        return True

    def _died(self, task: FileTask) -> None:
        job = described(task.name, task.files, task.where)
        self.fail(task, WorkerDiedError(f"{job} has ended without a result: {task.cause or 'nothing is known of it'}"))

    def _gone(self, task: FileTask) -> None:
        text = f"task {task.files.stem} has been removed from {task.files.directory} before it ended"
        self.fail(task, TaskRemovedError(text))

    def _lost(self, task: FileTask) -> None:
        """Nobody knows what has become of a task; its job may have run for hours, and goes on."""
        paths = task.files
        self._let_go(task)
        text = f"the directory {paths.folder} is no longer there: what becomes of task {paths.stem} is not known here"
        self._finish(task, Outcome(False, TaskRemovedError(text)))

    def fail(self, task: FileTask, error: BaseException) -> None:
        """End a task without its output; what is left of its job is ended too."""
        job = self._let_go(task)
        if job is not None:
            self._tell(self._launcher.cancel, job)
        self._finish(task, Outcome(False, error))

    def _let_go(self, task: FileTask) -> JobNumber | None:
        """Have no more to do with the job of a task; returns its number."""
        job, task.job = task.job, None
        if job is not None:
            self._jobs.pop(job, None)
        return job

    def _tell(self, what: Callable[[JobNumber], Any], job: JobNumber) -> Any:
        """Tell the launcher something about a job. Whatever goes wrong there, the futures come to their end."""
        try:
            return what(job)
        except Exception:
            _LOG.exception("job %s", job)
            return None

    def _finish(self, task: FileTask, outcome: Outcome) -> None:
        self._ended += 1
        if not outcome.succeeded:
            self._failed += task.begun
            self._dropped += not task.begun
        if self._observed is not None:
            self._observed.ended(task, outcome.succeeded)
        for future in self._drop(task):
            with user_code():
                future.end(outcome)

    def _drop(self, task: FileTask) -> list[FileFuture]:
        """Take a task out of the books; returns its futures."""
        self._open.pop(task.number, None)
        self._unasked.pop(task.number, None)
        if task.paths is not None and self._tasks.get(task.paths.output) is task:
            del self._tasks[task.paths.output]
            self._watch.discard(task.paths)
        futures, task.futures = task.futures, []
        task.call, task.inputs = None, []
        return futures

    # Cancelling, and the end

    def waiting(self) -> list[FileFuture]:
        """The futures of the tasks whose jobs have not begun."""
        tasks = [*self._open.values(), *self._tasks.values()]
        return [future for task in tasks if not task.begun for future in task.futures]

    def forget(self, task: FileTask) -> None:
        """A future of a task was cancelled by its user."""
        for future in task.futures:
            if future.cancelled():
                with user_code():
                    future.tell_cancelled()
        if not task.begun and not task.wanted:
            self.fail(task, CancelledError())

    def give_up(self, future: FileFuture) -> None:
        """Cancel a future whose job may run, and end the job if nobody else waits for it."""
        task = future.task
        if task is None or future.done():
            return
        with user_code():
            future.abandon()
        if not task.wanted:
            self.fail(task, CancelledError())

    def cancel(self, running: bool) -> None:
        """Cancel the tasks that have not begun, and the jobs of the others too if asked for."""
        for task in [*self._open.values(), *self._tasks.values()]:
            if running or not task.begun:
                self.fail(task, CancelledError())

    def kill(self) -> None:
        """End all tasks now, and their jobs."""
        self.cancel(running=False)
        for task in list(self._tasks.values()):
            self.fail(task, WorkerDiedError(f"{described(task.name, task.files)} was ended by the program"))

    def leave(self) -> None:
        """Hand over to the jobs what this program would do for them, and let go of them."""
        jobs = [LeftJob(self._job(task), tuple(task.open_outputs())) for task in self._tasks.values()]
        try:
            self._launcher.leave(jobs)
        except OSError:
            _LOG.exception("what has not begun cannot be handed over")
        self._jobs.clear()
        for task in [*self._open.values(), *self._tasks.values()]:
            task.job = None
            self.fail(task, CancelledError())

    def futures(self) -> list[FileFuture]:
        """The futures that will still be done."""
        return [future for task in [*self._open.values(), *self._tasks.values()] for future in task.futures]

    def cancel_waiting(self, provided: set[int]) -> None:
        """Cancel the tasks with inputs that are neither done nor derived from futures of these identities."""
        for task in list(self._open.values()):
            if not all(will_end(future, provided) for future in task.inputs):
                self.fail(task, CancelledError())
