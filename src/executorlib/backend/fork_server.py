"""The helper beside an executor: it starts every worker of this machine, watches them, and outlives none of them.

    program ══ control socket ══ fork server ──fork──► worker   (connected to the program by a socket pair)
                                      └───fork, exec──► mpiexec, srun, … (its workers connect over TCP)

It has imported the backend and nothing else, so a fork of it is a fresh Python process, made in a few milliseconds.
When the control socket closes, because the program is over or was killed, it ends its children and itself.
"""

from __future__ import annotations

import gc
import math
import os
import select
import sys
import time

from executorlib.standalone.interactive.control import encode_report, receive_request
from executorlib.standalone.light import signal, socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

_TERM_SECONDS = 1.0
# A program that has had its first worker for so long is worth some preparation.
_PREPARE_AFTER_SECONDS = 0.05


class ForkServer:
    """The loop of the helper process."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._unsent = bytearray()  # reports that the program has no time for: it may be waiting for this process
        self._pids: dict[int, int] = {}  # worker -> pid
        self._workers: dict[int, int] = {}  # pid -> worker
        self._prepare_at = 0.0  # 0: not before the first worker
        self._programs: set[int] = set()  # workers that another program was executed for
        self._child_exits, self._wake = os.pipe()
        os.set_blocking(self._child_exits, False)
        os.set_blocking(self._wake, False)

    def run(self) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the program's to handle
        signal.signal(signal.SIGCHLD, _note_nothing)
        signal.set_wakeup_fd(self._wake)
        try:
            while True:
                write = [self._control.fileno()] if self._has_unsent else []
                pause = None if self._prepare_at in (0.0, math.inf) else max(0.0, self._prepare_at - time.monotonic())
                ready, writable, _ = select.select([self._control.fileno(), self._child_exits], write, [], pause)
                if pause == 0.0:
                    self._prepare()
                if writable:
                    self._send_reports()
                if self._child_exits in ready:
                    os.read(self._child_exits, 4096)
                    self._reap()
                if self._control.fileno() in ready:
                    self._hear()
        except (EOFError, OSError):  # the program is gone
            self._end_all()

    def _hear(self) -> None:
        request, fds = receive_request(self._control)
        self._obey(request, fds)
        if request[0] == "kill":
            self._report("heard", request[1], 0)

    def _obey(self, request: tuple[Any, ...], fds: list[int]) -> None:
        kind, worker = request[:2]
        try:
            if kind == "kill":
                self._kill(worker, request[2])
                return
            pid = os.fork()
            if pid == 0:
                self._become(request, fds)
        except OSError as error:
            self._report("failed", worker, str(error))
        else:
            self._pids[worker] = pid
            self._workers[pid] = worker
            if kind == "exec":
                self._programs.add(worker)
            self._report("started", worker, pid)
            self._prepare_at = self._prepare_at or time.monotonic() + _PREPARE_AFTER_SECONDS
        finally:
            for fd in fds:
                os.close(fd)

    def _prepare(self) -> None:
        """Do what would take its time in many workers; the first, and a program of one call, would have to wait."""
        self._prepare_at = math.inf
        # A worker sees by a folder's time whether this list of it is out of date.
        try:
            import importlib.machinery

            importlib.machinery.PathFinder.find_spec("executorlib_looks_around")
            import cloudpickle.cloudpickle  # noqa: F401
        except Exception:  # what only saves time must not end the server
            pass
        gc.freeze()  # a collection in a child would copy every page that holds an object

    def _become(self, request: tuple[Any, ...], fds: list[int]) -> NoReturn:
        """In the child: turn into what was asked for."""
        code = 70
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.setpgid(0, 0)  # so that the task's own children end with it
            self._control.close()
            os.close(self._child_exits)
            os.close(self._wake)
            os.dup2(fds[-2], 1)
            os.dup2(fds[-1], 2)
            if request[0] == "exec":
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                _, _, argv, environment, cwd = request
                for fd in fds:
                    os.close(fd)
                if cwd is not None:
                    os.chdir(cwd)
                os.execvpe(argv[0], argv, environment)
            from executorlib.backend.worker import work

            for fd in fds[-2:]:
                os.close(fd)
            code = work(fds[0], fds[1] if len(fds) == 4 else None)
        except BaseException as error:
            what = "a worker is ended by"
            if request[0] == "exec":
                code, what = 127, "cannot start a worker:"
            try:
                os.write(2, f"executorlib: {what} {error!r}\n".encode())
            except OSError:  # nobody listens
                pass
        finally:
            os._exit(code)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            worker = self._workers.pop(pid, None)
            if worker is not None:
                del self._pids[worker]
                self._programs.discard(worker)
                if status != 0:  # what the task itself had started does not outlive its violent end
                    _signal_group(pid, signal.SIGKILL)
                self._report("exited", worker, status)

    @property
    def _has_unsent(self) -> bool:
        return bool(self._unsent)

    def _report(self, *report: Any) -> None:
        self._unsent += encode_report(report)
        self._send_reports()

    def _send_reports(self) -> None:
        try:
            sent = self._control.send(self._unsent, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:  # the program is gone, but what it has asked for before is still to be read, up to the end
            sent = len(self._unsent)
        del self._unsent[:sent]

    def _kill(self, worker: int, signum: int) -> None:
        pid = self._pids.get(worker)
        if pid is None:
            return
        if not _signal_group(pid, signum):  # it has not yet made its process group
            try:
                os.kill(pid, signum)
            except OSError:  # it has ended
                pass

    def _end_all(self) -> None:
        # A launcher gets the chance to end its ranks; a worker has nothing more to do.
        for worker in list(self._pids):
            self._kill(worker, signal.SIGTERM if worker in self._programs else signal.SIGKILL)
        deadline = time.monotonic() + _TERM_SECONDS
        while self._pids and time.monotonic() < deadline:
            try:
                self._reap()
            except OSError:  # nobody hears of it any more
                pass
            time.sleep(0.01)
        for worker in list(self._pids):
            self._kill(worker, signal.SIGKILL)


def _signal_group(pid: int, signum: int) -> bool:
    """Send a signal to a process group; returns whether there is one."""
    try:
        os.killpg(pid, signum)
    except OSError:
        return False
    return True


def _note_nothing(signum: int, frame: Any) -> None:
    """SIGCHLD needs a handler to reach the wakeup descriptor."""


def main(fd: int) -> None:
    control = socket.socket(fileno=fd)
    try:
        os.setsid()
    except OSError:  # it leads a process group already
        pass
    (sys.path[:],), _ = receive_request(control)
    server = ForkServer(control)
    # What nearly every worker needs, once instead of in each.
    import executorlib.backend.worker
    import executorlib.standalone.plain_function  # noqa: F401

    gc.freeze()
    server.run()
    os._exit(0)  # nothing is left to do that the end of the interpreter would take its time for
