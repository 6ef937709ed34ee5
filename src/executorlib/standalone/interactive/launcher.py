"""Starting worker processes, watching them, ending them.

A launcher is owned by one dispatcher. It starts processes without waiting for them, and its events, read when its
file descriptor is readable, tell what became of them.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import socket
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

from executorlib.standalone.command import get_command_path
from executorlib.standalone.interactive.control import LENGTH, send_request
from executorlib.standalone.interactive.wire import Connection


class Started(NamedTuple):
    worker: int
    pid: int


class StartFailed(NamedTuple):
    worker: int
    reason: str


class Exited(NamedTuple):
    worker: int
    cause: str
    """How the process ended, in words: a signal's name or an exit code."""
    clean: bool
    begun: int | None = None
    """How many tasks it had begun, where the launcher knows."""


class TakenBack(NamedTuple):
    """What a worker had begun when tasks were taken back from it."""

    worker: int
    begun: int


class NodeLost(NamedTuple):
    """No worker can be started on a compute node."""

    node: str
    reason: str


Event = Started | StartFailed | Exited
NodeEvent = TakenBack | NodeLost


class LauncherLostError(Exception):
    """The fork server has died, and with it the knowledge of its children."""


class Launcher(ABC):
    """Starts processes for workers. All methods are called by the dispatcher's thread alone.

    Attributes:
        waits_for_ever: whether a worker may have to wait for its start for any time, as a batch job does
    """

    waits_for_ever: ClassVar[bool] = False

    @abstractmethod
    def fileno(self) -> int:
        """Readable when `events` has something to tell."""

    @abstractmethod
    def execute(
        self,
        worker: int,
        argv: list[str],
        environment: dict[str, str],
        cwd: str | None,
        stderr: int | None,
    ) -> None:
        """Run a program in a new process; its standard error goes to the descriptor."""

    @abstractmethod
    def kill(self, worker: int, signum: int = signal.SIGTERM) -> None:
        """Send a signal to a worker's process and all that it has started; nothing if it is gone."""

    @abstractmethod
    def events(self) -> Sequence[Event | NodeEvent]:
        """What has happened since the last call.

        Raises:
            LauncherLostError: nothing more will be heard of any process
        """

    def arrived(self, number: int, connection: Connection) -> bool:
        """Take over a connection that is no worker's, if it is that of a helper of this launcher; whether it is."""
        return False

    def deadline(self) -> float | None:
        """When `expire` wants to be called, on the monotonic clock."""
        return None

    def expire(self, now: float) -> None:  # noqa: B027  # most launchers wait for nothing
        """Give up on what has taken too long."""

    @abstractmethod
    def close(self) -> None:
        """End what is left and wait for it."""

    @abstractmethod
    def abandon(self) -> None:
        """In a child of the program: give back the descriptors, and let the program's processes be."""


def describe_exit(code: int) -> str:
    """An exit code as `subprocess` gives it, in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    if -code == 9:
        return f"{name}, as the kernel sends it when memory runs out"
    return name


class ForkServer(Launcher):
    """The fork server of an executor, seen from the program (see `executorlib.backend.fork_server`).

    It is started with the first request and does not wait for anything.

    Args:
        program: the fork server's, in the backend
    """

    def __init__(self, program: str = "fork_server_main.py") -> None:
        ours, theirs = socket.socketpair()
        # A descriptor that is its own duplicate would stay closed on exec with an old C library.
        fd = 3 if theirs.fileno() != 3 else 4
        argv = [sys.executable, *_interpreter_flags(), get_command_path(program), str(fd)]
        null = os.open(os.devnull, os.O_RDONLY)
        try:
            self._pid = os.posix_spawn(
                sys.executable,
                argv,
                os.environ,
                setsigmask=(),  # a blocked SIGCHLD would never tell of an exit
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, null, 0),
                    (os.POSIX_SPAWN_DUP2, theirs.fileno(), fd),
                ],
            )
        except BaseException:
            ours.close()
            raise
        finally:
            os.close(null)
            theirs.close()
        self._control = ours
        self._partial = b""
        send_request(ours, (list(sys.path),))

    def fileno(self) -> int:
        return self._control.fileno()

    def fork(self, worker: int, channel: int, claims: int | None) -> None:
        """Fork a serial worker that is connected by a socket, and by a pipe of claims if it is to be kept."""
        with _output() as (stdout, stderr):
            fds = (channel, stdout, stderr) if claims is None else (channel, claims, stdout, stderr)
            send_request(self._control, ("fork", worker), fds)

    def execute(
        self,
        worker: int,
        argv: list[str],
        environment: dict[str, str],
        cwd: str | None,
        stderr: int | None,
    ) -> None:
        with _output() as (out, err):
            fds = (out, err if stderr is None else stderr)
            send_request(self._control, ("exec", worker, argv, environment, cwd), fds)

    def kill(self, worker: int, signum: int = signal.SIGTERM) -> None:
        with contextlib.suppress(OSError):
            send_request(self._control, ("kill", worker, int(signum)))

    def events(self) -> list[Event]:
        try:
            data = self._control.recv(65536, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return []
        except OSError as error:
            raise LauncherLostError(str(error)) from error
        if not data:
            raise LauncherLostError("the fork server has ended")
        self._partial += data
        found = []
        while len(self._partial) >= LENGTH.size:
            stop = LENGTH.size + LENGTH.unpack_from(self._partial)[0]
            if len(self._partial) < stop:
                break
            found.append(event_of(pickle.loads(self._partial[LENGTH.size : stop])))
            self._partial = self._partial[stop:]
        return found

    def abandon(self) -> None:
        self._control.close()

    def close(self) -> None:
        self._control.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._pid, 0)


def event_of(report: tuple[Any, ...]) -> Event:
    """What a fork server reports."""
    kind, worker, value = report[:3]
    if kind == "started":
        return Started(worker, value)
    if kind == "failed":
        return StartFailed(worker, value)
    code = os.waitstatus_to_exitcode(value)
    return Exited(worker, describe_exit(code), code == 0, *report[3:])


class Subprocesses(Launcher):
    """Starts processes from the program itself, where there is no fork server: macOS and Windows.

    A thread waits for each process. A worker learns of the program's end by its standard input, a pipe that closes.
    """

    def __init__(self) -> None:
        import subprocess

        self._popen = subprocess.Popen
        self._subprocess = subprocess
        self._processes: dict[int, Any] = {}
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)

    def fileno(self) -> int:
        return self._reader.fileno()

    def execute(
        self,
        worker: int,
        argv: list[str],
        environment: dict[str, str],
        cwd: str | None,
        stderr: int | None,
    ) -> None:
        try:
            process = self._popen(
                argv,
                env={**environment, "EXECUTORLIB_LIFELINE": "1"},
                cwd=cwd,
                stdin=self._subprocess.PIPE,
                stderr=stderr,
                start_new_session=True,
            )
        except OSError as error:
            self._tell(StartFailed(worker, str(error)))
            return
        self._processes[worker] = process
        self._tell(Started(worker, process.pid))
        threading.Thread(target=self._wait, args=(worker, process), name="executorlib-wait", daemon=True).start()

    def kill(self, worker: int, signum: int = signal.SIGTERM) -> None:
        process = self._processes.get(worker)
        if process is None or process.poll() is not None:
            return
        with contextlib.suppress(OSError):
            if hasattr(os, "killpg"):
                os.killpg(process.pid, signum)
            else:
                process.terminate()

    def events(self) -> list[Event]:
        with contextlib.suppress(BlockingIOError):
            self._reader.recv(4096)
        found = []
        with contextlib.suppress(queue.Empty):
            while True:
                event = self._events.get_nowait()
                if isinstance(event, Exited):
                    self._processes.pop(event.worker, None)
                found.append(event)
        return found

    def close(self) -> None:
        for worker in list(self._processes):
            self.kill(worker, getattr(signal, "SIGKILL", signal.SIGTERM))
        for process in self._processes.values():
            process.wait()
            process.stdin.close()
        self._reader.close()
        self._writer.close()

    def abandon(self) -> None:
        for process in list(self._processes.values()):
            process.stdin.close()
        self._reader.close()
        self._writer.close()

    def _wait(self, worker: int, process: Any) -> None:
        code = process.wait()
        if code != 0 and hasattr(os, "killpg"):  # what the task had started does not outlive its violent end
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
        process.stdin.close()
        self._tell(Exited(worker, describe_exit(code), code == 0))

    def _tell(self, event: Event) -> None:
        self._events.put(event)
        with contextlib.suppress(OSError):
            self._writer.send(b"x")


@contextlib.contextmanager
def _output() -> Any:
    """The program's standard output and error now, or nowhere if it has closed them."""
    opened: list[int] = []

    def usable(fd: int) -> int:
        try:
            os.fstat(fd)
        except OSError:
            opened.append(os.open(os.devnull, os.O_WRONLY))
            return opened[-1]
        return fd

    try:
        yield usable(1), usable(2)
    finally:
        for fd in opened:
            os.close(fd)


def _interpreter_flags() -> list[str]:
    """The options with which this interpreter was started, as far as they change what a task sees."""
    flags = []
    for option, given in (
        ("-I", sys.flags.isolated),
        ("-E", sys.flags.ignore_environment and not sys.flags.isolated),
        ("-s", sys.flags.no_user_site and not sys.flags.isolated),
        ("-S", sys.flags.no_site),
        ("-O", sys.flags.optimize),
        ("-B", sys.flags.dont_write_bytecode),
        ("-d", sys.flags.debug),
    ):
        flags += [option] * int(given)
    for option, value in sys._xoptions.items():
        flags += ["-X", option if value is True else f"{option}={value}"]
    flags += [f"-W{option}" for option in sys.warnoptions]
    return flags


def has_fork_server() -> bool:
    """Whether workers are forked here; elsewhere each is a new interpreter that connects over signed TCP.

    macOS can fork but its system libraries cannot bear it; Windows cannot. EXECUTORLIB_FORK_SERVER=0 says no.
    """
    return sys.platform == "linux" and os.environ.get("EXECUTORLIB_FORK_SERVER", "1") != "0"


def make_launcher() -> Launcher:
    """A launcher for this platform."""
    return ForkServer() if has_fork_server() else Subprocesses()
