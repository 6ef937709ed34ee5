"""Starting worker processes, watching them, ending them.

A launcher is owned by one dispatcher. It starts processes without waiting for them, and its events, read when its
file descriptor is readable, tell what became of them.
"""

from __future__ import annotations

import contextlib
import os
import sys
from abc import ABC, abstractmethod

from executorlib.standalone.command import get_command_path
from executorlib.standalone.interactive.control import LENGTH, send_request
from executorlib.standalone.light import loads, signal, socket

# Nothing is imported here that the start of the fork server can do without: all else is imported while it starts.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from executorlib.standalone.interactive.events import Event, NodeEvent
    from executorlib.standalone.interactive.wire import Connection

START_SECONDS = float(os.environ.get("EXECUTORLIB_START_SECONDS", "120"))
"""A process that has not reported after so long is given up."""


class Launcher(ABC):
    """Starts processes for workers. All methods are called by the dispatcher's thread alone.

    Attributes:
        name: what it is called where it is lost
        waits_for_ever: whether a worker may have to wait for its start for any time, as a batch job does
    """

    waits_for_ever: bool = False
    name: str = "fork server"

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
        from executorlib.standalone.interactive.events import LauncherLostError

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
            found.append(event_of(loads(self._partial[LENGTH.size : stop])))
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
    from executorlib.standalone.interactive.events import Exited, Started, StartFailed, describe_exit

    kind, worker, value = report[:3]
    if kind == "started":
        return Started(worker, value)
    if kind == "failed":
        return StartFailed(worker, value)
    code = os.waitstatus_to_exitcode(value)
    return Exited(worker, describe_exit(code), code == 0, *report[3:])


@contextlib.contextmanager
def _output() -> Iterator[tuple[int, int]]:
    """The program's standard output and error now, or nowhere if it has closed them.

    Then their numbers may have gone to some file or socket of the program, even of ours. What Python opens is no
    child's to inherit, as a standard stream is.
    """
    opened: list[int] = []

    def usable(fd: int) -> int:
        with contextlib.suppress(OSError):
            if os.get_inheritable(fd):
                return fd
        opened.append(os.open(os.devnull, os.O_WRONLY))
        return opened[-1]

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
    if has_fork_server():
        return ForkServer()
    from executorlib.standalone.interactive.subprocesses import Subprocesses

    return Subprocesses()
