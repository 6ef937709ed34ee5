"""How fast calls go through. Each case returns the figure of its row, after it has checked the results."""

from __future__ import annotations

import heapq
import random
import statistics
import time
from typing import Any

from pools import Pool, open_fresh, open_pool
from work import add, increment, nap, nothing, total


def _expect(right: bool, what: str) -> None:
    if not right:
        raise AssertionError(f"wrong results: {what}")


def _opened(library: str, workers: int) -> Pool:
    pool = open_pool(library, workers)
    pool.warm(workers)
    return pool


def fresh(library: str, calls: int, workers: int = 2) -> float:
    """Calls per second where each has a fresh process."""
    pool = open_fresh(library, workers)
    pool.result(pool.submit(nothing, 0))
    start = time.perf_counter()
    results = [pool.result(handle) for handle in [pool.submit(nothing, number) for number in range(calls)]]
    rate = calls / (time.perf_counter() - start)
    _expect(results == list(range(calls)), "fresh")
    pool.close()
    return rate


def submit(library: str, calls: int, workers: int = 2) -> float:
    """Calls per second, all submitted, then all results taken."""
    pool = _opened(library, workers)
    start = time.perf_counter()
    handles = [pool.submit(nothing, number) for number in range(calls)]
    results = [pool.result(handle) for handle in handles]
    rate = calls / (time.perf_counter() - start)
    _expect(results == list(range(calls)), "submit")
    pool.close()
    return rate


def map_all(library: str, calls: int, workers: int = 2) -> float:
    """Calls per second of one map with the library's default chunksize."""
    pool = _opened(library, workers)
    start = time.perf_counter()
    results = pool.map(nothing, range(calls))
    rate = calls / (time.perf_counter() - start)
    _expect(results == list(range(calls)), "map")
    pool.close()
    return rate


def round_trip(library: str, calls: int, workers: int = 2) -> float:
    """Microseconds from submit to result of one call at a time: the median."""
    pool = _opened(library, workers)
    seconds = []
    for number in range(calls):
        start = time.perf_counter()
        result = pool.result(pool.submit(nothing, number))
        seconds.append(time.perf_counter() - start)
        _expect(result == number, "round trip")
    pool.close()
    return statistics.median(seconds) * 1e6


def chain(library: str, calls: int, workers: int = 2) -> float:
    """Calls per second where each needs the result of the one before it."""
    pool = _opened(library, workers)
    pool.result(pool.submit(increment, 0))
    start = time.perf_counter()
    handle = pool.submit(increment, 0)
    for _ in range(calls - 1):
        handle = pool.submit(increment, handle)
    result = pool.result(handle)
    rate = calls / (time.perf_counter() - start)
    _expect(result == calls, "chain")
    pool.close()
    return rate


def graph(library: str, leaves: int, workers: int = 2) -> float:
    """Tasks per second of as many leaves, sums of neighbouring pairs, and the sum of these."""
    pool = _opened(library, workers)
    pool.result(pool.submit(total, [pool.submit(add, 0, 1)]))
    start = time.perf_counter()
    grown = [pool.submit(nothing, number) for number in range(leaves)]
    pairs = [pool.submit(add, grown[number - 1], grown[number]) for number in range(leaves)]
    result = pool.result(pool.submit(total, pairs))
    rate = (2 * leaves + 1) / (time.perf_counter() - start)
    _expect(result == leaves * (leaves - 1), "graph")
    pool.close()
    return rate


def array(library: str, megabytes: int, trips: int, workers: int = 2) -> float:
    """Megabytes per second of an array that goes to a worker and comes back, both ways counted: the median."""
    import numpy

    pool = _opened(library, workers)
    sent = numpy.arange(megabytes * 125_000, dtype=numpy.float64)
    seconds = []
    for _ in range(trips + 1):
        start = time.perf_counter()
        received = pool.result(pool.submit(nothing, sent))
        seconds.append(time.perf_counter() - start)
        _expect(received is not sent and bool((received == sent).all()), "array")
        del received
    pool.close()
    return 2 * megabytes / statistics.median(seconds[1:])


def sleepers(library: str, calls: int, workers: int = 64) -> float:
    """Calls per second that sleep for 10 ms each."""
    pool = _opened(library, workers)
    start = time.perf_counter()
    handles = [pool.submit(nap, 0.01) for _ in range(calls)]
    naps = [pool.result(handle) for handle in handles]
    rate = calls / (time.perf_counter() - start)
    _expect(min(naps) >= 0.0099, "sleepers")
    pool.close()
    return rate


def mixed(library: str, long: int, short: int, workers: int = 4) -> float:
    """Makespan of naps of 1 s and of 1 ms, over the ideal one: each nap goes to the worker that is free first.

    The naps count for the ideal as long as they really were.
    """
    pool = _opened(library, workers)
    asked = _mixed_naps(long, short)
    start = time.perf_counter()
    handles = [pool.submit(nap, seconds) for seconds in asked]
    naps = [pool.result(handle) for handle in handles]
    makespan = time.perf_counter() - start
    _expect(all(nap >= seconds * 0.99 for nap, seconds in zip(naps, asked, strict=True)), "mixed")
    pool.close()
    free = [0.0] * workers
    for seconds in naps:
        heapq.heapreplace(free, free[0] + seconds)
    return makespan / max(free)


def _mixed_naps(long: int, short: int) -> list[float]:
    """Seconds of long naps (1 s) and short ones (1 ms), the long ones anywhere in the first half."""
    order = random.Random(3)
    naps = [0.001] * short
    for _ in range(long):
        naps.insert(order.randrange(len(naps) // 2 + 1), 1.0)
    return naps


CASES: dict[str, Any] = {
    "fresh": fresh,
    "submit": submit,
    "map": map_all,
    "round_trip": round_trip,
    "chain": chain,
    "graph": graph,
    "array": array,
    "sleepers": sleepers,
    "mixed": mixed,
}
