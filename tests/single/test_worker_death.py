"""Workers that die, and objects that explode on their way."""

from __future__ import annotations

import functools
import os
import pickle
import re
import shlex
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import tasks

from conftest import Eventually, MakeExecutor, has_ended, living_child, write_program
from executorlib import SingleNodeExecutor
from executorlib.standalone.errors import ExecutorlibSocketError, RemoteError, TaskExitError, WorkerDiedError
from executorlib.standalone.interactive.messages import (
    BEGUN,
    DONE,
    RANK_ERROR,
    RESULT,
    RESULT_HEAD,
    STARTED,
    STARTED_HEAD,
)
from executorlib.standalone.interactive.subprocesses import Subprocesses

pytestmark = pytest.mark.faults


DEATHS: list[Any] = [
    pytest.param(tasks.end_self, signal.SIGKILL, "SIGKILL", id="SIGKILL"),
    pytest.param(tasks.end_self, signal.SIGSEGV, "SIGSEGV", id="SIGSEGV"),
    pytest.param(tasks.end_self, signal.SIGTERM, "SIGTERM", id="SIGTERM"),
    pytest.param(tasks.end_self, signal.SIGABRT, "SIGABRT", id="SIGABRT"),
    pytest.param(tasks.exit_hard, 0, "exit code 0", id="exit0"),
    pytest.param(tasks.exit_hard, 42, "exit code 42", id="exit42"),
]


@pytest.mark.kinds
@pytest.mark.parametrize(("fn", "how", "words"), DEATHS)
def test_a_death_is_told_and_the_executor_goes_on(
    make_executor: MakeExecutor, fn: Callable[[int], Any], how: int, words: str
) -> None:
    with make_executor(max_workers=1) as exe:
        future = exe.submit(fn, how)
        with pytest.raises(ExecutorlibSocketError, match=words) as caught:
            future.result(30)
        assert isinstance(caught.value, WorkerDiedError)
        assert fn.__name__ in str(caught.value)
        assert "pid" in str(caught.value)
        assert exe.submit(tasks.add, 1, 1).result(30) == 2


def note_and_die(path: Path) -> None:
    path.write_text(f"{os.getpid()}")
    os._exit(3)


@pytest.mark.kinds
def test_a_death_names_the_process(make_executor: MakeExecutor, tmp_path: Path) -> None:
    with make_executor(max_workers=1) as exe:
        error = exe.submit(note_and_die, tmp_path / "pid").exception(30)
    pid = (tmp_path / "pid").read_text()
    assert re.search(rf"worker 0 \(pid {pid} on ({socket.gethostname()}|localhost)\) died", str(error))


@pytest.mark.kinds
def test_a_task_that_ends_its_worker_runs_once(make_executor: MakeExecutor, tmp_path: Path) -> None:
    note = tmp_path / "note"

    def end(note: str) -> None:
        with open(note, "a") as file:
            file.write("run\n")
        os._exit(3)

    with make_executor(max_workers=1) as exe:
        assert exe.submit(tasks.add, 1, 1).result(30) == 2  # the worker has worked
        assert isinstance(exe.submit(end, str(note)).exception(30), WorkerDiedError)
    assert note.read_text() == "run\n"


@pytest.mark.kinds
@pytest.mark.parametrize(
    ("fn", "args", "words"),
    [
        pytest.param(tasks.exit_soft, (3,), r"SystemExit\(3\)", id="sys.exit"),
        pytest.param(tasks.exit_soft, (None,), r"SystemExit\(", id="sys.exit without a code"),
        pytest.param(tasks.interrupt, (), "KeyboardInterrupt", id="KeyboardInterrupt"),
    ],
)
def test_leaving_is_an_error_of_the_task(
    make_executor: MakeExecutor, fn: Callable[..., Any], args: tuple[Any, ...], words: str
) -> None:
    with make_executor(max_workers=1) as exe:
        with pytest.raises(TaskExitError, match=words):
            exe.submit(fn, *args).result(30)
        assert exe.submit(tasks.add, 1, 1).result(30) == 2


@pytest.mark.kinds
@pytest.mark.parametrize(
    ("how", "code"), [("return", 0), ("exit", 0), ("exit 3", 3), ("exit with words", 1), ("raise", 1)]
)
def test_a_call_that_forks_is_answered_by_the_process_that_began_it(
    make_executor: MakeExecutor, tmp_path: Path, how: str, code: int
) -> None:
    with make_executor(max_workers=2) as exe:
        other = exe.submit(tasks.hold, tmp_path / "begun", tmp_path / "go", "other")
        assert exe.submit(tasks.fork_and_tell, how).result(20) == code
        assert exe.submit(tasks.add, 1, 1).result(20) == 2
        tasks.touch(tmp_path / "go")
        assert other.result(20) == "other"


def test_an_init_function_that_forks(tmp_path: Path) -> None:
    def init() -> dict[str, int]:
        import tasks

        return {"code": tasks.fork_and_tell("exit 3")}

    with SingleNodeExecutor(max_workers=1, block_allocation=True, init_function=init) as exe:
        assert exe.submit(lambda code: code).result(20) == 3


IMPOSSIBLE = {
    "another number": RESULT_HEAD.pack(RESULT, DONE, 12345678, 0.0, 0.0),
    "half a head": RESULT,
    "an unknown kind": b"?",
    "half a number": BEGUN,
    "another process": STARTED_HEAD.pack(STARTED, 1),
    "an error that is none": RANK_ERROR + b"?",
    "an error that exits": RANK_ERROR + pickle.dumps(tasks.Exits()),
}


@pytest.mark.kinds
@pytest.mark.parametrize("body", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_a_worker_that_says_what_cannot_be_is_ended(
    make_executor: MakeExecutor, tmp_path: Path, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Its call fails, and those of others go on."""
    with make_executor(max_workers=2) as exe:
        other = exe.submit(tasks.hold, tmp_path / "begun", tmp_path / "go", "other")
        with pytest.raises(WorkerDiedError):
            exe.submit(tasks.say_to_the_program, body).result(20)
        assert "what no worker sends" in caplog.text
        tasks.touch(tmp_path / "go")
        assert other.result(20) == "other"
        assert exe.submit(tasks.add, 1, 1).result(20) == 2


def test_a_worker_without_memory_for_its_input_says_so(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """And ends; the call, which has not begun, runs at the next."""

    def limit_memory() -> None:
        import resource

        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 26), resource.RLIM_INFINITY))

    with SingleNodeExecutor(max_workers=1, block_allocation=True) as exe:
        exe.submit(limit_memory).result(20)
        assert exe.submit(len, bytes(1 << 28)).result(20) == 1 << 28
    assert "exit code 70" in caplog.text
    assert "a worker is ended by ProtocolError" in capfd.readouterr().err


def test_one_death_does_not_take_the_others_along(make_executor: MakeExecutor) -> None:
    with make_executor(max_workers=2) as exe:
        futures = [exe.submit(tasks.die_at, i, 7) for i in range(40)]
        errors = [future.exception(40) for future in futures]
    assert isinstance(errors[7], WorkerDiedError)
    assert [error for i, error in enumerate(errors) if i != 7] == [None] * 39


@pytest.mark.parametrize("fork_server", ["1", "0"])
def test_what_only_waited_at_a_dead_worker_is_not_blamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fork_server: str
) -> None:
    """Short calls are sent ahead; those behind the deadly one run elsewhere, once each."""
    monkeypatch.setenv("EXECUTORLIB_FORK_SERVER", fork_server)
    log = tmp_path / "log"
    with SingleNodeExecutor(max_workers=1, block_allocation=True) as exe:
        list(exe.map(tasks.note_or_die, [log] * 30, range(100, 130)))
        futures = [exe.submit(tasks.note_or_die, log, i) for i in range(30)]
        errors = [future.exception(40) for future in futures]
    assert isinstance(errors[0], WorkerDiedError)
    assert errors[1:] == [None] * 29
    assert sorted(map(int, log.read_text().split())) == [*range(1, 30), *range(100, 130)]


@pytest.mark.kinds
def test_a_worker_that_has_worked_before_dies_once(make_executor: MakeExecutor, tmp_path: Path) -> None:
    """Its call is blamed as that of a new worker is, and does not run again."""
    with make_executor(max_workers=1) as exe:
        assert exe.submit(tasks.add, 1, 1).result(40) == 2
        with pytest.raises(WorkerDiedError, match="log_and_die"):
            exe.submit(tasks.log_and_die, tmp_path / "log").result(40)
        assert exe.submit(tasks.add, 1, 1).result(40) == 2
    assert len((tmp_path / "log").read_text().splitlines()) == 1


def test_a_worker_that_is_killed_while_idle_is_replaced(eventually: Eventually) -> None:
    with SingleNodeExecutor(max_workers=1, block_allocation=True) as exe:
        for _ in range(3):
            pid = exe.submit(tasks.pid).result()
            psutil.Process(pid).kill()
            eventually(functools.partial(gone, pid))
            assert exe.submit(tasks.add, 1, 1).result(30) == 2


def test_a_worker_killed_right_before_its_next_task() -> None:
    """The death may be noticed only when the task is on its way: it runs elsewhere, or its error says so."""
    with SingleNodeExecutor(max_workers=1, block_allocation=True, restart_limit=1) as exe:
        for _ in range(5):
            psutil.Process(exe.submit(tasks.pid).result()).kill()
            assert exe.submit(tasks.add, 1, 1).result(30) == 2


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid)


@pytest.mark.parametrize("kept", [False, True])
def test_killed_while_sending_a_large_result(kept: bool, tmp_path: Path) -> None:
    with SingleNodeExecutor(max_workers=1, block_allocation=kept) as exe:
        future = exe.submit(_large_result_and_death, str(tmp_path))
        error = future.exception(40)
        assert error is None or isinstance(error, WorkerDiedError)
        if error is None:
            assert len(future.result()) == 100_000_000
        assert exe.submit(tasks.add, 1, 1).result(30) == 2


def _large_result_and_death(folder: str) -> bytes:
    import os
    import threading

    def die() -> None:
        time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=die, daemon=True).start()
    return bytes(100_000_000)


def test_the_end_of_standard_error_is_told_for_spawned_workers(
    make_executor: MakeExecutor, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EXECUTORLIB_FORK_SERVER", "0")
    with make_executor(max_workers=1) as exe:
        error = exe.submit(_complain_and_die).exception(30)
    assert "the last words" in str(error)
    assert "the last words" in capfd.readouterr().err


def _complain_and_die() -> None:
    import os

    os.write(2, b"the last words\n")
    os._exit(9)


@pytest.mark.kinds
def test_children_of_a_dead_task_are_ended(make_executor: MakeExecutor, tmp_path: Path, eventually: Eventually) -> None:
    note = tmp_path / "pids"
    with make_executor(max_workers=1) as exe:
        future = exe.submit(tasks.sleep_with_child, note)
        tasks.wait_for(note)
        task, child = (int(word) for word in note.read_text().split())
        psutil.Process(task).kill()
        assert isinstance(future.exception(30), WorkerDiedError)
        eventually(lambda: has_ended(child))


# Restarts


@pytest.mark.kinds
def test_restart_limit_tries_again(make_executor: MakeExecutor, tmp_path: Path) -> None:
    with make_executor(max_workers=1, restart_limit=1) as exe:
        assert exe.submit(tasks.end_self_once, tmp_path / "flag", "second").result(30) == "second"


def test_restart_limit_is_a_limit(make_executor: MakeExecutor, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with make_executor(max_workers=1, restart_limit=2) as exe:
        with pytest.raises(WorkerDiedError):
            exe.submit(tasks.log_and_die, log).result(30)
        assert exe.submit(tasks.add, 1, 1).result() == 2
    assert log.read_text().split() == ["died"] * 3


def test_restart_limit_does_not_repeat_exceptions(make_executor: MakeExecutor, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with make_executor(restart_limit=3) as exe, pytest.raises(ValueError, match="plain"):
        exe.submit(tasks.log_and_fail, log).result(30)
    assert log.read_text().split() == ["failed"]


def test_a_task_that_is_tried_again_can_be_cancelled_only_before_it_runs(
    make_executor: MakeExecutor, tmp_path: Path
) -> None:
    with make_executor(max_workers=1, restart_limit=1) as exe:
        future = exe.submit(_die_then_hold, tmp_path)
        tasks.wait_for(tmp_path / "begun")
        assert not future.cancel()
        (tmp_path / "go").touch()
        assert future.result(30) == "second"


def _die_then_hold(folder: Path) -> Any:
    if not (folder / "died").exists():
        (folder / "died").touch()
        tasks.end_self(signal.SIGKILL)
    return tasks.hold(folder / "begun", folder / "go", "second")


# The fork server


def test_the_fork_server_is_killed(make_executor: MakeExecutor, tmp_path: Path) -> None:
    with make_executor(max_workers=1) as exe:
        running = exe.submit(tasks.hold, tmp_path / "begun", tmp_path / "go")
        waiting = exe.submit(tasks.add, 1, 1)
        tasks.wait_for(tmp_path / "begun")
        living_child("fork_server_main.py").kill()
        with pytest.raises(WorkerDiedError, match="fork server"):
            running.result(30)
        assert waiting.result(30) == 2
        assert exe.submit(tasks.add, 2, 2).result(30) == 4


def test_the_fork_server_is_killed_while_nothing_runs(make_executor: MakeExecutor, eventually: Eventually) -> None:
    with make_executor(max_workers=1) as exe:
        assert exe.submit(tasks.add, 1, 1).result() == 2
        server = living_child("fork_server_main.py")
        server.kill()
        eventually(lambda: has_ended(server))
        assert exe.submit(tasks.add, 2, 2).result(30) == 4


def test_the_fork_server_is_stopped_for_a_while(make_executor: MakeExecutor) -> None:
    with make_executor(max_workers=1) as exe:
        exe.submit(tasks.add, 1, 1).result()
        server = living_child("fork_server_main.py")
        server.suspend()
        try:
            future = exe.submit(tasks.add, 2, 2)
            time.sleep(0.2)
        finally:
            server.resume()
        assert future.result(30) == 4


def test_an_interpreter_that_is_not_there(make_executor: MakeExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither fork server nor worker can be started: the executor or the call fails soon, with the path."""
    import sys

    with make_executor(max_workers=1) as warm:  # imports what is imported late
        warm.submit(tasks.add, 1).result()
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises((OSError, RuntimeError), match="/no/such/python"), make_executor(max_workers=1) as exe:
        exe.submit(tasks.add, 1).result(30)


def test_a_spawned_interpreter_that_ends_at_once(
    make_executor: MakeExecutor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import sys

    monkeypatch.setenv("EXECUTORLIB_FORK_SERVER", "0")
    impostor = tmp_path / "python"
    write_program(impostor, "echo 'wrong interpreter' >&2\nexit 4")
    monkeypatch.setattr(sys, "executable", str(impostor))
    with make_executor(max_workers=2) as exe:
        for future in [exe.submit(tasks.add, i) for i in range(3)]:
            with pytest.raises(ExecutorlibSocketError, match="wrong interpreter") as caught:
                future.result(30)
            assert "exit code 4" in str(caught.value)


def test_one_of_two_workers_cannot_be_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture, eventually: Eventually
) -> None:
    """The calls wait for the other, which is still starting."""
    monkeypatch.setenv("EXECUTORLIB_FORK_SERVER", "0")
    execute = Subprocesses.execute
    started = []

    def start(self: Subprocesses, worker: int, argv: list[str], *rest: Any) -> None:
        fails = worker == 1
        until, then = tmp_path / ("fail" if fails else "go"), "exit 1" if fails else f"exec {shlex.join(argv)}"
        execute(self, worker, ["/bin/sh", "-c", f"while ! test -e '{until}'; do sleep 0.02; done; {then}"], *rest)
        started.append(worker)

    monkeypatch.setattr(Subprocesses, "execute", start)
    with SingleNodeExecutor(max_workers=2, block_allocation=True) as exe:
        futures = [exe.submit(tasks.add, i, 1) for i in range(4)]
        eventually(lambda: len(started) == 2)
        tasks.touch(tmp_path / "fail")
        eventually(lambda: "ended while idle" in caplog.text)
        tasks.touch(tmp_path / "go")
        assert [future.result(30) for future in futures] == [1, 2, 3, 4]


# Pickling


@pytest.mark.kinds
def test_an_argument_that_cannot_be_pickled(make_executor: MakeExecutor) -> None:
    with make_executor() as exe:
        with pytest.raises(TypeError, match="do not travel"):
            exe.submit(tasks.identity, tasks.Unpicklable()).result(20)
        with pytest.raises(TypeError):
            exe.submit(tasks.identity, x=(i for i in range(3))).result(20)
        with pytest.raises(pickle.PicklingError, match=r"sys\.exit"):
            exe.submit(tasks.identity, [tasks.ExitsInPickling()]).result(20)
        assert exe.submit(tasks.add, 1, 1).result() == 2


def test_a_function_that_cannot_be_pickled(make_executor: MakeExecutor) -> None:
    trap, leaver = tasks.Unpicklable(), tasks.ExitsInPickling()
    with make_executor() as exe:
        with pytest.raises(TypeError, match="do not travel"):
            exe.submit(lambda: trap).result(20)
        with pytest.raises(pickle.PicklingError, match=r"sys\.exit"):
            exe.submit(lambda: leaver).result(20)
        assert exe.submit(tasks.add, 1, 1).result() == 2


@pytest.mark.kinds
def test_an_argument_that_cannot_be_loaded(make_executor: MakeExecutor) -> None:
    with make_executor(max_workers=1) as exe:
        with pytest.raises(RuntimeError, match="cannot be loaded"):
            exe.submit(tasks.identity, tasks.Unloadable()).result(20)
        assert exe.submit(tasks.add, 1, 1).result() == 2


def test_a_function_that_cannot_be_loaded(make_executor: MakeExecutor) -> None:
    broken = tasks.Unloadable()
    with make_executor(max_workers=1) as exe:
        for _ in range(2):
            with pytest.raises(RuntimeError, match="cannot be loaded"):
                exe.submit(lambda: broken).result(20)
        assert exe.submit(tasks.add, 1, 1).result() == 2


def test_loading_an_argument_kills_the_worker(make_executor: MakeExecutor) -> None:
    import os

    with make_executor(max_workers=1) as exe:
        with pytest.raises(WorkerDiedError, match="SIGKILL"):
            exe.submit(tasks.identity, tasks.KillsItsLoader(os.getpid())).result(30)
        assert exe.submit(tasks.add, 1, 1).result() == 2


@pytest.mark.kinds
def test_a_result_that_cannot_be_pickled(make_executor: MakeExecutor) -> None:
    with make_executor(max_workers=1) as exe:
        with pytest.raises(TypeError, match="do not travel"):
            exe.submit(tasks.Unpicklable).result(20)
        with pytest.raises(ExecutorlibSocketError, match="SystemExit"):
            exe.submit(tasks.ExitsInPickling).result(20)
        assert exe.submit(tasks.add, 1, 1).result() == 2


def test_a_result_that_cannot_be_loaded_here(make_executor: MakeExecutor) -> None:
    with make_executor(max_workers=1) as exe:
        with pytest.raises(RuntimeError, match="cannot be unpickled") as caught:
            exe.submit(tasks.Unloadable).result(20)
        assert "cannot be loaded" in str(caught.value)
        assert exe.submit(tasks.add, 1, 1).result() == 2
        with pytest.raises(RuntimeError, match="cannot be unpickled"):
            list(exe.map(tasks.call, [tasks.Unloadable]))
        with pytest.raises(RuntimeError, match="cannot be unpickled: <NoReprError without a repr>"):
            exe.submit(tasks.UnloadableWithoutRepr).result(20)
        assert exe.submit(tasks.add, 1, 1).result() == 2


@pytest.mark.kinds
def test_exceptions_that_cannot_travel_arrive_as_readable_stand_ins(make_executor: MakeExecutor) -> None:
    with make_executor(max_workers=1) as exe:
        for fn, words in ((tasks.raise_demanding, r"DemandingError: demanding \(7\)"), (tasks.raise_unpicklable, "un")):
            with pytest.raises(RemoteError, match=words) as caught:
                exe.submit(fn).result(20)
            assert fn.__name__ in str(caught.value.__cause__)
        assert exe.submit(tasks.add, 1, 1).result() == 2


def test_an_exception_that_holds_what_cannot_be_pickled(make_executor: MakeExecutor) -> None:
    def fails() -> None:
        raise ValueError("with a lock", __import__("threading").Lock())

    with make_executor(max_workers=1) as exe, pytest.raises(RemoteError, match="ValueError"):
        exe.submit(fails).result(20)


def test_recursion_without_end_is_an_exception(make_executor: MakeExecutor) -> None:
    def deeper(n: int) -> int:
        return deeper(n + 1) + 1

    with make_executor(max_workers=1) as exe:
        with pytest.raises(RecursionError):
            exe.submit(deeper, 0).result(30)
        assert exe.submit(tasks.add, 1, 1).result() == 2


def test_memory_without_end_is_an_error(make_executor: MakeExecutor) -> None:
    def hungry() -> int:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
        return len(bytearray(8 << 30))

    with make_executor(max_workers=1) as exe, pytest.raises(MemoryError):
        exe.submit(hungry).result(30)


@pytest.mark.kinds
def test_a_task_that_closes_all_descriptors(make_executor: MakeExecutor) -> None:
    def close_all() -> None:
        import os

        os.closerange(3, 1000)

    with make_executor(max_workers=1) as exe:
        assert exe.submit(close_all).exception(40) is not None
        assert exe.submit(tasks.add, 1, 1).result(30) == 2


@pytest.mark.kinds
def test_a_task_that_leaves_a_background_process_does_not_hold_up_anyone(
    make_executor: MakeExecutor, tmp_path: Path
) -> None:
    """A daemon that a task starts inherits its standard error: nobody waits for that to close."""
    note = tmp_path / "pid"
    with make_executor(max_workers=1) as exe:
        pid = exe.submit(_start_daemon).result(30)
        start = time.monotonic()
        assert exe.submit(tasks.add, 1, 1).result(30) == 2
        assert time.monotonic() - start < 15
    del note
    try:
        psutil.Process(pid).kill()
    except psutil.NoSuchProcess:
        pass


def _start_daemon() -> int:
    import subprocess

    return subprocess.Popen(["sleep", "600"], start_new_session=True).pid
