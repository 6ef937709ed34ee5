"""What happens between the threads of a program, its workers and the fork server when they meet at a bad moment."""

from __future__ import annotations

import collections
import contextlib
import os
import signal
import sys
import threading
import time
from concurrent.futures import CancelledError, wait
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tasks

from conftest import Eventually, MakeExecutor, Script, StartScript, has_ended
from executorlib import SingleNodeExecutor
from executorlib.standalone.errors import WorkerDiedError


def test_a_worker_that_is_busy_for_long_is_not_sent_the_same_work_again_and_again(tmp_path: Path) -> None:
    """Each message that it finds afterwards must be one whose tasks are its own, or none: no task runs twice."""
    with SingleNodeExecutor(max_workers=2, block_allocation=True) as exe:
        assert list(exe.map(tasks.sleep_and_return, range(20), [0.001] * 20)) == list(range(20))
        long = exe.submit(tasks.hold, tmp_path / "begun", tmp_path / "go")
        tasks.wait_for(tmp_path / "begun")
        sent = []
        for i in range(280):
            sent.append([exe.submit(tasks.sleep_and_return, (i, k), 0.0005) for k in range(3)])
            assert [future.result() for future in sent[-1]] == [(i, k) for k in range(3)]
        busy = exe.submit(tasks.hold, tmp_path / "begun2", tmp_path / "go2")
        tasks.wait_for(tmp_path / "begun2")
        rest = [exe.submit(tasks.append, tmp_path / "log", i) for i in range(100)]
        (tmp_path / "go").touch()
        long.result()
        wait(rest)
        (tmp_path / "go2").touch()
        busy.result()
    assert sorted(map(int, (tmp_path / "log").read_text().split())) == list(range(100))


def test_more_functions_in_a_message_than_a_worker_keeps() -> None:
    functions = [lambda x, k=k: x + k for k in range(60)]
    with SingleNodeExecutor(max_workers=1, block_allocation=True) as exe:
        for _ in range(10):
            futures = [exe.submit(function, 1) for function in functions]
            assert [future.result() for future in futures] == [1 + k for k in range(60)]


def test_a_task_for_a_worker_that_is_just_dying_is_not_blamed() -> None:
    with SingleNodeExecutor(max_workers=1, block_allocation=True) as exe:
        for i in range(20):
            os.kill(exe.submit(tasks.pid).result(), signal.SIGKILL)
            time.sleep(i % 5 * 1e-4)
            assert exe.submit(tasks.add, i, 1).result(30) == i + 1


def test_an_init_function_that_kills_its_worker_does_so_once() -> None:
    with (
        SingleNodeExecutor(max_workers=1, block_allocation=True, init_function=lambda: os._exit(3)) as exe,
        pytest.raises(WorkerDiedError, match="exit code 3"),
    ):
        exe.submit(tasks.add, 1).result(30)


def test_a_task_behind_one_that_is_ended_is_not_blamed() -> None:
    """The one may have come to its end by itself a moment before its process is killed."""
    errors: collections.Counter[str] = collections.Counter()
    with SingleNodeExecutor(max_workers=2, block_allocation=True) as exe:
        for i in range(60):
            limit = 0.01 + i % 7 * 1e-4
            for seconds in (0.002, 0.002, 0.01):
                exe.submit(tasks.sleep_and_return, 0, seconds).result()
            limited = exe.submit(tasks.sleep_and_return, 0, 0.01, resource_dict={"run_time_max": limit})
            behind = [exe.submit(tasks.sleep_and_return, k, 0.001) for k in range(8)]
            errors[type(limited.exception()).__name__] += 1
            assert [future.result() for future in behind] == list(range(8))
    assert set(errors) <= {"NoneType", "TimeoutError"}


@pytest.mark.kinds("fresh", "block")
def test_the_fork_server_is_killed_right_before_a_submission(make_executor: MakeExecutor) -> None:
    killed = 0
    with make_executor(max_workers=1) as exe:
        for i in range(10):
            try:
                server = exe.submit(os.getppid).result(30)
            except WorkerDiedError:  # the end of the server before is heard of only now
                continue
            with contextlib.suppress(psutil.NoSuchProcess):
                if server not in (1, os.getpid()):  # an orphan's new parent: the worker has outlived its server
                    psutil.Process(server).kill()
                    killed += 1
            time.sleep(i % 5 * 3e-4)
            try:
                assert exe.submit(tasks.add, i, 1).result(30) == i + 1
            except WorkerDiedError:  # it had begun at a worker that had not yet heard
                pass
    assert killed >= 3


@pytest.mark.kinds("fresh-spawned", "block-spawned")
def test_a_worker_dies_before_it_has_read_what_it_was_sent(make_executor: MakeExecutor) -> None:
    with make_executor(max_workers=1) as exe:
        for _ in range(2):
            pid = exe.submit(tasks.pid)
            blocker = exe.submit(DiesInLoading(), np.zeros(4_000_000))  # type: ignore[arg-type]
            pid.result()
            with pytest.raises(WorkerDiedError):
                blocker.result(30)
        assert exe.submit(tasks.add, 1, 1).result(30) == 2


class DiesInLoading:
    def __reduce__(self) -> Any:
        return os._exit, (5,)


def test_many_workers_at_once() -> None:
    """The program and its fork server talk at the same time: neither may wait for the other to listen."""
    with SingleNodeExecutor(max_workers=600) as exe:
        futures = [exe.submit(abs, -i) for i in range(600)]
        assert [future.result(40) for future in futures] == list(range(600))


def test_calls_of_a_cache_that_are_cancelled(tmp_path: Path) -> None:
    cache, begun, go = str(tmp_path / "cache"), tmp_path / "begun", tmp_path / "go"
    exe = SingleNodeExecutor(max_workers=1, cache_directory=cache, block_allocation=True)
    known = exe.submit(tasks.add, 1)
    known.result()
    running = exe.submit(tasks.hold, begun, go)
    tasks.wait_for(begun)
    waiting = [exe.submit(tasks.add, known, 5), exe.submit(tasks.add, 7, 7), exe.submit(tasks.add, 7, 7)]
    own = exe.submit(tasks.add, 7, 7)
    assert own.cancel()
    exe.shutdown(wait=False, cancel_futures=True)
    go.touch()
    exe.shutdown()
    running.result()
    assert not wait([*waiting, own], 10).not_done
    for future in [*waiting, own]:
        with pytest.raises(CancelledError):
            future.result()


@pytest.mark.kinds
def test_a_program_that_has_blocked_the_signals(script: Script) -> None:
    done = script(
        "import signal\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD, signal.SIGTERM])\n"
        "from executorlib import SingleNodeExecutor\n"
        "with SingleNodeExecutor(max_workers=1) as exe:\n"
        "    print([exe.submit(abs, -i).result() for i in range(3)])\n"
    )
    assert done.stdout == "[0, 1, 2]\n", done.stderr


@pytest.mark.kinds("fresh", "block")
def test_the_working_directory_is_gone(make_executor: MakeExecutor, tmp_path: Path, monkeypatch: Any) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    with make_executor(max_workers=1) as exe:
        monkeypatch.chdir(folder)
        folder.rmdir()
        assert exe.submit(tasks.add, 1, 1).result(30) == 2
        monkeypatch.undo()


@pytest.mark.skipif(sys.platform != "linux", reason="needs a fork server")
@pytest.mark.parametrize("block", [False, True])
def test_a_forked_child_does_not_keep_the_workers_of_a_killed_program(
    start_script: StartScript, tmp_path: Path, eventually: Eventually, block: bool
) -> None:
    program = start_script(
        "import os, sys, time\n"
        "import tasks\n"
        "from executorlib import SingleNodeExecutor\n"
        f"exe = SingleNodeExecutor(max_workers=1, block_allocation={block})\n"
        "exe.submit(tasks.sleep_with_child, sys.argv[1])\n"
        "tasks.wait_for(sys.argv[1])\n"
        "if os.fork() == 0:\n"
        "    open(sys.argv[2], 'w').close()\n"
        "    time.sleep(30)\n"
        "    os._exit(0)\n"
        "time.sleep(60)\n",
        str(tmp_path / "pids"),
        str(tmp_path / "forked"),
        start_new_session=True,
    )
    tasks.wait_for(tmp_path / "forked")
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    children = psutil.Process(program.pid).children()
    program.kill()
    program.wait()
    eventually(lambda: all(has_ended(pid) for pid in pids))
    for child in children:
        if not has_ended(child) and child.name().startswith("python"):
            child.kill()


def test_a_call_cancelled_by_one_thread_while_it_fails_in_another_is_told_to_those_who_wait() -> None:
    with SingleNodeExecutor(max_workers=1) as exe:
        for _ in range(100):
            failing = exe.submit(tasks.add)
            behind = exe.submit(tasks.add, failing)
            thread = threading.Thread(target=behind.cancel)
            failing.add_done_callback(lambda _, thread=thread: thread.start())  # type: ignore[misc]
            assert not wait([failing, behind], 20).not_done
            thread.join()
