"""Futures that stand for a part of another future's result, or for the results of several."""

from __future__ import annotations

import threading
from collections.abc import Container, Sequence
from concurrent.futures import Future
from typing import Any

from executorlib.standalone.callbacks import GuardedFuture

# Attribute of a future that comes from others: these.
_PARENTS = "_executorlib_parents"


def will_end(future: Future[Any], provided: Container[int]) -> bool:
    """Whether a future is done, or derived from futures that are or whose identities are among the given ones."""
    open_futures = [future]
    while open_futures:
        future = open_futures.pop()
        if future.done() or id(future) in provided:
            continue
        parents = getattr(future, _PARENTS, ())
        if not parents:
            return False
        open_futures += parents
    return True


class FutureSelector(GuardedFuture):
    """One item of the result of another future; as good as any future, as an input of a task too.

    It is done, cancelled or failed as soon as the other future is; an item that does not exist is its exception.

    Args:
        future: the future whose result has several items
        selector: the key or the index of the item
    """

    def __init__(self, future: Future[Any], selector: int | str) -> None:
        super().__init__()
        self._future = future
        self._selector = selector
        setattr(self, _PARENTS, (future,))
        future.add_done_callback(self._select)

    def __repr__(self) -> str:
        return f"<FutureSelector {self._selector!r} of {self._future!r}>"

    def cancel(self) -> bool:
        """Cancel the other future, and with it every item of its result."""
        return self._future.cancel() or self.cancelled()

    def running(self) -> bool:
        return self._future.running()

    def _select(self, future: Future[Any]) -> None:
        if future.cancelled():
            super().cancel()
            self.set_running_or_notify_cancel()
            return
        error = future.exception()
        if error is None:
            try:
                result = future.result()
                # A graph that is drawn and not run has no results.
                item = None if getattr(future, "is_recorded", False) else result[self._selector]
            except Exception as missing:
                error = missing
        if error is None:
            self.set_result(item)
        else:
            self.set_exception(error)


def split_future(future: Future[Any], n: int) -> list[FutureSelector]:
    """Split a future of a sequence into futures of its items.

    Args:
        future: a future whose result is a tuple or a list of at least n items
        n: number of items

    Returns:
        n futures, the i-th for the i-th item; ``IndexError`` appears in those that have no item
    """
    return [FutureSelector(future=future, selector=i) for i in range(n)]


def get_item_from_future(future: Future[Any], key: str) -> FutureSelector:
    """The future of one entry of a future's dictionary.

    Args:
        future: a future whose result is a dictionary
        key: key of the entry; ``KeyError`` appears in the returned future if there is none
    """
    return FutureSelector(future=future, selector=key)


def batch_futures(futures: Sequence[Future[Any]], n: int) -> list[Future[Any]]:
    """Group futures by n, in the order in which they are done: a slow one does not hold up the groups of the others.

    Args:
        futures: the futures to group
        n: size of a group; the last may be smaller

    Returns:
        one future for each group: the list of its results, in the order of ``futures``. A future that fails or is
        cancelled fails its group.

    Raises:
        ValueError: n is less than 1
    """
    if n < 1:
        raise ValueError(f"a batch has at least 1 future, not {n}")
    groups: list[Future[Any]] = [GuardedFuture() for _ in range(-(-len(futures) // n))]
    for group in groups:
        setattr(group, _PARENTS, futures)
    done: list[int] = []
    lock = threading.Lock()  # futures of several executors end in several threads

    def collect(number: int) -> None:
        with lock:
            done.append(number)
            position = len(done)
        if position % n == 0 or position == len(futures):
            group = (position - 1) // n
            members = [futures[i] for i in sorted(done[group * n : position])]
            _settle(groups[group], members)

    for number, future in enumerate(futures):
        future.add_done_callback(lambda _, number=number: collect(number))  # type: ignore[misc]
    return groups


def _settle(group: Future[Any], members: list[Future[Any]]) -> None:
    setattr(group, _PARENTS, ())
    if not group.set_running_or_notify_cancel():
        return
    try:
        group.set_result([future.result() for future in members])
    except BaseException as error:
        group.set_exception(error)
