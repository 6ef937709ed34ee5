"""The progress bar: its numbers, and that it leaves alone what the program and its calls print."""

from __future__ import annotations

import os
import re
import struct
import sys
import textwrap
import time
from collections.abc import Callable
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest

from conftest import Eventually, MakeExecutor, Script
from executorlib import SingleNodeExecutor
from executorlib.api import TestClusterExecutor
from executorlib.standalone.interactive.subprocesses import Subprocesses
from executorlib.task_scheduler.tally import Tally

pytest.importorskip("tqdm", reason="draws the bar; in executorlib[progress]")

PROGRAM = """
import os, sys, time
from executorlib import SingleNodeExecutor

def say(text):
    os.write(1, f"{text}\\n".encode())  # in one piece: print may take two, and another process come between

def work(number):
    time.sleep(0.02)
    if number % 4 == 0:
        say(f"call {number}")
    if number == 17:
        raise ValueError(number)
    return number

with SingleNodeExecutor(max_workers=2, block_allocation=True, progress=True) as exe:
    futures = [exe.submit(work, number) for number in range(40)]
    for number in range(30):
        say(f"line {number}")
        time.sleep(0.01)
    exe.submit(sum, [futures[17], 1])
say("after")
"""


def test_numbers(make_executor: MakeExecutor, tmp_path: Path, eventually: Eventually) -> None:
    until = str(tmp_path / "until")
    exe = make_executor(restart_limit=1)
    tally: Callable[[], Tally] = exe._task_scheduler._dispatcher.tally  # type: ignore[union-attr]
    assert tally() == (0, 0, 0, 0, 0, 0)
    held = [exe.submit(_hold, until) for _ in range(2)]
    exe.submit(sum, held)
    failed = exe.submit(divmod, 1, 0)
    exe.submit(sum, [failed])
    exe.submit(os._exit, 3)
    exe.submit(sum, [1]).cancel()
    list(exe.map(int, range(0)))
    eventually(lambda: tally().running == 2)
    Path(until).touch()
    eventually(lambda: tally()[:4] == (7, 7, 2, 2))
    exe.shutdown()
    assert tally() == (7, 7, 2, 2, 0, 0)


def test_no_call_is_counted_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eventually: Eventually) -> None:
    """One that is cancelled while it is ready is over, when the others fail because no worker can be started."""
    monkeypatch.setenv("EXECUTORLIB_FORK_SERVER", "0")
    execute = Subprocesses.execute

    def start(self: Subprocesses, worker: int, argv: list[str], *rest: Any) -> None:
        waits = f"while ! test -e '{tmp_path}/go'; do sleep 0.02; done; false"
        execute(self, worker, ["/bin/sh", "-c", waits], *rest)

    monkeypatch.setattr(Subprocesses, "execute", start)
    exe = SingleNodeExecutor(max_workers=1, block_allocation=True)
    tally: Callable[[], Tally] = exe._task_scheduler._dispatcher.tally  # type: ignore[union-attr]
    futures = [exe.submit(sum, [i]) for i in range(3)]
    assert futures[1].cancel()
    eventually(lambda: tally()[:2] == (3, 1))
    (tmp_path / "go").touch()
    wait(futures, 20)
    exe.shutdown()
    assert tally() == (3, 3, 0, 3, 0, 0)


def test_numbers_of_jobs_that_work_through_files(tmp_path: Path) -> None:
    with TestClusterExecutor(cache_directory=str(tmp_path / "cache")) as exe:
        tally: Callable[[], Tally] = exe._task_scheduler._dispatcher.tally  # type: ignore[union-attr]
        futures = [exe.submit(pow, number, 2) for number in range(3)] + [exe.submit(pow, 1, 2)]
        failed = exe.submit(divmod, 1, 0)
        exe.submit(sum, [failed, 1])
        assert sum(future.result() for future in futures) == 6
    assert tally()[:5] == (6, 6, 1, 1, 0)


def _hold(until: str) -> float:
    while not os.path.exists(until):
        time.sleep(0.005)
    return 1.0


def test_a_log_gets_a_line(script: Script) -> None:
    done = script(PROGRAM)
    assert done.returncode == 0, done.stderr
    calls = [f"call {number}" for number in range(0, 40, 4)]
    lines = [f"line {number}" for number in range(30)]
    assert sorted(done.stdout.splitlines()) == sorted([*calls, *lines, "after"]), "nothing but what is printed"
    (bar,) = done.stderr.splitlines()
    assert re.fullmatch(
        r"100%\|#+\| 41/41 \[00:0\d<00:00, .* calls/s, 0 running on 0 workers, 1 failed, 1 not run\]", bar
    ), bar


class Terminal:
    """A program in a terminal."""

    def __init__(self, pyte: Any, path: Path, rows: int, columns: int) -> None:
        import fcntl
        import pty
        import termios

        self.screen = pyte.HistoryScreen(columns, rows, history=1000)
        self._stream = pyte.ByteStream(self.screen)
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        import subprocess

        environment = {**os.environ, "TERM": "xterm", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._process = subprocess.Popen(
            [sys.executable, str(path)], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
        )
        os.close(theirs)
        self._ours = ours

    def watch(self) -> list[list[str]]:
        """What the screen shows after each piece of output, until the program ends."""
        found = []
        while True:
            try:
                data = os.read(self._ours, 1024)
            except OSError:  # Linux says so at the end
                data = b""
            if not data:
                break
            self._stream.feed(data)
            found.append([line.rstrip() for line in self.screen.display])
        os.close(self._ours)
        assert self._process.wait(timeout=20) == 0
        return found

    def lines(self) -> list[str]:
        """All lines from the first on, those that have scrolled away too."""
        columns = self.screen.columns
        above = ["".join(row[at].data for at in range(columns)).rstrip() for row in self.screen.history.top]
        return [*above, *(line.rstrip() for line in self.screen.display)]


@pytest.mark.skipif(os.name != "posix", reason="a pseudo-terminal")
@pytest.mark.parametrize("rows", [12, 60])
def test_in_a_terminal_the_bar_has_the_last_line(tmp_path: Path, rows: int) -> None:
    pyte = pytest.importorskip("pyte", reason="shows what a terminal would; in executorlib[test]")
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    terminal = Terminal(pyte, path, rows, 100)
    states = terminal.watch()
    bars = [state[-1] for state in states if " calls/s, " in state[-1]]
    assert any("2 running on 2 workers" in bar for bar in bars)
    for state in states:
        assert not any(" calls/s" in line for line in state[:-1] if not line.startswith("100%|")), "\n".join(state)
    left = [line for line in terminal.lines() if line]
    wanted = [f"call {number}" for number in range(0, 40, 4)] + [f"line {number}" for number in range(30)]
    assert set(left[:-2]) <= set(wanted)
    assert left[-2].startswith("100%|")
    assert left[-1] == "after"
    if rows == 60:
        assert sorted(left[:-2]) == sorted(wanted)


def test_several_bars_and_one_that_is_forgotten(script: Script, tmp_path: Path) -> None:
    done = script(
        textwrap.dedent("""
        import sys
        from executorlib import SingleNodeExecutor
        from executorlib.api import TestClusterExecutor

        cache = sys.argv[1]
        with (
            SingleNodeExecutor(max_workers=1, progress=True) as one,
            TestClusterExecutor(cache_directory=cache, progress=True) as other,
        ):
            print(one.submit(sum, [other.submit(pow, 2, 3), 1]).result())
        forgotten = SingleNodeExecutor(max_workers=1, progress=True)
        forgotten.submit(print, "done", flush=True)
        """),
        str(tmp_path / "cache"),
    )
    assert (done.returncode, done.stdout) == (0, "9\ndone\n"), done.stderr
    bars = done.stderr.splitlines()
    assert [line.split("|")[2].split()[0] for line in bars] == ["1/1", "1/1", "1/1"], bars


def test_without_tqdm(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "tqdm" else find(name, *rest))
    for make in (SingleNodeExecutor, TestClusterExecutor):
        with pytest.raises(ImportError, match=r"pip install 'executorlib\[progress\]'"):
            make(progress=True)


def test_a_standard_error_that_is_gone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for stream in (None, (tmp_path / "closed").open("w")):
        if stream is not None:
            stream.close()
        monkeypatch.setattr(sys, "stderr", stream)
        try:
            with SingleNodeExecutor(max_workers=1, progress=True) as exe:
                assert exe.submit(sum, [1, 2]).result() == 3
        except ValueError as error:  # isatty of a closed file
            pytest.fail(f"{error!r}")


def test_nobody_loads_tqdm_without_being_asked(script: Script) -> None:
    done = script(
        "import sys, executorlib\n"
        "with executorlib.SingleNodeExecutor(max_workers=1) as exe:\n"
        "    exe.submit(sum, [1]).result()\n"
        "print('tqdm' in sys.modules, any('timeline' in name for name in sys.modules))\n"
    )
    assert done.stdout == "False False\n"
