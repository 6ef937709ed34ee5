"""SlurmClusterExecutor with block_allocation: batch jobs that are workers."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tasks
from slurm_fixtures import FIXTURES

from conftest import Eventually, StartScript, needs_mpi
from executorlib import SlurmClusterExecutor
from executorlib.standalone.errors import WorkerDiedError, WorkerStartError

slurm_conf, in_slurm, *_ = FIXTURES
pytestmark = [pytest.mark.slurm, pytest.mark.xdist_group("slurm"), pytest.mark.timeout(90)]
pytest.importorskip("pysqa")

Make = Callable[..., SlurmClusterExecutor]


@pytest.fixture
def make_workers(in_slurm: None, tmp_path: Path) -> Iterator[Make]:
    made: list[SlurmClusterExecutor] = []

    def make(**options: Any) -> SlurmClusterExecutor:
        directory = str(tmp_path / "cache")
        made.append(SlurmClusterExecutor(block_allocation=True, cache_directory=directory, **options))
        return made[-1]

    yield make
    while made:
        made.pop().kill_workers()
    deadline = time.monotonic() + 30
    while left := queue():
        assert time.monotonic() < deadline, f"jobs are left: {left}"
        time.sleep(0.2)
    assert not list((tmp_path / "cache").glob(".executorlib-array-workers*"))


def queue() -> list[str]:
    command = ["squeue", "--noheader", "--format=%i %T %r %j"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def rank_and_job(call: int) -> tuple[int, int, str]:
    from mpi4py import MPI

    return MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size, os.environ["SLURM_JOB_ID"]


def job_number(call: int = 0) -> str:
    """The argument makes of each call another for the cache."""
    time.sleep(0.05)
    return os.environ["SLURM_JOB_ID"]


def test_calls_go_to_workers_that_are_jobs(make_workers: Make, tmp_path: Path) -> None:
    def supply() -> dict[str, int]:
        return {"x": 5}

    with make_workers(max_workers=2, init_function=supply, resource_dict={"cache_directory": None}) as exe:
        assert exe.max_workers == 2
        assert exe.submit(tasks.add, y=1).result(40) == 6
        deadline = time.monotonic() + 30
        while len({exe.submit(job_number).result(40) for _ in range(4)} | _numbers(exe)) < 2:
            assert time.monotonic() < deadline
        (key,) = (tmp_path / "cache").glob(".executorlib-array-workers*/key")
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
        script = next(iter(key.parent.glob("*.sh"))).read_text()
        assert key.read_text() not in script


def _numbers(exe: SlurmClusterExecutor) -> set[str]:
    return set(exe.map(_job_after, [0.1] * 8))


def _job_after(seconds: float) -> str:
    time.sleep(seconds)
    return os.environ["SLURM_JOB_ID"]


def test_the_key_is_not_in_the_job(make_workers: Make) -> None:
    with make_workers(max_workers=1) as exe:
        number = exe.submit(job_number).result(40)
        names = exe.submit(lambda: [name for name in os.environ if "KEY" in name and "EXECUTORLIB" in name]).result()
        assert names == []
        script = subprocess.run(["scontrol", "write", "batch_script", number, "-"], capture_output=True, text=True)
        assert "--keyfile" in script.stdout


def test_a_worker_is_cancelled(make_workers: Make, tmp_path: Path, eventually: Eventually) -> None:
    """Its call fails with Slurm's words; another job takes its place."""
    with make_workers(max_workers=1) as exe:
        number = exe.submit(job_number).result(40)
        future = exe.submit(tasks.hold, tmp_path / "begun", tmp_path / "until")
        eventually((tmp_path / "begun").exists)
        subprocess.run(["scancel", number], check=True)
        with pytest.raises(WorkerDiedError, match=f"batch job {number} has ended: CANCELLED"):
            future.result(30)
        assert exe.submit(job_number, 1).result(40) != number


@pytest.mark.parametrize("seconds", [0, 1.5])
def test_a_worker_dies(make_workers: Make, seconds: float) -> None:
    """Slurm is asked how, also where the end of the script takes longer than that of the worker."""
    template = (
        "#!/bin/sh\n#SBATCH --job-name={{job_name}}\n#SBATCH --chdir={{working_directory}}\n"
        f"{{{{command}}}}\ncode=$?\nsleep {seconds}\nexit $code\n"
    )
    with make_workers(max_workers=1, resource_dict={"submission_template": template}) as exe:
        with pytest.raises(WorkerDiedError, match="FAILED"):
            exe.submit(tasks.end_self, signal.SIGKILL).result(40)
        assert exe.submit(abs, -1).result(40) == 1


def test_workers_that_are_refused(make_workers: Make) -> None:
    with (
        make_workers(max_workers=1, resource_dict={"partition": "no_such_partition"}) as exe,
        pytest.raises(WorkerStartError, match="invalid partition"),
    ):
        exe.submit(abs, 1).result(40)


def test_ranks(make_workers: Make) -> None:
    needs_mpi()
    with make_workers(max_workers=1, pmi_mode="pmi2", resource_dict={"cores": 2}) as exe:
        found = [exe.submit(rank_and_job, i).result(40) for i in range(2)]
        assert [[(rank, size) for rank, size, _ in each] for each in found] == [[(0, 2), (1, 2)]] * 2
        assert found[0][0][2] == found[1][0][2]


def test_a_number_of_workers_is_needed(in_slurm: None) -> None:
    with pytest.raises(ValueError, match="Block allocation requires a fixed set"):
        SlurmClusterExecutor(block_allocation=True)


PROGRAM = """
import sys
import tasks
from executorlib import SlurmClusterExecutor
exe = SlurmClusterExecutor(block_allocation=True, max_workers=1, cache_directory=sys.argv[1] + "/cache")
exe.submit(tasks.hold, sys.argv[1] + "/begun", sys.argv[1] + "/never").result()
"""


@pytest.mark.faults
def test_the_program_is_killed_while_a_worker_is_busy(
    in_slurm: None, start_script: StartScript, tmp_path: Path, eventually: Eventually
) -> None:
    process = start_script(PROGRAM, str(tmp_path))
    eventually((tmp_path / "begun").exists, 30)
    process.kill()
    eventually(lambda: queue() == [], 20)
