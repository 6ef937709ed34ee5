"""A real Slurm of two nodes on this machine for the tests of this folder, and an allocation in it.

A test module takes its fixtures from here.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from executorlib import SlurmJobExecutor
from executorlib.standalone import slurm

_SCRIPT = Path(__file__).parents[2] / ".ci" / "slurm"
_TOOLS = ("slurmctld", "slurmd", "munged", "srun", "sbatch")
_DUMP = "import json, os, sys; print(json.dumps(dict(os.environ)), flush=True); sys.stdin.read()"


def _missing(reason: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(f"{reason}, and CI is set")
    pytest.skip(reason)


@functools.cache
def _running() -> str:
    """The configuration of a Slurm that runs; one that is started here ends with this program."""
    path = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])
    if not _SCRIPT.exists():
        _missing("there is no .ci/slurm beside these tests")
    if subprocess.run([_SCRIPT, "status"], capture_output=True).returncode != 0:
        lacking = [tool for tool in _TOOLS if shutil.which(tool, path=path) is None]
        if lacking:
            _missing(f"there is no Slurm here: {', '.join(lacking)} not found; `.ci/slurm start` installs it")
        done = subprocess.run([_SCRIPT, "start"], capture_output=True, text=True)
        if done.returncode != 0:
            _missing(f"Slurm cannot be started: {done.stderr}")
        atexit.register(lambda: subprocess.run([_SCRIPT, "stop"], capture_output=True))
    return subprocess.run([_SCRIPT, "conf"], capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture(scope="session")
def slurm_conf() -> str:
    """The configuration of a Slurm that runs."""
    return _running()


@pytest.fixture
def in_slurm(slurm_conf: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands of Slurm find their controller."""
    monkeypatch.setenv("SLURM_CONF", slurm_conf)
    slurm.srun_path.cache_clear()


class AllocationOf:
    """An allocation that is held, and the environment that a program has in it."""

    def __init__(self, conf: str, *options: str) -> None:
        command = ["salloc", "--quiet", "--immediate=45", *options, sys.executable, "-c", _DUMP]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        self.process = subprocess.Popen(
            command,
            env={**environment, "SLURM_CONF": conf},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        answer = self.process.stdout.readline()
        if not answer:
            _, said = self.process.communicate(timeout=20)
            raise RuntimeError(f"salloc has given up: {said}")
        found: dict[str, str] = json.loads(answer)
        self.environment = {name: value for name, value in found.items() if name.startswith("SLURM_")}
        self.job = found["SLURM_JOB_ID"]

    def close(self) -> None:
        self.process.communicate(timeout=20)


@pytest.fixture(scope="module")
def shared_allocation(slurm_conf: str) -> Iterator[AllocationOf]:
    held = AllocationOf(slurm_conf, "--nodes=2", "--ntasks=3", "--mem-per-cpu=700")
    yield held
    held.close()


@pytest.fixture
def allocation(in_slurm: None, shared_allocation: AllocationOf, monkeypatch: pytest.MonkeyPatch) -> AllocationOf:
    """This program runs in an allocation of two cores of n1 and one of n2."""
    enter(shared_allocation, monkeypatch)
    return shared_allocation


def enter(held: AllocationOf, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in held.environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def steps(allocation: AllocationOf) -> Callable[[], list[str]]:
    """Names the steps that run in the allocation."""

    def listed() -> list[str]:
        command = ["squeue", "--steps", "--noheader", f"--jobs={allocation.job}", "--format=%i"]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        return [step for step in found if step.rpartition(".")[2].isdigit()]

    return listed


@pytest.fixture
def make_job(steps: Callable[[], list[str]]) -> Iterator[Callable[..., SlurmJobExecutor]]:
    """Makes executors in the allocation; what the test has not shut down then is. No step may be left."""
    made: list[SlurmJobExecutor] = []

    def make(**options: Any) -> SlurmJobExecutor:
        made.append(SlurmJobExecutor(**options))
        return made[-1]

    yield make
    while made:
        made.pop().kill_workers()
    deadline = time.monotonic() + 8
    while left := steps():
        assert time.monotonic() < deadline, f"steps are left: {left}"
        time.sleep(0.1)


FIXTURES = slurm_conf, in_slurm, shared_allocation, allocation, make_job, steps
