"""What breaks in an allocation: workers, agents, steps, nodes, the program."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import psutil
import pytest
import tasks
from slurm_fixtures import FIXTURES

from conftest import Eventually, StartScript, living_child, needs_mpi, write_program
from executorlib import SlurmJobExecutor
from executorlib.standalone import slurm
from executorlib.standalone.errors import WorkerDiedError, WorkerStartError
from executorlib.standalone.interactive import launcher
from executorlib.task_scheduler.interactive import worker_pool

slurm_conf, in_slurm, shared_allocation, allocation, make_job, steps = FIXTURES
pytestmark = [pytest.mark.slurm, pytest.mark.xdist_group("slurm"), pytest.mark.faults]

Make = Callable[..., SlurmJobExecutor]
Steps = Callable[[], list[str]]


def begin_and_sleep(path: Path, seconds: float = 60.0) -> None:
    path.write_text(f"{os.getpid()} {os.environ['SLURM_JOB_ID']}.{os.environ['SLURM_STEP_ID']}")
    time.sleep(seconds)


@pytest.mark.parametrize("block", [False, True])
def test_a_death_is_told_and_the_executor_goes_on(make_job: Make, block: bool) -> None:
    with make_job(block_allocation=block, max_workers=2) as exe:
        with pytest.raises(WorkerDiedError, match=r"on vm|on n[12]") as caught:
            exe.submit(tasks.end_self, signal.SIGKILL).result()
        assert "SIGKILL" in str(caught.value)
        with pytest.raises(WorkerDiedError, match="exit code 3"):
            exe.submit(os._exit, 3).result()
        assert exe.submit(abs, -1).result() == 1


def test_what_only_waited_at_a_dead_worker_is_not_blamed(make_job: Make, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with make_job(block_allocation=True, max_workers=1) as exe:
        list(exe.map(tasks.note_or_die, [log] * 100, range(1, 101)))
        futures = [exe.submit(tasks.note_or_die, log, i) for i in [101, 0, *range(102, 121)]]
        failed = [isinstance(future.exception(20), WorkerDiedError) for future in futures]
    assert failed == [False, True, *[False] * 19]
    noted = [int(line) for line in log.read_text().split()]
    assert sorted(noted) == list(range(1, 121))


def test_restart_limit(make_job: Make, tmp_path: Path) -> None:
    with make_job(block_allocation=True, max_workers=1, restart_limit=1) as exe:
        assert exe.submit(tasks.end_self_once, tmp_path / "flag", 5).result() == 5


@pytest.mark.parametrize("block", [False, True])
def test_the_step_of_an_agent_is_cancelled(make_job: Make, block: bool, tmp_path: Path, eventually: Eventually) -> None:
    """Its calls fail with Slurm's words; another agent takes its place."""
    with make_job(block_allocation=block, max_workers=1) as exe:
        future = exe.submit(begin_and_sleep, tmp_path / "begun")
        eventually(lambda: (tmp_path / "begun").exists() and (tmp_path / "begun").read_text())
        pid, step = (tmp_path / "begun").read_text().split()
        # It has been seen to cancel the step, and then to say that there is no such job.
        subprocess.run(["scancel", step], check=False)
        with pytest.raises(WorkerDiedError, match="lost with the agent on n1") as caught:
            future.result(15)
        assert "CANCELLED" in str(caught.value), caught.value
        eventually(lambda: not psutil.pid_exists(int(pid)))
        assert exe.submit(abs, -1).result(20) == 1


def test_an_agent_is_killed(make_job: Make, tmp_path: Path, eventually: Eventually) -> None:
    with make_job(max_workers=1) as exe:
        future = exe.submit(begin_and_sleep, tmp_path / "begun")
        eventually(lambda: (tmp_path / "begun").exists() and (tmp_path / "begun").read_text())
        pid = int((tmp_path / "begun").read_text().split()[0])
        os.kill(psutil.Process(pid).ppid(), signal.SIGKILL)
        with pytest.raises(WorkerDiedError, match="lost with the agent on n1"):
            future.result(15)
        eventually(lambda: not psutil.pid_exists(pid))
        assert exe.submit(abs, -1).result(20) == 1


def test_an_agent_does_not_answer(
    make_job: Make, tmp_path: Path, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when its node hangs: a time limit is kept all the same."""
    monkeypatch.setattr(worker_pool, "_AGENT_SECONDS", 1.0)
    with make_job(max_workers=1) as exe:
        agent = exe.submit(os.getppid).result(30)
        limit = {"run_time_max": 2}
        held = exe.submit(tasks.hold, tmp_path / "begun", tmp_path / "never", resource_dict=limit)
        eventually((tmp_path / "begun").exists)
        os.kill(agent, signal.SIGSTOP)
        with pytest.raises(TimeoutError, match="run_time_max"):
            held.result(30)
        assert exe.submit(os.getppid).result(30) != agent


@pytest.mark.parametrize("hangs", ["exec sleep 60", "trap '' TERM; sleep 60"], ids=["", "and ignores SIGTERM"])
def test_an_agent_that_does_not_start_is_not_the_end_of_its_calls(
    make_job: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hangs: str
) -> None:
    """They run on another node."""
    real = slurm.srun_path()
    srun = tmp_path / "srun"
    write_program(srun, f'case "$*" in *--nodelist=n2*) {hangs};; esac\nexec {real} "$@"')
    monkeypatch.setattr(slurm, "srun_path", lambda: str(srun))
    # The good agent is to start within that too, on a busy machine.
    monkeypatch.setattr("executorlib.standalone.interactive.node_launcher.START_SECONDS", 8.0)
    monkeypatch.setattr(worker_pool, "START_SECONDS", 10.0)
    with make_job() as exe:
        found = [future.result(40) for future in [exe.submit(os.getenv, "SLURMD_NODENAME") for _ in range(4)]]
    assert set(found) == {"n1"}


def test_the_fork_server_is_killed(make_job: Make, tmp_path: Path, eventually: Eventually) -> None:
    """With it goes the knowledge of all steps; they are ended."""
    with make_job(max_workers=1) as exe:
        future = exe.submit(begin_and_sleep, tmp_path / "begun")
        eventually(lambda: (tmp_path / "begun").exists())
        server = living_child("fork_server")
        server.kill()
        with pytest.raises(WorkerDiedError):
            future.result(15)
        assert exe.submit(abs, -1).result(20) == 1


def test_a_stopped_fork_server_holds_nobody_up(
    make_job: Make, tmp_path: Path, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "_KILL_SECONDS", 1.0)
    monkeypatch.setattr(launcher, "_END_SECONDS", 1.0)
    with make_job() as exe:
        step = {"slurm_cmd_args": ["--comment=x"]}
        running = exe.submit(begin_and_sleep, tmp_path / "begun", resource_dict=step)
        eventually((tmp_path / "begun").exists)
        living_child("fork_server_main.py").suspend()
        assert exe.cancel(running)
        with pytest.raises(CancelledError):
            running.result(20)
        assert exe.submit(abs, -1, resource_dict=step).result(30) == 1


def test_a_step_is_refused(make_job: Make) -> None:
    with make_job() as exe:
        with pytest.raises(WorkerStartError, match="unrecognized option '--no-such-option'"):
            exe.submit(abs, 1, resource_dict={"slurm_cmd_args": ["--no-such-option"]}).result()
        with pytest.raises(WorkerStartError, match="More processors requested than permitted"):
            exe.submit(abs, 1, resource_dict={"cores": 7}).result()


def test_a_step_is_cancelled(make_job: Make, tmp_path: Path, eventually: Eventually) -> None:
    with make_job() as exe:
        resources = {"slurm_cmd_args": ["--comment=x"]}
        future = exe.submit(begin_and_sleep, tmp_path / "begun", resource_dict=resources)
        eventually(lambda: (tmp_path / "begun").exists() and (tmp_path / "begun").read_text())
        pid, step = (tmp_path / "begun").read_text().split()
        subprocess.run(["scancel", step], check=False)  # see above
        with pytest.raises(WorkerDiedError, match="CANCELLED") as caught:
            future.result(15)
        assert f"(pid {pid} on " in str(caught.value), "the worker's, and not that of its srun"


def test_a_step_takes_too_much_memory(make_job: Make) -> None:
    with make_job() as exe, pytest.raises(WorkerDiedError, match=r"(?i)memory"):
        exe.submit(_take_memory, resource_dict={"slurm_cmd_args": ["--mem=100"]}).result(30)


def _take_memory() -> None:
    held = bytearray(400_000_000)
    for page in range(0, len(held), 4096):
        held[page] = 1
    time.sleep(20)


def test_one_rank_dies(make_job: Make) -> None:
    needs_mpi()
    with make_job(pmi_mode="pmi2") as exe:
        with pytest.raises(WorkerDiedError):
            exe.submit(_die_on_rank_1, resource_dict={"cores": 2, "num_nodes": 2}).result(30)
        assert exe.submit(abs, -1).result(20) == 1


def _die_on_rank_1() -> None:
    from mpi4py import MPI

    if MPI.COMM_WORLD.rank == 1:
        os.kill(os.getpid(), signal.SIGSEGV)
    MPI.COMM_WORLD.Barrier()


def test_no_node_is_left(make_job: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """An allocation that has ended: the calls say so, and do not hang."""
    monkeypatch.setenv("SLURM_JOB_ID", "999999")
    monkeypatch.setenv("SLURM_JOBID", "999999")
    with make_job() as exe:
        for future in [exe.submit(abs, 1) for _ in range(4)]:
            with pytest.raises(WorkerStartError, match="Invalid job id"):
                future.result(30)


PROGRAM = """
import os, sys, time
from executorlib import SlurmJobExecutor
import tasks
folder = sys.argv[1]
step = {"resource_dict": {"slurm_cmd_args": ["--comment=x"]}}
options = {"serial": {}, "block": {"block_allocation": True}, "step": step}
exe = SlurmJobExecutor(max_workers=2, **options[sys.argv[2]])
futures = [exe.submit(tasks.hold, f"{folder}/begun{i}", f"{folder}/never") for i in range(2)]
print("submitted", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("way", ["serial", "block", "step"])
def test_the_program_is_killed(
    allocation: Any, start_script: StartScript, tmp_path: Path, eventually: Eventually, steps: Steps, way: str
) -> None:
    process = start_script(PROGRAM, str(tmp_path), way)
    eventually(lambda: all((tmp_path / f"begun{i}").exists() for i in range(2)), 20)
    assert steps()
    process.kill()
    start = time.monotonic()
    eventually(lambda: not steps(), 20)
    assert time.monotonic() - start < 10


CHATTY = """
import os, sys
from executorlib import SlurmJobExecutor
with SlurmJobExecutor(max_workers=2) as exe:
    chatty = exe.submit(lambda: sum(os.write(2, b"x" * 10_000) for _ in range(1_000)))
    print(sum(exe.submit(abs, -1).result() for _ in range(50)), flush=True)
    sys.stdin.readline()
    print(chatty.result(), flush=True)
"""


def test_nobody_reads_what_calls_print(allocation: Any, start_script: StartScript) -> None:
    """Whoever prints waits; others do not."""
    process = start_script(CHATTY, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "50\n"
    out, said = process.communicate("go on\n", timeout=30)
    assert "10000000" in out
    assert len(said) >= 10_000_000
