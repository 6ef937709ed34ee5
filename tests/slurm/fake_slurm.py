"""Slurm's commands as scripts, for what a real Slurm does not do when a test wants it. The jobs never run."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from conftest import write_program
from executorlib import SlurmClusterExecutor
from executorlib.task_scheduler.file import slurm_watch

_SCRIPTS = {
    "sbatch": "n=$(($(cat number 2>/dev/null || echo 0) + 1)); echo $n > number; echo $n",
    "squeue": "cat queue 2>/dev/null; true",
    "sacct": "true",
    "scancel": "true",
    "scontrol": 'case "$1" in show) echo "MaxArraySize = 1001";; esac',
}


class FakeSlurm:
    """The commands, in a directory of their own that is the first on PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.commands = folder / "bin"
        self.commands.mkdir(parents=True)
        for name, script in _SCRIPTS.items():
            self.script(name, script)
            path = self.commands / name
            write_program(path, f'cd {shlex.quote(str(folder))}\necho "$*" >> {name}.log\n. ./{name}.sh')

    def script(self, command: str, text: str | None = None) -> None:
        """What a command does from now on; without a text, what it did in the beginning."""
        new = self.folder / f"{command}.new"
        new.write_text((text or _SCRIPTS[command]) + "\n")
        new.replace(self.folder / f"{command}.sh")

    def queue(self, *rows: str) -> None:
        """What squeue lists from now on: number, state, time, partition, reason, with ``|`` between them."""
        new = self.folder / "queue.new"
        new.write_text("".join(f"{row}\n" for row in rows))
        new.replace(self.folder / "queue")

    def calls(self, command: str) -> list[str]:
        """The arguments of each call of a command."""
        try:
            return (self.folder / f"{command}.log").read_text().splitlines()
        except FileNotFoundError:
            return []


class MakeFake(Protocol):
    def __call__(self, **options: Any) -> SlurmClusterExecutor: ...


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """A Slurm of scripts, which is asked every tenth of a second."""
    fake = FakeSlurm(tmp_path / "slurm")
    monkeypatch.setenv("PATH", f"{fake.commands}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(slurm_watch, "FIRST_PAUSE", 0.1)
    monkeypatch.setattr(slurm_watch, "_LONGEST_PAUSE", 0.2)
    return fake


@pytest.fixture
def make_fake(slurm: FakeSlurm, tmp_path: Path) -> Iterator[MakeFake]:
    """Makes executors on one cache directory; what the test has not shut down then is."""
    made: list[SlurmClusterExecutor] = []

    def make(**options: Any) -> SlurmClusterExecutor:
        made.append(SlurmClusterExecutor(**{"cache_directory": str(tmp_path / "cache"), **options}))
        return made[-1]

    yield make
    for name in _SCRIPTS:
        slurm.script(name)
    while made:
        made.pop().kill_workers()


FIXTURES = slurm, make_fake
