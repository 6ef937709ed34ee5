"""Things that break: files that cannot be read, jobs that die, disks that fill, calls that cannot be pickled."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import file_tasks
import psutil
import pytest
from file_fixtures import FIXTURES, Files
from file_fixtures import MakeCluster as Make

from conftest import Eventually, living_child
from executorlib import get_cache_data
from executorlib.standalone import cache_claim, cache_file, cache_queue
from executorlib.standalone.cache_file import CacheFileError
from executorlib.standalone.cache_paths import CachePaths
from executorlib.standalone.command import get_command_path
from executorlib.standalone.errors import ExecutorlibSocketError, RemoteError, TaskRemovedError, WorkerDiedError
from executorlib.standalone.hdf import dump, get_output
from executorlib.standalone.interactive import launcher
from executorlib.standalone.processes import process_space
from executorlib.task_scheduler.file import local_jobs
from executorlib.task_scheduler.file.launcher import Job
from executorlib.task_scheduler.file.local_jobs import LocalJobs

cache, make_cluster, files = FIXTURES
pytestmark = pytest.mark.faults

KEY = {"cache_key": "key"}
PLACE = r"\(task key, pid \d+ on \S+\) has ended without a result: "


@pytest.fixture(autouse=True, params=["forked", "started"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Jobs are forked by the job server, or are new interpreters as on macOS and Windows."""
    name: str = request.param
    if name == "started":
        monkeypatch.setenv("EXECUTORLIB_FORK_SERVER", "0")
    return name


# Files


def broken(kind: str, cache: Path) -> bytes:
    path = cache / "whole.h5"
    dump(str(path), {"fn": file_tasks.add, "args": [1], "kwargs": {}, "output": 5})
    whole = path.read_bytes()
    path.unlink()
    return {"cut": whole[:-40], "empty": b"", "foreign": b"not a cache file" * 100, "half": whole[:96]}[kind]


@pytest.mark.parametrize("suffix", ["_i.h5", "_o.h5"])
@pytest.mark.parametrize("kind", ["cut", "empty", "foreign", "half"])
def test_a_file_that_cannot_be_read_is_made_again(
    make_cluster: Make, cache: Path, kind: str, suffix: str, files: Files
) -> None:
    cache.mkdir()
    (cache / f"key{suffix}").write_bytes(broken(kind, cache))
    with make_cluster() as exe:
        assert exe.submit(file_tasks.add, 1, resource_dict=KEY).result(timeout=20) == 1
    assert files() == ["key_o.h5"]
    assert get_cache_data(str(cache))[0]["output"] == 1


def test_a_directory_in_the_place_of_a_file(make_cluster: Make, cache: Path) -> None:
    (cache / "key_o.h5").mkdir(parents=True)
    (cache / "other_i.h5").mkdir(parents=True)
    with make_cluster() as exe:
        with pytest.raises(OSError, match=r"key_o\.h5"):
            exe.submit(file_tasks.add, 1, resource_dict=KEY).result(timeout=20)
        with pytest.raises(OSError, match=r"other_i\.h5"):
            exe.submit(file_tasks.add, 1, resource_dict={"cache_key": "other"}).result(timeout=20)
        assert exe.submit(file_tasks.add, 2).result(timeout=20) == 2


def test_the_cache_directory_is_a_file(make_cluster: Make, cache: Path) -> None:
    cache.write_text("")
    with make_cluster() as exe, pytest.raises(OSError, match="cache"):
        exe.submit(file_tasks.add, 1).result(timeout=20)


def test_a_result_that_cannot_be_loaded_here_says_so(make_cluster: Make, cache: Path) -> None:
    with make_cluster() as exe:
        for _ in range(2):
            with pytest.raises(CacheFileError, match="not in the program"):
                exe.submit(file_tasks.make_exploding, resource_dict=KEY).result(timeout=20)
    assert (cache / "key_o.h5").exists(), "another program may be able to load it"


def test_an_output_that_appears_broken_is_an_error(make_cluster: Make, cache: Path, tmp_path: Path) -> None:
    with make_cluster() as exe:
        future = exe.submit(spoil, str(cache / "key_o.h5"), resource_dict=KEY)
        with pytest.raises((CacheFileError, WorkerDiedError)):
            future.result(timeout=20)


def spoil(path: str) -> None:
    Path(path).write_bytes(b"spoiled")
    os._exit(0)


def test_the_directory_vanishes(make_cluster: Make, cache: Path, tmp_path: Path, eventually: Eventually) -> None:
    pid_file = tmp_path / "pid"
    with make_cluster() as exe:
        running = exe.submit(file_tasks.pid_and_hold, str(pid_file))
        then = exe.submit(file_tasks.add, running)
        eventually(pid_file.exists)
        shutil.rmtree(cache)
        assert exe.submit(file_tasks.add, 1).result(timeout=20) == 1, "the directory is made again"
        for future in (running, then):
            with pytest.raises(TaskRemovedError):
                future.result(timeout=15)


def test_the_disk_is_full_in_the_program(
    make_cluster: Make, monkeypatch: pytest.MonkeyPatch, cache: Path, files: Files
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with make_cluster() as exe:
        with monkeypatch.context() as patch:
            patch.setattr(cache_file, "_write_all", full)
            with pytest.raises(OSError, match="No space left"):
                exe.submit(file_tasks.add, 1).result(timeout=20)
        assert files() == []
        assert exe.submit(file_tasks.add, 1).result(timeout=20) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="needs RLIMIT_FSIZE")
def test_the_disk_is_full_in_the_job(make_cluster: Make, files: Files) -> None:
    with make_cluster() as exe:
        with pytest.raises(WorkerDiedError, match="File too large"):
            exe.submit(too_much, resource_dict=KEY).result(timeout=20)
        assert exe.submit(file_tasks.add, 1, resource_dict=KEY).result(timeout=20) == 1


def too_much() -> bytes:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    return bytes(1_000_000)


# Jobs


def test_a_job_that_dies_fails_its_future_and_what_depends_on_it(make_cluster: Make, files: Files) -> None:
    with make_cluster() as exe:
        dead = exe.submit(file_tasks.say_and_die, resource_dict=KEY)
        then = exe.submit(file_tasks.add, dead)
        other = exe.submit(file_tasks.add, 2)
        with pytest.raises(WorkerDiedError, match=rf"(?s)^say_and_die {PLACE}.*SIGABRT.*the last words"):
            dead.result(timeout=20)
        assert then.exception(timeout=5) is dead.exception()
        assert other.result(timeout=20) == 2
        assert "key_o.h5" not in files()
        # It is no result: whoever asks again has it run again.
        assert exe.submit(file_tasks.add, 1, resource_dict=KEY).result(timeout=20) == 1
    assert all(not name.endswith(".run") for name in files())


@pytest.mark.parametrize("code", [0, 1, cache_claim.TAKEN_EXIT_CODE])
def test_a_job_that_leaves_without_a_word(make_cluster: Make, code: int) -> None:
    with make_cluster() as exe, pytest.raises(WorkerDiedError, match=f"exit code {code}"):
        exe.submit(file_tasks.exit_at_once, code).result(timeout=20)


def test_a_job_that_is_killed(make_cluster: Make, tmp_path: Path, eventually: Eventually) -> None:
    seconds: list[float] = []
    with make_cluster() as exe:
        while len(seconds) < 3 and min(seconds, default=1.0) >= 1.0:  # a busy machine may hold one of them up
            pid_file = tmp_path / f"pid{len(seconds)}"
            future = exe.submit(file_tasks.pid_and_hold, str(pid_file))
            eventually(pid_file.exists)
            os.kill(int(pid_file.read_text()), signal.SIGKILL)
            start = time.monotonic()
            with pytest.raises(WorkerDiedError, match=f"pid {pid_file.read_text()} on .*SIGKILL"):
                future.result(timeout=20)
            seconds.append(time.monotonic() - start)
    assert min(seconds) < 1.0, "its end is seen at once"


def test_a_job_that_another_program_runs_dies(make_cluster: Make, tmp_path: Path, eventually: Eventually) -> None:
    """Then it is run here."""
    pid_file, until = tmp_path / "begun", tmp_path / "until"
    first, second = make_cluster(), make_cluster()
    held = first.submit(file_tasks.hold, str(pid_file), str(until), 4)
    eventually(pid_file.exists)
    theirs = second.submit(file_tasks.hold, str(pid_file), str(until), 4)
    eventually(theirs.running)
    pid_file.unlink()
    first.cancel(held)
    eventually(pid_file.exists)
    until.touch()
    assert theirs.result(timeout=20) == 4
    second.shutdown()
    first.shutdown()


@pytest.mark.parametrize("cores", [1, pytest.param(2, marks=pytest.mark.mpi)])
def test_a_job_that_takes_too_long(make_cluster: Make, tmp_path: Path, cores: int, eventually: Eventually) -> None:
    pid_file = tmp_path / "pid"
    with make_cluster() as exe:
        assert exe.submit(file_tasks.add, 1).result(timeout=20) == 1  # whatever starts the jobs has started itself
        limits = {"run_time_max": 4 if cores > 1 else 2, "cores": cores}
        future = exe.submit(file_tasks.pid_and_hold, str(pid_file), resource_dict=limits)
        said = r"^pid_and_hold \(task .*, pid \d+ on .*\) was ended after its run_time_max of"
        with pytest.raises(TimeoutError, match=said):
            future.result(timeout=20)
        if pid_file.exists():
            eventually(lambda: not psutil.pid_exists(int(pid_file.read_text())))


def test_there_is_no_mpiexec(make_cluster: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    with make_cluster() as exe:
        monkeypatch.setattr("executorlib.standalone.command.sys.executable", "/nowhere/python")
        monkeypatch.setenv("PATH", "/nowhere")
        with pytest.raises(FileNotFoundError, match="mpiexec"):
            exe.submit(file_tasks.add, 1, resource_dict={"cores": 2}).result(timeout=20)


def test_there_is_no_interpreter(make_cluster: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("executorlib.standalone.command.sys.executable", "/nowhere/python")
        exe = make_cluster()
        with pytest.raises(FileNotFoundError, match="nowhere"):
            exe.submit(file_tasks.add, 1).result(timeout=20)
    assert exe.submit(file_tasks.add, 1).result(timeout=20) == 1
    exe.shutdown()


def test_the_job_server_dies(make_cluster: Make, tmp_path: Path, eventually: Eventually, way: str) -> None:
    """What runs goes on, and what comes is started without it."""
    if way != "forked" or sys.platform != "linux":
        pytest.skip("there is no job server")
    begun, until = tmp_path / "begun", tmp_path / "until"
    with make_cluster() as exe:
        held = exe.submit(file_tasks.hold, str(begun), str(until), 3)
        eventually(begun.exists)
        eventually(held.running)
        living_child("job_server_main.py").kill()
        assert exe.submit(file_tasks.add, 1).result(timeout=20) == 1
        then = exe.submit(file_tasks.add, held, 1)
        until.touch()
        assert (held.result(timeout=20), then.result(timeout=20)) == (3, 4)
        dead = exe.submit(file_tasks.exit_at_once, 3)
        with pytest.raises(WorkerDiedError, match="exit code 3"):
            dead.result(timeout=20)


def test_the_job_server_dies_with_a_job(make_cluster: Make, tmp_path: Path, eventually: Eventually, way: str) -> None:
    """Nobody knows how the job has ended: it is run once more."""
    if way != "forked" or sys.platform != "linux":
        pytest.skip("there is no job server")
    begun = tmp_path / "begun"
    with make_cluster() as exe:
        future = exe.submit(file_tasks.die_once, str(begun))
        eventually(begun.exists)
        living_child("job_server_main.py").kill()
        os.kill(int(begun.read_text()), signal.SIGKILL)
        assert future.result(timeout=20) == "second"


def test_a_stopped_job_server_holds_nobody_up(
    make_cluster: Make, tmp_path: Path, eventually: Eventually, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the end of a call, nor the next one, nor the end of the executor."""
    if way != "forked" or sys.platform != "linux":
        pytest.skip("there is no job server")
    monkeypatch.setattr(launcher, "_KILL_SECONDS", 1.0)
    monkeypatch.setattr(launcher, "_END_SECONDS", 1.0)
    with make_cluster() as exe, monkeypatch.context() as patch:
        held = exe.submit(file_tasks.hold, str(tmp_path / "begun"), str(tmp_path / "never"), 3)
        eventually((tmp_path / "begun").exists)
        eventually(held.running)
        patch.setattr(local_jobs, "START_SECONDS", 1.0)
        living_child("job_server_main.py").suspend()
        assert exe.cancel(held)
        assert exe.submit(file_tasks.add, 1).result(timeout=20) == 1
    with make_cluster() as exe:
        assert exe.submit(file_tasks.add, 2).result(timeout=20) == 2
        living_child("job_server_main.py").suspend()


def test_the_note_of_a_dead_process_does_not_count(make_cluster: Make, cache: Path, files: Files) -> None:
    cache.mkdir()
    paths = CachePaths.of(cache, "key")
    os.symlink(f"{process_space()}-{os.getpid()}-0-serial", paths.claim)
    with make_cluster() as exe:
        assert exe.submit(file_tasks.add, 1, resource_dict=KEY).result(timeout=20) == 1
    assert files() == ["key_o.h5"]


def test_nobody_takes_a_task_that_is_taken(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = CachePaths.of(cache, "key")
    assert cache_claim.holder(paths) is None
    assert cache_claim.take(paths)
    assert cache_claim.take(paths), "it is ours"
    claim = cache_claim.holder(paths)
    assert claim is not None
    assert claim.pid == os.getpid()
    assert cache_claim.was_taken_by(paths, os.getpid())
    monkeypatch.setenv(cache_claim.LEADER_VARIABLE, str(os.getppid()))
    assert not cache_claim.take(paths)
    cache_claim.release(paths)
    assert os.listdir(cache) == []


def test_an_interruption_from_outside_is_no_outcome(make_cluster: Make, tmp_path: Path, eventually: Eventually) -> None:
    """As Slurm's ``--signal=INT@60`` before the time limit; the call runs when it is submitted again."""
    begun = tmp_path / "begun"
    with make_cluster() as exe:
        future = exe.submit(file_tasks.die_once, str(begun), resource_dict=KEY)
        eventually(lambda: begun.exists() and begun.read_text())
        os.kill(int(begun.read_text()), signal.SIGINT)
        with pytest.raises(WorkerDiedError, match=r"exit code 130|Interruption"):
            future.result(timeout=20)
        assert exe.submit(file_tasks.die_once, str(begun), resource_dict=KEY).result(timeout=20) == "second"


def test_a_key_with_a_slash_is_one_task_for_all(make_cluster: Make, tmp_path: Path, eventually: Eventually) -> None:
    """Its process is known to a second executor by the note that it has made itself."""
    begun, until = tmp_path / "begun", tmp_path / "until"
    key = {"cache_key": "runs/today"}
    with make_cluster() as one, make_cluster() as other:
        first = one.submit(file_tasks.hold, str(begun), str(until), 5, resource_dict=key)
        eventually(begun.exists)
        begun.unlink()
        second = other.submit(file_tasks.hold, str(begun), str(until), 5, resource_dict=key)
        assert other.submit(file_tasks.add, 1).result(timeout=20) == 1
        assert second.running()
        until.touch()
        assert (first.result(timeout=20), second.result(timeout=20)) == (5, 5)
    assert not begun.exists(), "it has run once"


def test_a_task_that_others_have_is_not_tried_without_a_pause(
    make_cluster: Make, cache: Path, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    """Its process is seen by the job and not from here, as where process ids mean something else."""
    started: list[int] = []
    launch = LocalJobs._launch

    def counting(self: LocalJobs, number: int, job: Job, allotment: Any) -> Any:
        started.append(number)
        return launch(self, number, job, allotment)

    paths = CachePaths.of(cache, "key")
    assert cache_claim.take(paths)
    monkeypatch.setattr(cache_claim, "holder", lambda paths: None)
    monkeypatch.setattr(LocalJobs, "_launch", counting)
    with make_cluster() as exe:
        future = exe.submit(file_tasks.add, 1, resource_dict=KEY)
        eventually(lambda: len(started) >= 2)
        before, start = len(started), time.monotonic()
        time.sleep(1.0)
        assert len(started) - before < 2 + 8 * (time.monotonic() - start)
        cache_claim.release(paths)
        assert future.result(timeout=20) == 1


def test_a_batch_job_waits_for_the_process_that_has_its_task(cache: Path) -> None:
    """Its end without a result would be taken for the death of the call, which runs elsewhere."""
    paths = CachePaths.of(cache, "key")
    dump(paths.input, {"fn": file_tasks.add, "args": [1], "kwargs": {}})
    cache_queue.note(paths, 17)
    assert cache_claim.take(paths)
    with subprocess.Popen([sys.executable, get_command_path("cache_serial.py"), paths.input]) as job:
        with pytest.raises(subprocess.TimeoutExpired):
            job.wait(2)
        dump(paths.output, {"output": 5})
        os.unlink(paths.input)
        cache_claim.release(paths)
        assert job.wait(20) == 0
    assert get_output(paths.output) == (True, True, 5)


# Pickling


@pytest.mark.parametrize("where", ["argument", "list", "function"])
@pytest.mark.parametrize("value", [file_tasks.CannotBePickled(), file_tasks.ExitsWhenPickled(), threading.Lock()])
def test_what_cannot_be_pickled(make_cluster: Make, where: str, value: Any, files: Files) -> None:
    def closure() -> Any:
        return value

    with make_cluster() as exe:
        call = {"argument": (file_tasks.add, value), "list": (file_tasks.add, [value]), "function": (closure,)}[where]
        for resources in ({}, KEY):
            with pytest.raises(Exception, match=r"not this one|sys\.exit|pickle"):
                exe.submit(*call, resource_dict=resources).result(timeout=20)
        assert exe.submit(file_tasks.add, 1).result(timeout=20) == 1
    assert len(files()) == 1


def test_an_argument_that_cannot_be_loaded(make_cluster: Make) -> None:
    with make_cluster() as exe, pytest.raises(WorkerDiedError, match="cannot be loaded"):
        exe.submit(file_tasks.add, file_tasks.ExplodesWhenLoaded()).result(timeout=20)


def test_a_result_that_cannot_be_pickled(make_cluster: Make) -> None:
    with make_cluster() as exe, pytest.raises(TypeError, match="generator"):
        exe.submit(file_tasks.unpicklable).result(timeout=20)


def test_an_exception_that_cannot_be_loaded(make_cluster: Make) -> None:
    with make_cluster() as exe, pytest.raises(RemoteError, match="FailsToLoad: 1 and 2"):
        exe.submit(file_tasks.raise_unloadable).result(timeout=20)


def test_an_input_that_is_removed(make_cluster: Make, cache: Path) -> None:
    """What the result of another task was is not known any more: that is no result of the function."""
    with make_cluster() as exe:
        one = exe.submit(file_tasks.add, 1, resource_dict=KEY)
        assert one.result(timeout=20) == 1
        (cache / "key_o.h5").write_bytes(b"spoiled")
        with pytest.raises(WorkerDiedError, match="cannot be read"):
            exe.submit(file_tasks.add, one).result(timeout=20)


def test_a_job_has_no_more_than_its_error(make_cluster: Make) -> None:
    """The failure of a callback, or of a task, does not end the executor."""
    with make_cluster() as exe:
        future = exe.submit(file_tasks.fail)

        def leave(_: Any) -> None:
            raise SystemExit(3)

        future.add_done_callback(leave)
        assert isinstance(future.exception(timeout=20), ValueError)
        assert not isinstance(future.exception(), ExecutorlibSocketError)
        assert exe.submit(file_tasks.add, 1).result(timeout=20) == 1
