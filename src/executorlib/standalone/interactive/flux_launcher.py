"""Workers as jobs of Flux.

    dispatcher ── FluxLauncher ══ one handle ══► Flux ──► job: a worker, or an agent that forks workers

What becomes of a job is told by its event log (RFC 21 of Flux), as it happens: submit, alloc, start, exception, finish,
clean. Nothing is asked again and again. The handle has a descriptor that the dispatcher waits for, and Flux's reactor
runs only as long as there is something to handle.
"""

from __future__ import annotations

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

_LOG = logging.getLogger("executorlib")
# So long the jobs have, at the end of all, to end when they are cancelled. Flux kills them after five seconds.
_LAST_SECONDS = 8.0
_NOWAIT = 1  # FLUX_REACTOR_NOWAIT
_SIGNALS = 128
WATCH_VARIABLE = "EXECUTORLIB_WATCH"
"""Tells a worker to end when its connection does: no process on its machine would see to that."""

# Handles of the parent, in a child of the program. Closing them here would change what they share with the parent's.
_of_the_parent: list[Any] = []


class _Job:
    """A job, as its events tell."""

    def __init__(self, worker: int, stderr: int | None) -> None:
        self.worker = worker
        self.stderr = stderr
        self.id: Any = None
        self.started = False
        self.told = False
        self.unwanted: str | None = None
        self.exception: str | None = None

    @property
    def name(self) -> str:
        return "the job" if self.id is None else f"job {self.id.f58}"

    def close_stderr(self) -> None:
        if self.stderr is not None:
            os.close(self.stderr)
            self.stderr = None


class FluxLauncher(Launcher):
    """Starts processes as jobs of Flux, from command lines as `executorlib.standalone.flux.job_command` makes them.

    Args:
        handle: a connection to Flux, from now on only for this launcher
        flux_executor: a ``flux.job.FluxExecutor`` of the user, which is to submit the jobs; of the same instance
    """

    waits_for_ever = True

    def __init__(self, handle: Any = None, flux_executor: Any = None) -> None:
        self._handle = open_handle() if handle is None else handle
        self._flux_executor = flux_executor
        self._jobs: dict[int, _Job] = {}  # those that have not ended
        self._events: list[Event] = []
        # Readable when Flux has something to tell, or when the thread of a user's executor has.
        self._poll = select.epoll()
        self._poll.register(self._handle.flux_pollfd(), select.EPOLLIN)
        self._submitted_elsewhere: queue.SimpleQueue[tuple[_Job, Any]] = queue.SimpleQueue()
        self._bell, self._ringer = socket.socketpair()
        self._bell.setblocking(False)
        self._poll.register(self._bell, select.EPOLLIN)

    def fileno(self) -> int:
        return self._poll.fileno()

    def execute(
        self, worker: int, argv: list[str], environment: dict[str, str], cwd: str | None, stderr: int | None
    ) -> None:
        jobspec, urgency = jobspec_of(argv, {**environment, WATCH_VARIABLE: "1"}, cwd)
        job = _Job(worker, None if stderr is None else os.dup(stderr))
        self._jobs[worker] = job
        try:
            self._submit(job, jobspec, urgency)
        except BaseException:
            self._jobs.pop(worker).close_stderr()
            raise

    def kill(self, worker: int, signum: int = signal.SIGTERM) -> None:
        job = self._jobs.get(worker)
        if job is not None:
            self._kill(job, signum)

    def events(self) -> list[Event]:
        with contextlib.suppress(BlockingIOError):
            self._bell.recv(4096)
        while not self._submitted_elsewhere.empty():
            job, submitted = self._submitted_elsewhere.get()
            self._accepted(job, functools.partial(submitted.jobid, 0))
        self._run_reactor()
        found, self._events = self._events, []
        return found

    def close(self) -> None:
        for job in list(self._jobs.values()):
            self._cancel(job, "its executor has ended")
        deadline = time.monotonic() + _LAST_SECONDS
        try:
            while self._jobs and time.monotonic() < deadline:
                self._poll.poll(0.1)
                self.events()
        except LauncherLostError:  # its jobs have ended, or will by themselves
            pass
        for job in self._jobs.values():
            _LOG.warning("%s has not ended", job.name)
            job.close_stderr()
        self._close()
        self._handle = None

    def abandon(self) -> None:
        _of_the_parent.append(self._handle)
        for job in self._jobs.values():
            job.close_stderr()
        self._close()

    def _close(self) -> None:
        self._poll.close()
        self._bell.close()
        self._ringer.close()

    def _run_reactor(self) -> None:
        import flux

        try:
            while True:
                self._handle.reactor_run(flags=_NOWAIT)
                pending = self._handle.flux_pollevents()
                if pending & flux.constants.FLUX_POLLERR:
                    raise LauncherLostError("the connection to Flux is lost")
                if not pending & flux.constants.FLUX_POLLIN:
                    return
        except OSError as error:
            raise LauncherLostError(f"the connection to Flux is lost: {error}") from error

    # Submission

    def _submit(self, job: _Job, jobspec: Any, urgency: int) -> None:
        if self._flux_executor is None:
            from flux.job import submit_async

            submit_async(self._handle, jobspec, urgency=urgency).then(
                lambda submitted: self._accepted(job, submitted.get_id)
            )
            return

        def tell(submitted: Any) -> None:  # in a thread of that executor
            self._submitted_elsewhere.put((job, submitted))
            with contextlib.suppress(OSError):
                self._ringer.send(b"x")

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
        event_watch_async(self._handle, job.id).then(lambda watch: self._watched(job, watch))
        self._watch_output(job)
        if job.unwanted is not None:
            self._cancel(job, job.unwanted)

    # Events

    def _watched(self, job: _Job, watch: Any) -> None:
        try:
            event = watch.get_event()
        except OSError as error:
            self._end(job, self._ended(job, _words(error), False))
            return
        if event is None:
            self._end(job, self._ended(job, "ended", False))
        elif event.name == "start":
            job.started = True
            self._events.append(Started(job.worker, 0))
        elif event.name == "exception":
            if event.context["severity"] == 0 and job.exception is None:
                job.exception = f"{event.context['type']}: {event.context.get('note', '')}".removesuffix(": ")
        elif event.name == "finish":
            status = event.context["status"]
            self._tell(job, self._ended(job, _describe(status), status == 0))
        elif event.name == "clean":
            self._end(job, self._ended(job, "ended", False))

    def _ended(self, job: _Job, how: str, clean: bool) -> Event:
        why = f"{job.name}: {job.exception or how}"
        if job.started:
            return Exited(job.worker, why, clean and job.exception is None)
        return StartFailed(job.worker, why)

    def _tell(self, job: _Job, event: Event) -> None:
        if not job.told:
            job.told = True
            self._events.append(event)

    def _end(self, job: _Job, event: Event) -> None:
        self._tell(job, event)
        if self._jobs.get(job.worker) is job:
            del self._jobs[job.worker]
        job.close_stderr()

    # Output

    def _watch_output(self, job: _Job) -> None:
        """Pass on what the job prints, as far as it does not go to files."""
        try:
            from flux.job.output import output_event_watch_async
        except ImportError:  # an older flux-python
            return
        output_event_watch_async(self._handle, job.id).then(lambda watch: self._printed(job, watch))

    def _printed(self, job: _Job, watch: Any) -> None:
        try:
            event = watch.get_event()
        except OSError:  # it has never started
            job.close_stderr()
            return
        if event is None:
            job.close_stderr()
        elif event.name == "data" and event.data:
            data = event.data if isinstance(event.data, bytes) else event.data.encode(errors="surrogateescape")
            _write(1 if event.stream == "stdout" else job.stderr, data)
        elif event.name == "log":
            _write(job.stderr, event.render().encode() + b"\n")

    # Ending

    def _kill(self, job: _Job, signum: int) -> None:
        if not job.started:
            self._cancel(job, "its executor does not need it any more")
            return
        from flux.job import kill_async

        kill_async(self._handle, job.id, int(signum)).then(_ignore)
        if signum == signal.SIGKILL:  # its shell may have more to do than its tasks
            self._cancel(job, "ended by its executor")

    def _cancel(self, job: _Job, why: str) -> None:
        job.unwanted = why
        if job.id is None:  # when it has one
            return
        from flux.job import cancel_async

        with contextlib.suppress(OSError):
            cancel_async(self._handle, job.id, why).then(_ignore)


def _ignore(answer: Any) -> None:
    """The job's events tell more than the answer, which is an error for a job that has just ended."""
    with contextlib.suppress(OSError):
        answer.get()


def _describe(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    # The shell of a job ends as a shell does whose child was killed by a signal.
    return describe_exit(_SIGNALS - code if _SIGNALS < code < _SIGNALS + signal.NSIG else code)


def _words(error: BaseException) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or repr(error)


def _write(fd: int | None, data: bytes) -> None:
    if fd is not None:
        with contextlib.suppress(OSError):
            while data:
                data = data[os.write(fd, data) :]
