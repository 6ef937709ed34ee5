"""What a library costs: to import, to start, while it waits."""

from __future__ import annotations

import gc
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pools import open_fresh, open_pool
from work import await_file, nap, nothing, process_id, started

_IMPORTS = {
    "executorlib": "from executorlib import SingleNodeExecutor",
    "published": "from executorlib import SingleNodeExecutor",
    "futures": "from concurrent.futures import ProcessPoolExecutor",
    "multiprocessing": "from multiprocessing import Pool",
    "loky": "from loky import ProcessPoolExecutor",
    "dask": "from distributed import Client",
    "parsl": "from parsl.executors import HighThroughputExecutor",
}


def _run_time(program: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True)
    return time.perf_counter() - start


def import_time(library: str, runs: int, package_only: bool = False) -> float:
    """Milliseconds of an import over an interpreter that imports nothing, both by turns."""
    statement = "import executorlib" if package_only else _IMPORTS[library]
    _run_time(statement)
    pairs = [(_run_time(statement), _run_time("pass")) for _ in range(runs)]
    return 1000 * (statistics.median(pair[0] for pair in pairs) - statistics.median(pair[1] for pair in pairs))


def first_result(library: str) -> float:
    """Milliseconds from the start of a script's interpreter to the script's first result."""
    name = "executorlib" if library == "published" else library
    script = Path(__file__).with_name("first") / f"first_{name}.py"
    start = time.monotonic()
    done = subprocess.run([sys.executable, str(script)], check=True, stdout=subprocess.PIPE, text=True)
    result, end = done.stdout.split()
    if result != "49":
        raise AssertionError(f"wrong result: {result}")
    return 1000 * (float(end) - start)


def waiting_cpu(library: str, seconds: float, kept: bool = True, workers: int = 2) -> float:
    """CPU of the parent, in per cent of a core, while two calls sleep and twenty wait for their turn."""
    pool = (open_pool if kept else open_fresh)(library, workers)
    if kept:
        pool.warm(workers)
    handles = [pool.submit(nap, seconds + 1.0) for _ in range(workers)]
    handles += [pool.submit(nothing, number) for number in range(20)]
    time.sleep(0.5)
    start, used = time.perf_counter(), time.process_time()
    time.sleep(seconds)
    share = (time.process_time() - used) / (time.perf_counter() - start)
    results = [pool.result(handle) for handle in handles]
    if results[workers:] != list(range(20)):
        raise AssertionError("wrong results")
    pool.close()
    return 100 * share


def _resident() -> int:
    """Bytes of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def queue_memory(library: str, calls: int, workers: int = 2) -> float:
    """Bytes that the parent's memory grows for each call that waits behind busy workers, its future included."""
    pool = open_pool(library, workers)
    pool.warm(workers)
    for handle in [pool.submit(nothing, number) for number in range(1000)]:
        pool.result(handle)
    handles: list[Any] = [None] * calls
    with tempfile.TemporaryDirectory() as directory:
        signal = Path(directory) / "go"
        # One more for each worker: some libraries send the next call ahead.
        blocking = [pool.submit(await_file, str(signal)) for _ in range(2 * workers)]
        time.sleep(0.3)
        gc.collect()
        before = _resident()
        for number in range(calls):
            handles[number] = pool.submit(nothing, number)
        time.sleep(1.0)
        grown = _resident() - before
        signal.touch()
        for handle in blocking:
            pool.result(handle)
    if [pool.result(handle) for handle in handles] != list(range(calls)):
        raise AssertionError("wrong results")
    pool.close()
    return grown / calls


def _mpi_executor() -> Any:
    from executorlib import SingleNodeExecutor

    return SingleNodeExecutor(max_workers=1, block_allocation=True, resource_dict={"cores": 2})


def _cpu_seconds(process: int) -> float:
    """User and system time of another process."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def mpi_idle_cpu(library: str, seconds: float) -> float:
    """CPU of the busier one of two MPI ranks without a call, in per cent of a core."""
    with _mpi_executor() as executor:
        ranks = executor.submit(process_id).result()
        if len(set(ranks)) != 2:
            raise AssertionError(f"wrong ranks: {ranks}")
        time.sleep(0.5)
        before = [_cpu_seconds(rank) for rank in ranks]
        time.sleep(seconds)
        shares = [(_cpu_seconds(rank) - used) / seconds for rank, used in zip(ranks, before, strict=True)]
        return 100 * max(shares)


def mpi_start(library: str, calls: int) -> float:
    """Milliseconds from submit to the start of a call on the later one of two idle MPI ranks: the median."""
    with _mpi_executor() as executor:
        executor.submit(started).result()
        delays: list[float] = []
        for _ in range(calls):
            time.sleep(0.2)
            submitted = time.monotonic()
            delays.append(max(executor.submit(started).result()) - submitted)
        return 1000 * statistics.median(delays)


CASES: dict[str, Any] = {
    "import": import_time,
    "first_result": first_result,
    "waiting_cpu": waiting_cpu,
    "queue_memory": queue_memory,
    "mpi_idle_cpu": mpi_idle_cpu,
    "mpi_start": mpi_start,
}
