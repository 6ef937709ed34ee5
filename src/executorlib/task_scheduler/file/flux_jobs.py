"""Jobs of Flux for tasks that work through files.

    submit ──► jobspec, or pysqa's template ──► Flux: the job's number, noted beside the task's files
    changes ◄── event log of each job           Flux starts it when the jobs that it depends on have ended well

Nothing is asked again and again: Flux tells each event of a job when it happens.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Sequence
from typing import Any

from executorlib.standalone import cache_queue
from executorlib.standalone.cache_file import CacheFileError
from executorlib.standalone.cache_queue import JobNumber
from executorlib.standalone.errors import WorkerDiedError
from executorlib.standalone.flux import active_job
from executorlib.standalone.hdf import get_queue_id
from executorlib.standalone.interactive.flux_connection import FluxConnection, FluxLostError, JobHistory
from executorlib.task_scheduler.file.flux_batch import FluxBatch
from executorlib.task_scheduler.file.launcher import (
    Job,
    JobChange,
    JobLauncher,
    JobState,
    LeftJob,
    end_of_log,
    remove_if_empty,
)

_LOG = logging.getLogger("executorlib")
_LAST_SECONDS = 5.0
# That a job which another waits for has failed may be heard after that the other will not run. The first says why.
_DEPENDENCY_SECONDS = 1.0


class _Submitted(JobHistory):
    """A job in the hands of Flux."""

    def __init__(self, number: Any, job: Job) -> None:
        super().__init__(number)
        self.job = job
        self.ended = False


class FluxJobs(JobLauncher):
    """Runs tasks as jobs of Flux.

    Args:
        batch: describes and submits them
    """

    orders_jobs = True
    output_seconds = 10.0

    def __init__(self, batch: FluxBatch) -> None:
        self._flux = FluxConnection()
        self._batch = batch
        self._jobs: dict[JobNumber, _Submitted] = {}
        self._changes: list[JobChange] = []
        self._held_back: list[tuple[float, _Submitted]] = []
        self._lost: str | None = None

    def fileno(self) -> int | None:
        return self._flux.fileno()

    def deadline(self) -> float | None:
        if self._changes:
            return 0.0
        return min((moment for moment, _ in self._held_back), default=None)

    def find(self, job: Job) -> JobNumber | None:
        number = cache_queue.number_of(job.paths)
        if number is None:
            try:
                number = get_queue_id(job.paths.input)
            except CacheFileError:
                return None
        if not isinstance(number, int) or number in self._jobs or not active_job(self._flux.handle, number):
            return None
        return self._watch(number, job)

    def submit(self, job: Job) -> JobNumber:
        return self._submitted(self._batch.submit(self._flux.handle, job)(), job)

    def submit_together(self, jobs: Sequence[Job]) -> list[JobNumber | Exception]:
        asked = [self._asked(job) for job in jobs]
        found: list[JobNumber | Exception] = []
        for job, answer in zip(jobs, asked, strict=True):
            try:
                found.append(self._submitted(answer(), job))
            except Exception as error:
                found.append(error)
        return found

    def changes(self) -> list[JobChange]:
        try:
            self._flux.run()
        except FluxLostError as error:
            self._all_lost(str(error))
        now = time.monotonic()
        due = [submitted for moment, submitted in self._held_back if moment <= now]
        self._held_back = [(moment, submitted) for moment, submitted in self._held_back if moment > now]
        for submitted in due:
            self._tell_end(submitted)
        found, self._changes = self._changes, []
        return found

    def cancel(self, job: JobNumber) -> None:
        submitted = self._jobs.pop(job, None)
        if submitted is not None:
            submitted.ended = True
            self._flux.cancel(submitted.id, "its call was cancelled")
            self._clean_up(submitted.job)

    def withdraw(self, job: JobNumber) -> None:
        submitted = self._jobs.get(job)
        if submitted is not None and submitted.started:
            self.settled(job)
        else:
            self.cancel(job)

    def settled(self, job: JobNumber) -> bool:
        submitted = self._jobs.pop(job, None)
        if submitted is not None:
            submitted.ended = True
            self._clean_up(submitted.job)
        return True

    @property
    def busy(self) -> bool:
        return False

    def leave(self, jobs: Sequence[LeftJob]) -> None:
        ours = {submitted.job.paths for submitted in self._jobs.values()}
        lost = [left.job.paths.stem for left in jobs if left.job.paths not in ours]
        if lost:
            _LOG.warning("what waits for calls of other executors is not submitted: %s", ", ".join(lost))
        self._jobs.clear()

    def close(self) -> None:
        self._flux.close(lambda: False, _LAST_SECONDS)

    # Submitting

    def _asked(self, job: Job) -> Any:
        try:
            return self._batch.submit(self._flux.handle, job)
        except Exception as error:
            return functools.partial(_raise, error)

    def _submitted(self, number: int, job: Job) -> JobNumber:
        try:
            cache_queue.note(job.paths, number)
        except OSError as error:  # only a program that comes after this one would have needed it
            _LOG.warning("the number of job %s cannot be kept: %s", number, error)
        return self._watch(number, job)

    def _watch(self, number: int, job: Job) -> JobNumber:
        from flux.job import JobID

        submitted = _Submitted(JobID(number), job)
        self._jobs[number] = submitted
        self._flux.watch(submitted.id, functools.partial(self._heard, submitted))
        return number

    # Events

    def _heard(self, submitted: _Submitted, event: Any) -> None:
        if submitted.ended:
            return
        if event is not None:
            submitted.note(event)
            if event.name == "start":
                self._changes.append(JobChange(int(submitted.id), JobState.BEGUN))
        if event is None or event.name in ("finish", "clean"):
            submitted.ended = True
            if submitted.failed_with == "dependency":
                self._held_back.append((time.monotonic() + _DEPENDENCY_SECONDS, submitted))
            else:
                self._tell_end(submitted)

    def _tell_end(self, submitted: _Submitted) -> None:
        number = int(submitted.id)
        if self._jobs.pop(number, None) is None:  # it has been cancelled since
            return
        job = submitted.job
        why = submitted.how() + end_of_log(job.paths.log)
        text = f"{submitted.name} of {job.name} has ended without a result: {why}"
        error: BaseException | None = None
        if submitted.failed_with == "timeout":
            error = TimeoutError(text)
        elif not submitted.clean:
            error = WorkerDiedError(text)
        # A job that ended well has an output, which a network file system may be slow to show.
        self._changes.append(JobChange(number, JobState.ENDED, cause=why, error=error, where=submitted.name))
        self._clean_up(job)

    def _all_lost(self, why: str) -> None:
        for submitted in list(self._jobs.values()):
            if not submitted.ended:
                submitted.ended = True
                submitted.exception = f"the connection to Flux is lost: {why}"
                self._tell_end(submitted)

    def _clean_up(self, job: Job) -> None:
        """Remove what nobody will ask for any more."""
        remove_if_empty(job.paths.log)
        cache_queue.forget(job.paths)
        self._batch.clean_up(job)


def _raise(error: Exception) -> int:
    raise error
