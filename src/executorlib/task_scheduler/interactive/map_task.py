"""The calls of a map: tasks that are their own futures."""

from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as NotDoneError  # before Python 3.11 not the one of the builtins
from typing import Any

from executorlib.standalone.functions import FunctionRef
from executorlib.standalone.resources import Resources
from executorlib.standalone.serialize import Payload
from executorlib.task_scheduler.interactive.task import Task

_PENDING, _RUNNING, _DONE, _CANCELLED = range(4)


class MapResults:
    """What the calls of one map share: the thread that iterates waits for one of them at a time."""

    __slots__ = ("awaited", "filled")

    def __init__(self) -> None:
        self.awaited: MapTask | None = None
        self.filled = threading.Event()


class MapTask(Task):
    """A call of a map, with the part of a future's interface that the dispatcher and `map_calls` use.

    Nobody else sees it, so that it needs no lock and no callbacks: it costs a tenth of a `Future`.
    """

    __slots__ = ("_error", "_result", "_results", "_state")

    def __init__(self, fn: FunctionRef, payload: Payload | None, resources: Resources, results: MapResults) -> None:
        super().__init__(fn, payload, resources, None)
        self._results = results
        self._state = _PENDING
        self._result: Any = None
        self._error: BaseException | None = None

    @property
    def future(self) -> MapTask:
        return self

    @future.setter
    def future(self, future: None) -> None: ...

    def cancelled(self) -> bool:
        return self._state == _CANCELLED

    def done(self) -> bool:
        return self._state >= _DONE

    def cancel(self) -> bool:
        if self._state == _PENDING:
            self._end(_CANCELLED)
        return self._state == _CANCELLED

    def put_back(self) -> None:
        if self._state == _RUNNING:
            self._state = _PENDING

    def set_running_or_notify_cancel(self) -> bool:
        if self._state == _PENDING:
            self._state = _RUNNING
        return self._state == _RUNNING

    def set_result(self, result: Any) -> None:
        self._result = result
        self._end(_DONE)

    def set_exception(self, error: BaseException) -> None:
        self._error = error
        self._end(_DONE)

    def result(self, timeout: float | None = None) -> Any:
        """As `Future.result`."""
        if self._state < _DONE:
            self._wait(timeout)
        if self._state == _CANCELLED:
            raise CancelledError
        if self._error is not None:
            try:
                raise self._error
            finally:
                self = None  # type: ignore[assignment]  # no cycle through the traceback, as in Future.result
        return self._result

    def _wait(self, timeout: float | None) -> None:
        results = self._results
        end = None if timeout is None else time.monotonic() + timeout
        results.awaited = self
        try:
            while self._state < _DONE:
                results.filled.clear()
                if self._state >= _DONE:
                    break
                # It may be told of the one before: whoever ends a task looks for who waits, and tells a moment later.
                if not results.filled.wait(None if end is None else end - time.monotonic()) and self._state < _DONE:
                    raise NotDoneError
        finally:
            results.awaited = None

    def _end(self, state: int) -> None:
        self._state = state
        if self._results.awaited is self:
            self._results.filled.set()
