"""The thread that owns the tasks of an executor that works through files.

    inbox ──► admit ──┬── the same call is under way: its future joins
      ▲               ├── <key>_o.h5 is there: done
      │               └── <key>_i.h5 is written ──► inputs done? ──► JobLauncher ──► job
      │                                                                  │            │
      └── submit, input done, cancel, shutdown        OutputWatch ◄── its end     <key>_o.h5
                                                           └──► Future.set_result

Other threads only append to the inbox and wake it, so that nothing here needs a lock. It sleeps in one place, over the
launcher, its wake-up socket and the nearest deadline.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any, cast

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
from executorlib.standalone.cache_watch import TaskRemovedError
from executorlib.standalone.errors import WorkerDiedError
from executorlib.standalone.select import will_end
from executorlib.standalone.serialize import dumps
from executorlib.task_scheduler.file.inbox import Inbox
from executorlib.task_scheduler.file.launcher import Job, JobChange, JobLauncher, JobState, LeftJob
from executorlib.task_scheduler.file.observed import ObservedJobs
from executorlib.task_scheduler.file.task import Call, FileFuture, FileTask, OpenCall, task_future
from executorlib.task_scheduler.file.watch import OutputWatch
from executorlib.task_scheduler.observer import Observer
from executorlib.task_scheduler.tally import Tally

_LOG = logging.getLogger("executorlib")
# Processes whose tasks have ended get so long to end too; then they are left to themselves.
_LAST_SECONDS = 5.0


class FileDispatcher:
    """The tasks of an executor and the thread that moves them on.

    Methods without an underscore may be called from any thread.

    Args:
        launcher: runs the jobs, from now on only for this dispatcher
        refresh_rate: shortest pause between two looks into the cache directory, in seconds
        observer: hears of what happens
    """

    def __init__(self, launcher: JobLauncher, refresh_rate: float, observer: Observer | None = None) -> None:
        self._launcher = launcher
        self._observed = None if observer is None else ObservedJobs(observer, launcher.slots)
        self._watch = OutputWatch(refresh_rate)
        descriptor = launcher.fileno()
        self._inbox: Inbox[Callable[[], None] | FileTask | Sequence[FileTask]] = Inbox(
            *([] if descriptor is None else [descriptor])
        )
        self._tasks: dict[str, FileTask] = {}  # by output file
        self._open: dict[int, FileTask] = {}  # whose calls have no name yet
        self._jobs: dict[JobNumber, FileTask] = {}
        self._gathered: list[FileTask] | None = None  # while tasks are admitted that were submitted together
        self._late: list[FileTask] = []  # whose job has ended, and whose output may come into sight
        self._ended = self._failed = self._dropped = 0
        self._directories: set[str] = set()
        self._closing = False
        self._closed_at: float | None = None
        self._fatal: BaseException | None = None
        self.finished = False
        self.thread = threading.Thread(target=self._run, name="executorlib-files", daemon=True)
        self.thread.start()

    # From any thread

    def post(self, item: Callable[[], None] | FileTask | Sequence[FileTask]) -> None:
        """Hand over a task, or several together, or something to do in the dispatcher's thread."""
        self._inbox.put(item)
        if self.finished:  # it ended while this was on its way
            self._refuse_inbox()

    def waiting(self) -> list[FileFuture]:
        """The futures of the tasks whose jobs have not begun."""
        return self._ask(self._waiting)

    def _ask(self, question: Callable[[], list[FileFuture]]) -> list[FileFuture]:
        """Have something answered in the dispatcher's thread."""
        if threading.current_thread() is self.thread:
            return question()
        answered = threading.Event()
        answer: list[FileFuture] = []

        def reply() -> None:
            answer.extend(question())
            answered.set()

        self.post(reply)
        answered.wait()
        return answer

    def take_back(self, task: Any) -> bool:
        """A job that has begun is not taken back."""
        return False

    def cancel_running(self, task: Any) -> bool:
        """End the job that runs a task, and cancel the task; returns whether there was anything to end."""
        found = not self.finished
        self.post(lambda: self._give_up(task))
        return found

    def forget(self, task: Any) -> None:
        """A future of a task was cancelled by its user."""
        if task is not None:
            self.post(lambda: self._forget(task))

    def tally(self) -> Tally:
        """How far the run is. Read without a lock: a number may be that of a moment before."""
        ended = self._ended
        running = sum(task.begun for task in list(self._jobs.values()))
        known = len(self._tasks) + len(self._open)
        return Tally(known + ended, ended, self._failed, self._dropped, running, running)

    def shutdown(self) -> None:
        """End when all tasks have ended."""
        self.post(self._close)

    def cancel(self, *, running: bool) -> None:
        """End; cancel the tasks that have not begun, and the jobs of the others too if asked for."""
        self.post(lambda: self._cancel(running))

    def kill(self) -> None:
        """End now, and all jobs too."""
        self.post(self._kill)

    def leave(self) -> None:
        """End now; the jobs go on, and those that have not begun are begun without this program."""
        self.post(self._leave)

    def open_futures(self) -> set[int]:
        """The identities of the futures that will still be done."""
        return {id(future) for future in self._ask(self._futures)}

    def cancel_waiting(self, provided: set[int]) -> None:
        """Cancel the tasks with inputs that are neither done nor derived from futures of these identities."""
        self.post(lambda: self._cancel_waiting(provided))

    def after_fork(self) -> None:
        """In a child of the program: this executor is not the child's, nor are its jobs."""
        self.finished = True
        self._inbox.close()

    # The loop

    def _run(self) -> None:
        try:
            while True:
                self._work_inbox()
                for change in self._launcher.changes():
                    self._changed(change)
                due = self._watch.due
                if due is not None and due <= time.monotonic():
                    self._look()
                if self._closing and not self._inbox and self._is_over():
                    break
                self._sleep()
        except BaseException as error:
            _LOG.exception("the dispatcher has failed")
            self._fatal = error
        finally:
            self._end()

    def _is_over(self) -> bool:
        if self._tasks or self._open:
            return False
        now = time.monotonic()
        self._closed_at = self._closed_at or now
        return not self._launcher.busy or now > self._closed_at + _LAST_SECONDS

    def _sleep(self) -> None:
        moments = [self._watch.due, self._launcher.deadline()]
        if self._closed_at is not None:
            moments.append(self._closed_at + _LAST_SECONDS)
        nearest = min((moment for moment in moments if moment is not None), default=None)
        self._inbox.sleep(nearest)

    def _work_inbox(self) -> None:
        for item in self._inbox.take():
            if isinstance(item, FileTask):
                self._admit(item)
            elif callable(item):
                item()
            else:
                self._admit_together(item)

    def _end(self) -> None:
        self.finished = True
        with contextlib.suppress(Exception):
            self._launcher.close()
        self._refuse_inbox()
        for task in [*self._tasks.values(), *self._open.values()]:
            self._fail(task, RuntimeError(f"The executor has failed: {self._fatal!r}"))
        self._inbox.close()
        if self._observed is not None:
            self._observed.close()

    def _refuse_inbox(self) -> None:
        for item in self._inbox.take_all():
            if callable(item):
                item()
                continue
            reason = self._fatal or "cannot schedule new futures after shutdown"
            for task in [item] if isinstance(item, FileTask) else item:
                self._fail(task, RuntimeError(str(reason)))

    # A task begins

    def _admit(self, task: FileTask) -> None:
        if self._observed is not None:
            self._observed.submitted(task)
        if isinstance(task.call, OpenCall):
            self._open[task.number] = task
            self._wait_for_inputs(task)
        else:
            self._enter(task)

    def _admit_together(self, tasks: Sequence[FileTask]) -> None:
        """Admit tasks, and submit together the jobs of those that need one now."""
        self._gathered = []
        try:
            for task in tasks:
                self._admit(task)
        finally:
            gathered, self._gathered = self._gathered, None
        gathered = [task for task in gathered if task.futures]
        if gathered:
            numbers = self._launcher.submit_together([self._job(task) for task in gathered])
            for task, number in zip(gathered, numbers, strict=True):
                if isinstance(number, Exception):
                    self._fail(task, number)
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
        try:
            self._prepare(paths.directory)
            if self._settle(task, fresh=True):
                return
            task.job = self._launcher.find(self._job(task))
            if task.job is None and isinstance(task.call, Call):
                content = {name: [data] for name, data in task.call.datasets.items()}
                # What a power failure takes is submitted again.
                cache_file.write(paths.input, content, flush=False)
        except Exception as error:
            self._fail(task, error)
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
            future.bind(self, cast(Any, known))
            future.queue_id = known.job
            known.futures.append(future)
            if known.begun:
                with _user_code():
                    future.begin()

    def _prepare(self, directory: str) -> None:
        if directory not in self._directories:
            self._directories.add(directory)
            make_private_directory(directory)
            temporary_file.remove_abandoned(directory)

    def _wait_for_inputs(self, task: FileTask) -> None:
        for future in task.inputs:
            future.add_done_callback(lambda done: self.post(functools.partial(self._input_done, task, done)))

    def _input_done(self, task: FileTask, future: Future[Any]) -> None:
        task.open_inputs -= 1
        if task.number not in self._open and (task.paths is None or self._tasks.get(task.paths.output) is not task):
            return  # it has ended
        if future.cancelled():
            self._fail(task, CancelledError())
        elif (error := future.exception()) is not None:
            self._input_failed(task, future, error)
        elif task.open_inputs:
            return
        elif task.number in self._open:
            self._close_call(task)
        elif task.job is None:
            self._submit(task, ())

    def _close_call(self, task: FileTask) -> None:
        del self._open[task.number]
        try:
            task.close_call(self)
        except BaseException as error:  # pickling is the user's code
            self._fail(task, error if isinstance(error, Exception) else RuntimeError(repr(error)))
        else:
            self._enter(task)

    def _input_failed(self, task: FileTask, future: Future[Any], error: BaseException) -> None:
        """A task cannot run. If that is so for ever, because a function has raised, the cache is to know it."""
        origin = task_future(future)
        if task.paths is not None and origin is not None and (origin.kept or origin.exception() is None):
            outcome = {"error": dumps(error).data, "runtime": dumps(0.0).data}
            with contextlib.suppress(Exception):  # it is not worth more than the future's exception
                write_outcome(task.paths, read_call(task.paths), outcome)
                for waiting in task.futures:
                    waiting.kept = True
        self._fail(task, error)

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
        self._submit(task, tuple(jobs))

    def _submit(self, task: FileTask, depends_on: tuple[JobNumber, ...]) -> None:
        if self._gathered is not None and not depends_on:
            self._gathered.append(task)
            return
        try:
            job = self._launcher.submit(self._job(task, depends_on))
        except Exception as error:
            self._fail(task, error)
        else:
            if self._observed is not None and task.inputs:
                self._observed.ready(task)
            self._has_job(task, job)

    def _has_job(self, task: FileTask, job: JobNumber) -> None:
        task.job = job
        self._jobs[job] = task
        for future in task.futures:
            future.queue_id = job

    def _job(self, task: FileTask, depends_on: tuple[JobNumber, ...] = ()) -> Job:
        return Job(task.files, task.resources, depends_on, task.name)

    # A task ends

    def _changed(self, change: JobChange) -> None:
        task = self._jobs.get(change.job)
        if task is None:
            return
        if change.state is JobState.BEGUN:
            task.begun = True
            if self._observed is not None:
                self._observed.begun(task)
            for future in task.futures:
                with _user_code():
                    future.begin()
            return
        del self._jobs[change.job]
        task.job = None
        if not task.futures:  # its output was seen before
            return
        self._watch.hurry()
        late = change.error is None and self._launcher.output_seconds > 0
        if self._settle(task, last=not late):
            return
        task.cause = change.cause
        paths = task.files
        if change.error is not None:
            self._fail(task, change.error)
        elif not os.path.exists(paths.input):
            self._gone(task)
        elif late:
            task.ended_at = time.monotonic()
            self._late.append(task)
        else:
            self._died(task)

    def _look(self) -> None:
        seen = self._watch.look()
        for output in seen.ended:
            if output in self._tasks:
                self._settle(self._tasks[output])
        for output in seen.gone:
            if output in self._tasks:
                self._gone(self._tasks[output])
        if self._late:
            oldest = time.monotonic() - self._launcher.output_seconds
            for task in self._late:
                if task.ended_at is not None and task.ended_at < oldest and not self._settle(task, last=True):
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
                self._fail(task, error)
                return True
            if fresh:
                _LOG.warning("the call is run again: %s", error)
            return False
        for future in task.futures:
            future.kept = not outcome.succeeded
        if outcome.succeeded and isinstance(task.call, Call) and task.call.alias is not None:
            remember_alias(paths, task.call.alias)
        if fresh:  # an input beside it is that of a worker that was killed between the two
            remove(paths.input)
        if task.job is not None and self._launcher.settled(task.job):
            self._jobs.pop(task.job, None)
        self._finish(task, outcome)
        return True

    def _died(self, task: FileTask) -> None:
        name = task.files.stem
        self._fail(task, WorkerDiedError(f"The job of the task {name} has ended without a result: {task.cause}"))

    def _gone(self, task: FileTask) -> None:
        paths = task.files
        error = TaskRemovedError(f"task {paths.stem} has been removed from {paths.directory} before it ended")
        self._fail(task, error)

    def _fail(self, task: FileTask, error: BaseException) -> None:
        """End a task without its output; what is left of its job is ended too."""
        if task.job is not None:
            self._jobs.pop(task.job, None)
            self._launcher.cancel(task.job)
        self._finish(task, Outcome(False, error))

    def _finish(self, task: FileTask, outcome: Outcome) -> None:
        self._ended += 1
        if not outcome.succeeded:
            self._failed += task.begun
            self._dropped += not task.begun
        if self._observed is not None:
            self._observed.ended(task, outcome.succeeded)
        futures = self._drop(task)
        for future in futures:
            with _user_code():
                if isinstance(outcome.value, CancelledError) and not outcome.succeeded:
                    future.abandon()
                else:
                    future.end(outcome)

    def _drop(self, task: FileTask) -> list[FileFuture]:
        """Take a task out of the books; returns its futures."""
        self._open.pop(task.number, None)
        if task.paths is not None and self._tasks.get(task.paths.output) is task:
            del self._tasks[task.paths.output]
            self._watch.discard(task.paths)
        futures, task.futures = task.futures, []
        task.call, task.inputs = None, []
        return futures

    # Cancelling, and the end

    def _waiting(self) -> list[FileFuture]:
        tasks = [*self._open.values(), *self._tasks.values()]
        return [future for task in tasks if not task.begun for future in task.futures]

    def _forget(self, task: FileTask) -> None:
        for future in task.futures:
            if future.cancelled():
                with _user_code():
                    future.tell_cancelled()
        if not task.begun and not task.wanted:
            self._fail(task, CancelledError())

    def _give_up(self, task: FileTask) -> None:
        if task.futures:
            self._fail(task, CancelledError())

    def _close(self) -> None:
        self._closing = True

    def _cancel(self, running: bool) -> None:
        self._closing = True
        for task in [*self._open.values(), *self._tasks.values()]:
            if running or not task.begun:
                self._fail(task, CancelledError())

    def _kill(self) -> None:
        self._cancel(running=False)
        for task in list(self._tasks.values()):
            self._fail(task, WorkerDiedError(f"{task.files.stem} was ended by the program"))

    def _leave(self) -> None:
        self._closing = True
        jobs = [LeftJob(self._job(task), tuple(self._open_outputs(task))) for task in self._tasks.values()]
        try:
            self._launcher.leave(jobs)
        except OSError:
            _LOG.exception("what has not begun cannot be handed over")
        self._jobs.clear()
        for task in [*self._open.values(), *self._tasks.values()]:
            task.job = None
            self._fail(task, CancelledError())

    def _open_outputs(self, task: FileTask) -> Iterator[str]:
        for future in task.inputs:
            origin = task_future(future)
            if origin is not None and origin.paths is not None and not origin.done():
                yield origin.paths.output

    def _futures(self) -> list[FileFuture]:
        return [future for task in [*self._open.values(), *self._tasks.values()] for future in task.futures]

    def _cancel_waiting(self, provided: set[int]) -> None:
        for task in list(self._open.values()):
            if not all(will_end(future, provided) for future in task.inputs):
                self._fail(task, CancelledError())


@contextlib.contextmanager
def _user_code() -> Iterator[None]:
    """Callbacks of a future belong to the user: whatever they raise must not end the dispatcher."""
    try:
        yield
    except BaseException:
        _LOG.exception("a callback of a future has failed")
