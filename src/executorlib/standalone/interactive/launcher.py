"""Starting worker processes, watching them, ending them.

A launcher is owned by one dispatcher. It starts processes without waiting for them, and its events, read when its
file descriptor is readable, tell what became of them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import sys
import time
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
# A fork server that has not even read that it is to end a worker after so long is given up, and its workers with it.
_KILL_SECONDS = 30.0
# One that has not answered in time gets so much longer.
_GRACE_SECONDS = 2.0
# A fork server that was told to end gets so long to end its workers.
_END_SECONDS = 10.0
_SAID_BYTES = 4096
# The last: too many descriptors of this user are on their way to other processes.
_OUT_OF_DESCRIPTORS = {errno.EMFILE, errno.ENFILE, getattr(errno, "ETOOMANYREFS", errno.EMFILE)}


def is_out_of_descriptors(error: BaseException) -> bool:
    """Whether an error says that this program, or the machine, has too many open files."""
    return isinstance(error, OSError) and error.errno in _OUT_OF_DESCRIPTORS


class Launcher(ABC):
    """Starts processes for workers. All methods are called by the dispatcher's thread alone.

    Attributes:
        name: what it is called where it is lost
        waits_for_ever: whether a worker may have to wait for its start for any time, as a batch job does
        command: its command line, where it is a process
        end: how that has ended, and said: what it wrote last to its standard error; both known after `close`
    """

    waits_for_ever: bool = False
    name: str = "fork server"
    command: Sequence[str] = ()
    end: str = ""
    said: bytes = b""

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

    def lost(self, worker: int) -> None:  # noqa: B027  # most launchers hear of it by themselves
        """A worker's connection is lost: find out how it has ended."""

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

    It is started with the first request and does not wait for anything. It answers each request, with the start of a
    process or by saying that it has heard; one that does not answer in time is given up.

    Args:
        program: the fork server's, in the backend
    """

    def __init__(self, program: str = "fork_server_main.py") -> None:
        ours, theirs = socket.socketpair()
        self._errors = _memory_file()
        # A descriptor that is its own duplicate would stay closed on exec with an old C library.
        fd = next(number for number in (3, 4, 5) if number not in (theirs.fileno(), self._errors))
        self.command = argv = [sys.executable, *_interpreter_flags(), get_command_path(program), str(fd)]
        actions: list[Any] = [(os.POSIX_SPAWN_DUP2, theirs.fileno(), fd)]
        # What it has to say is for its last words: workers write to the program's standard error.
        if self._errors is not None:
            actions.append((os.POSIX_SPAWN_DUP2, self._errors, 2))
        actions.append((os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0))  # last: one of these may be 0
        try:
            self._pid = os.posix_spawn(
                sys.executable,
                argv,
                os.environ,
                setsigmask=(),  # a blocked SIGCHLD would never tell of an exit
                file_actions=actions,
            )
        except BaseException:
            ours.close()
            self._close_errors()
            raise
        finally:
            theirs.close()
        # A server that does not read must not stop the program, which waits for nothing else than for room here.
        with contextlib.suppress(OSError):  # other systems write the time in other ways
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(START_SECONDS) + 1, 0))
        self._control = ours
        self._partial = b""
        self._due: list[float] = []  # by when each request is to be answered, in their order
        self._warned = False
        self._given_up = ""
        with contextlib.suppress(OSError):  # it has ended already: the first request will tell
            send_request(ours, (list(sys.path),))

    def fileno(self) -> int:
        return self._control.fileno()

    def fork(self, worker: int, channel: int, claims: int | None) -> None:
        """Fork a serial worker that is connected by a socket, and by a pipe of claims if it is to be kept."""
        with _output() as (stdout, stderr):
            fds = (channel, stdout, stderr) if claims is None else (channel, claims, stdout, stderr)
            self._request(("fork", worker), fds, START_SECONDS)

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
            self._request(("exec", worker, argv, environment, cwd), fds, START_SECONDS)

    def kill(self, worker: int, signum: int = signal.SIGTERM) -> None:
        with contextlib.suppress(OSError):
            self._request(("kill", worker, int(signum)), (), _KILL_SECONDS)

    def _request(self, request: tuple[Any, ...], fds: tuple[int, ...], seconds: float) -> None:
        try:
            send_request(self._control, request, fds)
        except BlockingIOError as error:
            self._give_up("it did not read what it was asked for")
            raise ConnectionError(self._given_up) from error
        due = time.monotonic() + seconds
        self._due.append(max(due, self._due[-1]) if self._due else due)  # it answers in this order

    def deadline(self) -> float | None:
        return self._due[0] if self._due else None

    def expire(self, now: float) -> None:
        if not self._due or self._due[0] > now:
            return
        try:
            self._control.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            if self._warned:
                self._give_up("it did not answer in time")
            else:  # both may have been stopped together, as a container is
                self._warned = True
                self._extend(now)
        except OSError:  # it has ended, as `events` will tell
            pass
        # Else it has answered, and this program had something else to do than to read it.

    def _give_up(self, why: str) -> None:
        self._given_up = why
        self._kill()

    def _extend(self, now: float) -> None:
        """Wait on for what is overdue."""
        self._due = [max(due, now + _GRACE_SECONDS) for due in self._due]

    def events(self) -> list[Event]:
        from executorlib.standalone.interactive.events import LauncherLostError

        if self._given_up:
            raise LauncherLostError(self._given_up)
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
            report = loads(self._partial[LENGTH.size : stop])
            self._partial = self._partial[stop:]
            if report[0] != "exited":
                self._due.pop(0)
                self._warned = False
            if report[0] != "heard":
                found.append(event_of(report))
        if self._due and self._due[0] <= time.monotonic():  # it answers, if late
            self._extend(time.monotonic())
        return found

    def abandon(self) -> None:
        self._control.close()
        self._close_errors()

    def close(self) -> None:
        from executorlib.standalone.interactive.events import describe_exit

        self._due.clear()
        try:
            # It ends when it reads that nothing more comes; its own end is then to be read here.
            self._control.shutdown(socket.SHUT_WR)
            self._control.settimeout(_END_SECONDS)
            while self._control.recv(65536):
                pass
        except TimeoutError:
            self._kill()
        except OSError:  # it has ended
            pass
        self._control.close()
        code = self._wait()
        self.end = self._given_up or ("it does not end" if code is None else describe_exit(code))
        if self._errors is not None:
            size = os.fstat(self._errors).st_size
            self.said = os.pread(self._errors, _SAID_BYTES, max(0, size - _SAID_BYTES))
            self._close_errors()

    def _close_errors(self) -> None:
        errors, self._errors = self._errors, None
        if errors is not None:
            os.close(errors)

    def _kill(self) -> None:
        with contextlib.suppress(OSError):
            os.kill(self._pid, signal.SIGKILL)

    def _wait(self) -> int | None:
        """Its exit code; None if it has not ended after a time in which every process does, but for a broken disk."""
        deadline = time.monotonic() + _END_SECONDS
        pause = 1e-4
        try:
            while (ended := os.waitpid(self._pid, os.WNOHANG))[0] == 0:
                if time.monotonic() > deadline:
                    return None
                time.sleep(pause)
                pause = min(2 * pause, 0.01)
        except ChildProcessError:  # the program has waited for it
            return None
        return os.waitstatus_to_exitcode(ended[1])


def _memory_file() -> int | None:
    """A file without a name; None where there is none, or where it would have the number of a standard stream."""
    try:
        errors = os.memfd_create("executorlib")
    except (AttributeError, OSError):  # of an old kernel, or forbidden
        return None
    if errors > 2:
        return errors
    os.close(errors)
    return None


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


def is_standard_stream(fd: int) -> bool:
    """Whether 1 or 2 is still the program's standard output or error.

    If the program has closed it, its number may have gone to some file or socket of the program, even of ours. What
    Python opens is no child's to inherit, as a standard stream is.
    """
    try:
        return os.get_inheritable(fd)
    except OSError:  # it is closed
        return False


@contextlib.contextmanager
def _output() -> Iterator[tuple[int, int]]:
    """The program's standard output and error now, or nowhere if it has closed them."""
    opened: list[int] = []

    def usable(fd: int) -> int:
        if is_standard_stream(fd):
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
