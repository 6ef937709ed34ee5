"""The program and the many: its end with several ranks, its streams, its log; a large graph; what others can see."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import psutil
import pytest
import tasks

from conftest import Eventually, MakeExecutor, Script, StartScript, has_ended, needs_mpi
from executorlib import SingleNodeExecutor
from executorlib.standalone.errors import WorkerDiedError

pytestmark = pytest.mark.faults
ALL = pytest.mark.kinds("fresh", "block", "fresh-spawned", "block-spawned")
MODES = pytest.mark.parametrize("mode", ["fresh", "block", "fresh-spawned", "block-spawned"])
PRELUDE = """
import os, sys, time
from executorlib import SingleNodeExecutor
from tasks import *
mode, folder = sys.argv[1:3]
os.environ["EXECUTORLIB_FORK_SERVER"] = "0" if mode.endswith("spawned") else "1"
options = dict(max_workers=2, block_allocation=mode.startswith("block"))
if "mpi" in mode:
    options = dict(max_cores=2, resource_dict={"cores": 2}, block_allocation=mode.startswith("block"))
"""


@pytest.mark.mpi
@pytest.mark.parametrize("mode", ["fresh-mpi", "block-mpi", "block-mpi-spawned"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_the_end_of_a_program_with_several_ranks(
    start_script: StartScript, tmp_path: Path, mode: str, how: signal.Signals, eventually: Eventually
) -> None:
    """Killed, interrupted or terminated in the middle of a call: no rank, no launcher, no helper is left after 5 s."""
    needs_mpi()
    program = start_script(
        PRELUDE + "def wait(folder):\n"
        "    touch(f'{folder}/pid{os.getpid()}')\n"
        "    time.sleep(600)\n"
        "with SingleNodeExecutor(**options) as exe:\n"
        "    exe.submit(wait, folder).result()\n",
        mode,
        str(tmp_path),
    )
    eventually(lambda: len(list(tmp_path.glob("pid*"))) == 2, 40)
    family = psutil.Process(program.pid).children(recursive=True)
    assert len(family) >= 3
    program.send_signal(how)
    program.communicate(timeout=20)
    eventually(lambda: all(map(has_ended, family)), 5)


@pytest.mark.mpi
@pytest.mark.parametrize("mode", ["block-mpi", "block-mpi-spawned"])
def test_a_program_that_is_killed_while_its_ranks_are_idle(
    start_script: StartScript, tmp_path: Path, mode: str, eventually: Eventually
) -> None:
    needs_mpi()
    program = start_script(
        PRELUDE + "exe = SingleNodeExecutor(**options)\n"
        "exe.submit(add, 1).result()\n"
        "touch(f'{folder}/ready')\n"
        "time.sleep(600)\n",
        mode,
        str(tmp_path),
    )
    eventually(lambda: (tmp_path / "ready").exists(), 40)
    family = psutil.Process(program.pid).children(recursive=True)
    program.kill()
    program.communicate(timeout=20)
    eventually(lambda: all(map(has_ended, family)), 5)


@MODES
def test_a_pipe_behind_the_program_ends_with_it(tmp_path: Path, script_environment: dict[str, str], mode: str) -> None:
    """``python script | cat``: no helper or worker holds the output of a program that is over, or was killed."""
    path = tmp_path / "script.py"
    path.write_text(
        PRELUDE + "exe = SingleNodeExecutor(**options)\n"
        "print(exe.submit(add, 1, 1).result(), flush=True)\n"
        "exe.submit(time.sleep, 600)\n"
        "os.kill(os.getpid(), 9) if sys.argv[3] == 'kill' else exe.kill_workers()\n"
    )
    for end in ("kill", "return"):
        start = time.monotonic()
        done = subprocess.run(
            ["sh", "-c", '"$@" | cat', "sh", sys.executable, str(path), mode, str(tmp_path), end],
            env=script_environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=40,
            check=False,
        )
        assert done.stdout == "2\n", done.stderr
        assert time.monotonic() - start < 15


# Many


@pytest.mark.timeout(180)
def test_a_graph_of_100000_tasks() -> None:
    """Each takes one result of the layer before; the last takes those of all the last layer."""
    with SingleNodeExecutor(max_workers=2, block_allocation=True) as exe:
        layer: list[Any] = list(range(1000))
        for _ in range(100):
            layer = [exe.submit(tasks.add, before, 1) for before in layer]
        assert exe.submit(sum, layer).result(150) == sum(range(1000)) + 100 * 1000


@ALL
def test_10_threads_submit_resize_cancel_and_shut_down(make_executor: MakeExecutor) -> None:
    exe = make_executor(max_workers=2)
    futures: list[list[Future[Any]]] = [[] for _ in range(10)]
    begin = threading.Barrier(11)

    def submit(number: int) -> None:
        begin.wait()
        try:
            for i in range(1000):
                futures[number].append(exe.submit(tasks.add, number, i))
                if i % 7 == 0:
                    futures[number][i // 2].cancel()
                if i % 11 == 0:
                    exe.max_workers = 1 + i % 3
        except RuntimeError:
            pass

    threads = [threading.Thread(target=submit, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    begin.wait()
    time.sleep(0.3)
    exe.shutdown(wait=True, cancel_futures=True)
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    for number, own in enumerate(futures):
        for i, future in enumerate(own):
            if not future.cancelled() and future.exception(20) is None:
                assert future.result() == number + i


# The log


def test_nothing_is_printed_by_default(script: Script, tmp_path: Path) -> None:
    done = script(
        PRELUDE + "with SingleNodeExecutor(**options) as exe:\n    assert exe.submit(exit_hard, 3).exception()\n",
        "block-spawned",
        str(tmp_path),
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_package_does_not_import_logging(script: Script) -> None:
    done = script("import sys, executorlib\nprint('logging' in sys.modules)\n", flags=("-S",))
    assert done.stdout == "False\n", done.stderr


def test_start_death_and_restart_are_logged(
    make_executor: MakeExecutor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "executorlib"), make_executor(max_workers=1, restart_limit=1) as exe:
        assert exe.submit(tasks.end_self_once, tmp_path / "flag", 5).result(40) == 5
        assert isinstance(exe.submit(tasks.exit_hard, 3).exception(40), WorkerDiedError)
    said = [(record.levelname, record.getMessage()) for record in caplog.records]
    starts = [text for level, text in said if level == "DEBUG" and text.startswith("started worker 0 (pid ")]
    assert len(starts) >= 3
    assert "pid 0" not in "".join(starts)
    deaths = [text for level, text in said if level == "WARNING" and "died while it ran" in text]
    assert [("SIGKILL" in text, "exit code 3" in text) for text in deaths] == [
        (True, False),
        (False, True),
        (False, True),
    ]
    restarts = [text for level, text in said if level == "INFO"]
    assert restarts == ["end_self_once is tried again (1 of 1)", "exit_hard is tried again (1 of 1)"]


def test_the_loss_of_workers_is_logged(caplog: pytest.LogCaptureFixture, eventually: Eventually) -> None:
    with SingleNodeExecutor(max_workers=1, block_allocation=True) as exe:
        pid = exe.submit(tasks.pid).result(40)
        psutil.Process(pid).kill()
        eventually(lambda: "ended while idle: SIGKILL" in caplog.text)
        (server,) = [child for child in psutil.Process().children() if not has_ended(child)]
        server.kill()
        eventually(lambda: "the fork server is lost" in caplog.text)
        assert exe.submit(tasks.add, 1, 1).result(40) == 2
    assert {record.levelname for record in caplog.records} == {"WARNING"}


# What others can see


@pytest.mark.parametrize("mode", ["spawned", "mpi"])
def test_nothing_secret_is_seen_from_outside(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path, mode: str
) -> None:
    """No command line has the key, nor has the log, and the environment is the owner's to read."""
    if mode == "mpi":
        needs_mpi()
    else:
        monkeypatch.setenv("EXECUTORLIB_FORK_SERVER", "0")
    resources: dict[str, Any] = {"cores": 2} if mode == "mpi" else {}
    with (
        caplog.at_level(logging.DEBUG),
        SingleNodeExecutor(max_workers=1, block_allocation=True, resource_dict=resources) as exe,
    ):
        assert exe.submit(tasks.exit_hard, 3).exception(40) is not None
        names = exe.submit(key_names).result(40)
        assert names in ([], [[], []]), "the task does not see it"
        keys = set()
        for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
            folder = Path(f"/proc/{process.pid}")
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
                keys |= set(re.findall(rb"EXECUTORLIB_KEY_\d+=([0-9a-f]{64})", (folder / "environ").read_bytes()))
                assert stat.S_IMODE((folder / "environ").stat().st_mode) == 0o400
        assert keys, "the workers were given one"
        for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                line = Path(f"/proc/{process.pid}/cmdline").read_bytes()
                assert not any(key in line for key in keys)
        port = {
            c.laddr.port
            for c in psutil.Process().net_connections("tcp")
            if c.status == psutil.CONN_LISTEN and c.laddr.ip not in ("127.0.0.1", "::1")
        }
        assert not port, "it listens to this machine only"
    assert not any(key.decode() in caplog.text for key in keys)
    assert not any(path.is_socket() for path in Path(os.environ["TMPDIR"]).rglob("*"))


def key_names() -> list[str]:
    return [name for name in os.environ if name.startswith("EXECUTORLIB_KEY")]
