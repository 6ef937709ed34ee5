"""Workers that die, or never come, at each stage of their life; what is left to say beside test_worker_death.py."""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any, NoReturn

import psutil
import pytest
import tasks

from conftest import Eventually, MakeExecutor, has_ended, living_child, needs_mpi, write_program
from executorlib import SingleNodeExecutor
from executorlib.backend.calls import apply_setup
from executorlib.standalone import command
from executorlib.standalone.errors import ExecutorlibSocketError, TaskExitError, WorkerDiedError, WorkerStartError
from executorlib.standalone.interactive import launcher, subprocesses
from executorlib.standalone.interactive.events import Started
from executorlib.standalone.interactive.messages import Setup
from executorlib.task_scheduler.interactive import worker_pool

pytestmark = pytest.mark.faults
ALL = pytest.mark.kinds("fresh", "block", "fresh-spawned", "block-spawned")


def kill_self() -> NoReturn:
    tasks.end_self(signal.SIGKILL)


def crash() -> NoReturn:
    tasks.end_self(signal.SIGSEGV)


def leave() -> NoReturn:
    os._exit(7)


ENDS: list[Any] = [
    pytest.param(kill_self, "SIGKILL", id="SIGKILL"),
    pytest.param(crash, "SIGSEGV", id="SIGSEGV"),
    pytest.param(leave, "exit code 7", id="os._exit"),
]


class DiesWhen:
    """Ends the worker's process when it is pickled or unpickled there."""

    def __init__(self, end: Any, stage: str) -> None:
        self.end, self.stage, self.home = end, stage, os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        if self.stage == "pickled" and os.getpid() != self.home:
            self.end()
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.stage == "unpickled" and os.getpid() != self.home:
            self.end()


@ALL
@pytest.mark.parametrize("stage", ["unpickled", "pickled"])
@pytest.mark.parametrize(("end", "words"), ENDS)
def test_in_pickling(make_executor: MakeExecutor, end: Any, words: str, stage: str) -> None:
    """While the argument is unpickled, and while the result is pickled."""
    with make_executor(max_workers=1) as exe:
        others = [exe.submit(tasks.add, i) for i in range(3)]
        error = exe.submit(tasks.identity, DiesWhen(end, stage)).exception(40)
        assert isinstance(error, WorkerDiedError)
        assert words in str(error)
        assert "identity" in str(error)
        assert [future.result(40) for future in others] == [0, 1, 2]
        assert exe.submit(tasks.add, 1, 1).result(40) == 2


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.kinds("block", "block-spawned")
@pytest.mark.parametrize(("end", "words"), [*ENDS, pytest.param(interrupt, "", id="SIGINT")])
def test_while_idle(
    make_executor: MakeExecutor,
    end: Any,
    words: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    eventually: Eventually,
) -> None:
    """A thread that a task has left behind ends the process between two calls."""

    def leave_behind() -> int:
        import threading

        def end_later() -> None:
            tasks.wait_for(tmp_path / "heard")
            end()

        threading.Thread(target=end_later).start()
        return 1

    with make_executor(max_workers=1) as exe:
        assert exe.submit(leave_behind).result(40) == 1
        (tmp_path / "heard").touch()
        eventually(lambda: f"ended while idle: {words}" in caplog.text)
        assert exe.submit(tasks.add, 1, 1).result(40) == 2


@pytest.mark.kinds("block", "block-spawned")
@pytest.mark.parametrize(("end", "words"), ENDS)
def test_while_starting(make_executor: MakeExecutor, end: Any, words: str) -> None:
    """In its init_function: the calls that it was started for fail and say why, and nobody waits for ever."""
    with make_executor(max_workers=1, init_function=end) as exe:
        for future in [exe.submit(tasks.add, i) for i in range(2)]:
            error = future.exception(40)
            assert isinstance(error, ExecutorlibSocketError)
            assert words in str(error)


@pytest.mark.kinds("block", "block-spawned")
@pytest.mark.parametrize(
    ("what", "words"),
    [
        pytest.param(SystemExit(3), "SystemExit(3)", id="sys.exit"),
        pytest.param(KeyboardInterrupt(), "KeyboardInterrupt()", id="KeyboardInterrupt"),
    ],
)
def test_an_init_function_that_exits(make_executor: MakeExecutor, what: BaseException, words: str) -> None:
    """It is told: raised as it is, it would end the program that asks for a result."""

    def leaves() -> NoReturn:
        raise what

    with make_executor(max_workers=1, init_function=leaves) as exe:
        error = exe.submit(tasks.add, 1).exception(40)
    assert isinstance(error, TaskExitError)
    assert f"the init_function of add's worker raised {words}" in str(error)


@ALL
def test_a_directory_that_no_worker_can_enter(
    make_executor: MakeExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one of another machine: the calls fail and say why, and there is no death to try again."""
    (tmp_path / "file").touch()
    monkeypatch.setattr(os, "makedirs", lambda *_, **__: None)
    monkeypatch.setattr(subprocesses.Subprocesses, "execute", execute_elsewhere)
    folder = str(tmp_path / "file" / "folder")
    with make_executor(max_workers=1, restart_limit=2, resource_dict={"cwd": folder}) as exe:
        error = exe.submit(tasks.add, 1).exception(40)
        monkeypatch.undo()
    assert isinstance(error, WorkerStartError)
    assert f"cannot work in its directory {folder}: [Errno 20]" in str(error)


execute_here = subprocesses.Subprocesses.execute


def execute_elsewhere(self: Any, worker: int, argv: list[str], environment: Any, cwd: str, stderr: int | None) -> None:
    """Start a worker that finds out itself about its directory, as those do that a queueing system starts."""
    execute_here(self, worker, argv, environment, None, stderr)


def test_a_directory_that_only_the_program_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker on another machine makes its own."""
    monkeypatch.chdir(tmp_path)
    folder = str(tmp_path / "on" / "this" / "machine")
    setup = Setup(0, list(sys.path), None, folder, None, None, (), True)
    apply_setup(setup)
    assert os.getcwd() == folder


@pytest.mark.kinds("block", "block-spawned")
def test_between_two_calls(make_executor: MakeExecutor) -> None:
    """A call that was sent to a worker and had not begun when it was killed is not to blame: it runs elsewhere."""
    with make_executor(max_workers=1) as exe:
        pid = exe.submit(tasks.pid).result(40)
        os.kill(pid, signal.SIGSTOP)
        future = exe.submit(tasks.add, 1, 1)
        time.sleep(0.1)
        os.kill(pid, signal.SIGKILL)
        assert future.result(40) == 2


@ALL
def test_while_sending_100_megabytes(make_executor: MakeExecutor) -> None:
    """The program reads as fast as it can: killed at several moments, the whole array comes or the death is told."""
    ended = {True: 0, False: 0}
    with make_executor(max_workers=1) as exe:
        for delay in (0.0, 0.01, 0.03, 0.06, 0.2):
            future = exe.submit(large_and_deadly, delay)
            error = future.exception(40)
            ended[error is None] += 1
            assert error is None or (isinstance(error, WorkerDiedError) and "SIGKILL" in str(error))
            if error is None:
                assert len(future.result()) == 100_000_000
        if exe.submit(tasks.add, 1, 1).exception(40) is not None:  # its worker is the last of the deadly ones
            assert exe.submit(tasks.add, 1, 1).result(40) == 2
    assert ended[False] >= 1, "none was killed in time"


class Large:
    """Pickles to 100 MB; starts the clock when it is pickled."""

    def __init__(self, delay: float) -> None:
        self.delay = delay

    def __reduce__(self) -> Any:
        import threading

        def die() -> None:
            time.sleep(self.delay)
            os.kill(os.getpid(), signal.SIGKILL)

        data = pickle.PickleBuffer(bytearray(100_000_000))
        threading.Thread(target=die, daemon=True).start()
        return bytearray, (data,)


def large_and_deadly(delay: float) -> Large:
    return Large(delay)


@ALL
def test_out_of_memory(make_executor: MakeExecutor) -> None:
    """A limit of memory: an exception where Python notices, and the worker goes on."""

    def hungry() -> int:
        import resource

        before = resource.getrlimit(resource.RLIMIT_AS)
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), before[1]))
        try:
            hoard = [bytearray(1 << 20) for _ in range(1000)]
            return len(hoard)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)

    with make_executor(max_workers=1) as exe:
        with pytest.raises(MemoryError):
            exe.submit(hungry).result(40)
        assert exe.submit(tasks.add, 1, 1).result(40) == 2


@ALL
def test_signals_of_the_keyboard_and_the_way_out(make_executor: MakeExecutor) -> None:
    def interrupted() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(20)

    with make_executor(max_workers=1) as exe:
        assert isinstance(exe.submit(interrupted).exception(40), TaskExitError)
        assert isinstance(exe.submit(tasks.exit_soft, 5).exception(40), TaskExitError)
        assert exe.submit(tasks.add, 1, 1).result(40) == 2


# Never a hello


@ALL
@pytest.mark.parametrize(
    ("program", "words"),
    [
        pytest.param("echo 'No module named executorlib' >&2\nexit 1", "No module named", id="module"),
        pytest.param("kill -SEGV $$", "SIGSEGV", id="SIGSEGV"),
        pytest.param("exit 0", "exit code 0", id="nothing"),
    ],
)
def test_an_interpreter_that_cannot_do_it(
    make_executor: MakeExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, words: str
) -> None:
    python = tmp_path / "python"
    write_program(python, program)
    monkeypatch.setattr(sys, "executable", str(python))
    with make_executor(max_workers=1) as exe:
        for error in [future.exception(30) for future in [exe.submit(tasks.add, i) for i in range(3)]]:
            assert isinstance(error, WorkerStartError)
            assert words in str(error)
            assert str(python) in str(error), "the command that was run"


@pytest.mark.kinds("block-spawned")
def test_workers_that_cannot_start_are_not_tried_without_a_pause(
    make_executor: MakeExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a queueing system refuses further jobs: one worker does the calls meanwhile."""
    python, tries = tmp_path / "python", tmp_path / "tries"
    write_program(
        python,
        f"echo x >> {tries}\n"
        f'if mkdir {tmp_path}/first 2> /dev/null; then exec {sys.executable} "$@"; fi\n'  # the first one is well
        "echo 'no more' >&2\nexit 1",
    )
    monkeypatch.setattr(sys, "executable", str(python))
    with make_executor(max_workers=2) as exe:
        assert exe.submit(tasks.add, 1).result(30) == 1
        assert list(exe.map(tasks.sleep_and_return, range(40), [0.05] * 40)) == list(range(40))
        time.sleep(1.0)  # the pause before the next try is over, and nothing needs one
        used = time.process_time()
        time.sleep(1.0)
        assert time.process_time() - used < 0.5
    assert 2 <= len(tries.read_text().split()) <= 5


@pytest.fixture
def interpreter_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What workers are started with, from now on."""
    python = tmp_path / "python"
    write_program(python, "echo 'still trying' >&2\nexec sleep 600")
    monkeypatch.setattr(sys, "executable", str(python))
    return python


@pytest.mark.kinds("fresh-spawned", "block-spawned")
@pytest.mark.usefixtures("interpreter_that_hangs")
def test_a_worker_that_never_reports(make_executor: MakeExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    """As behind a firewall that drops what comes from elsewhere."""
    monkeypatch.setattr(worker_pool, "START_SECONDS", 3.0)
    with make_executor(max_workers=1) as exe:
        start = time.monotonic()
        error = exe.submit(tasks.add, 1).exception(30)
        assert time.monotonic() - start < 15
    assert isinstance(error, WorkerStartError)
    assert "did not report within 3 s" in str(error)
    assert "still trying" in str(error)


@pytest.mark.kinds("fresh", "block")
def test_a_fork_server_that_never_answers(
    make_executor: MakeExecutor, interpreter_that_hangs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the interpreter lies on a disk that does not answer."""
    monkeypatch.setattr(launcher, "START_SECONDS", 3.0)
    with make_executor(max_workers=1) as exe:
        start = time.monotonic()
        for error in [future.exception(30) for future in [exe.submit(tasks.add, i) for i in range(2)]]:
            assert isinstance(error, WorkerStartError)
            assert "it did not answer in time" in str(error)
            assert "still trying" in str(error)
            assert str(interpreter_that_hangs) in str(error)
        assert time.monotonic() - start < 15


@pytest.mark.kinds("fresh", "block")
def test_a_program_that_is_busy_blames_no_fork_server(
    make_executor: MakeExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It has answered, and a callback has kept the dispatcher from reading that."""

    def let_go_and_submit(_: Future[Any]) -> None:
        monkeypatch.setattr(launcher, "START_SECONDS", 0.1)
        monkeypatch.setattr(launcher, "_GRACE_SECONDS", 20.0)
        (tmp_path / "go").touch()
        time.sleep(0.3)  # its result is there when the next call is sent off
        submitted.put(exe.submit(tasks.add, 2))

    submitted: queue.SimpleQueue[Future[Any]] = queue.SimpleQueue()
    with make_executor(max_workers=4) as exe:
        running = exe.submit(tasks.hold, tmp_path / "running", tmp_path / "end", 3)
        held = exe.submit(tasks.hold, tmp_path / "held", tmp_path / "go", 1)
        tasks.wait_for(tmp_path / "running")
        tasks.wait_for(tmp_path / "held")
        held.add_done_callback(lambda _: time.sleep(0.5))
        exe.submit(tasks.sleep_and_return, 0, 0.1).add_done_callback(let_go_and_submit)
        assert submitted.get().result(30) == 2
        (tmp_path / "end").touch()
        assert (held.result(30), running.result(30)) == (1, 3)
    assert "is lost" not in caplog.text


@pytest.mark.kinds("fresh")
def test_a_call_that_is_ended_while_the_fork_server_starts_ends_no_other(
    make_executor: MakeExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    """As on a slow disk: it hears of that when it has started."""
    python = tmp_path / "python"
    write_program(python, f'sleep 1\nexec {sys.executable} "$@"')
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(launcher, "_KILL_SECONDS", 0.2)
    with make_executor(max_workers=2) as exe:
        unwanted, other = exe.submit(time.sleep, 60), exe.submit(tasks.add, 1)
        eventually(lambda: unwanted.running() and (other.running() or other.done()))
        assert exe.cancel(unwanted)
        assert other.result(30) == 1
        assert unwanted.cancelled()


def test_a_fork_server_that_was_stopped_with_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that is paused: the clock has gone on, and it is first to be heard."""
    monkeypatch.setattr(launcher, "START_SECONDS", 0.1)
    server = launcher.ForkServer()
    try:
        living_child("fork_server_main.py").suspend()
        server.execute(1, ["true"], dict(os.environ), None, None)
        time.sleep(0.2)
        server.expire(time.monotonic())
        living_child("fork_server_main.py").resume()
        events: list[Any] = []
        while not events:
            select.select([server], [], [])
            events += server.events()
        assert isinstance(events[0], Started)
    finally:
        server.close()


@pytest.mark.mpi
@pytest.mark.parametrize("block", [False, True])
def test_ranks_whose_fork_server_was_lost_are_started_by_another(block: bool) -> None:
    needs_mpi()
    with SingleNodeExecutor(max_cores=2, resource_dict={"cores": 2}, block_allocation=block) as exe:
        pids = exe.submit(tasks.pid).result(40)
        server = living_child("fork_server_main.py")
        server.suspend()
        if block:
            psutil.Process(pids[0]).kill()  # another worker is to be started
        future = exe.submit(tasks.add, 1)
        time.sleep(0.3)
        server.kill()
        assert future.result(40) == [1, 1]


@pytest.fixture
def put_before_mpiexec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Has a script run, as the child of the fork server, each time before ranks are started."""

    def put(script: str) -> None:
        mpiexec = tmp_path / "bin" / "mpiexec"
        mpiexec.parent.mkdir()
        write_program(mpiexec, f'{script}\nexec {command.mpiexec_path()} "$@"')
        write_program(mpiexec.parent / "python", f'exec "{sys.executable}" "$@"')
        monkeypatch.setattr(sys, "executable", str(mpiexec.parent / "python"))

    return put


@pytest.mark.mpi
@pytest.mark.parametrize("block", [False, True])
def test_ranks_that_were_starting_when_their_fork_server_was_lost_are_started_by_another(
    block: bool,
    tmp_path: Path,
    put_before_mpiexec: Callable[[str], None],
    caplog: pytest.LogCaptureFixture,
    eventually: Eventually,
) -> None:
    """Its first ones, which is no sign that a second server could not start them."""
    needs_mpi()
    caplog.set_level("DEBUG", "executorlib")
    put_before_mpiexec(f"echo x >> {tmp_path}/begun\nuntil [ -e {tmp_path}/go ]; do sleep 0.1; done")
    with SingleNodeExecutor(max_cores=2, resource_dict={"cores": 2}, block_allocation=block) as exe:
        future = exe.submit(tasks.add, 1)
        tasks.wait_for(tmp_path / "begun")
        eventually(lambda: "started worker" in caplog.text)
        living_child("fork_server_main.py").kill()
        (tmp_path / "go").touch()
        assert future.result(40) == [1, 1]
    assert (tmp_path / "begun").read_text() == "x\nx\n"


@pytest.mark.mpi
@pytest.mark.parametrize("block", [False, True])
def test_ranks_that_end_their_fork_server_are_not_started_again_and_again(
    block: bool, tmp_path: Path, put_before_mpiexec: Callable[[str], None]
) -> None:
    needs_mpi()
    put_before_mpiexec(f"echo x >> {tmp_path}/begun\nsleep 0.2\nkill -KILL $PPID\nsleep 60")
    with SingleNodeExecutor(max_cores=2, resource_dict={"cores": 2}, block_allocation=block) as exe:
        assert isinstance(exe.submit(tasks.add, 1).exception(40), WorkerStartError)
    assert len((tmp_path / "begun").read_text().split()) <= 4


@pytest.fixture
def starts_untold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each fork server is held up between the start of a worker and the word of it, and killed then."""
    events = launcher.ForkServer.events

    def without_starts(server: launcher.ForkServer) -> list[Any]:
        return [event for event in events(server) if not isinstance(event, Started)]

    monkeypatch.setattr(launcher.ForkServer, "events", without_starts)


@pytest.mark.kinds("fresh", "block")
@pytest.mark.usefixtures("starts_untold")
def test_a_first_call_that_has_begun_does_not_run_twice_whatever_its_fork_server_says(
    make_executor: MakeExecutor, tmp_path: Path, eventually: Eventually
) -> None:
    """And it runs no longer, when it is said to have died."""

    def end_server() -> None:
        tasks.append(tmp_path / "pids", os.getpid())
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(40)

    with make_executor(max_workers=1) as exe:
        first, second = exe.submit(end_server), exe.submit(tasks.add, 1, 1)
        assert isinstance(first.exception(30), WorkerDiedError)
        assert second.result(30) == 2
    (pid,) = map(int, (tmp_path / "pids").read_text().split())
    eventually(lambda: has_ended(pid))


@pytest.mark.kinds("fresh", "block")
def test_a_call_out_of_time_is_not_to_blame_for_those_behind_it_when_the_fork_server_is_lost(
    make_executor: MakeExecutor,
) -> None:
    """The server hangs before it has started a worker, and is killed when the time of its first call is up."""
    with make_executor(max_workers=1) as exe:
        server = living_child("fork_server_main.py")
        server.suspend()
        late = exe.submit(tasks.sleep_and_return, 1, 30, resource_dict={"run_time_max": 1})
        others = [exe.submit(tasks.add, i, 1) for i in range(2)]
        time.sleep(2)  # should it be too short, its time is up at the next worker
        server.kill()
        assert isinstance(late.exception(30), TimeoutError)
        assert [other.result(30) for other in others] == [1, 2]


@pytest.mark.kinds("fresh", "block")
@pytest.mark.usefixtures("starts_untold")
def test_a_worker_that_has_answered_has_started_whatever_its_fork_server_says(make_executor: MakeExecutor) -> None:
    def kill_and_submit(_: Future[Any]) -> None:  # while the dispatcher cannot look
        living_child("fork_server_main.py").kill()
        submitted.put(exe.submit(tasks.sleep_and_return, 2, 1.0))

    submitted: queue.SimpleQueue[Future[Any]] = queue.SimpleQueue()
    with make_executor(max_workers=1) as exe:
        exe.submit(tasks.sleep_and_return, 1, 0.2).add_done_callback(kill_and_submit)
        try:
            assert submitted.get().result(40) == 2
        except WorkerDiedError:  # it was sent before the end of the server was heard of
            pass


@pytest.mark.kinds("fresh", "block")
def test_a_call_whose_first_fork_server_was_lost_runs_once(make_executor: MakeExecutor, tmp_path: Path) -> None:
    """The second server has started its worker, whose death is its own."""

    def note_and_die() -> None:
        tasks.append(tmp_path / "log", "ran")
        os._exit(3)

    def kill_and_submit(_: Future[Any]) -> None:  # while the dispatcher cannot look
        server = living_child("fork_server_main.py")
        server.kill()
        while not has_ended(server):
            time.sleep(0.001)
        submitted.put(exe.submit(note_and_die))

    submitted: queue.SimpleQueue[Future[Any]] = queue.SimpleQueue()
    (tmp_path / "log").touch()
    with make_executor(max_workers=1) as exe:
        exe.submit(tasks.sleep_and_return, 1, 0.2).add_done_callback(kill_and_submit)
        assert isinstance(submitted.get().exception(30), WorkerDiedError)
    assert (tmp_path / "log").read_text().split() in (["ran"], [])  # a kept worker may have ended with its server


@pytest.mark.kinds("fresh", "block")
def test_a_fork_server_that_cannot_fork(
    make_executor: MakeExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As at the limit of processes, which is no limit to root: here `os.fork` says so by itself."""
    python = tmp_path / "python"
    python.write_text(
        f"#!{sys.executable}\n"
        "import errno, os, runpy, sys\n"
        "def fork():\n"
        "    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))\n"
        "os.fork = fork\n"
        "sys.argv = sys.argv[-2:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with make_executor(max_workers=2, restart_limit=1) as exe:
        for error in [future.exception(30) for future in [exe.submit(tasks.add, i) for i in range(3)]]:
            assert isinstance(error, WorkerStartError)
            assert "Resource temporarily unavailable" in str(error)


@pytest.mark.kinds("fresh", "block")
def test_a_stopped_fork_server_holds_nobody_up(
    make_executor: MakeExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    """Neither the end of a call, nor the next one, nor the end of the executor."""
    monkeypatch.setattr(launcher, "_KILL_SECONDS", 1.0)
    monkeypatch.setattr(launcher, "_END_SECONDS", 1.0)
    monkeypatch.setattr(worker_pool, "_STOP_SECONDS", 1.0)
    with make_executor(max_workers=1) as exe:
        running = exe.submit(tasks.sleep_with_child, tmp_path / "pids")
        tasks.wait_for(tmp_path / "pids")
        living_child("fork_server_main.py").suspend()
        assert exe.cancel(running)
        with pytest.raises(CancelledError):
            running.result(20)
        pids = [int(word) for word in (tmp_path / "pids").read_text().split()]
        eventually(lambda: all(has_ended(pid) for pid in pids))
        assert exe.submit(tasks.add, 1, 1).result(20) == 2
        living_child("fork_server_main.py").suspend()


@pytest.mark.kinds("fresh-spawned", "block-spawned")
def test_a_worker_whose_port_is_blocked(
    make_executor: MakeExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It finds nobody at the port that it was told."""
    python = tmp_path / "python"
    python.write_text(
        f"#!{sys.executable}\n"
        "import os, sys\n"
        "arguments = sys.argv[1:]\n"
        "at = arguments.index('--zmqport') + 1\n"
        "os.environ['EXECUTORLIB_KEY_9'] = os.environ['EXECUTORLIB_KEY_' + arguments[at]]\n"
        "arguments[at] = '9'\n"
        f"os.execv({sys.executable!r}, [{sys.executable!r}, *arguments])\n"
    )
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with make_executor(max_workers=1) as exe:
        error = exe.submit(tasks.add, 1).exception(30)
    assert isinstance(error, WorkerStartError)
    assert "refused" in str(error)


# Several ranks


@pytest.mark.mpi
@pytest.mark.parametrize("block", [False, True])
@pytest.mark.parametrize("restarts", [0, 1])
def test_restarts_of_several_ranks(tmp_path: Path, block: bool, restarts: int) -> None:
    needs_mpi()

    def die_once() -> int:
        from mpi4py import MPI

        if MPI.COMM_WORLD.Get_rank() == 1:
            return int(tasks.end_self_once(tmp_path / "died", 5))
        MPI.COMM_WORLD.Barrier() if not (tmp_path / "died").exists() else None
        return 5

    with SingleNodeExecutor(
        max_cores=2, resource_dict={"cores": 2}, block_allocation=block, restart_limit=restarts
    ) as exe:
        exe.submit(tasks.add, 1).result(40)
        future = exe.submit(die_once)
        if restarts:
            assert future.result(50) == [5, 5]
        else:
            assert isinstance(future.exception(50), WorkerDiedError)


@pytest.mark.mpi
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT])
def test_one_rank_ends_while_idle(rank: int, signum: signal.Signals, caplog: Any, eventually: Eventually) -> None:
    """The end of MPI would wait for the others, which wait for the next call."""
    needs_mpi()
    with SingleNodeExecutor(max_cores=2, resource_dict={"cores": 2}, block_allocation=True) as exe:
        pids = exe.submit(tasks.pid).result(40)
        time.sleep(0.2)
        os.kill(pids[rank], signum)
        eventually(lambda: "ended while idle" in caplog.text)
        assert exe.submit(tasks.add, 1).result(40) == [1, 1]


@pytest.mark.mpi
@pytest.mark.parametrize("block", [False, True])
def test_ranks_killed_while_idle(block: bool) -> None:
    needs_mpi()
    with SingleNodeExecutor(max_cores=2, resource_dict={"cores": 2}, block_allocation=block) as exe:
        pids = exe.submit(tasks.pid).result(40)
        for pid in pids:
            with contextlib.suppress(psutil.NoSuchProcess):  # the launcher has ended it with the first
                psutil.Process(pid).kill()
        time.sleep(0.3)
        assert exe.submit(tasks.add, 1).result(40) == [1, 1]


# Restarts


@ALL
@pytest.mark.parametrize(
    ("what", "error"),
    [
        pytest.param(ValueError("plain"), ValueError, id="exception"),
        pytest.param(SystemExit(3), TaskExitError, id="SystemExit"),
        pytest.param(KeyboardInterrupt(), TaskExitError, id="KeyboardInterrupt"),
        pytest.param(MemoryError(), MemoryError, id="MemoryError"),
    ],
)
def test_only_deaths_are_tried_again(
    make_executor: MakeExecutor, tmp_path: Path, what: BaseException, error: type[BaseException]
) -> None:
    def note_and_raise() -> None:
        tasks.append(tmp_path / "log", "ran")
        raise what

    with make_executor(max_workers=1, restart_limit=3) as exe:
        assert isinstance(exe.submit(note_and_raise).exception(40), error)
    assert (tmp_path / "log").read_text().split() == ["ran"]


def test_what_the_program_ends_is_not_tried_again(make_executor: MakeExecutor, tmp_path: Path) -> None:
    """A time limit, and a cancellation."""

    def note_and_sleep(name: str) -> None:
        tasks.append(tmp_path / name, "ran")
        tasks.touch(tmp_path / f"{name} is noted")
        time.sleep(600)

    with make_executor(max_workers=1, restart_limit=3) as exe:
        assert exe.submit(tasks.add, 1).result(40) == 1  # the fork server is up: the time counts from the sending
        limited = exe.submit(note_and_sleep, "limited", resource_dict={"run_time_max": 3})
        assert isinstance(limited.exception(40), TimeoutError)
        running = exe.submit(note_and_sleep, "cancelled")
        tasks.wait_for(tmp_path / "cancelled is noted")
        assert exe.cancel(running)
        assert exe.submit(tasks.add, 1, 1).result(40) == 2
        assert running.cancelled()
    assert (tmp_path / "limited").read_text().split() == ["ran"]
    assert (tmp_path / "cancelled").read_text().split() == ["ran"]


# Cancelled with their process


@ALL
def test_cancel_ends_a_running_call_and_its_process(
    make_executor: MakeExecutor, tmp_path: Path, eventually: Eventually
) -> None:
    with make_executor(max_workers=1) as exe:
        running = exe.submit(tasks.sleep_with_child, tmp_path / "pids")
        behind = exe.submit(tasks.add, 1, 1)
        dependent = exe.submit(tasks.add, running)
        tasks.wait_for(tmp_path / "pids")
        assert exe.cancel(running)
        assert behind.result(40) == 2
        assert running.cancelled()
        eventually(lambda: dependent.cancelled())
        pids = [int(word) for word in (tmp_path / "pids").read_text().split()]
        eventually(lambda: all(has_ended(pid) for pid in pids))
        assert exe.cancel(running), "a second time is as good"
        done = exe.submit(tasks.add, 1)
        done.result(40)
        assert not exe.cancel(done)


@pytest.mark.mpi
@pytest.mark.parametrize("block", [False, True])
def test_cancel_ends_all_ranks(tmp_path: Path, block: bool, eventually: Eventually) -> None:
    needs_mpi()

    def wait() -> None:
        (tmp_path / f"pid{os.getpid()}").touch()
        time.sleep(600)

    with SingleNodeExecutor(max_cores=2, resource_dict={"cores": 2}, block_allocation=block) as exe:
        running = exe.submit(wait)
        eventually(lambda: len(list(tmp_path.glob("pid*"))) == 2, 40)
        assert exe.cancel(running)
        assert exe.submit(tasks.add, 1).result(40) == [1, 1]
        assert running.cancelled()
        pids = [int(path.name[3:]) for path in tmp_path.glob("pid*")]
        eventually(lambda: all(has_ended(pid) for pid in pids))


def test_cancel_while_the_result_of_the_call_before_is_on_its_way(tmp_path: Path) -> None:
    """The executor does not know yet that the call runs; its process is ended as soon as it does."""
    answers: list[bool] = []

    def cancel_the_last(_: Future[Any]) -> None:  # no result is heard of while this runs
        tasks.wait_for(tmp_path / "begun")
        answers.append(exe.cancel(last))

    with SingleNodeExecutor(max_workers=1, block_allocation=True) as exe:
        list(exe.map(tasks.hold_if, [tmp_path] * 20, range(100, 120)))  # now they are known to be short
        gate = exe.submit(tasks.hold, tmp_path / "gate", tmp_path / "open")
        blocked, all_are_there = threading.Event(), threading.Event()

        def block(_: Future[Any]) -> None:
            blocked.set()
            all_are_there.wait(20)

        gate.add_done_callback(block)
        (tmp_path / "open").touch()
        assert blocked.wait(20)  # from here on nothing is sent or heard
        scheduler: Any = exe._task_scheduler
        scheduler._functions.known(tasks.hold_if).seconds = 1e-4  # whatever was measured on a busy machine
        first, second, last = (exe.submit(tasks.hold_if, tmp_path, i) for i in (1, 2, 0))
        first.add_done_callback(cancel_the_last)
        all_are_there.set()
        assert second.result(20) == 2
        with pytest.raises(CancelledError):
            last.result(20)
        assert exe.submit(tasks.add, 1, 1).result(20) == 2
    assert answers == [True]


@ALL
def test_cancel_what_has_not_begun(make_executor: MakeExecutor, tmp_path: Path) -> None:
    with make_executor(max_workers=1) as exe:
        running = exe.submit(tasks.hold, tmp_path / "begun", tmp_path / "go", 5)
        waiting = [exe.submit(tasks.append, tmp_path / "log", i) for i in range(5)]
        tasks.wait_for(tmp_path / "begun")
        assert all(exe.cancel(future) for future in waiting)
        assert all(future.cancelled() for future in waiting)
        (tmp_path / "go").touch()
        assert running.result(40) == 5
    assert not (tmp_path / "log").exists()
