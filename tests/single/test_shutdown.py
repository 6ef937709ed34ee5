"""The end: of an executor, of the program, and of a program that is ended by others."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import threading
import time
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any

import psutil
import pytest
import tasks

from conftest import Eventually, MakeExecutor, Script, StartScript, has_ended
from executorlib import SingleNodeExecutor

pytestmark = pytest.mark.faults
MODES = pytest.mark.parametrize("mode", ["fresh", "block", "fresh-spawned", "block-spawned"])
PRELUDE = """
import os, signal, sys, threading, time
from executorlib import SingleNodeExecutor
from tasks import *
mode, folder = sys.argv[1:3]
os.environ["EXECUTORLIB_FORK_SERVER"] = "0" if mode.endswith("spawned") else "1"
options = dict(max_workers=2, block_allocation=mode.startswith("block"))
"""


# The executor


@pytest.mark.kinds
def test_nothing_is_taken_after_shutdown(make_executor: MakeExecutor) -> None:
    exe = make_executor()
    future = exe.submit(tasks.add, 1, 1)
    exe.shutdown()
    assert future.done()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
            exe.submit(tasks.add, 1)
        with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
            exe.map(tasks.add, [1])
        exe.shutdown()
    assert future.result() == 2
    assert len(exe) == 0


def test_nothing_is_taken_after_the_with_block(make_executor: MakeExecutor) -> None:
    with make_executor() as exe:
        pass
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        exe.submit(tasks.add, 1)


@pytest.mark.kinds
def test_an_executor_that_was_never_used(make_executor: MakeExecutor) -> None:
    make_executor().shutdown()
    make_executor().shutdown(wait=False)
    with make_executor():
        pass


@pytest.mark.kinds
def test_shutdown_waits_for_what_was_submitted(make_executor: MakeExecutor) -> None:
    exe = make_executor()
    first = exe.submit(tasks.add, 0, 1)
    futures = [first, *(exe.submit(tasks.add, first, i) for i in range(8))]
    exe.shutdown()
    assert all(future.done() for future in futures)
    assert [future.result() for future in futures] == [1, *range(1, 9)]


def test_shutdown_without_waiting(make_executor: MakeExecutor, tmp_path: Path) -> None:
    exe = make_executor(max_workers=1)
    futures = [exe.submit(tasks.hold, tmp_path / "begun", tmp_path / "go", i) for i in range(3)]
    exe.shutdown(wait=False)
    assert not futures[2].done()
    (tmp_path / "go").touch()
    assert [future.result(20) for future in futures] == [0, 1, 2]


def test_shutdown_from_several_threads(make_executor: MakeExecutor, tmp_path: Path) -> None:
    exe = make_executor()
    future = exe.submit(tasks.wait_for, tmp_path / "go")
    threads = [threading.Thread(target=exe.shutdown) for _ in range(5)]
    for thread in threads:
        thread.start()
    (tmp_path / "go").touch()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert future.done()


@pytest.mark.parametrize("cancel", [False, True])
def test_shutdown_from_a_callback(make_executor: MakeExecutor, cancel: bool) -> None:
    exe = make_executor(max_workers=1)
    errors: list[BaseException] = []
    called = threading.Event()

    def end(_: Future[Any]) -> None:
        try:
            exe.shutdown(wait=True, cancel_futures=cancel)
        except BaseException as error:
            errors.append(error)
        called.set()

    future = exe.submit(tasks.add, 1, 1)
    future.add_done_callback(end)
    assert called.wait(20)
    assert future.result() == 2
    exe.shutdown()
    assert not errors


def test_shutdown_while_others_submit(make_executor: MakeExecutor) -> None:
    """Every future that submit has returned comes to an end."""
    exe = make_executor()
    futures: list[Future[Any]] = []
    started = threading.Barrier(5)

    def submit() -> None:
        started.wait()
        try:
            for i in range(100_000):
                futures.append(exe.submit(tasks.add, i))
                time.sleep(0.005)
        except RuntimeError:
            pass

    threads = [threading.Thread(target=submit) for _ in range(4)]
    for thread in threads:
        thread.start()
    started.wait()
    while len(futures) < 8:
        time.sleep(0.001)
    exe.shutdown()
    for thread in threads:
        thread.join()
    for future in futures:
        assert isinstance(future.exception(20), (type(None), RuntimeError))


def test_an_exception_in_the_with_block_passes_on(make_executor: MakeExecutor) -> None:
    future: Future[Any] | None = None
    exe = make_executor()
    try:
        with exe:
            future = exe.submit(tasks.add, 1, 1)
            raise LookupError("in the block")
    except LookupError:
        pass
    assert future is not None
    assert future.result(20) == 2


def test_terminate_and_kill_workers(make_executor: MakeExecutor, tmp_path: Path) -> None:
    for method in ("terminate_workers", "kill_workers"):
        exe = make_executor(max_workers=1)
        running = exe.submit(tasks.hold, tmp_path / f"begun {method}", tmp_path / "never")
        pending = exe.submit(tasks.add, 1)
        tasks.wait_for(tmp_path / f"begun {method}")
        start = time.monotonic()
        getattr(exe, method)()
        assert time.monotonic() - start < 8
        assert isinstance(running.exception(1), RuntimeError)
        with pytest.raises(CancelledError):
            pending.result(1)
        with pytest.raises(RuntimeError, match="shutdown"):
            exe.submit(tasks.add, 1)
        getattr(exe, method)()


@pytest.mark.kinds
def test_garbage_collection_ends_the_workers(make_executor: MakeExecutor, executor_kind: str) -> None:
    """What was submitted is done; then the processes end (the fixture `nothing_left` looks)."""
    exe = SingleNodeExecutor(max_workers=2, block_allocation=executor_kind.startswith("block"))
    future = exe.submit(tasks.add, 1, 1)
    del exe
    gc.collect()
    assert future.result(20) == 2


def test_an_executor_in_a_cycle_is_collected() -> None:
    class Holder:
        def __init__(self) -> None:
            self.exe = SingleNodeExecutor(max_workers=1, block_allocation=True)
            self.me = self
            self.future = self.exe.submit(tasks.add, 1)
            self.future.add_done_callback(self.done)

        def done(self, _: Any) -> None:
            pass

    holder = Holder()
    holder.future.result(20)
    del holder
    gc.collect()


def test_many_executors_one_after_the_other() -> None:
    for i in range(15):
        with SingleNodeExecutor(max_workers=1, block_allocation=bool(i % 2)) as exe:
            assert exe.submit(tasks.add, i, 1).result() == i + 1


def test_several_executors_at_once() -> None:
    executors = [SingleNodeExecutor(max_workers=1, block_allocation=bool(i % 2)) for i in range(4)]
    futures = [exe.submit(tasks.add, i) for i, exe in enumerate(executors)]
    assert [future.result() for future in futures] == [0, 1, 2, 3]
    for exe in executors:
        exe.shutdown()


# The program


@MODES
def test_the_program_ends_without_shutdown(script: Script, tmp_path: Path, mode: str) -> None:
    """What was submitted is done, as with the executors of the standard library."""
    done = script(
        PRELUDE + "exe = SingleNodeExecutor(**options)\n"
        "for i in range(4):\n"
        "    exe.submit(append, folder + '/log', i)\n",
        mode,
        str(tmp_path),
    )
    assert done.returncode == 0, done.stderr
    assert sorted((tmp_path / "log").read_text().split()) == ["0", "1", "2", "3"]
    assert done.stderr == ""


@MODES
def test_the_program_ends_while_one_executor_waits_for_another(script: Script, tmp_path: Path, mode: str) -> None:
    """Also for groups and items of its futures; what waits for a future that nobody will end is cancelled."""
    done = script(
        PRELUDE + "from concurrent.futures import Future\n"
        "from executorlib import split_future\n"
        "from executorlib.api import TestClusterExecutor\n"
        "first, second = SingleNodeExecutor(**options), SingleNodeExecutor(**options)\n"
        "third = TestClusterExecutor(cache_directory=folder + '/cache')\n"
        "def pair(i):\n"
        "    time.sleep(0.5)\n"
        "    return i, i\n"
        "slow = [second.submit(pair, i) for i in range(3)]\n"
        "first.submit(append, folder + '/log', second.batched(slow, 2)[1])\n"
        "item = split_future(slow[0], 2)[1]\n"
        "last = third.submit(add, first.submit(add, item, 5), 1)\n"
        "second.submit(append, folder + '/log', last)\n"
        "never = first.submit(append, folder + '/log', Future())\n"
        "never.add_done_callback(lambda future: print(future.cancelled()))\n",
        mode,
        str(tmp_path),
    )
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
    assert len((tmp_path / "log").read_text().split("\n")) == 3
    assert "6\n" in (tmp_path / "log").read_text()


@MODES
@pytest.mark.parametrize(
    ("ending", "code"),
    [("sys.exit(3)", 3), ("raise ValueError('at the end')", 1), ("os._exit(5)", 5)],
    ids=["sys.exit", "exception", "os._exit"],
)
def test_the_program_leaves_in_the_middle(script: Script, tmp_path: Path, mode: str, ending: str, code: int) -> None:
    done = script(
        PRELUDE + "exe = SingleNodeExecutor(**options)\n"
        "exe.submit(add, 1).result()\n"
        "exe.submit(time.sleep, 0.2)\n" + ending + "\n",
        mode,
        str(tmp_path),
    )
    assert done.returncode == code, done.stderr
    assert ("at the end" in done.stderr) == (code == 1)


def test_the_program_ends_while_a_call_waits_for_ever(script: Script, tmp_path: Path) -> None:
    done = script(
        PRELUDE + "from concurrent.futures import Future\n"
        "exe = SingleNodeExecutor(**options)\n"
        "never = Future()\n"
        "waiting = exe.submit(add, exe.submit(add, never))\n"
        "ours = exe.submit(append, folder + '/log', exe.submit(add, 5))\n",
        "fresh",
        str(tmp_path),
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "log").read_text() == "5\n"


@MODES
@pytest.mark.parametrize("group", [False, True], ids=["process", "group"])
def test_ctrl_c_in_a_with_block(
    start_script: StartScript, tmp_path: Path, mode: str, group: bool, eventually: Eventually
) -> None:
    """A terminal sends SIGINT to the whole group, another program to the process alone."""
    program = start_script(
        PRELUDE + "with SingleNodeExecutor(**options) as exe:\n"
        "    futures = [exe.submit(sleep_with_child, f'{folder}/pids{i}') for i in range(2)]\n"
        "    futures.append(exe.submit(add, 1))\n"
        "    print('ready', flush=True)\n"
        "    futures[0].result()\n",
        mode,
        str(tmp_path),
        start_new_session=True,
    )
    for i in range(2):
        tasks.wait_for(tmp_path / f"pids{i}")
    start = time.monotonic()
    if group:
        os.killpg(program.pid, signal.SIGINT)
    else:
        program.send_signal(signal.SIGINT)
    out, _ = program.communicate(timeout=20)
    assert time.monotonic() - start < 8
    assert program.returncode in (-signal.SIGINT, 130, 1), out
    assert out.count("KeyboardInterrupt") >= 1
    pids = [int(word) for i in range(2) for word in (tmp_path / f"pids{i}").read_text().split()]
    eventually(lambda: all(has_ended(pid) for pid in pids), 5)


def test_ctrl_c_without_a_with_block(start_script: StartScript, tmp_path: Path) -> None:
    program = start_script(
        PRELUDE + "exe = SingleNodeExecutor(**options)\n"
        "future = exe.submit(sleep_with_child, f'{folder}/pids')\n"
        "future.result()\n",
        "fresh",
        str(tmp_path),
    )
    tasks.wait_for(tmp_path / "pids")
    program.send_signal(signal.SIGINT)
    out, _ = program.communicate(timeout=20)
    assert program.returncode != 0, out


@MODES
def test_the_program_is_killed(start_script: StartScript, tmp_path: Path, mode: str, eventually: Eventually) -> None:
    """No worker, no child of a task, no fork server is left after 5 seconds."""
    program = start_script(
        PRELUDE + "exe = SingleNodeExecutor(**options)\n"
        "futures = [exe.submit(sleep_with_child, f'{folder}/pids{i}') for i in range(2)]\n"
        "futures[0].result()\n",
        mode,
        str(tmp_path),
    )
    for i in range(2):
        tasks.wait_for(tmp_path / f"pids{i}")
    family = [child.pid for child in psutil.Process(program.pid).children(recursive=True)]
    assert len(family) >= 4
    program.kill()
    program.communicate(timeout=20)
    eventually(lambda: all(has_ended(pid) for pid in family), 5)


@MODES
def test_the_program_is_killed_while_idle(
    start_script: StartScript, tmp_path: Path, mode: str, eventually: Eventually
) -> None:
    program = start_script(
        PRELUDE + "exe = SingleNodeExecutor(**options)\n"
        "list(exe.map(add, range(10)))\n"
        "touch(f'{folder}/ready')\n"
        "time.sleep(600)\n",
        mode,
        str(tmp_path),
    )
    tasks.wait_for(tmp_path / "ready")
    family = [child.pid for child in psutil.Process(program.pid).children(recursive=True)]
    program.kill()
    program.communicate(timeout=20)
    eventually(lambda: all(has_ended(pid) for pid in family), 5)


def test_sigterm_ends_the_program_and_its_workers(
    start_script: StartScript, tmp_path: Path, eventually: Eventually
) -> None:
    program = start_script(
        PRELUDE + "with SingleNodeExecutor(**options) as exe:\n"
        "    exe.submit(sleep_with_child, f'{folder}/pids').result()\n",
        "block",
        str(tmp_path),
    )
    tasks.wait_for(tmp_path / "pids")
    pids = [int(word) for word in (tmp_path / "pids").read_text().split()]
    program.terminate()
    program.communicate(timeout=20)
    eventually(lambda: all(has_ended(pid) for pid in pids), 5)


@MODES
def test_standard_input_and_output_are_not_held(start_script: StartScript, tmp_path: Path, mode: str) -> None:
    """A task finds an empty standard input, and leaves that of the program alone."""
    program = start_script(
        PRELUDE + "def read():\n"
        "    return sys.stdin.read()\n"
        "with SingleNodeExecutor(**options) as exe:\n"
        "    assert exe.submit(read).result() == ''\n"
        "    print(input(), flush=True)\n"
        "    os.close(0)\n"
        "    exe.submit(add, 1).result()\n",
        mode,
        str(tmp_path),
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = program.communicate("a line\nand more\n", timeout=30)
    assert program.returncode == 0, err
    assert out == "a line\n"


@pytest.mark.parametrize("mode", ["fresh", "block", "block-spawned"])
@pytest.mark.parametrize("closed", ["012", "1", "2"])
def test_a_program_with_closed_standard_streams(script: Script, tmp_path: Path, closed: str, mode: str) -> None:
    """What calls and their children write goes nowhere, not into whatever the program has opened since."""
    done = script(
        PRELUDE + f"for fd in {closed!r}:\n"
        "    os.close(int(fd))\n"
        f"data = [open(folder + '/data' + fd, 'wb') for fd in {closed!r}]\n"
        "assert [file.fileno() for file in data] == [int(file.name[-1]) for file in data]\n"
        "with SingleNodeExecutor(**options) as exe:\n"
        "    exe.submit(touch, folder + '/done').result(20)\n"
        "    exe.submit(print, 'nowhere').result(20)\n"
        "    for _ in range(3):\n"
        "        exe.submit(os.system, 'echo hello; echo hello >&2').result(10)\n"
        "os._exit(0)\n",
        mode,
        str(tmp_path),
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "done").exists()
    assert {fd: (tmp_path / f"data{fd}").read_bytes() for fd in closed} == dict.fromkeys(closed, b"")


@pytest.mark.parametrize("mode", ["fresh", "block", "block-spawned"])
def test_the_program_forks(script: Script, tmp_path: Path, mode: str) -> None:
    """The child of a program has nothing to do with its executors, and may have its own."""
    done = script(
        PRELUDE + "with SingleNodeExecutor(**options) as over:\n"
        "    assert over.submit(add, 1).result() == 1\n"
        "files = [open(os.devnull) for _ in range(20)]\n"
        "exe = SingleNodeExecutor(**options)\n"
        "assert exe.submit(add, 1).result() == 1\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    for file in files:\n"
        "        os.fstat(file.fileno())\n"
        "    try:\n"
        "        exe.submit(add, 1)\n"
        "    except RuntimeError:\n"
        "        print('refused', flush=True)\n"
        "    exe.shutdown()\n"
        "    with SingleNodeExecutor(**options) as own:\n"
        "        print(own.submit(add, 5).result(), flush=True)\n"
        "    sys.exit(7)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7\n"
        "print(exe.submit(add, 2).result(), exe.submit(add, 3).result())\n",
        mode,
        str(tmp_path),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["refused", "5", "2", "3"]


def test_the_program_forks_and_the_child_falls_out_of_the_with_block(script: Script, tmp_path: Path) -> None:
    done = script(
        PRELUDE + "with SingleNodeExecutor(**options) as exe:\n"
        "    exe.submit(add, 1).result()\n"
        "    future = exe.submit(wait_for, folder + '/go')\n"
        "    pid = os.fork()\n"
        "if pid == 0:\n"
        "    open(folder + '/go', 'w').close()\n"
        "    sys.exit(0)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0\n"
        "print(future.result() == folder + '/go')\n",
        "block",
        str(tmp_path),
    )
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


def test_multiprocessing_beside_an_executor(script: Script, tmp_path: Path) -> None:
    done = script(
        PRELUDE + "import multiprocessing\n"
        "if __name__ == '__main__':\n"
        "    for method in ('fork', 'spawn'):\n"
        "        context = multiprocessing.get_context(method)\n"
        "        with SingleNodeExecutor(**options) as exe:\n"
        "            assert exe.submit(add, 1).result() == 1\n"
        "            with context.Pool(1) as pool:\n"
        "                print(pool.map(abs, [-1]))\n"
        "            assert exe.submit(add, 2).result() == 2\n",
        "block",
        str(tmp_path),
    )
    assert (done.returncode, done.stdout) == (0, "[1]\n[1]\n"), done.stderr


def test_an_executor_in_a_process_that_multiprocessing_has_spawned(script: Script, tmp_path: Path) -> None:
    """There the script is called ``__mp_main__``."""
    done = script(
        PRELUDE + "import multiprocessing\n"
        "class Point:\n"
        "    def __init__(self, x): self.x = x\n"
        "def double(point): return Point(2 * point.x)\n"
        "def run():\n"
        "    with SingleNodeExecutor(**options) as exe:\n"
        "        first = exe.submit(double, Point(3)).result()\n"
        "        second = exe.submit(double, exe.submit(double, first)).result()\n"
        "        print(type(second) is Point, second.x, exe.submit(add, 1, 1).result(), flush=True)\n"
        "if __name__ == '__main__':\n"
        "    run()\n"
        "    process = multiprocessing.get_context('spawn').Process(target=run)\n"
        "    process.start()\n"
        "    process.join()\n",
        "block",
        str(tmp_path),
    )
    assert (done.returncode, done.stdout) == (0, "True 24 2\n" * 2), done.stderr


def test_warnings_as_errors_and_development_mode(script: Script, tmp_path: Path) -> None:
    """Nothing is left to the garbage collector: no unclosed socket, no process that nobody has waited for."""
    for mode in ("fresh", "block", "block-spawned"):
        done = script(
            PRELUDE + "with SingleNodeExecutor(**options) as exe:\n    print(exe.submit(add, 1).result())\n",
            mode,
            str(tmp_path),
            flags=("-X", "dev", "-W", "error"),
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


def test_waiting_costs_no_processor_time(script: Script, tmp_path: Path) -> None:
    done = script(
        PRELUDE + "with SingleNodeExecutor(**options) as exe:\n"
        "    exe.submit(add, 1).result()\n"
        "    before = time.process_time()\n"
        "    exe.submit(time.sleep, 2).result()\n"
        "    print(time.process_time() - before)\n",
        "block",
        str(tmp_path),
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.1
