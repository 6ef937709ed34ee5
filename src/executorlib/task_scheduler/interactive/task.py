"""A call on its way to a worker, and its future."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any

from executorlib.standalone.callbacks import GuardedFuture
from executorlib.standalone.functions import FunctionRef
from executorlib.standalone.resources import Resources
from executorlib.standalone.serialize import Payload

numbers = itertools.count(1)


class _Condition:
    """A `threading.Condition` that costs little until somebody waits: most futures of many are done before."""

    __slots__ = ("_lock", "_waiters", "acquire", "release")

    def __init__(self) -> None:
        self._lock = lock = threading.RLock()
        self.acquire = lock.acquire
        self.release = lock.release
        self._waiters: list[threading.Lock] | None = None

    def __enter__(self) -> bool:
        return self._lock.__enter__()

    def __exit__(self, *args: Any) -> None:
        self._lock.release()

    def wait(self, timeout: float | None = None) -> bool:
        waiter = threading.Lock()
        waiter.acquire()
        if self._waiters is None:
            self._waiters = []
        self._waiters.append(waiter)
        self._lock.release()
        try:
            return waiter.acquire(timeout=-1 if timeout is None else max(0.0, timeout))
        finally:
            self._lock.acquire()
            waiters = self._waiters
            if waiters and waiter in waiters:
                waiters.remove(waiter)

    def notify_all(self) -> None:
        waiters, self._waiters = self._waiters, None
        for waiter in waiters or ():
            waiter.release()


class TaskFuture(GuardedFuture):
    """The future of a task.

    A task may wait at a worker behind others without having begun. It counts as running then, but can still be
    cancelled: the dispatcher takes it back first.
    """

    __slots__ = ("_dispatcher", "_task")

    def __init__(self) -> None:
        super().__init__()
        self._condition = _Condition()  # type: ignore[assignment]
        self._dispatcher: Any = None
        self._task: Task | None = None

    def bind(self, dispatcher: Any, task: Task) -> None:
        """Name the task that this is the future of, and who owns it."""
        self._dispatcher, self._task = dispatcher, task

    def cancel(self) -> bool:
        """Cancel the task unless it has begun; returns whether it is cancelled."""
        if super().cancel():
            if self._dispatcher is not None:
                self._dispatcher.forget(self._task)
                self._task = None
            return True
        task = self._task
        return task is not None and not self.done() and bool(self._dispatcher.take_back(task))

    def cancel_running(self) -> bool:
        """Cancel the task even if it runs: its process is ended; returns whether it is, or will be, cancelled."""
        if self.cancel():
            return True
        task = self._task
        return task is not None and bool(self._dispatcher.cancel_running(task))

    def set_running_or_notify_cancel(self) -> bool:
        if self._state == "FINISHED":  # the program has set a result itself, and keeps it
            return False
        return super().set_running_or_notify_cancel()

    # A task knows its future: an end of that cycle frees a large result with the last reference to the future.

    def set_result(self, result: Any) -> None:
        self._task = None
        super().set_result(result)

    def set_exception(self, exception: BaseException | None) -> None:
        self._task = None
        super().set_exception(exception)

    def put_back(self) -> None:
        """The task goes back into the queue: it may be cancelled, or start again."""
        with self._condition:
            if self._state == "RUNNING":
                self._state = "PENDING"


class Task:
    """A function, its pickled arguments and the resources it needs.

    The dispatcher owns it from the moment it is submitted.

    Attributes:
        payload: the pickled arguments; None when the task is closed
        inputs: futures whose results the arguments refer to, until these are known
        late: called with the inputs when they are done, where only then it is known what the task is: returns a future
            whose outcome is that of the task, or None if it is to run
        values: the pickled results of the inputs
        open_inputs: how many inputs are not done
        attempts: how often a worker has died of it, or with it
        estimate: seconds that it was thought to take when it was sent
    """

    __slots__ = (
        "attempts",
        "estimate",
        "fn",
        "future",
        "inputs",
        "late",
        "number",
        "open_inputs",
        "payload",
        "resources",
        "values",
        "worker",
    )

    def __init__(
        self,
        fn: FunctionRef,
        payload: Payload | None,
        resources: Resources,
        future: Any,
        inputs: list[Future[Any]] | None = None,
    ) -> None:
        self.number = next(numbers)
        self.fn = fn
        self.payload = payload
        self.resources = resources
        self.future = future
        self.inputs = inputs
        self.late: Callable[[Sequence[Future[Any]]], Future[Any] | None] | None = None
        self.values: Payload | None = None
        self.open_inputs = 0
        self.attempts = 0
        self.estimate = 0.0
        self.worker: Any = None

    def __repr__(self) -> str:
        return f"<Task {self.number} {self.fn.name}>"


class DependencyGraph:
    """Counts for each task the inputs that are not done. The cost is one callback per edge.

    Args:
        done: called, in whichever thread an input ends, with the task that waits for it
    """

    def __init__(self, done: Callable[[Task], None]) -> None:
        self._done = done

    def add(self, task: Task) -> bool:
        """Wait for the inputs of a task; returns whether there is nothing to wait for."""
        inputs = task.inputs or ()
        task.open_inputs = len(inputs)
        for future in inputs:
            future.add_done_callback(self._callback([task]))
        return not inputs

    def _callback(self, box: list[Task]) -> Callable[[Future[Any]], None]:
        # A future that is done keeps its callbacks: they must not keep the task alive, and the result of its future.
        return lambda _: self._done(box.pop())

    def input_done(self, task: Task) -> bool:
        """Count an input; returns whether it was the last."""
        task.open_inputs -= 1
        return task.open_inputs == 0


def failed_input(task: Task) -> BaseException | None:
    """The exception of the first input that failed or was cancelled."""
    for future in task.inputs or ():
        if future.cancelled():
            return CancelledError()
        error = future.exception()
        if error is not None:
            return error
    return None
