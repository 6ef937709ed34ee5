"""What every scheduler promises to the executor in front of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from typing import Any


class TaskSchedulerBase(ABC):
    """Takes calls and returns their futures. All methods may be called from any thread."""

    @abstractmethod
    def submit(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        resource_dict: Mapping[str, Any] | None = None,
    ) -> Future[Any]:
        """Schedule a call.

        Raises:
            RuntimeError: after `shutdown`
            ValueError: the call needs more than the scheduler may ever use
        """

    @abstractmethod
    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; see `concurrent.futures.Executor.shutdown`."""

    def map(
        self,
        fn: Callable[..., Any],
        iterables: tuple[Iterable[Any], ...],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[Any]:
        """The results of a call for each tuple of items, in order; see `concurrent.futures.Executor.map`."""
        from executorlib.task_scheduler.mapping import calls_of, map_calls

        calls, finite = calls_of(iterables)

        def submit(some: Iterable[tuple[Any, ...]]) -> list[Future[Any]]:
            return [self.submit(fn, args, {}) for args in some]

        return map_calls(submit, calls, finite, timeout, buffersize)

    def batched(self, futures: list[Future[Any]], n: int) -> list[Future[Any]]:
        """Group futures by n; see `executorlib.standalone.select.batch_futures`."""
        from executorlib.standalone.select import batch_futures

        return batch_futures(futures, n)

    @abstractmethod
    def kill(self) -> None:
        """End running tasks too, and wait until their processes are gone."""

    @property
    @abstractmethod
    def max_workers(self) -> int | None:
        """How many workers run at a time at most."""

    @max_workers.setter
    @abstractmethod
    def max_workers(self, max_workers: int) -> None: ...

    @property
    def info(self) -> dict[str, Any] | None:
        """The settings of the scheduler, or None."""
        return None

    @abstractmethod
    def __len__(self) -> int:
        """Number of calls that have not begun."""
