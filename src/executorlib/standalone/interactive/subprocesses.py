"""Starting worker processes where there is no fork server: macOS and Windows."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import socket
import subprocess
import threading
from typing import Any

from executorlib.standalone.interactive.events import Event, Exited, Started, StartFailed, describe_exit
from executorlib.standalone.interactive.launcher import Launcher, is_out_of_descriptors


class Subprocesses(Launcher):
    """Starts processes from the program itself.

    A thread waits for each process. A worker learns of the program's end by its standard input, a pipe that closes.
    """

    def __init__(self) -> None:
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
            process = subprocess.Popen(
                argv,
                env={**environment, "EXECUTORLIB_LIFELINE": "1"},
                cwd=cwd,
                stdin=subprocess.PIPE,
                stderr=stderr,
                start_new_session=True,
            )
        except OSError as error:
            if is_out_of_descriptors(error):
                raise
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
