"""Jobs of Slurm: a batch job for each task, an array for the tasks of a map.

    submit ──► BatchSystem ──► sbatch: the job's number, kept in <key>_i.h5 so that another program finds the job
    changes ◄── SlurmQueue ◄── squeue, one question for all jobs, in a thread: the controller may take its time

The end of a task is seen by its output file. The queue is asked for what leaves none: jobs that are refused, killed,
or can never start.
"""

from __future__ import annotations

import itertools
import logging
import os
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from executorlib.standalone import cache_queue, slurm_queue
from executorlib.standalone.cache_file import CacheFileError
from executorlib.standalone.cache_outcome import remove
from executorlib.standalone.cache_paths import CachePaths, array_directory, array_mark, remove_array
from executorlib.standalone.cache_queue import JobNumber, as_number
from executorlib.standalone.cache_trust import make_own_directory
from executorlib.standalone.command import RUN_TIME_VARIABLE, get_command_path
from executorlib.standalone.errors import WorkerDiedError
from executorlib.standalone.hdf import get_queue_id
from executorlib.standalone.serialize import dumps
from executorlib.standalone.slurm_queue import JobStatus
from executorlib.task_scheduler.file.batch_script import BatchJob, BatchSystem, check_places
from executorlib.task_scheduler.file.launcher import (
    Job,
    JobChange,
    JobLauncher,
    JobState,
    LeftJob,
    end_of_log,
    remove_if_empty,
)
from executorlib.task_scheduler.file.slurm_watch import AGAIN_SECONDS, SlurmQueue

_LOG = logging.getLogger("executorlib")
_RESTARTED = frozenset({"TIMEOUT", "PREEMPTED", "NODE_FAIL", "BOOT_FAIL"})
# Elements whose tasks others have done are taken from the queue together.
_DROP_SECONDS = 2.0
# A job that begins in this moment enters its working directory within such a time.
_WITHDRAWN_SECONDS = 2.0
# A command line has a limit.
_CANCELLED_TOGETHER = 500
# An array may have so many elements by default (MaxArraySize less one); how many here is asked once.
_ARRAY_SIZE = 1000


@dataclass(slots=True)
class _Submitted:
    """A job in the hands of Slurm.

    Attributes:
        job: its task
        array: the directory of the array that it is an element of
        begun: whether it has been told that it runs
        restarts: how often it was put back into the queue
        verdict: what its future raises because it was ended
    """

    job: Job
    array: str | None = None
    begun: bool = False
    restarts: int = 0
    verdict: BaseException | None = None


class SlurmJobs(JobLauncher):
    """Runs tasks as batch jobs.

    Args:
        system: writes and submits scripts
        restart_limit: how often a job that was preempted, lost with its node, or ended at its time limit is put back
            into the queue
    """

    orders_jobs = True
    output_seconds = 10.0

    def __init__(self, system: BatchSystem, restart_limit: int = 0) -> None:
        self._system = system
        self._restart_limit = restart_limit
        self._queue = SlurmQueue()
        self._jobs: dict[str, _Submitted] = {}
        self._to_cancel: list[str] = []
        self._cancel_at = 0.0  # not before
        self._cancel_fails = False
        self._to_drop: list[str] = []  # to be taken from the queue, unless they run
        self._drop_at: float | None = None
        self._withdrawn: list[tuple[float, _Submitted]] = []  # and when nothing of them is needed any more
        self._changes: list[JobChange] = []
        self._array_size: int | None = None
        self._held: set[str] = set()  # of which that has been said
        self._restarted: dict[str, CachePaths] = {}  # jobs that were put back into the queue, and their tasks
        self._arrays: dict[str, int] = {}  # directories of arrays, and how many elements are not done with

    def fileno(self) -> int | None:
        return self._queue.fileno()

    def deadline(self) -> float | None:
        if self._changes:
            return 0.0
        moments = [
            self._cancel_at if self._to_cancel else None,
            self._drop_at,
            self._withdrawn[0][0] if self._withdrawn else None,
            self._queue.due if self._jobs else None,
        ]
        return min((moment for moment in moments if moment is not None), default=None)

    def find(self, job: Job) -> JobNumber | None:
        number = cache_queue.number_of(job.paths)
        if number is None:
            try:
                number = get_queue_id(job.paths.input)
            except CacheFileError:
                return None
        if number is None or str(number) in self._jobs:
            return None
        status = self._queue.status_now().get(str(number))
        if status is None or status.ended:
            return None
        self._jobs[str(number)] = _Submitted(job)
        return as_number(str(number))

    def submit(self, job: Job) -> JobNumber:
        paths = job.paths
        check_places(paths)
        number = self._system.submit(
            BatchJob(
                name=job.name,
                directory=paths.job_directory,
                command=job.program,
                resources=job.resources,
                log=_pattern(paths.log),
                depends_on=tuple(str(number) for number in job.depends_on),
                options=self._options(),
            )
        )
        self._queue.submitted()
        self._has_number(number, job)
        return as_number(number)

    def submit_together(self, jobs: Sequence[Job]) -> list[JobNumber | Exception]:
        found: list[JobNumber | Exception] = [RuntimeError("it was not submitted")] * len(jobs)
        groups: dict[object, list[int]] = {}
        for place, job in enumerate(jobs):
            try:
                check_places(job.paths)
            except OSError as error:
                found[place] = error
                continue
            variables = dumps(job.resources.template_variables).data  # of any type, lists too
            resources = job.resources._replace(cache_key=None, template_variables=())
            key = (job.name, job.paths.directory, resources, variables)
            groups.setdefault(key, []).append(place)
        for places in groups.values():
            for start in range(0, len(places), self._largest_array()):
                some = places[start : start + self._largest_array()]
                try:
                    numbers: Iterable[JobNumber | Exception]
                    numbers = self._submit_array([jobs[place] for place in some])
                except Exception as error:
                    numbers = itertools.repeat(error)
                for place, number in zip(some, numbers, strict=False):
                    found[place] = number
        return found

    def changes(self) -> list[JobChange]:
        self._cancel_now()
        while self._withdrawn and self._withdrawn[0][0] <= time.monotonic():
            self._clean_up(self._withdrawn.pop(0)[1])
        news = self._queue.news(self._jobs)
        for number, status in news.items():
            self._compare(number, status)
        changes, self._changes = self._changes, []
        return changes

    def cancel(self, job: JobNumber) -> None:
        submitted = self._jobs.pop(str(job), None)
        if submitted is not None:
            self._to_cancel += [str(job), *self._helper(str(job), submitted)]
            self._clean_up(submitted)
            if submitted.array is not None and submitted.array not in self._arrays:
                # All its tasks are done, or called off: none of its elements is to go on with one of these.
                array = str(job).partition("_")[0]
                others = [number for number in self._to_cancel if number.partition("_")[0] != array]
                self._to_cancel = [*others, array]

    def withdraw(self, job: JobNumber) -> None:
        submitted = self._jobs.pop(str(job), None)
        if submitted is not None:
            self._to_drop.append(str(job))
            self._drop_at = time.monotonic()
            self._withdrawn.append((time.monotonic() + _WITHDRAWN_SECONDS, submitted))

    def settled(self, job: JobNumber) -> bool:
        submitted = self._jobs.pop(str(job), None)
        if submitted is not None:
            if submitted.array is not None:  # another element may have done its task
                self._to_drop.append(str(job))
                self._drop_at = self._drop_at or time.monotonic() + _DROP_SECONDS
            self._clean_up(submitted)
        return True

    @property
    def busy(self) -> bool:
        return bool(self._to_cancel or self._withdrawn)

    def leave(self, jobs: Sequence[LeftJob]) -> None:
        lost = [
            left.job.paths.stem for left in jobs if not any(s.job.paths == left.job.paths for s in self._jobs.values())
        ]
        if lost:
            _LOG.warning("what waits for calls of other executors is not submitted: %s", ", ".join(lost))
        self._jobs.clear()

    def close(self) -> None:
        self._cancel_now(last=True)
        for _, submitted in self._withdrawn:
            self._clean_up(submitted)
        if self._to_cancel:
            _LOG.warning("these jobs could not be cancelled: %s", " ".join(_ranges(self._to_cancel)))
        self._queue.close()

    # Submitting

    def _options(self) -> tuple[str, ...]:
        return ("--requeue",) if self._restart_limit else ()

    def _submit_array(self, jobs: Sequence[Job]) -> list[JobNumber]:
        if len(jobs) == 1:
            return [self.submit(jobs[0])]
        first = jobs[0]
        folder = array_directory(first.paths.directory, f"{os.getpid()}-{time.time_ns()}")
        make_own_directory(folder)
        listing = os.path.join(folder, "inputs")
        with open(os.open(listing, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write("\0".join(job.paths.input for job in jobs))
        program = "cache_serial.py" if first.resources.cores == 1 else "cache_parallel.py"
        limit = first.resources.run_time_max
        master = self._system.submit(
            BatchJob(
                name=first.name,
                directory=folder,
                command=[sys.executable, get_command_path(program), "--array", listing],
                resources=first.resources,
                log=_pattern(folder) + ("/%a.log" if "\\" not in folder else ""),
                elements=len(jobs),
                options=self._options(),
                environment=() if limit is None else ((RUN_TIME_VARIABLE, f"{limit:g}"),),
            )
        )
        self._queue.submitted()
        numbers = [f"{master}_{element}" for element in range(len(jobs))]
        self._arrays[folder] = len(jobs)
        for number, job in zip(numbers, jobs, strict=True):
            self._has_number(number, job, folder)
        return [as_number(number) for number in numbers]

    def _has_number(self, number: str, job: Job, array: str | None = None) -> None:
        self._jobs[number] = _Submitted(job, array)
        try:
            cache_queue.note(job.paths, number)
        except OSError as error:  # only a program that comes after this one would have needed it
            _LOG.warning("the number of job %s cannot be kept: %s", number, error)

    def _helper(self, number: str, submitted: _Submitted) -> list[str]:
        """The element that runs the task of another: its own has ended, so that it is none of the jobs any more."""
        array, _, element = number.partition("_")
        if submitted.array is None:
            return []
        try:
            with open(array_mark(submitted.array, element)) as file:
                helper = file.read()
        except OSError:  # nobody has begun it
            return []
        return [f"{array}_{helper}"] if helper.isdigit() and helper != element else []

    def _largest_array(self) -> int:
        if self._array_size is None:
            self._array_size = slurm_queue.largest_array() or _ARRAY_SIZE
        return self._array_size

    def _clean_up(self, submitted: _Submitted) -> None:
        """Remove the script of a job, and what it has not printed."""
        paths = submitted.job.paths
        remove_if_empty(paths.log)
        cache_queue.forget(paths)
        if submitted.array is None:
            _remove_script(paths.job_directory)
            return
        if submitted.array not in self._arrays:
            return
        left = self._arrays[submitted.array] = self._arrays[submitted.array] - 1
        if left == 0:
            del self._arrays[submitted.array]
            self._cancel_now(last=True)  # before its directory is gone, where they would look for their tasks
            remove_array(submitted.array)

    # What the queue says

    def _compare(self, number: str, status: JobStatus) -> None:
        submitted = self._jobs.get(number)
        if submitted is None:
            return
        if status.state in slurm_queue.WAITING:
            submitted.begun = False
            if status.held:
                self._warn_of_held(number, submitted, status)
            if status.never_starts and not (status.unsatisfied and self._waits_for_another_try(number, submitted)):
                self._to_cancel.append(number)
                self._ended(number, submitted, status, f"it can never start: {status.reason}")
        elif not status.ended:
            if not submitted.begun:
                submitted.begun = True
                self._changes.append(JobChange(as_number(number), JobState.BEGUN))
            self._check_time(number, submitted, status)
        elif (
            status.state in _RESTARTED
            and submitted.verdict is None
            and submitted.restarts < self._restart_limit
            and not os.path.exists(submitted.job.paths.output)
            and slurm_queue.requeue(number)
        ):
            submitted.restarts += 1
            submitted.begun = False
            self._restarted[number] = submitted.job.paths
            self._queue.submitted()
            _LOG.info(
                "job %s runs again after %s (%d of %d)", number, status.state, submitted.restarts, self._restart_limit
            )
        else:
            self._ended(number, submitted, status, status.explain())

    def _warn_of_held(self, number: str, submitted: _Submitted, status: JobStatus) -> None:
        """Say once of a job, or of an array, that it waits for somebody."""
        master = number.partition("_")[0]
        if master not in self._held:
            self._held.add(master)
            _LOG.warning("job %s of %s is held: %s", number, submitted.job.name, status.explain())

    def _waits_for_another_try(self, number: str, submitted: _Submitted) -> bool:
        """Whether a job that another depends on is to run again, or has. Slurm may stay with what it said before."""
        inputs = [str(each) for each in submitted.job.depends_on]
        if any(each in self._jobs for each in inputs):
            return True  # how it ends is not known yet
        tried = [self._restarted[each] for each in inputs if each in self._restarted]
        if not tried:
            return False
        if not all(os.path.exists(paths.output) for paths in tried):
            return True  # its error is about to be told
        return slurm_queue.forget_dependencies(number)

    def _check_time(self, number: str, submitted: _Submitted, status: JobStatus) -> None:
        """Slurm counts whole minutes; the limit of the task may be shorter."""
        limit = submitted.job.resources.run_time_max
        if limit is None or submitted.verdict is not None or status.seconds < limit:
            return
        if submitted.restarts < self._restart_limit:  # Slurm ends it, and it runs again
            return
        submitted.verdict = TimeoutError(
            f"{submitted.job.name} (job {number}) was ended after its run_time_max of {limit:g} s"
        )
        self._to_cancel.append(number)

    def _ended(self, number: str, submitted: _Submitted, status: JobStatus, why: str) -> None:
        del self._jobs[number]
        paths = submitted.job.paths
        log = end_of_log(paths.log)
        if not log and submitted.array is not None:  # it has not come so far as to have a log of its own
            log = end_of_log(os.path.join(submitted.array, f"{number.partition('_')[2]}.log"))
        text = f"job {number} of {submitted.job.name} has ended without a result: {why}{log}"
        error: BaseException | None = submitted.verdict
        if error is None and status.state == "TIMEOUT":
            error = TimeoutError(text)
        elif error is None and status.state != "COMPLETED":
            error = WorkerDiedError(text)
        # A job that ended well has an output, which a network file system may be slow to show.
        ended = JobChange(as_number(number), JobState.ENDED, cause=why + log, error=error, where=f"job {number}")
        self._changes.append(ended)
        self._clean_up(submitted)

    def _cancel_now(self, *, last: bool = False) -> None:
        if self._drop_at is not None and (last or self._drop_at <= time.monotonic()):
            self._to_drop = self._not_cancelled(self._to_drop, "--state=PENDING")
            self._drop_at = time.monotonic() + AGAIN_SECONDS if self._to_drop else None
        if self._to_cancel and (last or self._cancel_at <= time.monotonic()):
            self._to_cancel = self._not_cancelled(self._to_cancel)
            self._cancel_at = time.monotonic() + AGAIN_SECONDS if self._to_cancel else 0.0

    def _not_cancelled(self, numbers: list[str], *options: str) -> list[str]:
        """Cancel jobs; returns those for which that is to be tried again."""
        for start in range(0, len(numbers), _CANCELLED_TOGETHER):
            some = numbers[start : start + _CANCELLED_TOGETHER]
            try:
                slurm_queue.cancel(_ranges(some) if options else some, *options)
            except OSError as error:
                if not self._cancel_fails:
                    _LOG.warning("jobs cannot be cancelled, it is tried again: %s", error)
                self._cancel_fails = True
                return numbers[start:]
        self._cancel_fails = False
        return []


def _remove_script(folder: str) -> None:
    """Remove the script in a directory, and the directory if nothing else is in it."""
    try:
        remove(os.path.join(folder, "run_queue.sh"))
        os.rmdir(folder)
    except OSError:  # the function has files there
        pass


def _ranges(jobs: Sequence[str]) -> list[str]:
    """Jobs and elements of arrays as scancel takes them: ``["5", "7_1", "7_3"]`` as ``["5", "7_[1,3]"]``."""
    arrays: dict[str, list[str]] = {}
    for job in jobs:
        master, _, number = job.partition("_")
        arrays.setdefault(master, []).extend([number] if number else [])
    return [f"{master}_[{','.join(numbers)}]" if numbers else master for master, numbers in arrays.items()]


def _pattern(path: str) -> str:
    """A path as sbatch takes it for a log; one with a backslash it does not take."""
    return os.devnull if "\\" in path else path.replace("%", "%%")
