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
    if not os.path.exists(flag):
        Path(flag).touch()
        end_self(signal.SIGKILL)
    return value


def exit_hard(code: int) -> NoReturn:
    os._exit(code)


def exit_soft(code: Any) -> NoReturn:
    sys.exit(code)


def interrupt() -> NoReturn:
    raise KeyboardInterrupt


def fork_and_tell(how: str) -> int:
    """The exit code of a child that comes back from this call in some way."""
    child = os.fork()
    if child == 0:
        if how == "return":
            return -1
        if how == "raise":
            raise ValueError("in the child")
        sys.exit({"exit": None, "exit 3": 3, "exit with words": "words"}[how])
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def say_to_the_program(body: bytes) -> None:
    """Send a message as if the worker did."""
    import gc

    from executorlib.backend.runner import Runner

    (runner,) = (obj for obj in gc.get_objects() if isinstance(obj, Runner))
    runner._link.send(body)
    signal.pause()  # until it is ended


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


class NoReprError(Exception):
    def __repr__(self) -> NoReturn:
        raise ValueError("no repr")


class NoSignature:
    @property
    def __signature__(self) -> NoReturn:
        raise RuntimeError("no signature")

    def __call__(self, needed: int) -> int:
        return needed


class UnloadableWithoutRepr:
    def __reduce__(self) -> Any:
        return raise_without_repr, ()


def raise_without_repr() -> NoReturn:
    raise NoReprError


class Exits:
    """Can be pickled, and calls sys.exit when it is loaded."""

    def __reduce__(self) -> Any:
        return sys.exit, (3,)


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


def enter(folder: Path, number: int) -> int:
    """Note how many are inside together with this one, and wait for the sign to leave."""
    mark = folder / f"inside{number}"
    mark.touch()
    wait_for(folder / "go")
    return number


def pass_through(folder: Path, number: int) -> int:
    """How many are inside at a time, as this one sees it."""
    mark = folder / f"inside{number}"
    mark.touch()
    seen = 0
    for _ in range(5):
        seen = max(seen, sum(name.startswith("inside") for name in os.listdir(folder)))
        time.sleep(0.005)
    mark.unlink()
    return seen


def sleep_inversely(i: int) -> int:
    time.sleep(0.002 * (20 - i))
    return i


def fail_at(i: int, bad: int = 3) -> int:
    if i == bad:
        raise LookupError(f"item {i}")
    return i


def fail_or_wait(folder: Path, i: int) -> int:
    if i == 0:
        raise LookupError("the first")
    note_number(folder, i)
    wait_for(folder / "go")
    return i


def wait_if_last(folder: Path, i: int) -> int:
    if i == 3:
        wait_for(folder / "go")
    return i


def sleep_and_return(i: Any, seconds: float) -> Any:
    if seconds:
        time.sleep(seconds)
    return i


def slow_if_seven(folder: Path, i: int) -> int:
    if i == 7:
        wait_for(folder / "go")
    return i


def note_and_wait_after_two(folder: Path, i: int) -> int:
    note_number(folder, i)
    if i >= 2:
        wait_for(folder / "go")
    return i


def stop_iteration(_: int) -> Any:
    raise StopIteration("not the end")


def die_at(i: int, bad: int) -> int:
    if i == bad:
        end_self(signal.SIGKILL)
    return i


def note_or_die(log: Path, i: int) -> None:
    if i == 0:
        end_self(signal.SIGKILL)
    append(log, i)


def log_and_die(log: Path) -> None:
    append(log, "died")
    end_self(signal.SIGKILL)


def log_and_fail(log: Path) -> None:
    append(log, "failed")
    raise ValueError("plain")


def fail_with(letter: str, count: int) -> None:
    raise ValueError(letter * count)


def note_number(folder: Path, i: int) -> int:
    (folder / f"ran{i}").touch()
    return i


def hold_if(folder: Path, i: int) -> int:
    note_number(folder, i)
    if i == 0:
        hold(folder / "begun", folder / "go")
    return i


def set_environment(name: str, value: str) -> None:
    os.environ[name] = value


def import_module(name: str) -> None:
    __import__(name)


def is_imported(name: str) -> bool:
    import sys

    return name in sys.modules


class Thing:
    """Can be referred to weakly."""

    def __init__(self, content: Any = None) -> None:
        self.content = content

    def method(self) -> Any:
        return self.content

    def __call__(self, *args: Any) -> Any:
        return self.content


def make_thing(*_: Any) -> Thing:
    return Thing()


def hold_the_interpreter(begun: str | Path, until: str | Path) -> None:
    """Let no other thread of this process run for half a minute."""
    import ctypes

    Path(begun).touch()
    ctypes.PyDLL(None).sleep(30)


def rank_and_size(x: int = 0) -> tuple[int, int, int]:
    from mpi4py import MPI

    return x, MPI.COMM_WORLD.Get_rank(), MPI.COMM_WORLD.Get_size()


def rank_times(array: Any) -> Any:
    from mpi4py import MPI

    array += 1
    return array * MPI.COMM_WORLD.Get_rank()


def reduce_pids() -> int:
    from mpi4py import MPI

    return int(MPI.COMM_WORLD.allreduce(1))


def one_rank_fails(bad: int, together: bool = True) -> str:
    """One rank raises, and the others wait for it in a collective call that never ends."""
    from mpi4py import MPI

    if MPI.COMM_WORLD.Get_rank() == bad:
        raise ValueError(f"rank {bad} fails")
    if together:
        MPI.COMM_WORLD.Barrier()
    return "done"


def one_rank_dies(bad: int) -> None:
    from mpi4py import MPI

    if MPI.COMM_WORLD.Get_rank() == bad:
        end_self(9)
    MPI.COMM_WORLD.Barrier()


def count(log: str, x: int) -> int:
    """Leaves a line for each time it runs."""
    append(log, x)
    return 2 * x
