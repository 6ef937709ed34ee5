"""Functions that run in workers. This module imports little: every fresh worker that runs one of them imports it."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn


def add(x: Any, y: Any = 0) -> Any:
    return x + y


def identity(x: Any) -> Any:
    return x


def pid() -> int:
    return os.getpid()


def fail(message: str = "on purpose") -> NoReturn:
    raise ValueError(message)


def environment(*names: str) -> list[str | None]:
    return [os.environ.get(name) for name in names]


def wait_for(path: str | Path, seconds: float = 25.0) -> str:
    """Wait until a file exists."""
    end = time.monotonic() + seconds
    while not os.path.exists(path):
        if time.monotonic() > end:
            raise TimeoutError(f"{path} did not appear")
        time.sleep(0.005)
    return str(path)


def touch(path: str | Path, value: Any = None) -> Any:
    Path(path).touch()
    return value


def hold(begun: str | Path, until: str | Path, value: Any = None) -> Any:
    """Say that this has begun, and wait until it may end."""
    Path(begun).touch()
    wait_for(until)
    return value


def append(path: str | Path, line: Any) -> None:
    """Add a line to a file, in one write."""
    with open(path, "a") as file:
        file.write(f"{line}\n")


def end_self(signum: int) -> NoReturn:
    os.kill(os.getpid(), signum)
    while True:
        time.sleep(1)


def end_self_once(flag: str | Path, value: Any = None) -> Any:
    """Be killed at the first call, and answer at the second."""
    if os.path.exists(flag):
        return value
    Path(flag).touch()
    os.kill(os.getpid(), signal.SIGKILL)


def exit_hard(code: int) -> NoReturn:
    os._exit(code)


def exit_soft(code: Any) -> NoReturn:
    sys.exit(code)


def interrupt() -> NoReturn:
    raise KeyboardInterrupt


def sleep_with_child(path: str | Path) -> None:
    """Start a child that sleeps for long, note both process ids, and sleep."""
    import subprocess

    child = subprocess.Popen(["sleep", "600"])
    note = Path(path)
    note.with_suffix(".part").write_text(f"{os.getpid()} {child.pid}")
    note.with_suffix(".part").rename(note)
    time.sleep(600)


class Counter:
    """Counts its own calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> int:
        self.calls += 1
        return self.calls


class Accumulator:
    def __init__(self, start: int) -> None:
        self.total = start

    def add(self, x: int) -> int:
        self.total += x
        return self.total


class Unpicklable:
    """Refuses to be pickled."""

    def __reduce__(self) -> NoReturn:
        raise TypeError("I do not travel")


class ExitsInPickling:
    def __reduce__(self) -> NoReturn:
        sys.exit(3)


class Unloadable:
    """Can be pickled, and raises when it is loaded."""

    def __reduce__(self) -> Any:
        return refuse_to_load, ("this object",)


def refuse_to_load(what: str) -> NoReturn:
    raise RuntimeError(f"{what} cannot be loaded")


class KillsItsLoader:
    def __init__(self, program: int) -> None:
        self.program = program

    def __reduce__(self) -> Any:
        return kill_unless, (self.program,)


def kill_unless(program: int) -> str:
    if os.getpid() != program:
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


def call(make: Callable[[], Any]) -> Any:
    """What is made here, in the worker."""
    return make()


class DemandingError(Exception):
    """An exception that cannot be made again from its message alone."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{reason} ({code})")


class UnpicklableError(Exception):
    def __reduce__(self) -> NoReturn:
        raise TypeError("I do not travel")


def raise_demanding() -> NoReturn:
    raise DemandingError(7, "demanding")


def raise_unpicklable() -> NoReturn:
    raise UnpicklableError("unpicklable")
