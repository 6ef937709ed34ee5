"""Functions that become batch jobs."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any


def add(x: Any, y: Any = 0) -> Any:
    return x + y


def job_of(x: Any = None) -> tuple[str, str]:
    """The number of the job, and its name."""
    return os.environ["SLURM_JOB_ID"], os.environ["SLURM_JOB_NAME"]


def say_and_kill_self(text: str) -> None:
    print(text, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def hold(begun: str, until: str, value: Any = None) -> Any:
    Path(begun).touch()
    deadline = time.monotonic() + 40
    while not Path(until).exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    return value


def hold_from_two(number: int) -> None:
    """The first two calls return at once."""
    if number > 1:
        hold(f"begun{number}", "never")


def note(log: str, value: Any, seconds: float = 0.0) -> Any:
    with open(log, "a") as file:
        file.write(f"{value}\n")
    time.sleep(seconds)
    return value


def note_place(log: str, value: Any) -> Any:
    with open(log, "a") as file:
        file.write(f"{value} {os.environ.get('SLURM_ARRAY_TASK_ID')}\n")
    return value


def fail(message: str) -> None:
    raise LookupError(message)


def take_memory(size: int) -> int:
    held = bytearray(size)
    for page in range(0, size, 4096):
        held[page] = 1
    time.sleep(20)
    return len(held)


def rank_and_node() -> tuple[int, int, str]:
    from mpi4py import MPI

    return MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size, os.environ["SLURMD_NODENAME"]


def count_to(path: str, last: int, seconds: float) -> int:
    """Goes on where an attempt before has come to; every attempt takes so long."""
    count = int(Path(path).read_text()) if Path(path).exists() else 0
    Path(path).write_text(str(count + 1))
    if count + 1 < last:
        time.sleep(seconds)
    return count + 1


def run_in_job(n: int) -> list[int]:
    """An executor in the allocation of a batch job."""
    from executorlib import SlurmJobExecutor

    with SlurmJobExecutor() as exe:
        return [future.result() for future in [exe.submit(add, i, 1) for i in range(n)]]


class HeldUp:
    """An argument that takes its time to be unpickled."""

    def __init__(self, begun: str, until: str) -> None:
        self._paths = begun, until

    def __reduce__(self) -> Any:
        return hold, (*self._paths, 1)


def say_and_leave_a_file(number: int) -> str:
    print("said", number, flush=True)
    Path(f"left {number}").touch()
    return os.getcwd()
