"""What every test stands on: nothing may be left behind, nobody may hang without saying where.

The time limit of a test and the dump of all stacks shortly before it are set in pyproject.toml (``timeout``,
``faulthandler_timeout``). ``kill -USR1`` on the test process prints all its stacks at any moment.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import functools
import gc
import importlib.util
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import hypothesis
import psutil
import pytest

import executorlib
from executorlib.executor.base import BaseExecutor
from executorlib.executor.single import SingleNodeExecutor

DOCS = Path(__file__).parent.parent / "docs"
SOURCES = Path(executorlib.__file__).parent.parent
SETTLE_SECONDS = 8.0
SHUTDOWN_SECONDS = 10.0
_PR_SET_CHILD_SUBREAPER = 36

# Another user of the machine, who need not exist.
STRANGER = 54321
needs_owners = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="owners of files are those of POSIX")
root_only = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files to others"
)


# A busy machine is no failure.
hypothesis.settings.register_profile("any-machine", deadline=None)
hypothesis.settings.load_profile("any-machine")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "kinds(*names): the kinds of executor that `make_executor` makes, of: " + ", ".join(KINDS)
    )
    if hasattr(faulthandler, "register"):
        faulthandler.register(signal.SIGUSR1, all_threads=True)
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        # A shell starts what it puts in the background so; the programs that tests interrupt would inherit it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.platform == "linux":
        # What a killed program leaves behind becomes a child of this process, and so is found.
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests that the tables of reliability and security name are the tests of faults."""
    pages = [DOCS / "reliability.md", DOCS / "security.md"]
    named = {name for page in pages if page.exists() for name in re.findall(r"`(test_\w+(?:\.py)?)`", page.read_text())}
    for item in items:
        if item.path.name in named or getattr(item, "originalname", item.name) in named:
            item.add_marker(pytest.mark.faults)


# Nothing left behind


class Snapshot(NamedTuple):
    processes: set[int]
    threads: set[threading.Thread]
    descriptors: dict[int, str]
    temporary: set[str]

    @classmethod
    def take(cls) -> Snapshot:
        return cls(
            {child.pid for child in living_children()},
            set(threading.enumerate()),
            descriptors(),
            {
                os.path.join(folder, name)
                for folder, folders, files in os.walk(tempfile.gettempdir())
                for name in [*folders, *files]
            },
        )

    def additions(self, before: Snapshot) -> list[str]:
        """What is here that was not before, in words."""
        found = [f"process {describe(pid)}" for pid in self.processes - before.processes]
        found += [f"thread {thread!r}" for thread in self.threads - before.threads]
        found += [
            f"descriptor {number}: {target}"
            for number, target in self.descriptors.items()
            if before.descriptors.get(number) != target
        ]
        return found + [f"temporary {path}" for path in self.temporary - before.temporary]


def living_children() -> list[psutil.Process]:
    """All processes below this one; those that have ended are buried, unless another process has to do it."""
    if not _has_children():
        return []
    children = []
    for child in psutil.Process().children(recursive=True):
        try:
            if child.status() != psutil.STATUS_ZOMBIE:
                children.append(child)
            elif child.ppid() == os.getpid() and child.pid in _orphans:
                os.waitpid(child.pid, os.WNOHANG)
        except (psutil.Error, ChildProcessError):
            pass
    return children


def has_ended(process: psutil.Process | int) -> bool:
    """Whether a process runs no more; one that nobody has waited for counts as ended."""
    try:
        known = psutil.Process(process) if isinstance(process, int) else process
        return not known.is_running() or known.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # also between the two questions
        return True


def living_child(program: str) -> psutil.Process:
    """The child of this process that runs a program of the backend."""
    deadline = time.monotonic() + 5.0
    while True:
        found = []
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if not has_ended(child) and program in " ".join(child.cmdline()):
                    found.append(child)
        if found or time.monotonic() > deadline:  # one that was just started may have no command line yet
            (child,) = found
            return child
        time.sleep(0.005)


def _has_children() -> bool:
    # The kernel's own list is a hundred times as fast as a look at all processes of the machine.
    try:
        return any(path.read_text() for path in Path("/proc/self/task").glob("*/children")) or not _PROC_CHILDREN
    except OSError:  # a thread has ended meanwhile
        return True


_PROC_CHILDREN = Path(f"/proc/self/task/{os.getpid()}/children").exists()
_orphans: set[int] = set()


def descriptors() -> dict[int, str]:
    """The open files of this process; their targets where the system tells."""
    found = {}
    folder = "/proc/self/fd"
    if not os.path.isdir(folder):
        return {}
    for number in os.listdir(folder):
        try:
            found[int(number)] = os.readlink(f"{folder}/{number}")
        except OSError:  # that of listdir itself
            pass
    return found


def describe(pid: int) -> str:
    try:
        process = psutil.Process(pid)
        return f"{pid} ({process.status()}): {' '.join(process.cmdline())}"
    except psutil.Error as error:
        return f"{pid}: {error}"


@pytest.fixture(autouse=True, scope="session")
def _own_temporary_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Temporary files of the tests and of all their children, apart from those of the rest of the machine."""
    with pytest.MonkeyPatch.context() as patch:
        folder = str(tmp_path_factory.mktemp("tmpdir"))
        patch.setenv("TMPDIR", folder)
        patch.setattr(tempfile, "tempdir", folder)
        yield


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Fail a test that leaves a process, a thread, a descriptor or a temporary file, or that was slow to shut down."""
    slow: list[float] = []
    shutdown = BaseExecutor.shutdown

    @functools.wraps(shutdown)
    def timed(self: BaseExecutor, *args: Any, **kwargs: Any) -> None:
        start = time.monotonic()
        try:
            shutdown(self, *args, **kwargs)
        finally:
            slow.append(time.monotonic() - start)

    before = Snapshot.take()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BaseExecutor, "shutdown", timed)
        yield
    left = _left_after(before, SETTLE_SECONDS)
    for pid in {child.pid for child in living_children()} - before.processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    _orphans.clear()
    assert not left, "left behind:\n  " + "\n  ".join(left)
    assert max(slow, default=0.0) < SHUTDOWN_SECONDS, f"shutdown took {max(slow):.1f} s"


def _left_after(before: Snapshot, seconds: float) -> list[str]:
    deadline = time.monotonic() + seconds
    while True:
        if _has_children():
            _orphans.update(child.pid for child in psutil.Process().children() if child.pid not in before.processes)
        left = Snapshot.take().additions(before)
        if not left or time.monotonic() > deadline:
            return left
        gc.collect()
        time.sleep(0.02)


# Executors of every kind


class Kind(NamedTuple):
    block_allocation: bool
    fork_server: bool


KINDS = {
    "fresh": Kind(block_allocation=False, fork_server=True),
    "block": Kind(block_allocation=True, fork_server=True),
    "fresh-spawned": Kind(block_allocation=False, fork_server=False),
    "block-spawned": Kind(block_allocation=True, fork_server=False),
}
"""Fresh processes and kept ones; forked, or new interpreters that connect over signed TCP as on macOS and Windows."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "executor_kind" in metafunc.fixturenames:
        marker = metafunc.definition.get_closest_marker("kinds")
        names = list(marker.args) if marker is not None and marker.args else list(KINDS) if marker else KINDS_AS_A_RULE
        metafunc.parametrize("executor_kind", names, indirect=True)


KINDS_AS_A_RULE = ["fresh", "block"]


@pytest.fixture
def executor_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The test runs once for each kind: with fresh and with kept workers, or as its mark ``kinds`` says."""
    name: str = request.param
    if not KINDS[name].fork_server:
        monkeypatch.setenv("EXECUTORLIB_FORK_SERVER", "0")
    return name


class MakeExecutor(Protocol):
    def __call__(self, max_workers: int | None = 2, **options: Any) -> SingleNodeExecutor: ...


@pytest.fixture
def make_executor(executor_kind: str) -> Iterator[MakeExecutor]:
    """Makes executors of the kind of this run; what the test has not shut down then is."""
    made: list[SingleNodeExecutor] = []

    def make(max_workers: int | None = 2, **options: Any) -> SingleNodeExecutor:
        block = KINDS[executor_kind].block_allocation
        made.append(SingleNodeExecutor(max_workers=max_workers, block_allocation=block, **options))
        return made[-1]

    yield make
    while made:
        made.pop().kill_workers()


# Scripts in processes of their own


class Script(Protocol):
    def __call__(self, code: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]: ...


def write_program(path: Path, script: str) -> None:
    """A shell script that can be run."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


class StartScript(Protocol):
    def __call__(self, code: str, *arguments: str, **options: Any) -> subprocess.Popen[str]: ...


@pytest.fixture
def script_environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(SOURCES), str(Path(__file__).parent / "single")])}


@pytest.fixture
def script(tmp_path: Path, script_environment: dict[str, str]) -> Script:
    """Runs Python code as a script of its own; one that hangs prints its stacks and is ended."""

    def run(code: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        path = tmp_path / "script.py"
        path.write_text(code)
        environment = {**script_environment, **options.pop("env", {})}
        timeout = options.pop("timeout", 40)
        flags = options.pop("flags", ())
        command = [sys.executable, "-X", "faulthandler", *flags, str(path), *arguments]
        with subprocess.Popen(
            command,
            env=environment,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **options,
        ) as process:
            try:
                out, err = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGABRT)  # faulthandler prints the stacks
                try:
                    out, err = process.communicate(timeout=5)
                except subprocess.TimeoutExpired:
                    process.kill()
                    out, err = process.communicate()
                pytest.fail(f"the script did not end in {timeout} s\n{out}\n{err}")
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    return run


@pytest.fixture
def start_script(tmp_path: Path, script_environment: dict[str, str]) -> Iterator[StartScript]:
    """Starts Python code as a script and does not wait for it; its output goes to a pipe as one text."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        path = tmp_path / f"script{len(started)}.py"
        path.write_text(code)
        environment = {**script_environment, **options.pop("env", {})}
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, **options}
        command = [sys.executable, "-X", "faulthandler", str(path), *arguments]
        started.append(subprocess.Popen(command, env=environment, text=True, **options))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()


# Waiting and odd places


class Eventually(Protocol):
    def __call__(self, true: Callable[[], object], seconds: float = 10.0) -> None: ...


@pytest.fixture
def eventually() -> Eventually:
    """Waits until something is true; fails after some seconds."""

    def wait(true: Callable[[], object], seconds: float = 10.0) -> None:
        deadline = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < deadline, f"not true after {seconds} s"
            time.sleep(0.005)

    return wait


@pytest.fixture
def weird_path(tmp_path: Path) -> Path:
    """A directory whose name no shell and no string template gets right by chance."""
    path = tmp_path / "a b'c\"d\n; echo $HOME `id` %s {x} \\ é"
    path.mkdir()
    return path


def needs_mpi() -> None:
    """Skip where there is no mpi4py. It is not imported: a library under test may take that for a wish for MPI."""
    if importlib.util.find_spec("mpi4py") is None:
        pytest.skip("needs mpi4py", allow_module_level=True)
