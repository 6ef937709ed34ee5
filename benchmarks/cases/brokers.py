"""How fast calls go through Flux. They need the command `flux`, and run in the instance of FLUX_URI or in their own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time

from throughput import _expect
from work import nothing

_HOLD = "import os, sys; print(os.environ['FLUX_URI'], flush=True); sys.stdin.read()"


class _Instance:
    """Two brokers on this machine, unless the program runs in an instance."""

    _process: subprocess.Popen[str] | None = None

    def __enter__(self) -> None:
        if "FLUX_URI" in os.environ:
            return
        command = ["flux", "start", "--test-size=2", sys.executable, "-c", _HOLD]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self._process.stdout is not None
        os.environ["FLUX_URI"] = self._process.stdout.readline().strip()

    def __exit__(self, *reason: object) -> None:
        if self._process is not None:
            del os.environ["FLUX_URI"]
            self._process.communicate(timeout=30)


def flux_fresh(library: str, calls: int) -> float:
    """Calls per second where each has a fresh process in the instance."""
    from executorlib import FluxJobExecutor

    with _Instance(), FluxJobExecutor(max_cores=2) as exe:
        for future in [exe.submit(nothing, number) for number in range(4)]:
            future.result()
        start = time.perf_counter()
        results = [future.result() for future in [exe.submit(nothing, number) for number in range(calls)]]
        rate = calls / (time.perf_counter() - start)
    _expect(results == list(range(calls)), "flux_fresh")
    return rate


def flux_block(library: str, calls: int) -> float:
    """Calls per second of kept workers in the instance."""
    from executorlib import FluxJobExecutor

    with _Instance(), FluxJobExecutor(max_workers=2, block_allocation=True) as exe:
        for future in [exe.submit(nothing, number) for number in range(100)]:
            future.result()
        start = time.perf_counter()
        results = [future.result() for future in [exe.submit(nothing, number) for number in range(calls)]]
        rate = calls / (time.perf_counter() - start)
    _expect(results == list(range(calls)), "flux_block")
    return rate


def flux_jobs(library: str, calls: int) -> float:
    """Calls per second of jobs that work through files."""
    from executorlib import FluxClusterExecutor

    with tempfile.TemporaryDirectory() as folder, _Instance(), FluxClusterExecutor(cache_directory=folder) as exe:
        exe.submit(nothing, -1).result()
        start = time.perf_counter()
        results = [future.result() for future in [exe.submit(nothing, number) for number in range(calls)]]
        rate = calls / (time.perf_counter() - start)
    _expect(results == list(range(calls)), "flux_jobs")
    return rate


CASES = {"flux_fresh": flux_fresh, "flux_block": flux_block, "flux_jobs": flux_jobs}
