"""Batch jobs of a Slurm that is slow, away, or says odd things: scripts stand in for its commands."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NoReturn

import pytest
from fake_slurm import FIXTURES, FakeSlurm, MakeFake

from conftest import Eventually
from executorlib.standalone import slurm_queue
from executorlib.standalone.cache_outcome import read_outcome
from executorlib.standalone.cache_paths import CachePaths, remove_array
from executorlib.standalone.cache_trust import open_trusted
from executorlib.standalone.errors import QueueSilentError, SubmissionError, WorkerDiedError
from executorlib.standalone.hdf import dump
from executorlib.standalone.resources import Resources
from executorlib.standalone.slurm_queue import JobStatus
from executorlib.task_scheduler.file import flux_batch, slurm_watch
from executorlib.task_scheduler.file.batch_script import BatchSystem
from executorlib.task_scheduler.file.launcher import Job
from executorlib.task_scheduler.file.slurm_jobs import SlurmJobs

slurm, make_fake = FIXTURES
pytest.importorskip("pysqa")


def key(name: str) -> dict[str, str]:
    return {"cache_key": name}


def number(future: Future[Any]) -> Any:
    """The number of a future's job."""
    return getattr(future, "queue_id", None)


@pytest.mark.filterwarnings("ignore:The following keys are not recognized")
def test_variables_of_a_template_may_be_lists(slurm: FakeSlurm, make_fake: MakeFake, eventually: Eventually) -> None:
    exe = make_fake(resource_dict={"modules": ["gcc", "mpi"]})
    results = exe.map(abs, [1, 2])
    eventually(lambda: len(slurm.calls("sbatch")) == 1)
    assert "--array=0-1" in slurm.calls("sbatch")[0]
    del results


def test_a_result_that_cannot_be_read_fails_its_own_future(
    make_fake: MakeFake, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, eventually: Eventually
) -> None:
    """It may be larger than the memory."""

    def read(path: str) -> Any:
        if path.endswith("large_o.h5") and os.path.exists(path):
            raise MemoryError("too large")
        return read_outcome(path)

    monkeypatch.setattr("executorlib.task_scheduler.file.tasks.read_outcome", read)
    exe = make_fake()
    large, other = (exe.submit(abs, -1, resource_dict=key(name)) for name in ("large", "other"))
    eventually(lambda: number(large) and number(other))
    for name in ("large", "other"):
        dump(str(tmp_path / "cache" / f"{name}_o.h5"), {"output": 5})
    with pytest.raises(MemoryError, match="too large"):
        large.result(timeout=10)
    assert other.result(timeout=10) == 5


def test_a_stale_file_is_looked_at_again(
    make_fake: MakeFake, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, eventually: Eventually
) -> None:
    stale = [0]

    def read(path: str) -> int:
        if path.endswith("_o.h5") and stale[0] < 6:
            stale[0] += 1
            raise OSError(116, "Stale file handle")
        return open_trusted(path)

    exe = make_fake()
    future = exe.submit(abs, -1, resource_dict=key("one"))
    eventually(lambda: number(future))
    monkeypatch.setattr("executorlib.standalone.cache_file.open_trusted", read)
    dump(str(tmp_path / "cache" / "one_o.h5"), {"output": 5})
    assert future.result(timeout=10) == 5


def test_the_queue_is_asked_where_no_thread_can_be_started(
    slurm: FakeSlurm, make_fake: MakeFake, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    """At the end of the interpreter, or at a limit of processes."""

    class NoThread(threading.Thread):
        def start(self) -> NoReturn:
            raise RuntimeError("can't create new thread at interpreter shutdown")

    exe = make_fake()
    monkeypatch.setattr(threading, "Thread", NoThread)
    slurm.queue("1|FAILED|0:01|p|NonZeroExitCode")
    future = exe.submit(abs, -1)
    error = future.exception(timeout=10)
    monkeypatch.undo()
    assert "NonZeroExitCode" in str(error)


def test_an_array_whose_directory_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "array").touch()
    remove_array(str(tmp_path / "array"))
    assert os.path.exists(tmp_path / "array")


# Cancelling

AWAY = "echo 'scancel: error: Kill job error on job id 1: Unable to contact slurm controller' >&2; exit 1"


@pytest.fixture
def _soon_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("executorlib.task_scheduler.file.slurm_jobs.AGAIN_SECONDS", 0.1)


@pytest.mark.usefixtures("_soon_again")
def test_a_job_is_cancelled_when_the_controller_is_back(
    slurm: FakeSlurm, make_fake: MakeFake, caplog: pytest.LogCaptureFixture, eventually: Eventually
) -> None:
    exe = make_fake()
    future = exe.submit(abs, -1)
    eventually(lambda: number(future))
    slurm.script("scancel", AWAY)
    assert exe.cancel(future)
    eventually(lambda: len(slurm.calls("scancel")) >= 3)
    assert future.cancelled()
    slurm.script("scancel", "echo x >> cancelled")
    cancelled = slurm.folder / "cancelled"
    eventually(cancelled.exists)
    time.sleep(0.3)
    exe.shutdown()
    assert set(slurm.calls("scancel")) == {"--quiet 1"}
    assert len(cancelled.read_text().split()) <= 2, "once it has done its work it is left alone"
    assert caplog.text.count("jobs cannot be cancelled") == 1


@pytest.mark.usefixtures("_soon_again")
def test_a_time_limit_is_enforced_when_the_controller_is_back(
    slurm: FakeSlurm, make_fake: MakeFake, eventually: Eventually
) -> None:
    slurm.queue("1|RUNNING|0:10|p|None")
    slurm.script("scancel", AWAY)
    future = make_fake().submit(abs, -1, resource_dict={"run_time_max": 1})
    eventually(lambda: len(slurm.calls("scancel")) >= 2)
    slurm.script("scancel", "echo '1|CANCELLED|0:12|p|None' > queue")
    with pytest.raises(TimeoutError, match="run_time_max of 1 s"):
        future.result(timeout=10)


def test_thousands_of_jobs_are_cancelled_by_several_commands(
    slurm: FakeSlurm, make_fake: MakeFake, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    monkeypatch.setattr("executorlib.task_scheduler.file.slurm_jobs._CANCELLED_TOGETHER", 5)
    exe = make_fake()
    futures = [exe.submit(abs, n) for n in range(12)]
    eventually(lambda: number(futures[-1]))
    exe.shutdown(wait=False, cancel_futures=True)
    eventually(lambda: len(slurm.calls("scancel")) == 3)
    assert [call.count(" ") for call in slurm.calls("scancel")] == [5, 5, 2]


def test_what_scancel_says_of_jobs_that_have_ended(slurm: FakeSlurm) -> None:
    slurm.script("scancel", "echo 'scancel: error: Kill job error on job id 1: Invalid job id specified' >&2; exit 1")
    slurm_queue.cancel(["1"])
    slurm.script("scancel", AWAY)
    with pytest.raises(OSError, match="Unable to contact"):
        slurm_queue.cancel(["1"])


def test_who_helps_with_a_cancelled_call_is_cancelled(slurm: FakeSlurm, tmp_path: Path) -> None:
    """Its own call has ended, so that nobody else knows of it."""
    jobs = [Job(CachePaths.of(tmp_path / "cache", f"task{n}"), Resources(cores=1)) for n in range(3)]
    launcher = SlurmJobs(BatchSystem())
    assert launcher.submit_together(jobs) == ["1_0", "1_1", "1_2"]
    (folder,) = (tmp_path / "cache").glob(".executorlib-array-*")
    (folder / "0.begun").write_text("0")
    (folder / "1.begun").write_text("0")
    launcher.settled("1_0")
    launcher.cancel("1_1")
    launcher.changes()
    assert slurm.calls("scancel") == ["--quiet 1_1 1_0"]
    launcher.cancel("1_2")
    launcher.changes()
    assert slurm.calls("scancel")[-1] == "--quiet 1", "no element has anything to do any more"
    launcher.close()


# Restarts


def test_what_depends_on_a_job_that_is_put_back_waits_for_it(
    slurm: FakeSlurm, make_fake: MakeFake, tmp_path: Path, eventually: Eventually
) -> None:
    """In the moment of the time limit Slurm says that the other can never start, and may stay with that."""
    exe = make_fake(restart_limit=1)
    first = exe.submit(abs, -1, resource_dict=key("first"))
    second = exe.submit(abs, first, resource_dict=key("second"))
    eventually(lambda: number(second))
    unsatisfied = "2|PENDING|0:00|p|DependencyNeverSatisfied"
    # What squeue says has changed before it is asked again.
    queue = f"printf '%s\\n' '1|RUNNING|0:01|p|None' '{unsatisfied}' > queue"
    slurm.script("scontrol", f'case "$1" in requeue) {queue};; esac')
    slurm.queue("1|TIMEOUT|1:00|p|TimeLimit", unsatisfied)
    eventually(first.running)
    assert "requeue 1" in slurm.calls("scontrol")
    assert not second.done()
    dump(str(tmp_path / "cache" / "first_o.h5"), {"output": 1})
    eventually(first.done)
    eventually(lambda: "update JobId=2 Dependency=" in slurm.calls("scontrol"))
    slurm.queue("2|RUNNING|0:01|p|None")
    eventually(second.running)
    dump(str(tmp_path / "cache" / "second_o.h5"), {"output": 1})
    assert second.result(timeout=10) == 1
    assert slurm.calls("scancel") == []


def test_what_depends_on_a_job_that_fails_fails_too(
    slurm: FakeSlurm, make_fake: MakeFake, eventually: Eventually
) -> None:
    exe = make_fake(restart_limit=1)
    first = exe.submit(abs, -1)
    second = exe.submit(abs, first)
    eventually(lambda: number(second))
    slurm.queue("1|OUT_OF_MEMORY|1:00|p|OutOfMemory", "2|PENDING|0:00|p|DependencyNeverSatisfied")
    with pytest.raises(WorkerDiedError, match=r"OUT_OF_MEMORY|DependencyNeverSatisfied"):
        second.result(timeout=10)
    eventually(lambda: slurm.calls("scancel") == ["--quiet 2"])


# A program that comes back


def test_the_controller_is_away_when_a_program_comes_back(
    slurm: FakeSlurm,
    make_fake: MakeFake,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    eventually: Eventually,
) -> None:
    """Its jobs may run: they are found when Slurm answers, and none is started a second time."""
    monkeypatch.setattr("executorlib.task_scheduler.file.tasks._ASK_SECONDS", 0.1)
    monkeypatch.setattr(slurm_watch, "AGAIN_SECONDS", 0.1)
    leave_jobs(make_fake, eventually)
    slurm.script("squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    count = len(slurm.calls("squeue"))
    exe = make_fake(wait=False)
    futures = [exe.submit(abs, n) for n in range(3)]
    eventually(lambda: len(slurm.calls("squeue")) > count + 3)
    assert not any(future.done() for future in futures)
    assert caplog.text.count("does not say which jobs run") == 1
    slurm.queue(*(f"{n}|RUNNING|0:10|p|None" for n in (1, 2, 3)))
    slurm.script("squeue")
    eventually(lambda: [number(future) for future in futures] == [1, 2, 3])
    assert len(slurm.calls("sbatch")) == 3


def test_the_controller_stays_away_when_a_program_comes_back(
    slurm: FakeSlurm, make_fake: MakeFake, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    monkeypatch.setattr("executorlib.task_scheduler.file.tasks._ASK_SECONDS", 0.1)
    monkeypatch.setattr(slurm_watch, "_SILENT_SECONDS", 0.3)
    leave_jobs(make_fake, eventually)
    slurm.script("squeue", "exit 1")
    exe = make_fake(wait=False)
    futures = [exe.submit(abs, n) for n in range(3)]
    for future in futures:
        with pytest.raises(QueueSilentError, match="has not answered"):
            future.result(timeout=10)
    assert len(slurm.calls("sbatch")) == 3


def leave_jobs(make_fake: MakeFake, eventually: Eventually) -> None:
    exe = make_fake(wait=False)
    futures = [exe.submit(abs, n) for n in range(3)]
    eventually(lambda: all(map(number, futures)))
    exe.shutdown(wait=False)


# What the queue says


def test_the_accounting_says_for_ever_that_a_job_runs(
    slurm: FakeSlurm, make_fake: MakeFake, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    """A job that was lost with its node may stay there as a runaway. For a while it is believed."""
    monkeypatch.setattr(slurm_watch, "_UNSEEN_SECONDS", 0.1)
    monkeypatch.setattr(slurm_watch, "_RUNAWAY_SECONDS", 3.0)
    slurm.script("sacct", "echo '1|RUNNING'")
    future = make_fake().submit(abs, -1)
    eventually(lambda: len(slurm.calls("sacct")) >= 2)
    assert not future.done()
    with pytest.raises(WorkerDiedError, match="Slurm knows it no more"):
        future.result(timeout=20)


@pytest.mark.parametrize(
    "row",
    [
        "SPECIAL_EXIT|0:00|p|None",
        "REQUEUE_HOLD|0:00|p|launch_failed_requeued_held",
        "PENDING|0:00|p|JobHeldAdmin",
        "PENDING|0:00|p|JobHoldMaxRequeue",
        "PENDING|0:00|p|InvalidAccount",
    ],
)
def test_a_job_that_is_held_is_said_once(
    slurm: FakeSlurm, make_fake: MakeFake, caplog: pytest.LogCaptureFixture, eventually: Eventually, row: str
) -> None:
    slurm.queue(f"1|{row}")
    future = make_fake().submit(abs, -1)
    eventually(lambda: len(slurm.calls("squeue")) >= 4)
    assert not future.done()
    assert caplog.text.count("job 1 of abs is held") == 1


def test_the_name_of_a_cluster_is_no_job() -> None:
    rows = "CLUSTER: main\n5|RUNNING|0:10|p|None\n\nCLUSTER: other\n"
    assert slurm_queue.parse(rows) == {"5": JobStatus("RUNNING", 10.0, "None", "p")}


def test_options_in_the_environment_change_nothing(slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("SQUEUE_STATES", "SACCT_FORMAT", "SCANCEL_STATE", "SLURM_CLUSTERS"):
        monkeypatch.setenv(variable, "odd")
    for command in ("squeue", "sacct", "scancel"):
        slurm.script(command, f"env > {command}.environment")
    slurm_queue.query()
    slurm_queue.query_ended(["1"])
    slurm_queue.cancel(["1"])
    for command in ("squeue", "sacct", "scancel"):
        assert "=odd" not in (slurm.folder / f"{command}.environment").read_text()


# Submitting


def test_the_key_of_a_socket_interface_is_not_in_the_environment_of_a_job(
    slurm: FakeSlurm, make_fake: MakeFake, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    """Slurm keeps that, and the job hands it on to the task."""
    monkeypatch.setenv("EXECUTORLIB_KEY_40123", "secret")
    slurm.script("sbatch", "env > sbatch.environment; echo 5")
    future = make_fake().submit(abs, -1)
    eventually(lambda: number(future) == 5)
    found = (slurm.folder / "sbatch.environment").read_text()
    assert "PATH=" in found
    assert "EXECUTORLIB_KEY" not in found
    assert not [name for name in flux_batch.environment() if name.startswith("EXECUTORLIB_KEY")]


TIMED_OUT = """
echo 'sbatch: error: Batch job submission failed: Socket timed out on send/recv operation' >&2
"""


def test_a_job_that_was_taken_without_an_answer_is_found(
    slurm: FakeSlurm, make_fake: MakeFake, tmp_path: Path, eventually: Eventually
) -> None:
    """The controller was too busy to answer sbatch; another job would run the call a second time."""
    for n, stem in ((5, "other"), (6, "one"), (7, "two")):
        with open(slurm.folder / "scripts", "a") as file:
            file.write(f"{n}|{tmp_path / 'cache' / stem / 'run_queue.sh'}\n")
    slurm.script("squeue", 'case "$*" in *%o*) cat scripts;; *) cat queue 2>/dev/null;; esac; true')
    slurm.script("sbatch", TIMED_OUT + "exit 1")
    future = make_fake().submit(abs, -1, resource_dict=key("one"))
    eventually(lambda: number(future) == 6)
    assert len(slurm.calls("sbatch")) == 1


def test_a_job_that_was_not_taken(slurm: FakeSlurm, make_fake: MakeFake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("executorlib.task_scheduler.file.batch_script._ATTEMPT_SECONDS", 0.01)
    slurm.script("sbatch", TIMED_OUT + "exit 1")
    with pytest.raises(SubmissionError, match=r"does not say whether it takes the job: .*Socket timed out"):
        make_fake().submit(abs, -1).result(timeout=10)
    slurm.script("sbatch", "echo 'sbatch: error: invalid partition' >&2; exit 1")
    with pytest.raises(SubmissionError, match=r"refuses the job: .*invalid partition"):
        make_fake().submit(abs, -1).result(timeout=10)


def test_a_job_that_is_not_needed_any_more_keeps_its_directory_for_a_moment(slurm: FakeSlurm, tmp_path: Path) -> None:
    """It may be about to enter it."""
    launcher = SlurmJobs(BatchSystem())
    paths = CachePaths.of(str(tmp_path), "call")
    launcher.withdraw(launcher.submit(Job(paths, Resources(), (), "call")))
    assert os.path.isdir(paths.job_directory)
    waits = 0
    while launcher.busy:
        waits += 1
        due = launcher.deadline()
        assert due is not None
        time.sleep(max(0.0, due - time.monotonic()))
        launcher.changes()
    assert waits
    assert not os.path.exists(paths.job_directory)
    launcher.close()
