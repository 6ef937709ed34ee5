"""Waiting for a worker without being left waiting: an eye on its line, and one on its process."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from executorlib.standalone.command import OTHER_MPI
from executorlib.standalone.errors import ExecutorlibSocketError, WorkerDiedError, WorkerStartError
from executorlib.standalone.interactive.events import describe_exit
from executorlib.standalone.interactive.line import Line

if TYPE_CHECKING:
    from executorlib.standalone.interactive.spawner import BaseSpawner

# A connection that has ended and a process that has: when one is seen, the other gets so long to be seen too.
_NEWS_SECONDS = 2.0
_START_NEWS_SECONDS = 0.2
_FIRST_PAUSE = 0.03
_LONGEST_STEP = 1.0


class WorkerWatch:
    """Waits on a line and notices the end of the worker.

    Args:
        line: the channel to the worker
        spawner: asked whether the worker is alive; None where nobody can tell
        seconds: how often it is asked
    """

    def __init__(self, line: Line, spawner: BaseSpawner | None, seconds: float) -> None:
        self.line = line
        self.command: list[str] = []
        self.stop_function: Callable[[], bool] | None = None
        self._spawner = spawner
        self._seconds = max(seconds, 0.001)

    @property
    def alive(self) -> bool:
        return self._spawner is None or self._spawner.poll()

    def wait(self, done: Callable[[], bool]) -> None:
        """Wait until something is true that the line brings about.

        Raises:
            ExecutorlibSocketError: the worker has ended, or the stop function says that nobody needs it
        """
        # The end of a worker that has connected is seen on the line; before that there is only its process.
        pause = self._seconds if self.line.connected else min(_FIRST_PAUSE, self._seconds)
        look = time.monotonic() + pause
        while not done():
            now = time.monotonic()
            if self.line.lost is not None:
                raise self._ended()
            if now >= look:
                self._look(done)
                pause = min(2 * pause, self._seconds)
                look = now + pause
            else:
                self.line.step(min(look - now, _LONGEST_STEP))

    def wait_for_end(self, seconds: float) -> None:
        """Give a worker that was told to end the time to do so by itself."""
        deadline = time.monotonic() + seconds
        while self.line.lost is None and (left := deadline - time.monotonic()) > 0:
            self.line.step(left)
            self.line.inbox.clear()
        self._wait_for_process(deadline)

    def check_ranks(self) -> None:
        """Compare the ranks that the worker sees with those that were asked for.

        Raises:
            WorkerStartError: they are not the same
        """
        from executorlib.standalone.interactive.spawner import MpiExecSpawner

        hello = self.line.hello
        if hello is None or not isinstance(self._spawner, MpiExecSpawner):
            return
        if hello.ranks not in (0, self._spawner._cores):  # programs of other packages do not tell theirs
            raise WorkerStartError(
                f"The worker was asked to run on {self._spawner._cores} MPI ranks but sees {hello.ranks}. Either the "
                f"program is not one for several ranks, as interactive_parallel.py is, or {OTHER_MPI}. "
                f"The command was: {shlex.join(self.command)}"
            )

    def _look(self, done: Callable[[], bool]) -> None:
        if self.alive:
            if not self.line.connected and self.stop_function is not None and self.stop_function():
                raise WorkerStartError("The worker is not waited for any longer: its stop function says so.")
            return
        # What it has sent before its end may be under way.
        deadline = time.monotonic() + (_NEWS_SECONDS if self.line.connected else _START_NEWS_SECONDS)
        while not done() and self.line.lost is None and (left := deadline - time.monotonic()) > 0:
            self.line.step(left)
        if not done():
            raise self._ended()

    def _ended(self) -> ExecutorlibSocketError:
        """The worker has ended: what is known of that."""
        self._wait_for_process(time.monotonic() + _NEWS_SECONDS)
        hello = self.line.hello
        if hello is None:
            return WorkerStartError(
                f"The worker ended before it connected to port {self.line.port}: {self._cause()}. "
                f"Its command was: {shlex.join(self.command)}"
            )
        return WorkerDiedError(f"The worker (pid {hello.pid} on {hello.host}) has ended: {self._cause()}")

    def _cause(self) -> str:
        code = getattr(getattr(self._spawner, "_process", None), "returncode", None)
        if isinstance(code, int):
            return describe_exit(code)
        if self._spawner is not None and not self._spawner.poll():
            return "its spawner says that it does not run"
        return self.line.lost or "the connection is lost"

    def _wait_for_process(self, deadline: float) -> None:
        pause = 0.001
        while self._spawner is not None and self._spawner.poll() and time.monotonic() < deadline:
            time.sleep(pause)
            pause = min(2 * pause, 0.1)
