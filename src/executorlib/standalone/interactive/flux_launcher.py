"""Workers as jobs of Flux.

dispatcher ── FluxLauncher ══ one handle ══► Flux ──► job: a worker, or an agent that forks workers
"""

from __future__ import annotations

import base64
import functools
import logging
import os
import queue
import signal
import time
from collections.abc import Callable
from typing import Any

from executorlib.standalone.command import WATCH_VARIABLE
from executorlib.standalone.flux import jobspec_of
from executorlib.standalone.interactive.events import Event, Exited, LauncherLostError, Started, StartFailed
from executorlib.standalone.interactive.flux_connection import FluxConnection, FluxLostError, JobHistory, words
from executorlib.standalone.interactive.launcher import Launcher, is_standard_stream
from executorlib.standalone.interactive.outlet import Outlet

_LOG = logging.getLogger("executorlib")
# So long the jobs have, at the end of all, to end when they are cancelled. Flux kills them after five seconds.
_LAST_SECONDS = 8.0
# So long the end of a job waits for what it has printed.
_OUTPUT_SECONDS = 5.0


class _Job(JobHistory):
    """The job of a worker.

    Attributes:
        worker: its number
        stderr: where its standard error goes
        prints: something that it has printed may still come
        end: its end, told when all that it has printed is passed on, or at ``tell_by``
        told: whether that was told
        over: whether Flux has done with it
        unwanted: why it is to be cancelled as soon as it has a number
    """

    def __init__(self, worker: int, stderr: Outlet | None) -> None:
        super().__init__()
        self.worker = worker
        self.stderr = stderr
        self.prints = False
        self.end: Event | None = None
        self.tell_by = 0.0
        self.told = False
        self.over = False
        self.unwanted: str | None = None

    @property
    def silent(self) -> bool:
        """Whether all that it has printed is passed on."""
        return not self.prints and (self.stderr is None or self.stderr.closed)

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
        self._flux = FluxConnection(handle)
        self._flux_executor = flux_executor
        self._jobs: dict[int, _Job] = {}  # those that have not ended
        self._events: list[Event] = []
        self._submitted_elsewhere: queue.SimpleQueue[tuple[_Job, Any]] = queue.SimpleQueue()
        self._stdout = Outlet(1, self._flux.poll, own=False)
        self._outlets = {self._stdout}

    def fileno(self) -> int:
        return self._flux.fileno()

    def execute(
        self, worker: int, argv: list[str], environment: dict[str, str], cwd: str | None, stderr: int | None
    ) -> None:
        jobspec, urgency = jobspec_of(argv, {**environment, WATCH_VARIABLE: "1"}, cwd)
        # The other end of this pipe is read by this very thread.
        job = _Job(worker, None if stderr is None else Outlet(os.dup(stderr), self._flux.poll, own=True))
        self._jobs[worker] = job
        if job.stderr is not None:
            self._outlets.add(job.stderr)
        try:
            self._submit(job, jobspec, urgency)
        except BaseException:
            self._jobs.pop(worker).end_stderr(now=True)
            raise

    def kill(self, worker: int, signum: int = signal.SIGTERM) -> None:
        job = self._jobs.get(worker)
        if job is None:
            return
        if not job.started:
            self._cancel(job, "its executor does not need it any more")
            return
        self._flux.kill(job.id, signum)
        if signum == signal.SIGKILL:  # its shell may have more to do than its tasks
            self._cancel(job, "ended by its executor")

    def events(self) -> list[Event]:
        while not self._submitted_elsewhere.empty():
            job, submitted = self._submitted_elsewhere.get()
            self._accepted(job, functools.partial(submitted.jobid, 0))
        try:
            self._flux.run()
        except FluxLostError as error:
            raise LauncherLostError(str(error)) from error
        self._flush()
        found, self._events = self._events, []
        return found

    def deadline(self) -> float | None:
        if self._events:
            return 0.0
        return min((job.tell_by for job in self._jobs.values() if job.end and not job.told), default=None)

    def expire(self, now: float) -> None:
        """The caller asks for the events now."""

    def close(self) -> None:
        for job in list(self._jobs.values()):
            self._cancel(job, "its executor has ended")
        self._flux.close(self._has_jobs, _LAST_SECONDS)
        for job in self._jobs.values():
            _LOG.warning("%s has not ended", job.name)
        for outlet in self._outlets:
            outlet.end(now=True)

    def abandon(self) -> None:
        for outlet in self._outlets:
            outlet.abandon()
        self._flux.abandon()

    def _has_jobs(self) -> bool:
        self._flush()
        return bool(self._jobs)

    def _flush(self) -> None:
        for outlet in list(self._outlets):
            outlet.flush()
            if outlet.closed:
                self._outlets.remove(outlet)
        for job in [job for job in self._jobs.values() if job.end and not job.told]:
            self._tell_if_silent(job)

    # Submission

    def _submit(self, job: _Job, jobspec: Any, urgency: int) -> None:
        if self._flux_executor is None:
            from flux.job import submit_async

            def answered(submitted: Any) -> bool:
                self._accepted(job, submitted.get_id)
                return False

            self._flux.follow(submit_async(self._flux.handle, jobspec, urgency=urgency), answered)
            return

        def tell(submitted: Any) -> None:  # in a thread of that executor
            self._submitted_elsewhere.put((job, submitted))
            self._flux.ring()

        self._flux_executor.submit(jobspec, urgency=urgency).add_jobid_callback(tell)

    def _accepted(self, job: _Job, get_id: Callable[[], Any]) -> None:
        """Flux has answered; from now on the job is watched."""
        from flux.job import JobID

        try:
            job.id = JobID(get_id())
        except Exception as error:
            self._end(job, StartFailed(job.worker, f"Flux has refused the job: {words(error)}"))
            return
        _LOG.debug("worker %d is %s", job.worker, job.name)
        self._flux.watch(job.id, functools.partial(self._watched, job))
        if job.unwanted is not None:
            self._cancel(job, job.unwanted)

    # Events

    def _watched(self, job: _Job, event: Any) -> None:
        if event is None:
            self._end(job, self._end_of(job))
            return
        job.note(event)
        if event.name == "start":
            self._events.append(Started(job.worker, 0))
            self._watch_output(job)
        elif event.name == "finish":
            job.end = self._end_of(job)
            job.tell_by = time.monotonic() + _OUTPUT_SECONDS
            self._tell_if_silent(job)
        elif event.name == "clean":
            self._end(job, self._end_of(job))

    def _end_of(self, job: _Job) -> Event:
        why = f"{job.name}: {job.how()}"
        return Exited(job.worker, why, job.clean) if job.started else StartFailed(job.worker, why)

    def _tell_if_silent(self, job: _Job) -> None:
        if job.end is not None and (job.silent or time.monotonic() >= job.tell_by):
            self._tell(job, job.end)

    def _tell(self, job: _Job, event: Event) -> None:
        if not job.told:
            job.told = True
            self._events.append(event)
            self._forget(job)

    def _end(self, job: _Job, event: Event) -> None:
        if job.end is None:
            job.end = event
            self._tell(job, event)
        job.over = True
        self._forget(job)

    def _forget(self, job: _Job) -> None:
        if job.over and job.told:
            if self._jobs.get(job.worker) is job:
                del self._jobs[job.worker]
            job.end_stderr()

    # Output

    def _watch_output(self, job: _Job) -> None:
        """Pass on what the job prints, as far as it does not go to files: there is a log of it when its shell is up."""
        job.prints = True
        found = False

        def shell_told(event: Any) -> None:
            nonlocal found
            if event is None:
                if not found:
                    self._silent(job)
            elif event.name == "shell.init" and not found:
                found = True
                shell.cancel()
                self._flux.watch(job.id, functools.partial(self._printed, job), "guest.output")

        shell = self._flux.watch(job.id, shell_told, "guest.exec.eventlog")

    def _printed(self, job: _Job, event: Any) -> None:
        if event is None:
            self._silent(job)
            return
        outlet = self._stdout if event.context.get("stream") == "stdout" else job.stderr
        if outlet is self._stdout and not is_standard_stream(1):
            return
        if outlet is not None:
            outlet.write(_printed_data(event))

    def _silent(self, job: _Job) -> None:
        job.prints = False
        job.end_stderr()
        self._tell_if_silent(job)

    # Ending

    def _cancel(self, job: _Job, why: str) -> None:
        job.unwanted = why
        if job.id is not None:  # else when it has one
            self._flux.cancel(job.id, why)


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
