"""Workers as jobs of Flux.

    dispatcher ── FluxLauncher ══ one handle ══► Flux ──► job: a worker, or an agent that forks workers

What becomes of a job is told by its event log (RFC 21 of Flux), as it happens: submit, alloc, start, exception, finish,
clean. Nothing is asked again and again. The handle has a descriptor that the dispatcher waits for, and Flux's reactor
runs only as long as there is something to handle.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import logging
import os
import queue
import select
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

from executorlib.standalone.flux import jobspec_of, open_handle
from executorlib.standalone.interactive.events import (
    Event,
    Exited,
    LauncherLostError,
    Started,
    StartFailed,
    describe_exit,
)
from executorlib.standalone.interactive.launcher import Launcher
from executorlib.standalone.interactive.outlet import Outlet

_LOG = logging.getLogger("executorlib")
# So long the jobs have, at the end of all, to end when they are cancelled. Flux kills them after five seconds.
_LAST_SECONDS = 8.0
_NOWAIT = 1  # FLUX_REACTOR_NOWAIT
# So long the end of a job waits for what it has printed.
_OUTPUT_SECONDS = 2.0
# A message that has come fulfils a future, in the next round of the reactor that calls what waits for it, which may
# fulfil another: so many rounds without anything are the end of it. The descriptor does not tell of such rounds.
_QUIET_ROUNDS = 5
_SIGNALS = 128
WATCH_VARIABLE = "EXECUTORLIB_WATCH"
"""Tells a worker to end when its connection does: no process on its machine would see to that."""

# Handles of the parent, in a child of the program. Closing them here would change what they share with the parent's.
_of_the_parent: list[Any] = []


class _Job:
    """A job, as its events tell."""

    def __init__(self, worker: int, stderr: Outlet | None) -> None:
        self.worker = worker
        self.stderr = stderr
        self.id: Any = None
        self.started = False
        self.prints = False  # something it has printed may still come
        self.log_found = False
        self.finished: Event | None = None
        self.tell_by = 0.0
        self.told = False
        self.over = False
        self.unwanted: str | None = None
        self.exception: str | None = None

    @property
    def silent(self) -> bool:
        """Whether all that it has printed is passed on."""
        return not self.prints and (self.stderr is None or self.stderr.closed)

    @property
    def name(self) -> str:
        return "the job" if self.id is None else f"job {self.id.f58}"

    def end_stderr(self, *, now: bool = False) -> None:
        if self.stderr is not None:
            self.stderr.end(now=now)


class FluxLauncher(Launcher):
    """Starts processes as jobs of Flux, from command lines as `executorlib.standalone.flux.job_command` makes them.

    Args:
        handle: a connection to Flux, from now on only for this launcher
        flux_executor: a ``flux.job.FluxExecutor`` of the user, which is to submit the jobs; of the same instance
    """

    waits_for_ever = True
    name = "connection to Flux"

    def __init__(self, handle: Any = None, flux_executor: Any = None) -> None:
        self._handle = open_handle() if handle is None else handle
        self._flux_executor = flux_executor
        self._jobs: dict[int, _Job] = {}  # those that have not ended
        self._events: list[Event] = []
        # Answers and streams that have not ended: each of them would keep the handle.
        self._open: set[Any] = set()
        self._heard = 0  # how often one of them had something
        # Readable when Flux has something to tell, or when the thread of a user's executor has.
        self._poll = select.epoll()
        self._poll.register(self._handle.flux_pollfd(), select.EPOLLIN)
        self._submitted_elsewhere: queue.SimpleQueue[tuple[_Job, Any]] = queue.SimpleQueue()
        self._bell, self._ringer = socket.socketpair()
        self._bell.setblocking(False)
        self._ringer.setblocking(False)
        self._poll.register(self._bell, select.EPOLLIN)
        self._stdout = Outlet(1, self._poll, own=False)
        self._outlets = {self._stdout}

    def fileno(self) -> int:
        return self._poll.fileno()

    def execute(
        self, worker: int, argv: list[str], environment: dict[str, str], cwd: str | None, stderr: int | None
    ) -> None:
        jobspec, urgency = jobspec_of(argv, {**environment, WATCH_VARIABLE: "1"}, cwd)
        # The other end of this pipe is read by this very thread.
        job = _Job(worker, None if stderr is None else Outlet(os.dup(stderr), self._poll, own=True))
        self._jobs[worker] = job
        if job.stderr is not None:
            self._outlets.add(job.stderr)
        try:
            self._submit(job, jobspec, urgency)
        except BaseException:
            self._jobs.pop(worker).end_stderr(now=True)
            raise
        self._ring()

    def kill(self, worker: int, signum: int = signal.SIGTERM) -> None:
        job = self._jobs.get(worker)
        if job is not None:
            self._kill(job, signum)
            self._ring()

    def events(self) -> list[Event]:
        with contextlib.suppress(BlockingIOError):
            self._bell.recv(4096)
        for outlet in list(self._outlets):
            outlet.flush()
            if outlet.closed:
                self._outlets.remove(outlet)
        for job in [job for job in self._jobs.values() if job.finished and not job.told]:
            self._tell_if_silent(job)
        while not self._submitted_elsewhere.empty():
            job, submitted = self._submitted_elsewhere.get()
            self._accepted(job, functools.partial(submitted.jobid, 0))
        self._run_reactor()
        found, self._events = self._events, []
        return found

    def deadline(self) -> float | None:
        if self._events:
            return 0.0
        return min((job.tell_by for job in self._jobs.values() if job.finished and not job.told), default=None)

    def expire(self, now: float) -> None:
        """The caller asks for the events now."""

    def close(self) -> None:
        for job in list(self._jobs.values()):
            self._cancel(job, "its executor has ended")
        deadline = time.monotonic() + _LAST_SECONDS
        try:
            while (self._jobs or self._open) and time.monotonic() < deadline:
                self._poll.poll(0.1)
                self.events()
        except LauncherLostError:  # its jobs have ended, or will by themselves
            pass
        for job in self._jobs.values():
            _LOG.warning("%s has not ended", job.name)
        for outlet in self._outlets:
            outlet.end(now=True)
        self._close()
        self._handle = None

    def abandon(self) -> None:
        _of_the_parent.append(self._handle)
        for outlet in self._outlets:
            outlet.abandon()
        self._close()

    def _close(self) -> None:
        self._poll.close()
        self._bell.close()
        self._ringer.close()

    def _run_reactor(self) -> None:
        from flux.constants import FLUX_POLLERR, FLUX_POLLIN

        quiet = 0
        try:
            while quiet < _QUIET_ROUNDS:
                heard = self._heard
                self._handle.reactor_run(flags=_NOWAIT)
                pending = self._handle.flux_pollevents()
                if pending & FLUX_POLLERR:
                    raise LauncherLostError("the broker is gone")
                quiet = 0 if pending & FLUX_POLLIN or self._heard != heard else quiet + 1
        except OSError as error:
            raise LauncherLostError(_words(error)) from error

    def _ring(self) -> None:
        """Have the reactor run soon.

        The descriptor of the handle becomes readable once for what has come, and that may be while something is sent.
        """
        with contextlib.suppress(OSError):
            self._ringer.send(b"x")

    # Submission

    def _submit(self, job: _Job, jobspec: Any, urgency: int) -> None:
        if self._flux_executor is None:
            from flux.job import submit_async

            def answered(submitted: Any) -> bool:
                self._accepted(job, submitted.get_id)
                return False

            self._follow(submit_async(self._handle, jobspec, urgency=urgency), answered)
            return

        def tell(submitted: Any) -> None:  # in a thread of that executor
            self._submitted_elsewhere.put((job, submitted))
            self._ring()

        self._flux_executor.submit(jobspec, urgency=urgency).add_jobid_callback(tell)

    def _accepted(self, job: _Job, get_id: Callable[[], Any]) -> None:
        """Flux has answered; from now on the job is watched."""
        from flux.job import JobID, event_watch_async

        try:
            job.id = JobID(get_id())
        except Exception as error:
            self._end(job, StartFailed(job.worker, f"Flux has refused the job: {_words(error)}"))
            return
        _LOG.debug("worker %d is %s", job.worker, job.name)
        self._follow(event_watch_async(self._handle, job.id), functools.partial(self._watched, job))
        if job.unwanted is not None:
            self._cancel(job, job.unwanted)

    # Events

    def _follow(self, future: Any, heard: Callable[[Any], bool]) -> None:
        """Have a future of Flux heard each time that it has something, as long as it may have more."""

        def hear(ready: Any) -> None:
            self._heard += 1
            if not heard(ready):
                self._open.discard(future)

        self._open.add(future)
        future.then(hear)

    def _watched(self, job: _Job, watch: Any) -> bool:
        try:
            event = watch.get_event()
        except OSError as error:
            self._end(job, self._ended(job, _words(error), False))
            return False
        if event is None:
            self._end(job, self._ended(job, "ended", False))
            return False
        if event.name == "start":
            job.started = True
            self._events.append(Started(job.worker, 0))
            self._watch_output(job)
        elif event.name == "exception":
            if event.context["severity"] == 0 and job.exception is None:
                job.exception = f"{event.context['type']}: {event.context.get('note', '')}".removesuffix(": ")
        elif event.name == "finish":
            status = event.context["status"]
            job.finished = self._ended(job, _describe(status), status == 0)
            job.tell_by = time.monotonic() + _OUTPUT_SECONDS
            self._tell_if_silent(job)
        elif event.name == "clean":
            self._end(job, self._ended(job, "ended", False))
        return True

    def _ended(self, job: _Job, how: str, clean: bool) -> Event:
        why = f"{job.name}: {job.exception or how}"
        if job.started:
            return Exited(job.worker, why, clean and job.exception is None)
        return StartFailed(job.worker, why)

    def _tell_if_silent(self, job: _Job) -> None:
        """What it has printed is to be heard before its end."""
        if job.finished is not None and (job.silent or time.monotonic() >= job.tell_by):
            self._tell(job, job.finished)

    def _tell(self, job: _Job, event: Event) -> None:
        if not job.told:
            job.told = True
            self._events.append(event)
            self._forget(job)

    def _end(self, job: _Job, event: Event) -> None:
        if job.finished is None:
            job.finished, job.tell_by = event, 0.0
            self._tell(job, event)
        job.over = True
        self._forget(job)

    def _forget(self, job: _Job) -> None:
        if not job.over or not job.told:
            return
        if self._jobs.get(job.worker) is job:
            del self._jobs[job.worker]
        job.end_stderr()

    # Output

    def _watch_output(self, job: _Job) -> None:
        """Pass on what the job prints, as far as it does not go to files: there is a log of it when its shell is up."""
        from flux.job import event_watch_async

        job.prints = True
        watch = event_watch_async(self._handle, job.id, eventlog="guest.exec.eventlog")
        self._follow(watch, functools.partial(self._shell_told, job))

    def _shell_told(self, job: _Job, watch: Any) -> bool:
        from flux.job import event_watch_async

        event = _next_event(watch)
        if event is None:
            if not job.log_found:
                self._silent(job)
            return False
        if event.name == "shell.init" and not job.log_found:
            job.log_found = True
            watch.cancel()
            output = event_watch_async(self._handle, job.id, eventlog="guest.output")
            self._follow(output, functools.partial(self._printed, job))
        return True

    def _printed(self, job: _Job, watch: Any) -> bool:
        event = _next_event(watch)
        if event is None:
            self._silent(job)
            return False
        outlet = self._stdout if event.context.get("stream") == "stdout" else job.stderr
        if outlet is not None:
            outlet.write(_printed_data(event))
        return True

    def _silent(self, job: _Job) -> None:
        job.prints = False
        job.end_stderr()
        self._tell_if_silent(job)

    # Ending

    def _kill(self, job: _Job, signum: int) -> None:
        if not job.started:
            self._cancel(job, "its executor does not need it any more")
            return
        from flux.job import kill_async

        self._follow(kill_async(self._handle, job.id, int(signum)), _ignore)
        if signum == signal.SIGKILL:  # its shell may have more to do than its tasks
            self._cancel(job, "ended by its executor")

    def _cancel(self, job: _Job, why: str) -> None:
        job.unwanted = why
        if job.id is None:  # when it has one
            return
        from flux.job import cancel_async

        with contextlib.suppress(OSError):
            self._follow(cancel_async(self._handle, job.id, why), _ignore)


def _next_event(watch: Any) -> Any:
    """The next event of a log; None at its end, or where there is no such log."""
    try:
        return watch.get_event()
    except OSError:
        return None


def _printed_data(event: Any) -> bytes:
    """What an event of the output log holds (RFC 24 of Flux)."""
    context = event.context
    if event.name == "log":
        return f"flux-shell: {context.get('message', '')}\n".encode()
    if event.name != "data" or not context.get("data"):
        return b""
    if context.get("encoding") == "base64":
        return base64.b64decode(context["data"])
    return bytes(context["data"].encode(errors="surrogateescape"))


def _ignore(answer: Any) -> bool:
    """The job's events tell more than the answer, which is an error for a job that has just ended."""
    with contextlib.suppress(OSError):
        answer.get()
    return False


def _describe(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    # The shell of a job ends as a shell does whose child was killed by a signal.
    return describe_exit(_SIGNALS - code if _SIGNALS < code < _SIGNALS + signal.NSIG else code)


def _words(error: BaseException) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or repr(error)
