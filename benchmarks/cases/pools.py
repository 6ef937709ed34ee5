"""Every library behind one face: submit, result, map, close."""

# Each of these libraries is in its own environment; none need be in that of the type checker.
# mypy: disable-error-code="import-not-found,import-untyped"
from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

from work import nap, nothing


@dataclass(frozen=True, slots=True)
class Pool:
    """The four things that a benchmark asks of a library.

    Attributes:
        submit: schedules a call and returns a handle
        result: waits for the result behind a handle
        map: the list of results of a function for each item, with the library's own defaults
        close: ends the workers
        itself: the library's object, for programs that take a pool
    """

    submit: Callable[..., Any]
    result: Callable[[Any], Any]
    map: Callable[[Callable[..., Any], Iterable[Any]], list[Any]]
    close: Callable[[], object]
    itself: Any

    def warm(self, workers: int) -> None:
        """Wait until every worker runs, and has seen an empty call."""
        for handle in [self.submit(nap, 0.05) for _ in range(2 * workers)]:
            self.result(handle)
        for handle in [self.submit(nothing, number) for number in range(10 * workers)]:
            self.result(handle)


def open_pool(library: str, workers: int) -> Pool:
    """A library with workers that it keeps.

    Raises:
        ImportError: the library is not in this environment
    """
    return _KEPT[library](workers)


def open_fresh(library: str, workers: int) -> Pool:
    """A library in the mode in which every call has a process of its own."""
    return _FRESH[library](workers)


def _of_executor(executor: Any) -> Pool:
    """The interface of concurrent.futures."""
    return Pool(
        submit=executor.submit,
        result=lambda future: future.result(),
        map=lambda function, items: list(executor.map(function, items)),
        close=executor.shutdown,
        itself=executor,
    )


def _executorlib(workers: int) -> Pool:
    from executorlib import SingleNodeExecutor

    return _of_executor(SingleNodeExecutor(max_workers=workers, block_allocation=True))


def _executorlib_fresh(workers: int) -> Pool:
    from executorlib import SingleNodeExecutor

    return _of_executor(SingleNodeExecutor(max_cores=workers))


def _futures(workers: int) -> Pool:
    return _of_executor(ProcessPoolExecutor(workers))


def _futures_fresh(workers: int) -> Pool:
    context = multiprocessing.get_context("forkserver")
    return _of_executor(ProcessPoolExecutor(workers, mp_context=context, max_tasks_per_child=1))


def _of_multiprocessing(pool: Any) -> Pool:
    def close() -> None:
        pool.close()
        pool.join()

    return Pool(
        submit=lambda function, *args: pool.apply_async(function, args),
        result=lambda handle: handle.get(),
        map=pool.map,
        close=close,
        itself=pool,
    )


def _multiprocessing(workers: int) -> Pool:
    return _of_multiprocessing(multiprocessing.Pool(workers))


def _multiprocessing_fresh(workers: int) -> Pool:
    return _of_multiprocessing(multiprocessing.Pool(workers, maxtasksperchild=1))


def _loky(workers: int) -> Pool:
    from loky import ProcessPoolExecutor as LokyExecutor

    return _of_executor(LokyExecutor(max_workers=workers))


def _dask(workers: int) -> Pool:
    from distributed import Client, LocalCluster

    cluster = LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None)
    client = Client(cluster)

    def close() -> None:
        client.close()
        cluster.close()

    return Pool(
        # Otherwise it takes equal calls for one call, and runs it once.
        submit=lambda function, *args: client.submit(function, *args, pure=False),
        result=lambda future: future.result(),
        map=lambda function, items: list(client.gather(client.map(function, list(items), pure=False))),
        close=close,
        itself=client,
    )


def _parsl(workers: int) -> Pool:
    import parsl
    from parsl.dataflow.dependency_resolvers import DEEP_DEPENDENCY_RESOLVER
    from parsl.executors import HighThroughputExecutor
    from parsl.providers import LocalProvider

    executor = HighThroughputExecutor(
        label="local",
        address="127.0.0.1",
        max_workers_per_node=workers,
        cores_per_worker=(os.cpu_count() or 1) / workers,
        provider=LocalProvider(init_blocks=1, min_blocks=1, max_blocks=1),
    )
    kernel = parsl.load(
        parsl.Config(
            executors=[executor],
            strategy="none",
            initialize_logging=False,
            dependency_resolver=DEEP_DEPENDENCY_RESOLVER,  # futures inside of lists
        )
    )
    apps: dict[Callable[..., Any], Callable[..., Any]] = {}

    def submit(function: Callable[..., Any], *args: Any) -> Any:
        if function not in apps:
            apps[function] = parsl.python_app(function, data_flow_kernel=kernel)
        return apps[function](*args)

    def parsl_map(function: Callable[..., Any], items: Iterable[Any]) -> list[Any]:
        return [future.result() for future in [submit(function, item) for item in items]]

    def close() -> None:
        kernel.cleanup()
        parsl.clear()

    return Pool(submit=submit, result=lambda future: future.result(), map=parsl_map, close=close, itself=kernel)


_KEPT = {
    "executorlib": _executorlib,
    "published": _executorlib,  # the same calls, in an environment with the other release
    "futures": _futures,
    "multiprocessing": _multiprocessing,
    "loky": _loky,
    "dask": _dask,
    "parsl": _parsl,
}

_FRESH = {
    "executorlib": _executorlib_fresh,
    "published": _executorlib_fresh,
    "futures": _futures_fresh,
    "multiprocessing": _multiprocessing_fresh,
}
