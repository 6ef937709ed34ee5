"""The end of an executor, and of its program, while jobs wait and run; and the program that comes after."""

from __future__ import annotations

import gc
import os
import signal
import time
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any

import file_tasks
import psutil
import pytest
from file_fixtures import FIXTURES, Files
from file_fixtures import MakeCluster as Make

from conftest import Eventually, Script, StartScript
from executorlib import get_future_from_cache, terminate_task_in_cache, terminate_tasks_in_cache
from executorlib.standalone.errors import TaskLostError, TaskRemovedError
from executorlib.standalone.processes import start_mark

cache, make_cluster, files = FIXTURES

PRELUDE = """
import os, signal, sys, time
from executorlib.api import TestClusterExecutor
import file_tasks
cache, folder = sys.argv[1:3]
here = lambda name: os.path.join(folder, name)
"""


@pytest.fixture
def script_environment() -> dict[str, str]:
    import executorlib

    paths = [str(Path(executorlib.__file__).parent.parent), str(Path(__file__).parent)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


class Three:
    """Two jobs that run until they are told to end, and one that depends on the first."""

    def __init__(self, exe: Any, folder: Path, eventually: Eventually) -> None:
        self.until = folder / "until"
        names = ("first", "second")
        self.running = [
            exe.submit(
                file_tasks.hold, str(folder / name), str(self.until), name, resource_dict={"cache_key": f"{name}-key"}
            )
            for name in names
        ]
        self.dependent = exe.submit(file_tasks.add, self.running[0], "!", resource_dict={"cache_key": "dependent"})
        eventually(lambda: all((folder / name).exists() for name in names))
        eventually(lambda: all(future.running() for future in self.running))


@pytest.fixture(autouse=True)
def _two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("executorlib.task_scheduler.file.task_scheduler.usable_cpus", lambda: 2)


def result_of(cache: Path, key: str) -> Any:
    return get_future_from_cache(str(cache), key).result(timeout=20)


def test_shutdown_waits_for_all(make_cluster: Make, tmp_path: Path, eventually: Eventually) -> None:
    exe = make_cluster()
    three = Three(exe, tmp_path, eventually)
    three.until.touch()
    exe.shutdown()
    assert [future.result(timeout=0) for future in [*three.running, three.dependent]] == ["first", "second", "first!"]


def test_shutdown_that_cancels_waits_for_what_runs(
    make_cluster: Make, tmp_path: Path, eventually: Eventually, files: Files
) -> None:
    exe = make_cluster()
    three = Three(exe, tmp_path, eventually)
    last = Future[None]()

    def wait_for_cancel(_: Any) -> None:
        three.until.touch()
        last.set_result(None)

    three.dependent.add_done_callback(wait_for_cancel)
    exe.shutdown(cancel_futures=True)
    assert [future.result(timeout=0) for future in three.running] == ["first", "second"]
    assert three.dependent.cancelled()
    assert files() == ["dependent_i.h5", "first-key_o.h5", "second-key_o.h5"]


@pytest.mark.parametrize("by_option", [False, True])
def test_without_waiting_the_jobs_go_on(
    make_cluster: Make, tmp_path: Path, cache: Path, eventually: Eventually, by_option: bool, files: Files
) -> None:
    """Those that have not begun are begun too, and who comes later finds the results."""
    exe = make_cluster(wait=not by_option)
    three = Three(exe, tmp_path, eventually)
    start = time.monotonic()
    if by_option:
        exe.shutdown()
    else:
        exe.shutdown(wait=False)
    assert time.monotonic() - start < 3
    assert all(future.cancelled() for future in [*three.running, three.dependent])
    waiting = get_future_from_cache(str(cache), "dependent")
    assert not waiting.done()
    three.until.touch()
    assert waiting.result(timeout=20) == "first!"
    assert result_of(cache, "second-key") == "second"
    eventually(lambda: files() == ["dependent_o.h5", "first-key_o.h5", "second-key_o.h5"])


def test_jobs_that_are_left_at_once_are_all_run(cache: Path, make_cluster: Make) -> None:
    """What has been handed over in the last moment counts too."""
    for round_number in range(3):
        keys = [f"left-{round_number}-{number}" for number in range(6)]
        with make_cluster(wait=False) as exe:
            for key in keys:
                exe.submit(file_tasks.add, 1, y=2, resource_dict={"cache_key": key})
        assert [get_future_from_cache(str(cache), key).result(timeout=20) for key in keys] == [3] * 6


def test_without_waiting_what_is_cancelled_is_ended(
    make_cluster: Make, tmp_path: Path, eventually: Eventually, files: Files
) -> None:
    exe = make_cluster()
    pid_file = tmp_path / "pid"
    long = exe.submit(file_tasks.pid_and_hold, str(pid_file), resource_dict={"cache_key": "long"})
    then = exe.submit(file_tasks.add, long)
    eventually(pid_file.exists)
    start = time.monotonic()
    exe.shutdown(wait=False, cancel_futures=True)
    for future in (long, then):
        with pytest.raises(CancelledError):
            future.result(timeout=5)
    assert time.monotonic() - start < 3
    eventually(lambda: not psutil.pid_exists(int(pid_file.read_text())))
    eventually(lambda: "long_i.h5" in files())


def test_another_executor_takes_up_what_runs(
    make_cluster: Make, tmp_path: Path, eventually: Eventually, files: Files
) -> None:
    first = make_cluster()
    three = Three(first, tmp_path, eventually)
    first.shutdown(wait=False)
    with make_cluster() as second:
        arguments = (str(tmp_path / "first"), str(three.until), "first")
        again = second.submit(file_tasks.hold, *arguments, resource_dict={"cache_key": "first-key"})
        eventually(again.running)
        (tmp_path / "first").unlink()
        three.until.touch()
        assert again.result(timeout=20) == "first"
        assert not (tmp_path / "first").exists(), "it was run a second time"
    eventually(lambda: files() == ["dependent_o.h5", "first-key_o.h5", "second-key_o.h5"])


def test_two_executors_on_one_directory_run_a_call_once(make_cluster: Make, tmp_path: Path, files: Files) -> None:
    note = str(tmp_path / "note")
    with make_cluster() as first, make_cluster() as second:
        futures = [exe.submit(file_tasks.noted_late, note, n, 0.1) for n in range(4) for exe in (first, second)]
        chain = [exe.submit(file_tasks.add, futures[0], 1) for exe in (first, second)]
        assert [future.result(timeout=40) for future in futures] == [0, 0, 1, 1, 2, 2, 3, 3]
        assert [future.result(timeout=40) for future in chain] == [1, 1]
    assert sorted(Path(note).read_text().split()) == ["0", "1", "2", "3"]
    assert all(name.endswith("_o.h5") for name in files())


def test_an_executor_that_nobody_holds_ends_when_its_calls_have(cache: Path) -> None:
    from executorlib.api import TestClusterExecutor

    future = TestClusterExecutor(cache_directory=str(cache)).submit(file_tasks.add, 1)
    gc.collect()
    assert future.result(timeout=20) == 1


def test_a_running_call_is_cancelled_by_the_executor(
    make_cluster: Make, tmp_path: Path, eventually: Eventually
) -> None:
    pid_file = tmp_path / "pid"
    with make_cluster() as exe:
        long = exe.submit(file_tasks.pid_and_hold, str(pid_file))
        eventually(pid_file.exists)
        eventually(long.running)
        assert not long.cancel()
        assert exe.cancel(long)
        with pytest.raises(CancelledError):
            long.result(timeout=5)
        eventually(lambda: not psutil.pid_exists(int(pid_file.read_text())))
        assert exe.submit(file_tasks.add, 1).result() == 1


def test_who_cancels_one_of_two_equal_calls_does_not_cancel_the_other(
    make_cluster: Make, tmp_path: Path, eventually: Eventually
) -> None:
    begun, until = tmp_path / "begun", tmp_path / "until"
    with make_cluster() as exe:
        first, second = (exe.submit(file_tasks.hold, str(begun), str(until), 5) for _ in range(2))
        eventually(begun.exists)
        eventually(lambda: first.running() and second.running())
        assert exe.cancel(first)
        with pytest.raises(CancelledError):
            first.result(timeout=5)
        assert not second.done()
        until.touch()
        assert second.result(timeout=20) == 5


def test_the_job_of_equal_calls_ends_when_nobody_wants_it(
    make_cluster: Make, tmp_path: Path, eventually: Eventually
) -> None:
    pid_file = tmp_path / "pid"
    with make_cluster() as exe:
        first, second = (exe.submit(file_tasks.pid_and_hold, str(pid_file)) for _ in range(2))
        eventually(pid_file.exists)
        eventually(lambda: first.running() and second.running())
        assert exe.cancel(second)
        assert exe.cancel(first)
        eventually(lambda: first.cancelled() and second.cancelled())
        eventually(lambda: not psutil.pid_exists(int(pid_file.read_text())))


# Programs


def test_a_program_that_ends_finishes_its_calls(script: Script, cache: Path, tmp_path: Path) -> None:
    code = PRELUDE + "exe = TestClusterExecutor(cache_directory=cache)\nf = exe.submit(file_tasks.add, 1, y=2)\n"
    done = script(code + "f.add_done_callback(lambda f: print(f.result(), flush=True))\n", str(cache), str(tmp_path))
    assert done.stdout.split() == ["3"], done.stderr
    assert done.returncode == 0


def test_a_program_that_does_not_wait_leaves_its_jobs(
    script: Script, cache: Path, tmp_path: Path, eventually: Eventually, files: Files
) -> None:
    code = PRELUDE + (
        "with TestClusterExecutor(cache_directory=cache, wait=False) as exe:\n"
        "    one = exe.submit(file_tasks.noted_late, here('note'), 1, 1.5, resource_dict={'cache_key': 'one'})\n"
        "    exe.submit(file_tasks.add, one, 1, resource_dict={'cache_key': 'two'})\n"
        "    time.sleep(0.3)\n"
    )
    start = time.monotonic()
    assert script(code, str(cache), str(tmp_path)).returncode == 0
    assert not (tmp_path / "note").exists() or time.monotonic() - start > 1.5
    assert result_of(cache, "two") == 2
    eventually(lambda: files() == ["one_o.h5", "two_o.h5"])
    assert (tmp_path / "note").read_text() == "1\n"


def test_ctrl_c_ends_the_jobs(start_script: StartScript, cache: Path, tmp_path: Path, eventually: Eventually) -> None:
    code = PRELUDE + (
        "with TestClusterExecutor(cache_directory=cache) as exe:\n"
        "    exe.submit(file_tasks.pid_and_hold, here('pid')).result()\n"
    )
    process = start_script(code, str(cache), str(tmp_path))
    eventually((tmp_path / "pid").exists)
    process.send_signal(signal.SIGINT)
    start = time.monotonic()
    process.wait(timeout=10)
    assert time.monotonic() - start < 4
    eventually(lambda: not psutil.pid_exists(int((tmp_path / "pid").read_text())))


def test_a_forked_child_leaves_the_executor_alone(script: Script, cache: Path, tmp_path: Path) -> None:
    code = PRELUDE + (
        "with TestClusterExecutor(cache_directory=cache) as exe:\n"
        "    future = exe.submit(file_tasks.add, 1)\n"
        "    if os.fork() == 0:\n"
        "        try: exe.submit(file_tasks.add, 2)\n"
        "        except RuntimeError as error: print('refused', flush=True)\n"
        "        exe.shutdown()\n"
        "        os._exit(0)\n"
        "    os.wait()\n"
        "    print(future.result(), exe.submit(file_tasks.add, 3).result())\n"
    )
    done = script(code, str(cache), str(tmp_path))
    assert done.stdout.split() == ["refused", "1", "3"], done.stderr


def test_a_forked_child_does_not_end_the_jobs_of_its_parent(script: Script, cache: Path, tmp_path: Path) -> None:
    code = PRELUDE + (
        "with TestClusterExecutor(cache_directory=cache) as exe:\n"
        "    running = exe.submit(file_tasks.hold, here('begun'), here('until'), 'done')\n"
        "    waiting = exe.submit(file_tasks.add, running, '!')\n"
        "    while not (os.path.exists(here('begun')) and running.running()): time.sleep(0.01)\n"
        "    if os.fork() == 0:\n"
        "        print(exe.cancel(running), waiting.cancel(), flush=True)\n"
        "        os._exit(0)\n"
        "    os.wait()\n"
        "    time.sleep(0.2)\n"
        "    open(here('until'), 'w').close()\n"
        "    print(running.result(), waiting.result())\n"
    )
    done = script(code, str(cache), str(tmp_path))
    assert done.stdout.splitlines() == ["False True", "done done!"], done.stderr


@pytest.mark.parametrize("end", ["exe.shutdown(wait=False)", "pass"])
def test_a_time_limit_counts_without_the_program(
    script: Script, tmp_path: Path, cache: Path, eventually: Eventually, end: str
) -> None:
    code = PRELUDE + (
        "exe = TestClusterExecutor(cache_directory=cache, wait=False)\n"
        "exe.submit(file_tasks.pid_and_hold, here('pid'), resource_dict={'run_time_max': 5})\n"
        "while not os.path.exists(here('pid')): time.sleep(0.01)\n"
        f"{end}\n"
    )
    done = script(code, str(cache), str(tmp_path))
    assert done.returncode == 0, done.stderr
    pid = int((tmp_path / "pid").read_text())
    assert start_mark(pid), "it runs"
    eventually(lambda: not start_mark(pid), 20)


# From outside


@pytest.mark.parametrize("key", ["long", "runs/today/long"])
def test_a_task_is_terminated(
    make_cluster: Make, tmp_path: Path, cache: Path, eventually: Eventually, key: str
) -> None:
    pid_file = tmp_path / "pid"
    with make_cluster() as exe:
        long = exe.submit(file_tasks.pid_and_hold, str(pid_file), resource_dict={"cache_key": key})
        then = exe.submit(file_tasks.add, long)
        eventually(pid_file.exists)
        waiting = get_future_from_cache(str(cache), key)
        terminate_task_in_cache(str(cache), key)
        for future in (long, then, waiting):
            with pytest.raises(TaskRemovedError):
                future.result(timeout=15)
        assert not (cache / f"{key}_i.h5").exists()
        eventually(lambda: not psutil.pid_exists(int(pid_file.read_text())))
    with pytest.raises(FileNotFoundError, match=r"long_i\.h5"):
        terminate_task_in_cache(str(cache), key)


def test_who_waits_for_a_task_of_others_hears_of_its_death(
    start_script: StartScript, tmp_path: Path, cache: Path, eventually: Eventually
) -> None:
    """The program that submitted it is gone too, so that nobody else would say so."""
    pid_file = tmp_path / "pid"
    program = start_script(
        PRELUDE + "with TestClusterExecutor(cache_directory=cache) as exe:\n"
        "    exe.submit(file_tasks.pid_and_hold, here('pid'), resource_dict={'cache_key': 'lost'}).result()\n",
        str(cache),
        str(tmp_path),
    )
    eventually(lambda: pid_file.exists() and pid_file.read_text(), 30)
    waiting = get_future_from_cache(str(cache), "lost")
    program.kill()
    program.wait(10)
    time.sleep(1.5)
    assert not waiting.done()
    os.kill(int(pid_file.read_text()), signal.SIGKILL)
    with pytest.raises(TaskLostError, match=r"lost .* has ended without a result"):
        waiting.result(timeout=15)


def test_all_tasks_are_terminated(make_cluster: Make, tmp_path: Path, cache: Path, eventually: Eventually) -> None:
    open_input = Future[int]()
    with make_cluster() as exe:
        done = exe.submit(file_tasks.add, 1, resource_dict={"cache_key": "done"})
        assert done.result() == 1
        running = [exe.submit(file_tasks.pid_and_hold, str(tmp_path / f"pid{n}")) for n in range(3)]
        eventually(lambda: len(list(tmp_path.glob("pid?"))) == 2)
        terminate_tasks_in_cache(str(cache))
        for future in running:
            with pytest.raises(TaskRemovedError):
                future.result(timeout=15)
        open_input.set_result(1)
    assert [name for name in os.listdir(cache) if name.endswith(".h5")] == ["done_o.h5"]
    terminate_tasks_in_cache(str(cache / "missing"))
    terminate_tasks_in_cache(str(cache), backend="slurm")


@pytest.mark.mpi
def test_all_ranks_are_terminated(make_cluster: Make, tmp_path: Path, cache: Path, eventually: Eventually) -> None:
    pid_file = tmp_path / "pid"
    with make_cluster() as exe:
        resources = {"cores": 2, "cache_key": "ranks"}
        long = exe.submit(file_tasks.pid_and_hold, str(pid_file), resource_dict=resources)
        eventually(pid_file.exists, 30)
        terminate_task_in_cache(str(cache), "ranks")
        with pytest.raises(TaskRemovedError):
            long.result(timeout=15)
        eventually(lambda: not psutil.pid_exists(int(pid_file.read_text())))
