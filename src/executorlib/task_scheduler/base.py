"""What every scheduler promises to the executor in front of it."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from executorlib.task_scheduler.mapping import calls_of, map_calls

if TYPE_CHECKING:
    import queue

# A library is silent, unless the program says where its log goes.
logging.getLogger("executorlib").addHandler(logging.NullHandler())


class TaskSchedulerBase(ABC):
    """Takes calls and returns their futures. All methods may be called from any thread.

    The methods are those of `executorlib.executor.base.BaseExecutor`, which passes everything on: so an executor can
    stand in front of another executor as well.
    """

    @abstractmethod
    def submit(
        self, fn: Callable[..., Any], /, *args: Any, resource_dict: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> Future[Any]:
        """Schedule a call, see `BaseExecutor.submit`."""

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any] | Future[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[Any]:
        """The results of a call for each tuple of items, in order, see `BaseExecutor.map`."""
        calls, finite = calls_of(iterables)

        def submit(some: Iterable[tuple[Any, ...]]) -> list[Future[Any]]:
            return [self.submit(fn, *args) for args in some]

        return map_calls(submit, calls, finite, timeout, buffersize)

    def batched(self, iterable: Iterable[Future[Any]], n: int) -> list[Future[Any]]:
        """Group futures by n; see `executorlib.standalone.select.batch_futures`."""
        from executorlib.standalone.select import batch_futures

        return batch_futures(list(iterable), n)

    def cancel(self, future: Future[Any]) -> bool:
        """Cancel a call even if it runs, see `BaseExecutor.cancel`."""
        return future.cancel()

    @abstractmethod
    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; see `BaseExecutor.shutdown`."""

    @abstractmethod
    def terminate_workers(self) -> None:
        """End running calls too, and wait until their processes are gone."""

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

    @property
    def future_queue(self) -> queue.Queue[dict[str, Any]]:
        """The calls that have not begun, see `BaseExecutor.future_queue`."""
        import queue

        return queue.Queue()

    @abstractmethod
    def __len__(self) -> int:
        """Number of calls that have not begun."""
