"""``map``: results in the order of the inputs, while the calls run in any order."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import Future
from typing import Any

_EAGER = 1 << 16
"""Calls submitted at once where nothing tells how many there will be; the rest follow as results are taken."""

Submit = Callable[[Iterable[tuple[Any, ...]]], Iterable[Any]]
"""Submits calls with the given arguments and returns their futures."""


def calls_of(iterables: tuple[Iterable[Any] | Future[Any], ...]) -> tuple[Iterator[tuple[Any, ...]], bool]:
    """The argument tuples of a map, and whether there is certainly an end to them.

    A future is waited for: its result is the iterable.
    """
    known = [item.result() if isinstance(item, Future) else item for item in iterables]
    return zip(*known, strict=False), any(isinstance(item, Sized) for item in known)


def map_calls(
    submit: Submit,
    calls: Iterator[tuple[Any, ...]],
    finite: bool,
    timeout: float | None,
    buffersize: int | None,
    cancel: Callable[[Iterable[Any]], None] | None = None,
) -> Iterator[Any]:
    """Submit the calls and iterate over their results.

    As many calls as ``buffersize`` are submitted at once, each further one when a result is taken; without it all are,
    or the first 65,536 of an iterator that may not end. When the iterator is closed or fails, calls that have not
    begun are cancelled.

    Raises:
        ValueError: buffersize is not positive
        concurrent.futures.TimeoutError: from the iterator, if a result is not there ``timeout`` seconds after the call
            of map
    """
    if buffersize is not None and buffersize < 1:
        raise ValueError("buffersize must be None or a positive integer")
    end = None if timeout is None else timeout + time.monotonic()
    first = buffersize if buffersize is not None else (None if finite else _EAGER)
    futures = deque(submit(itertools.islice(calls, first)))
    more = None if first is None else lambda: submit(itertools.islice(calls, 1))
    return _results(futures, more, end, cancel or _cancel_each)


def _results(
    futures: deque[Any],
    more: Callable[[], Iterable[Any]] | None,
    end: float | None,
    cancel: Callable[[Iterable[Any]], None],
) -> Iterator[Any]:
    try:
        while futures:
            if more is not None:
                futures.extend(more())
            yield _first(futures, end)  # held by no variable here while the caller uses it
    finally:
        if futures:
            cancel(futures)


def _first(futures: deque[Any], end: float | None) -> Any:
    # Not taken out before it has ended: then it would not be cancelled with the rest.
    result = futures[0].result(None if end is None else end - time.monotonic())
    futures.popleft()
    return result


def _cancel_each(futures: Iterable[Any]) -> None:
    for future in futures:
        future.cancel()
