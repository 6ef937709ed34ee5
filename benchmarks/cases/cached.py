"""Calls whose results are kept in files."""

# Each of these libraries is in its own environment; none need be in that of the type checker.
# mypy: disable-error-code="import-not-found,import-untyped"
from __future__ import annotations

import time
from typing import Any

from work import nap, nothing


def _executor() -> Any:
    from executorlib import SingleNodeExecutor

    return SingleNodeExecutor(max_workers=2, block_allocation=True, cache_directory="cache")


def _rate(first: int, calls: int) -> float:
    """Calls per second of one executor, whose workers have started."""
    numbers = range(first, first + calls)
    with _executor() as executor:
        for future in [executor.submit(nap, 0.01 * number) for number in range(4)]:
            future.result()
        start = time.perf_counter()
        results = [future.result() for future in [executor.submit(nothing, number) for number in numbers]]
        rate = calls / (time.perf_counter() - start)
    if results != list(numbers):
        raise AssertionError("wrong results")
    return rate


def cache(library: str, calls: int, reload: bool, files: int = 0) -> float:
    """Calls per second that are written to the cache, or found there, beside so many files of others."""
    if files:
        _rate(0, files)
    rate = _rate(files, calls)
    return _rate(files, calls) if reload else rate


def jobs(library: str, calls: int) -> float:
    """Calls per second that are jobs of this machine and talk to the program through files."""
    from executorlib.api import TestClusterExecutor

    start = time.perf_counter()
    with TestClusterExecutor(cache_directory="cache") as executor:
        results = [future.result() for future in [executor.submit(nothing, number) for number in range(calls)]]
    rate = calls / (time.perf_counter() - start)
    if results != list(range(calls)):
        raise AssertionError("wrong results")
    return rate


CASES: dict[str, Any] = {"cache": cache, "jobs": jobs}
