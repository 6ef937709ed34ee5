"""``map``: results in the order of the inputs, while the calls run in any order."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import CancelledError, Future
from typing import Any

_EAGER = 1 << 16
"""Calls submitted at once where nothing tells how many there will be; the rest follow as results are taken."""


def calls_of(iterables: tuple[Iterable[Any], ...]) -> tuple[Iterator[tuple[Any, ...]], bool]:
    """The argument tuples of a map, and whether there is certainly an end to them.

    A future is waited for: its result is the iterable.
    """
    known = [item.result() if isinstance(item, Future) else item for item in iterables]
    return zip(*known, strict=False), any(isinstance(item, Sized) for item in known)


def map_calls(
    submit: Callable[[tuple[Any, ...]], Any],
    calls: Iterator[tuple[Any, ...]],
    finite: bool,
    timeout: float | None,
    buffersize: int | None,
) -> Iterator[Any]:
    """Submit the calls and iterate over their results.

    As many calls as ``buffersize`` are submitted at once, each further one when a result is taken; without it all are,
    or the first 65,536 of an iterator that may not end. When the iterator is closed or fails, calls that have not
    begun are cancelled.

    Raises:
        ValueError: buffersize is not positive
        TimeoutError: from the iterator, if a result is not there ``timeout`` seconds after the call of map
    """
    if buffersize is not None and buffersize < 1:
        raise ValueError("buffersize must be None or a positive integer")
    end = None if timeout is None else timeout + time.monotonic()
    first = buffersize if buffersize is not None else (None if finite else _EAGER)
    futures = deque(submit(args) for args in itertools.islice(calls, first))
    return _results(futures, None if first is None else (submit(args) for args in calls), end)


def _results(futures: deque[Any], more: Iterator[Any] | None, end: float | None) -> Iterator[Any]:
    try:
        while futures:
            if more is not None:
                futures.extend(itertools.islice(more, 1))
            future = futures.popleft()
            try:
                result = future.result(None if end is None else end - time.monotonic())
            except BaseException:
                future.cancel()
                raise
            del future
            yield result
            del result
    finally:
        for future in futures:
            future.cancel()


class Cells:
    """The results of one map, without the cost of a `Future` for each.

    The thread that iterates waits for one cell at a time; the dispatcher wakes it when that cell is filled.
    """

    def __init__(self) -> None:
        self.awaited: Cell | None = None
        self.filled = threading.Event()


class Cell:
    """The part of a future's interface that the dispatcher and `map_calls` use."""

    __slots__ = ("_cells", "_error", "_result", "_state")

    _PENDING, _RUNNING, _DONE, _CANCELLED = range(4)

    def __init__(self, cells: Cells) -> None:
        self._cells = cells
        self._state = self._PENDING
        self._result: Any = None
        self._error: BaseException | None = None

    def bind(self, dispatcher: Any, task: Any) -> None:
        """A cell needs neither: it is cancelled with its map alone."""

    def cancelled(self) -> bool:
        return self._state == self._CANCELLED

    def done(self) -> bool:
        return self._state >= self._DONE

    def cancel(self) -> bool:
        if self._state == self._PENDING:
            self._end(self._CANCELLED)
        return self._state == self._CANCELLED

    def put_back(self) -> None:
        if self._state == self._RUNNING:
            self._state = self._PENDING

    def set_running_or_notify_cancel(self) -> bool:
        if self._state == self._PENDING:
            self._state = self._RUNNING
        return self._state == self._RUNNING

    def set_result(self, result: Any) -> None:
        self._result = result
        self._end(self._DONE)

    def set_exception(self, error: BaseException) -> None:
        self._error = error
        self._end(self._DONE)

    def result(self, timeout: float | None = None) -> Any:
        if self._state < self._DONE:
            self._wait(timeout)
        if self._state == self._CANCELLED:
            raise CancelledError
        if self._error is not None:
            try:
                raise self._error
            finally:
                self = None  # type: ignore[assignment]  # no cycle through the traceback, as in Future.result
        return self._result

    def _wait(self, timeout: float | None) -> None:
        cells = self._cells
        cells.filled.clear()
        cells.awaited = self
        try:
            if self._state < self._DONE and not cells.filled.wait(timeout):
                raise TimeoutError
        finally:
            cells.awaited = None

    def _end(self, state: int) -> None:
        self._state = state
        if self._cells.awaited is self:
            self._cells.filled.set()
