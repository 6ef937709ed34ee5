"""What all executors have in common."""

from __future__ import annotations

from concurrent.futures import Executor

TYPE_CHECKING = False
if TYPE_CHECKING:
    import queue
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from concurrent.futures import Future
    from typing import Any

    from executorlib.task_scheduler.base import TaskSchedulerBase


class BaseExecutor(Executor):
    """A `concurrent.futures.Executor` in front of a scheduler.

    Args:
        executor: the scheduler that does the work, or another executor
    """

    def __init__(self, executor: TaskSchedulerBase | BaseExecutor) -> None:
        self._task_scheduler = executor

    @property
    def max_workers(self) -> int | None:
        """Number of workers that run at a time at most; set it to resize the executor."""
        return self._task_scheduler.max_workers

    @max_workers.setter
    def max_workers(self, max_workers: int) -> None:
        self._task_scheduler.max_workers = max_workers

    # Names under which other libraries ask a pool for its size.
    @property
    def _max_workers(self) -> int | None:
        return self.max_workers

    @property
    def _processes(self) -> int | None:
        return self.max_workers

    @property
    def size(self) -> int | None:
        """The same as `max_workers`, as the pools of MPI libraries call it."""
        return self.max_workers

    @property
    def info(self) -> dict[str, Any] | None:
        """The settings of the executor's workers, or None."""
        return self._task_scheduler.info

    @property
    def future_queue(self) -> queue.Queue[dict[str, Any]]:
        """The calls that have not begun, as a queue of dictionaries with the key ``"future"``.

        It is a copy: taking an item from it leaves the call where it is, while cancelling the item's future cancels
        the call.
        """
        return self._task_scheduler.future_queue

    def submit(  # type: ignore[override]
        self,
        fn: Callable[..., Any],
        /,
        *args: Any,
        resource_dict: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Future[Any]:
        """Schedule ``fn(*args, **kwargs)`` and return its future.

        Futures among the arguments, also inside lists, tuples and dictionaries, are inputs: the call starts when they
        are done, with their results in their places. If one fails, this call fails with the same exception.

        Args:
            fn: any callable
            resource_dict: resources of this call beside those of the executor, see
                `executorlib.standalone.resources.ResourceDict`

        Raises:
            RuntimeError: after `shutdown`
            ValueError: the call needs more than the executor may ever use, or the function has a parameter called
                ``resource_dict``
            TypeError: the ``resource_dict`` is wrong, or there are no GPUs (``pydantic.ValidationError`` where
                pydantic is installed)
        """
        return self._task_scheduler.submit(fn, *args, resource_dict=resource_dict, **kwargs)

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any] | Future[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[Any]:
        """Call a function for each tuple of items; returns an iterator over the results, in order.

        Args:
            fn: a callable of as many arguments as there are iterables
            iterables: where the arguments come from; a future stands for its result
            timeout: seconds from this call until a result must be there
            chunksize: how many calls are worth a message to a worker; small ones are bundled anyway, so that this
                matters for the first of them only (block allocation)
            buffersize: how many calls may be submitted ahead of the results taken; None for all

        Raises:
            TimeoutError: from the iterator
            Exception: from the iterator, what a call raised; calls that have not begun are cancelled then
        """
        return self._task_scheduler.map(fn, *iterables, timeout=timeout, chunksize=chunksize, buffersize=buffersize)

    def starmap(self, fn: Callable[..., Any], iterable: Iterable[Iterable[Any]], chunksize: int = 1) -> list[Any]:
        """The results of ``fn(*args)`` for each item of an iterable, as `multiprocessing.Pool.starmap` gives them."""
        calls = [tuple(args) for args in iterable]
        return list(self.map(_Star(fn), calls, chunksize=chunksize))

    def batched(self, iterable: Iterable[Future[Any]], n: int) -> list[Future[Any]]:
        """Group futures by n, see `executorlib.standalone.select.batch_futures`."""
        return self._task_scheduler.batched(iterable, n)

    def cancel(self, future: Future[Any]) -> bool:
        """Cancel a call even if it runs: its process is ended, and the future raises `CancelledError`.

        ``future.cancel()`` in contrast leaves a running call alone, as in the standard library.

        Args:
            future: what `submit` of this executor returned

        Returns:
            whether the call is cancelled, or will be when its process has ended; False for a call that is done
        """
        return self._task_scheduler.cancel(future)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls, and free what the executor holds when those that were submitted have ended.

        Args:
            wait: whether to wait for that
            cancel_futures: cancel the calls that have not begun
        """
        self._task_scheduler.shutdown(wait=wait, cancel_futures=cancel_futures)

    def terminate_workers(self) -> None:
        """End all workers now, with what they run, and shut down (as in Python 3.14)."""
        self._task_scheduler.terminate_workers()

    def kill_workers(self) -> None:
        """The same as `terminate_workers`: processes of this library are ended in any case."""
        self._task_scheduler.terminate_workers()

    def __exit__(self, exc_type: type[BaseException] | None, exc_val: Any, exc_tb: Any) -> None:
        """Wait for the calls that were submitted. After Ctrl-C end them."""
        if exc_type is not None and issubclass(exc_type, KeyboardInterrupt):
            self._task_scheduler.terminate_workers()
            return
        try:
            self.shutdown(wait=True)
        except KeyboardInterrupt:
            self._task_scheduler.terminate_workers()
            raise

    def __len__(self) -> int:
        """Number of calls that have not begun."""
        return len(self._task_scheduler)

    def __bool__(self) -> bool:
        """An executor is true, even when nothing is queued."""
        return True


class _Star:
    """Calls a function with the items of one argument."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        self._fn = fn

    def __call__(self, args: tuple[Any, ...]) -> Any:
        return self._fn(*args)
