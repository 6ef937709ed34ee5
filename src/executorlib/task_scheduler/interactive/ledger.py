"""The tasks of an executor: which are open, which are ready, how each ends. Owned by the dispatcher's thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any

from executorlib.standalone.select import will_end
from executorlib.standalone.serialize import dumps
from executorlib.task_scheduler.interactive.outcome import fail, finish
from executorlib.task_scheduler.interactive.pool import ReadyQueue
from executorlib.task_scheduler.interactive.task import DependencyGraph, Task, failed_input
from executorlib.task_scheduler.interactive.worker import Worker
from executorlib.task_scheduler.observer import Observer


class TaskLedger:
    """Every task from its admission to its end.

    Args:
        post: has something done in the dispatcher's thread; inputs end in any thread
        observer: hears of what happens

    Attributes:
        open: the tasks that have not ended, by their numbers
        ready: those that could start now
        unwanted: numbers of tasks that are cancelled should they come back from their worker; True for those that are
            cancelled in any case, with the end of their worker where they have begun
        ended: how many tasks have ended, of which so many failed, and so many have never run
    """

    def __init__(self, post: Callable[[Callable[[], None]], None], observer: Observer | None) -> None:
        self._graph = DependencyGraph(lambda task: post(lambda: self._input_done(task)))
        self._observer = observer
        self.open: dict[int, Task] = {}
        self.ready = ReadyQueue()
        self.unwanted: dict[int, bool] = {}
        self.ended = self.failed = self.dropped = 0

    def admit(self, task: Task) -> None:
        """Take on a task, which is ready when its inputs are done."""
        self.open[task.number] = task
        if self._observer is not None:
            self._observer.submitted(task.number, task.fn.name, task.resources.slots)
        if not task.inputs or self._graph.add(task):
            self.ready.push(task)

    def next_ready(self) -> Task | None:
        """The task whose turn it is; those that were cancelled are closed."""
        while (task := self.ready.first()) is not None:
            if not task.future.cancelled():
                return task
            self.ready.pop()
            self.forget(task)
        return None

    def begin(self, task: Task) -> bool:
        """A task is about to be sent; returns whether its user still wants it."""
        if task.number not in self.open:
            return False
        if not task.future.set_running_or_notify_cancel():
            self._close(task)
            return False
        return True

    def put_back(self, tasks: Sequence[Task]) -> None:
        """Tasks that a worker had not begun keep their turn; those that are unwanted meanwhile are cancelled."""
        for task in reversed(tasks):
            task.worker = None
            if self.unwanted.pop(task.number, None) is not None:
                self.fail(task, CancelledError())
                continue
            task.future.put_back()
            self.ready.push_front(task)

    def ran(self, task: Task, worker: Worker, start: float, seconds: float, succeeded: bool) -> bool:
        """A worker has brought the end of a task; returns whether its result is still wanted.

        Thousands a second come this way.
        """
        del self.open[task.number]
        wanted = not (self.unwanted and self.unwanted.pop(task.number, False))
        succeeded = succeeded and wanted
        self.ended += 1
        if not succeeded:
            self.failed += 1
        if self._observer is not None:
            self._observer.ran(task.number, worker, start, seconds, succeeded)
        task.worker = task.payload = task.values = None
        return wanted

    def fail(self, task: Task, error: BaseException) -> None:
        """End a task that has no result."""
        self._close(task)
        fail(task, error)

    def fail_run(self, task: Task, error: BaseException) -> None:
        """End a task that a worker has begun and not brought to its end."""
        if task.number in self.open:
            self.failed += 1
            self.dropped -= 1
        self.fail(task, error)

    def forget(self, task: Task) -> None:
        """A task was cancelled by its user, who has told nobody else."""
        if task.number in self.open:
            self._close(task)
            task.future.set_running_or_notify_cancel()

    def waiting(self) -> list[Any]:
        """The futures of the tasks that no worker has been sent."""
        return [task.future for task in self.open.values() if task.worker is None]

    def futures(self) -> set[int]:
        """The identities of the futures that will still be done."""
        return {id(task.future) for task in self.open.values()}

    def cancel_waiting(self, provided: set[int]) -> None:
        """Cancel the tasks with inputs that are neither done nor derived from futures of these identities."""
        for task in list(self.open.values()):
            if not all(will_end(future, provided) for future in task.inputs or ()):
                self.fail(task, CancelledError())

    def _input_done(self, task: Task) -> None:
        if not self._graph.input_done(task) or task.number not in self.open:
            return
        if task.future.cancelled():
            self.forget(task)
            return
        inputs, error, answer = task.inputs or [], failed_input(task) if task.late is None else None, None
        task.inputs = None
        if error is None:
            try:
                if task.late is None:
                    task.values = dumps([future.result() for future in inputs])
                else:
                    answer = task.late(inputs)
            except BaseException as reason:
                error = reason
        if error is not None:
            self.fail(task, error)
            return
        if answer is not None:
            self._follow(task, answer)
            return
        task.late = None
        if self._observer is not None:
            self._observer.ready(task.number)
        self.ready.push(task)

    def _follow(self, task: Task, answer: Future[Any]) -> None:
        """A task has the outcome of another future, unless that is cancelled."""
        if not answer.done() or answer.cancelled():
            task.inputs = [answer]
            self._graph.add(task)
        elif (error := answer.exception()) is not None:
            self.fail(task, error)
        else:
            self._close(task)
            self.dropped -= 1
            finish(task, answer.result())

    def _close(self, task: Task) -> None:
        if self.open.pop(task.number, None) is not None:  # else it was closed before, and is still in a list of tasks
            self.ended += 1
            self.dropped += 1
            if self._observer is not None:
                self._observer.dropped(task.number)
        self.unwanted.pop(task.number, None)
        task.payload = task.inputs = task.late = task.values = None
