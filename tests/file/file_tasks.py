"""Functions that run in the jobs of the file scheduler."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any, NoReturn


def add(x: Any, y: Any = 0) -> Any:
    return x + y


def double(x: Any) -> Any:
    return 2 * x


def total(values: Any) -> Any:
    return sum(values.values() if isinstance(values, dict) else values)


def pair(x: Any) -> dict[str, Any]:
    return {"a": x, "b": [x, 2 * x]}


def noted(path: str, x: Any) -> Any:
    """Leave a line for each run."""
    with open(path, "a") as file:
        file.write(f"{x}\n")
    return x


def noted_late(path: str, x: Any, seconds: float) -> Any:
    """Leave a line for each run that has come to its end."""
    time.sleep(seconds)
    return noted(path, x)


def fail(message: str = "on purpose") -> NoReturn:
    raise ValueError(message)


def hold(begun: str, until: str, value: Any = None) -> Any:
    """Say that this has begun, and wait until it may end."""
    Path(begun).touch()
    end = time.monotonic() + 30
    while not os.path.exists(until):
        if time.monotonic() > end:
            raise TimeoutError(f"{until} did not appear")
        time.sleep(0.005)
    return value


def pid_and_hold(begun: str, seconds: float = 30.0) -> None:
    path = Path(begun)
    own = path.with_suffix(f".{os.getpid()}")  # there may be several ranks
    own.write_text(str(os.getpid()))
    own.rename(path)
    time.sleep(seconds)


def die_once(begun: str) -> str:
    """Wait to be killed, the first time."""
    if os.path.exists(begun):
        return "second"
    pid_and_hold(begun)
    return "first"


def exit_at_once(code: int) -> None:
    os._exit(code)


def say_and_die() -> None:
    print("the last words", flush=True)
    os.abort()


def leave(reason: Any) -> None:
    sys.exit(reason)


def interrupt() -> None:
    raise KeyboardInterrupt


def place() -> tuple[str, str | None]:
    return os.getcwd(), os.environ.get("OMP_NUM_THREADS")


def unpicklable() -> Any:
    return (n for n in range(3))


class FailsToLoad(Exception):
    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


def raise_unloadable() -> NoReturn:
    raise FailsToLoad(1, 2)


def say(text: str) -> None:
    print(text)


def worker_id(executorlib_worker_id: int) -> int:
    return executorlib_worker_id


def rank() -> tuple[int, int]:
    from mpi4py import MPI

    return MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size


def one_rank_fails() -> None:
    from mpi4py import MPI

    if MPI.COMM_WORLD.rank == 1:
        raise ValueError("rank 1")
    MPI.COMM_WORLD.barrier()


class CannotBePickled:
    def __reduce__(self) -> NoReturn:
        raise RuntimeError("not this one")


class ExitsWhenPickled:
    def __reduce__(self) -> NoReturn:
        sys.exit(3)


def _explode() -> NoReturn:
    raise RuntimeError("cannot be loaded")


class ExplodesWhenLoaded:
    def __reduce__(self) -> Any:
        return _explode, ()


def make_exploding() -> Any:
    return OnlyHere()


class OnlyHere:
    """Can be loaded in a job, and not in the program."""

    def __reduce__(self) -> Any:
        return _load_in_job, ()


def _load_in_job() -> int:
    if "pytest" in sys.modules:
        raise RuntimeError("not in the program")
    return 1
