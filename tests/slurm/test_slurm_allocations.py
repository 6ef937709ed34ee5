"""SlurmJobExecutor in allocations of other forms: by their options, by their environment, and inside a step."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import wait
from pathlib import Path

import pytest
import tasks
from slurm_fixtures import FIXTURES, AllocationOf, enter

from executorlib import SlurmClusterExecutor, SlurmJobExecutor
from executorlib.standalone.errors import WorkerStartError

slurm_conf, in_slurm, *_ = FIXTURES
pytestmark = [pytest.mark.slurm, pytest.mark.xdist_group("slurm")]

STEP = {"slurm_cmd_args": ["--quiet"]}  # a call with arguments of its own is a step


@pytest.fixture(scope="module")
def held(slurm_conf: str) -> Iterator[AllocationOf]:
    allocation = AllocationOf(slurm_conf, "--nodes=1", "--ntasks=2", "--mem=700")
    yield allocation
    allocation.close()


@pytest.fixture
def inside(in_slurm: None, held: AllocationOf, monkeypatch: pytest.MonkeyPatch) -> None:
    enter(held, monkeypatch)


def meet(folder: Path, number: int) -> list[int]:
    """Both calls run at the same time."""
    (folder / str(number)).touch()
    deadline = time.monotonic() + 20
    while len(list(folder.iterdir())) < 2:
        assert time.monotonic() < deadline, "the other call does not run"
        time.sleep(0.01)
    return sorted(os.sched_getaffinity(0))


@pytest.mark.parametrize("resources", [{}, STEP])
def test_memory_by_node(inside: None, tmp_path: Path, resources: dict[str, list[str]]) -> None:
    """With ``--mem`` Slurm gives a step all the memory that the job has, unless it is told otherwise."""
    with SlurmJobExecutor(resource_dict=dict(resources)) as exe:
        places = [future.result(40) for future in [exe.submit(meet, tmp_path, i) for i in range(2)]]
    assert places[0] != places[1]


@pytest.mark.parametrize("resources", [{}, STEP])
def test_options_of_the_job_are_not_those_of_its_steps(
    inside: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resources: dict[str, list[str]]
) -> None:
    """As in scripts with ``--cpus-per-task``, whose users export SRUN_CPUS_PER_TASK, and with ``--export=NONE``."""
    monkeypatch.setenv("SRUN_CPUS_PER_TASK", "2")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "2")
    monkeypatch.setenv("SLURM_EXPORT_ENV", "NONE")
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "1")
    with SlurmJobExecutor(resource_dict=dict(resources)) as exe:
        places = [future.result(40) for future in [exe.submit(meet, tmp_path, i) for i in range(2)]]
    assert sorted(map(len, places)) == [1, 1]
    assert places[0] != places[1]


def test_nodes_for_a_call_alone_where_there_are_more_workers_than_cores(inside: None) -> None:
    with SlurmJobExecutor(max_cores=4) as exe:
        assert exe.submit(tasks.add, 1, resource_dict={"exclusive": True}).result(40) == 1


def test_a_program_in_a_step(in_slurm: None, tmp_path: Path) -> None:
    """As in a terminal that ``srun --pty bash`` has opened: the step holds the cores that calls are to have."""
    program = tmp_path / "program.py"
    program.write_text(
        "from executorlib import SlurmJobExecutor\n"
        "with SlurmJobExecutor() as exe:\n"
        "    print(exe.submit(abs, -1).result(), flush=True)\n"
        "    print(exe.submit(abs, -2, resource_dict={'slurm_cmd_args': ['--quiet']}).result(), flush=True)\n"
    )
    job = ["salloc", "--quiet", "--immediate=45", "--time=1", "--nodes=1", "--ntasks=2"]
    command = [*job, "srun", "--ntasks=1", sys.executable]
    done = subprocess.run([*command, str(program)], capture_output=True, text=True, timeout=50, cwd=tmp_path)
    assert done.stdout.split() == ["1", "2"], done.stderr


def test_a_call_waits_for_an_allocation_of_its_own(
    in_slurm: None, held: AllocationOf, slurm_conf: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outside of an allocation, for as long as Slurm has no place for it."""
    monkeypatch.setattr("executorlib.task_scheduler.interactive.worker_pool.START_SECONDS", 0.5)
    rest = AllocationOf(slurm_conf, "--nodelist=n2", "--exclusive")
    try:
        with SlurmJobExecutor() as exe:
            future = exe.submit(abs, -1)
            assert not wait([future], 3).done
            rest.close()
            assert future.result(40) == 1
    finally:
        if rest.process.poll() is None:
            rest.close()


def test_slurm_decides_about_gpus_outside_of_an_allocation(in_slurm: None, tmp_path: Path) -> None:
    """This one has none, and says so; nobody waits for them."""
    gpu = {"gpus_per_core": 1}
    with SlurmJobExecutor() as exe, pytest.raises(WorkerStartError, match="srun: error"):
        exe.submit(abs, -1, resource_dict=gpu).result(40)
    cache = str(tmp_path)
    with (
        SlurmClusterExecutor(block_allocation=True, max_workers=1, cache_directory=cache, resource_dict=gpu) as workers,
        pytest.raises(WorkerStartError, match="refuses the job"),
    ):
        workers.submit(abs, -1).result(40)
