"""How fast calls go through Slurm. They need one that runs: `.ci/slurm start` makes one of two nodes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

from throughput import _expect
from work import nothing

_DUMP = "import json, os, sys; print(json.dumps(dict(os.environ)), flush=True); sys.stdin.read()"


class _Allocation:
    """Two nodes with two cores of each, as a program finds them in a batch job."""

    def __enter__(self) -> None:
        command = ["salloc", "--quiet", "--immediate=30", "--nodes=2", "--ntasks=4", sys.executable, "-c", _DUMP]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self._process.stdout is not None
        found = json.loads(self._process.stdout.readline())
        os.environ.update({name: value for name, value in found.items() if name.startswith("SLURM_")})

    def __exit__(self, *_: object) -> None:
        self._process.communicate()


def slurm_fresh(library: str, calls: int) -> float:
    """Calls per second where each has a fresh process in the allocation."""
    from executorlib import SlurmJobExecutor

    with _Allocation(), SlurmJobExecutor(max_cores=4) as exe:
        for future in [exe.submit(nothing, number) for number in range(4)]:
            future.result()
        start = time.perf_counter()
        results = [future.result() for future in [exe.submit(nothing, number) for number in range(calls)]]
        rate = calls / (time.perf_counter() - start)
    _expect(results == list(range(calls)), "slurm_fresh")
    return rate


def slurm_block(library: str, calls: int) -> float:
    """Calls per second of kept workers in the allocation."""
    from executorlib import SlurmJobExecutor

    with _Allocation(), SlurmJobExecutor(max_workers=2, block_allocation=True) as exe:
        for future in [exe.submit(nothing, number) for number in range(100)]:
            future.result()
        start = time.perf_counter()
        results = [future.result() for future in [exe.submit(nothing, number) for number in range(calls)]]
        rate = calls / (time.perf_counter() - start)
    _expect(results == list(range(calls)), "slurm_block")
    return rate


def slurm_map(library: str, calls: int) -> float:
    """Calls per second of a map of batch jobs."""
    from executorlib import SlurmClusterExecutor

    with SlurmClusterExecutor() as exe:
        exe.submit(nothing, -1).result()
        start = time.perf_counter()
        results = list(exe.map(nothing, range(calls)))
        rate = calls / (time.perf_counter() - start)
    _expect(results == list(range(calls)), "slurm_map")
    return rate


CASES = {"slurm_fresh": slurm_fresh, "slurm_block": slurm_block, "slurm_map": slurm_map}
