"""Workers that are batch jobs: they connect to the program when Slurm has found a place for them.

    execute ──► BatchSystem ──► sbatch … interactive_serial.py --keyfile FILE ══ signed TCP ══► dispatcher
    events  ◄── SlurmQueue  ◄── squeue, one question for all

The key of the executor must be neither in the script nor in the job's environment, which the controller keeps: it lies
in a file of this user beside the cache.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import time

from executorlib.standalone import slurm_queue
from executorlib.standalone.cache_paths import array_directory
from executorlib.standalone.cache_trust import make_private_directory
from executorlib.standalone.command import WATCH_VARIABLE
from executorlib.standalone.interactive.events import Event, Exited, Started, StartFailed
from executorlib.standalone.interactive.launcher import Launcher, is_out_of_descriptors
from executorlib.standalone.interactive.listener import key_variable
from executorlib.standalone.resources import Resources
from executorlib.standalone.slurm_queue import JobStatus
from executorlib.task_scheduler.file.batch_script import BatchJob, BatchSystem
from executorlib.task_scheduler.file.launcher import end_of_log
from executorlib.task_scheduler.file.slurm_watch import SlurmQueue

_LOG = logging.getLogger("executorlib")
# A worker whose connection is lost has ended, or will soon: Slurm is asked at once how.
_LAST_SECONDS = 3.0


class BatchLauncher(Launcher):
    """Starts each worker as a batch job.

    Args:
        system: writes and submits scripts
        resources: those of a worker
        directory: which the compute nodes see too; logs and the key are kept below it while the executor lives
    """

    waits_for_ever = True

    def __init__(self, system: BatchSystem, resources: Resources, directory: str) -> None:
        self._system = system
        self._resources = resources
        self._folder = array_directory(directory, f"workers-{os.getpid()}-{secrets.token_hex(4)}")
        self._queue = SlurmQueue()
        self._jobs: dict[int, str] = {}  # of workers
        self._begun: set[int] = set()
        self._killed: dict[int, float] = {}  # and when they are taken for dead
        self._lost: set[int] = set()
        self._events: list[Event] = []

    def fileno(self) -> int:
        return self._queue.fileno()

    def execute(
        self, worker: int, argv: list[str], environment: dict[str, str], cwd: str | None, stderr: int | None
    ) -> None:
        port = argv[argv.index("--zmqport") + 1]
        key = self._key_file(environment[key_variable(int(port))])
        log = self._log(worker)
        try:
            job = self._system.submit(
                BatchJob(
                    name="executorlib-worker",
                    directory=self._folder,
                    command=[*argv, "--keyfile", key],
                    resources=self._resources,
                    log=log.replace("%", "%%"),
                    environment=((WATCH_VARIABLE, "1"),),
                )
            )
        except Exception as error:
            if is_out_of_descriptors(error):
                raise
            self._events.append(StartFailed(worker, str(error)))
            return
        self._jobs[worker] = job
        self._queue.submitted()

    def kill(self, worker: int, signum: int = signal.SIGTERM) -> None:
        job = self._jobs.get(worker)
        if job is not None:
            self._cancel([job])
            self._lost.discard(worker)
            if worker not in self._killed:
                self._killed[worker] = time.monotonic() + _LAST_SECONDS
                self._queue.ask_soon()

    def lost(self, worker: int) -> None:
        # To cancel its job at once would be told as its end, in the place of what has ended it.
        if worker in self._jobs:
            self._lost.add(worker)
            self._queue.ask_soon()

    def events(self) -> list[Event]:
        numbers = {job: worker for worker, job in self._jobs.items()}
        for job, status in self._queue.news(list(numbers)).items():
            self._compare(numbers[job], job, status)
        now = time.monotonic()
        for worker, deadline in list(self._killed.items()):
            if deadline <= now:
                self._exited(worker, "cancelled")
        if self._lost:  # until Slurm says how they have ended
            self._queue.ask_soon()
        found, self._events = self._events, []
        return found

    def deadline(self) -> float | None:
        if self._events:
            return 0.0
        moments = [*self._killed.values(), *([self._queue.due] if self._jobs else [])]
        return min(moments, default=None)

    def close(self) -> None:
        self._cancel(list(self._jobs.values()))
        self._queue.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def abandon(self) -> None:
        self._queue.close()

    def _compare(self, worker: int, job: str, status: JobStatus) -> None:
        if status.state in slurm_queue.WAITING and status.never_starts:
            self._cancel([job])
            self._exited(worker, f"it can never start: {status.reason}")
        elif status.ended:
            ours = worker in self._killed and status.state == "CANCELLED"
            self._exited(worker, "CANCELLED by this program" if ours else status.explain())
        elif status.state in slurm_queue.RUNNING and worker not in self._begun:
            self._begun.add(worker)
            self._events.append(Started(worker, 0))

    def _exited(self, worker: int, why: str) -> None:
        job = self._jobs.pop(worker, None)
        self._killed.pop(worker, None)
        self._lost.discard(worker)
        if job is not None:
            clean = why.startswith("COMPLETED")
            log = end_of_log(self._log(worker))
            self._events.append(Exited(worker, f"its batch job {job} has ended: {why}{log}", clean))

    def _key_file(self, key: str) -> str:
        path = os.path.join(self._folder, "key")
        if not os.path.exists(path):
            make_private_directory(self._folder)
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(key)
        return path

    def _log(self, worker: int) -> str:
        return os.path.join(self._folder, f"{worker}.log")

    def _cancel(self, jobs: list[str]) -> None:
        try:
            slurm_queue.cancel(jobs)
        except OSError as error:
            _LOG.warning("workers cannot be cancelled: %s", error)
