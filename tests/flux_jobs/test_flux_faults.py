"""FluxJobExecutor when something breaks: jobs that Flux ends, programs that die."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import tasks
from flux_fixtures import FIXTURES, Instance

from conftest import Eventually, Script, StartScript, needs_mpi
from executorlib import FluxJobExecutor
from executorlib.standalone import flux
from executorlib.standalone.errors import WorkerDiedError, WorkerStartError

flux_instances, shared_instance, instance, make_job = FIXTURES
pytestmark = [pytest.mark.flux, pytest.mark.faults, pytest.mark.xdist_group("flux")]

Make = Callable[..., FluxJobExecutor]
OWN = {"num_nodes": 1}


def begin(exe: FluxJobExecutor, folder: Path, eventually: Eventually, **resources: Any) -> tuple[Future[Any], str]:
    """A call that runs, and the job that it runs in."""
    future = exe.submit(_hold, folder / "begun", folder / "never", resource_dict=resources)
    eventually(lambda: (folder / "begun").exists() and (folder / "begun").read_text(), 20)
    return future, (folder / "begun").read_text()


def _hold(begun: Path, never: Path) -> None:
    begun.write_text(os.environ["FLUX_JOB_ID"])
    tasks.wait_for(never)


@pytest.mark.parametrize("resources", [{}, OWN], ids=["slot", "job"])
def test_a_job_is_cancelled(
    make_job: Make, instance: Instance, tmp_path: Path, eventually: Eventually, resources: dict[str, Any]
) -> None:
    with make_job() as exe:
        future, job = begin(exe, tmp_path, eventually, **resources)
        instance.command("cancel", "--message=for a test", job)
        with pytest.raises(WorkerDiedError, match="cancel: for a test"):
            future.result(15)
        assert exe.submit(abs, -1, resource_dict=resources).result(20) == 1


def test_a_job_is_killed(make_job: Make, instance: Instance, tmp_path: Path, eventually: Eventually) -> None:
    with make_job() as exe:
        future, job = begin(exe, tmp_path, eventually, **OWN)
        instance.command("job", "kill", "--signal=KILL", job)
        with pytest.raises(WorkerDiedError, match="SIGKILL"):
            future.result(15)


@pytest.mark.parametrize("resources", [{}, OWN], ids=["slot", "job"])
@pytest.mark.parametrize("how", [signal.SIGSEGV, signal.SIGKILL, 3], ids=str)
def test_a_worker_dies(make_job: Make, resources: dict[str, Any], how: int) -> None:
    with make_job() as exe:
        with pytest.raises(WorkerDiedError, match="exit code 3" if how == 3 else signal.Signals(how).name):
            exe.submit(_die, how, resource_dict=resources).result(15)
        assert exe.submit(abs, -1, resource_dict=resources).result(20) == 1


def _die(how: int) -> None:
    if how == 3:
        os._exit(3)
    os.kill(os.getpid(), how)


def test_a_worker_is_tried_again(make_job: Make, tmp_path: Path) -> None:
    with make_job(restart_limit=2) as exe:
        assert exe.submit(_die_once, tmp_path / "died", resource_dict=OWN).result(30) == "done"


def _die_once(path: Path) -> str:
    if not path.exists():
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


def test_a_job_that_can_never_start(make_job: Make) -> None:
    with make_job() as exe, pytest.raises(WorkerStartError, match="alloc: unsatisfiable request"):
        exe.submit(abs, 1, resource_dict={"cores": 1000}).result(15)


def test_a_program_that_is_not_there(make_job: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with make_job() as exe:
        for resources in ({}, OWN):
            with pytest.raises(WorkerStartError, match="/no/such/python: No such file or directory"):
                exe.submit(abs, 1, resource_dict=resources).result(15)


def test_the_time_is_up(make_job: Make, tmp_path: Path, instance: Instance) -> None:
    with make_job() as exe:
        for resources in ({}, OWN):
            future = exe.submit(tasks.wait_for, tmp_path / "never", resource_dict={**resources, "run_time_max": 1})
            with pytest.raises(TimeoutError, match="run_time_max of 1 s"):
                future.result(15)


def test_flux_has_a_limit_too(make_job: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Should the program be stopped, or its machine, the job ends all the same."""
    assert flux.job_command.__kwdefaults__ is not None
    monkeypatch.setitem(flux.job_command.__kwdefaults__, "start_margin", 0)
    with (
        make_job() as exe,
        pytest.raises((WorkerDiedError, TimeoutError), match=r"timeout: resource allocation|1\.5 s"),
    ):
        exe.submit(tasks.wait_for, tmp_path / "never", resource_dict={**OWN, "run_time_max": 1.5}).result(15)


def test_one_rank_dies(make_job: Make) -> None:
    needs_mpi()
    with make_job() as exe:
        with pytest.raises(WorkerDiedError):
            exe.submit(_die_on_rank_1, resource_dict={"cores": 2}).result(30)
        assert exe.submit(abs, -1).result(20) == 1


def _die_on_rank_1() -> None:
    from mpi4py import MPI

    if MPI.COMM_WORLD.rank == 1:
        os.kill(os.getpid(), signal.SIGSEGV)
    MPI.COMM_WORLD.Barrier()


def test_a_running_call_is_cancelled(make_job: Make, tmp_path: Path, eventually: Eventually) -> None:
    with make_job() as exe:
        for number, resources in enumerate(({}, OWN)):
            folder = tmp_path / str(number)
            folder.mkdir()
            future, _ = begin(exe, folder, eventually, **resources)
            assert exe.cancel(future)
            eventually(future.cancelled, 15)


def test_jobs_that_wait_for_others_wait(
    make_job: Make, instance: Instance, tmp_path: Path, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queue may be long: waiting there is no failure, whatever the limit for a start."""
    monkeypatch.setattr("executorlib.task_scheduler.interactive.worker_pool.START_SECONDS", 2.0)
    blocker = instance.command("submit", "-N", str(instance.brokers), "--exclusive", "sleep", "60").strip()
    with make_job() as exe:
        futures = [exe.submit(abs, -1), exe.submit(abs, -2, resource_dict=OWN)]
        time.sleep(3.0)
        assert not any(future.done() for future in futures)
        instance.command("cancel", blocker)
        assert [future.result(20) for future in futures] == [1, 2]


def test_shutdown_takes_waiting_jobs_along(make_job: Make, instance: Instance) -> None:
    blocker = instance.command("submit", "-N", str(instance.brokers), "--exclusive", "sleep", "60").strip()
    exe = make_job()
    futures = [exe.submit(abs, -1), exe.submit(abs, -2, resource_dict=OWN)]
    time.sleep(0.5)
    exe.kill_workers()
    assert all(future.done() for future in futures)
    instance.command("cancel", blocker)


PROGRAM = """
import os, sys, time
from executorlib import FluxJobExecutor
import tasks
folder = sys.argv[1]
job = {"resource_dict": {"num_nodes": 1}}
ranks = {"resource_dict": {"cores": 2}}
options = {"slot": {}, "block": {"block_allocation": True}, "job": job, "ranks": ranks}
exe = FluxJobExecutor(**options[sys.argv[2]])
future = exe.submit(BUSY, f"{folder}/begun", f"{folder}/never")
print("submitted", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("way", ["slot", "block", "job", "ranks"])
def test_the_program_is_killed(
    instance: Instance, start_script: StartScript, tmp_path: Path, eventually: Eventually, way: str
) -> None:
    if way == "ranks":
        needs_mpi()
    process = start_script(PROGRAM.replace("BUSY", "tasks.hold"), str(tmp_path), way)
    eventually((tmp_path / "begun").exists, 20)
    assert instance.jobs()
    process.kill()
    start = time.monotonic()
    eventually(lambda: not instance.jobs(), 10)
    assert time.monotonic() - start < 6


def test_the_program_is_killed_and_the_call_holds_the_interpreter(
    instance: Instance, start_script: StartScript, tmp_path: Path, eventually: Eventually
) -> None:
    process = start_script(PROGRAM.replace("BUSY", "tasks.hold_the_interpreter"), str(tmp_path), "job")
    eventually((tmp_path / "begun").exists, 20)
    process.kill()
    eventually(lambda: not instance.jobs(), 8)


def test_the_program_ends_without_shutdown(instance: Instance, script: Script) -> None:
    code = "from executorlib import FluxJobExecutor\nexe = FluxJobExecutor()\nprint(exe.submit(abs, -1).result())"
    assert script(code).stdout == "1\n"
    assert not instance.jobs()


def test_a_child_of_the_program(instance: Instance, script: Script) -> None:
    """A fork has the handle of its parent, and must not disturb it."""
    code = """
import os
from executorlib import FluxJobExecutor
with FluxJobExecutor() as exe:
    print(exe.submit(abs, -1).result(), flush=True)
    pid = os.fork()
    if pid == 0:
        try:
            exe.submit(abs, -1)
        except RuntimeError as error:
            print(type(error).__name__, flush=True)
        exe.shutdown()
        os._exit(0)
    os.waitpid(pid, 0)
    print(exe.submit(abs, -2, resource_dict={"num_nodes": 1}).result())
"""
    done = script(code, flags=["-W", "ignore"])
    assert done.stdout.split() == ["1", "RuntimeError", "2"], done.stderr


# Instances that are lost


def test_there_is_no_instance(monkeypatch: pytest.MonkeyPatch, flux_instances: object, tmp_path: Path) -> None:
    monkeypatch.setenv("FLUX_URI", f"local://{tmp_path}/none")
    with pytest.raises(ConnectionError, match="There is no Flux instance"):
        FluxJobExecutor()


@pytest.mark.parametrize("resources", [{}, OWN], ids=["slot", "job"])
def test_the_instance_ends(
    flux_instances: object,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    eventually: Eventually,
    resources: dict[str, Any],
) -> None:
    own = Instance(1)
    monkeypatch.setenv("FLUX_URI", own.uri)
    exe = FluxJobExecutor()
    future, _ = begin(exe, tmp_path, eventually, **resources)
    own.close()
    with pytest.raises(WorkerDiedError, match=r"lost with|cancel"):
        future.result(20)
    with pytest.raises((WorkerStartError, ConnectionError)):
        exe.submit(abs, 1, resource_dict=resources).result(20)
    exe.shutdown()


@pytest.mark.timeout(120)
def test_a_node_is_lost(
    flux_instances: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, eventually: Eventually
) -> None:
    """A broker that dies takes its jobs along: their calls fail in Flux's words, the others go on."""
    own = Instance(2)
    monkeypatch.setenv("FLUX_URI", own.uri)
    try:
        with FluxJobExecutor() as exe:
            futures = [exe.submit(_hold_here, tmp_path, tmp_path / "go") for _ in range(4)]
            eventually(lambda: len(list(tmp_path.glob("begun-*"))) == 4, 20)
            own.command("overlay", "disconnect", "1")
            lost = [future for future in futures if isinstance(_exception_of(future, tmp_path / "go"), WorkerDiedError)]
            assert len(lost) == 2
            assert all("rank 1" in str(future.exception()) for future in lost)
            assert exe.submit(abs, -1).result(20) == 1
    finally:
        own.close()


def _exception_of(future: Future[Any], go: Path) -> BaseException | None:
    try:
        return future.exception(4)
    except TimeoutError:
        go.touch()
        return future.exception(10)


def _hold_here(folder: Path, go: Path) -> None:
    (folder / f"begun-{os.getpid()}").touch()
    tasks.wait_for(go)


def test_without_flux_python(tmp_path: Path, script: Script) -> None:
    code = """
import sys
sys.modules["flux"] = None
import executorlib
try:
    executorlib.FluxJobExecutor()
except ModuleNotFoundError as error:
    print(error)
"""
    assert "flux-python" in script(code).stdout
