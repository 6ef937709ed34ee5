"""A connection to Flux for one thread, which waits for other things too.

The handle has a descriptor that tells when something has come; then Flux's reactor runs as long as there is something
to call. What becomes of a job is told by its event log (RFC 21 of Flux): submit, alloc, start, exception, finish,
clean. Nothing is asked again and again.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

from executorlib.standalone.flux import open_handle
from executorlib.standalone.interactive.events import describe_exit

_NOWAIT = 1  # FLUX_REACTOR_NOWAIT
# A message that has come fulfils a future, in the next round of the reactor that calls what waits for it, which may
# fulfil another: so many rounds without anything are the end of it. The descriptor does not tell of such rounds.
_QUIET_ROUNDS = 5
_SIGNALS = 128
# At the end the last answers have so long to come.
_ANSWER_SECONDS = 2.0

# Handles of the parent, in a child of the program. Closing them here would change what they share with the parent's.
_of_the_parent: list[Any] = []


class FluxLostError(Exception):
    """The broker is gone: nothing more will be heard of any job."""


class JobHistory:
    """What the events of a job have told so far.

    Attributes:
        id: its number; None before it has one
        known: whether anything was told of it
        started: whether it has begun to run
        exception: why it was ended, in Flux's words: type and note
        status: the wait status with which it has ended; None before that
    """

    def __init__(self, job: Any = None) -> None:
        self.id = job
        self.known = False
        self.started = False
        self.exception: str | None = None
        self.status: int | None = None

    @property
    def name(self) -> str:
        return "the job" if self.id is None else f"job {self.id.f58}"

    @property
    def failed_with(self) -> str:
        """The type of its exception, for example "cancel" or "timeout"; empty without one."""
        return (self.exception or "").partition(":")[0]

    @property
    def clean(self) -> bool:
        return self.status == 0 and self.exception is None

    def note(self, event: Any) -> None:
        """Take over what an event tells."""
        self.known = True
        if event.name == "start":
            self.started = True
        elif event.name == "exception" and event.context["severity"] == 0 and self.exception is None:
            self.exception = f"{event.context['type']}: {event.context.get('note', '')}".removesuffix(": ")
        elif event.name == "finish":
            self.status = event.context["status"]

    def how(self) -> str:
        """How it has ended, in words."""
        if self.exception is not None:
            return self.exception
        if not self.known:
            return "the instance of this program does not know it"
        if self.status is None:
            return "ended"
        code = os.waitstatus_to_exitcode(self.status)
        # The shell of a job ends as a shell does whose child was killed by a signal.
        return describe_exit(_SIGNALS - code if _SIGNALS < code < _SIGNALS + signal.NSIG else code)


class FluxConnection:
    """One handle. All methods but `ring` are called by the thread that owns it.

    Args:
        handle: from now on only for this connection; by default a new one

    Attributes:
        poll: what may be waited for beside the handle
    """

    def __init__(self, handle: Any = None) -> None:
        self.handle = open_handle() if handle is None else handle
        self.poll = select.epoll()
        self.poll.register(self.handle.flux_pollfd(), select.EPOLLIN)
        self._bell, self._ringer = socket.socketpair()
        self._bell.setblocking(False)
        self._ringer.setblocking(False)
        self.poll.register(self._bell, select.EPOLLIN)
        # Answers and streams that have not ended: each of them would keep the handle.
        self._open: set[Any] = set()
        self._heard = 0  # how often one of them had something

    def fileno(self) -> int:
        """Readable when `run` has something to do."""
        return self.poll.fileno()

    def ring(self) -> None:
        """Have the reactor run soon, whichever thread asks.

        The descriptor of the handle becomes readable once for what has come, and that may be while something is sent.
        """
        with contextlib.suppress(OSError):
            self._ringer.send(b"x")

    def run(self) -> None:
        """Call what there is to call.

        Raises:
            FluxLostError: the broker is gone
        """
        from flux.constants import FLUX_POLLERR, FLUX_POLLIN

        with contextlib.suppress(BlockingIOError):
            self._bell.recv(4096)
        quiet = 0
        try:
            while quiet < _QUIET_ROUNDS:
                heard = self._heard
                self.handle.reactor_run(flags=_NOWAIT)
                pending = self.handle.flux_pollevents()
                if pending & FLUX_POLLERR:
                    raise FluxLostError("the broker is gone")
                quiet = 0 if pending & FLUX_POLLIN or self._heard != heard else quiet + 1
        except OSError as error:
            raise FluxLostError(words(error)) from error

    def follow(self, future: Any, heard: Callable[[Any], bool]) -> None:
        """Have a future of Flux heard each time that it has something, as long as it may have more."""

        def hear(ready: Any) -> None:
            self._heard += 1
            if not heard(ready):
                self._open.discard(future)

        self._open.add(future)
        future.then(hear)
        self.ring()

    def watch(self, job: Any, heard: Callable[[Any], object], log: str = "eventlog") -> Any:
        """Have each event of a log of a job heard; None at its end, or where there is no such log."""
        from flux.job import event_watch_async

        def next_event(watch: Any) -> bool:
            try:
                event = watch.get_event()
            except OSError:
                event = None
            heard(event)
            return event is not None

        watch = event_watch_async(self.handle, job, eventlog=log)
        self.follow(watch, next_event)
        return watch

    def cancel(self, job: Any, why: str) -> None:
        """End a job, be it that it waits or runs."""
        from flux.job import cancel_async

        with contextlib.suppress(OSError):
            self.follow(cancel_async(self.handle, job, why), _ignore)

    def kill(self, job: Any, signum: int) -> None:
        """Send a signal to the tasks of a job that runs."""
        from flux.job import kill_async

        with contextlib.suppress(OSError):
            self.follow(kill_async(self.handle, job, int(signum)), _ignore)

    def close(self, work: Callable[[], bool], seconds: float) -> None:
        """Give the handle back, when all answers have come and there is nothing more to do, or after some seconds.

        Args:
            work: does what is to be done after the reactor has run; returns whether there is more
            seconds: how long that may take
        """
        deadline = time.monotonic() + seconds
        try:
            self.run()
            while work() and time.monotonic() < deadline:
                self.poll.poll(0.1)
                self.run()
            for future in list(self._open):
                if hasattr(future, "cancel"):  # a stream that has not ended
                    future.cancel()
            deadline = max(deadline, time.monotonic() + _ANSWER_SECONDS)
            while self._open and time.monotonic() < deadline:
                self.poll.poll(0.1)
                self.run()
        except FluxLostError:  # the jobs have ended, or will by themselves
            pass
        self._close()
        self.handle = None

    def abandon(self) -> None:
        """In a child of the program."""
        _of_the_parent.append(self.handle)
        self._close()

    def _close(self) -> None:
        self.poll.close()
        self._bell.close()
        self._ringer.close()


def words(error: BaseException) -> str:
    """What an error of Flux says."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or repr(error)


def _ignore(answer: Any) -> bool:
    """The job's events tell more than the answer, which is an error for a job that has just ended."""
    with contextlib.suppress(OSError):
        answer.get()
    return False
