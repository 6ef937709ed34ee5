"""When workers are started, and what follows where one cannot be."""

from __future__ import annotations

import logging
import time
from typing import NamedTuple

from executorlib.standalone.errors import WorkerStartError
from executorlib.standalone.interactive.launcher import is_out_of_descriptors
from executorlib.standalone.resources import Resources
from executorlib.task_scheduler.interactive.ledger import TaskLedger
from executorlib.task_scheduler.interactive.pool import ResourcePool
from executorlib.task_scheduler.interactive.worker import Worker
from executorlib.task_scheduler.interactive.worker_pool import WorkerPool
from executorlib.task_scheduler.observer import Observer

_LOG = logging.getLogger("executorlib")
# After a kept worker that could not be started the next try waits: first so long, then twice as long each time.
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 1.0, 60.0


class Policy(NamedTuple):
    """What an executor does with its workers.

    Attributes:
        keep: whether workers are kept for further tasks (block allocation); if not, each call gets a fresh process
        resources: those of a kept worker
        restart_limit: how often a task is tried again after the death of its worker
        prepares: whether a worker runs an init function before its first task
    """

    keep: bool
    resources: Resources
    restart_limit: int = 0
    prepares: bool = False


class Starter:
    """Starts workers where there is a place for them. Owned by the dispatcher's thread.

    Args:
        policy: what the executor does with its workers
        pool: the places for workers
        workers: the workers
        ledger: the tasks
        observer: hears of what happens
    """

    def __init__(
        self, policy: Policy, pool: ResourcePool, workers: WorkerPool, ledger: TaskLedger, observer: Observer | None
    ) -> None:
        self._policy = policy
        self._pool = pool
        self._workers = workers
        self._ledger = ledger
        self._observer = observer
        self._again_at: float | None = None  # not before, because the last could not be started
        self._pause = 0.0

    @property
    def due(self) -> float | None:
        """When to try again after a worker that could not be started; None: none is needed."""
        return None if not self._ledger.ready or self._pool.is_full() else self._again_at

    def try_again(self) -> None:
        """The next may be started, whatever became of the last."""
        self._again_at = None

    def succeeded(self) -> None:
        """A worker has started: should the next not, that is the first time."""
        self._pause = 0.0

    def start(self, resources: Resources) -> Worker | None:
        """Start a worker; None if it has no place now, or cannot be started."""
        allotment = self._pool.take(resources)
        if allotment is None:
            return None
        places = {worker.place for worker in self._workers.workers.values()}
        place = next(i for i in range(len(places) + 1) if i not in places)
        try:
            worker = self._workers.start(place, resources, allotment)
        except Exception as error:
            self._pool.give_back(allotment)
            self.failed(error)
            return None
        worker.preparing = self._policy.prepares
        if self._observer is not None:
            self._observer.worker_started(worker)
        return worker

    def failed(self, error: BaseException) -> None:
        """No worker can be started: fail the task that needed it, or all if none is left to do them."""
        if is_out_of_descriptors(error):
            if self._workers.workers:
                _LOG.debug("no further worker for now: %s", error)
                self._again_at = time.monotonic() + _FIRST_PAUSE_SECONDS
                return
            cause = error
            error = WorkerStartError(f"A worker cannot be started: {cause}; `ulimit -n` shows how many there may be.")
            error.__cause__ = cause
        _LOG.warning("%s", error)
        if not self._policy.keep:
            if self._ledger.ready:  # the first, also if it was cancelled a moment ago: the next has no part in this
                self._ledger.fail(self._ledger.ready.pop(), error)
        elif any(not (w.stopping or w.doomed) for w in self._workers.workers.values()):
            # They do the tasks, or tell by their end that no worker can be started.
            self._pause = min(max(_FIRST_PAUSE_SECONDS, 2 * self._pause), _LONGEST_PAUSE_SECONDS)
            self._again_at = time.monotonic() + self._pause
        else:
            self._pause, self._again_at = 0.0, None
            for task in self._ledger.ready.clear():
                self._ledger.fail(task, error)

    def start_kept(self) -> None:
        """Start workers until there is an idle one for each ready task, as far as there is room."""
        if self._pool.is_full():
            return
        if self._again_at is not None:
            if time.monotonic() < self._again_at:
                return
            self._again_at = None
        idle = sum(not worker.queue for worker in self._workers.workers.values())
        while len(self._ledger.ready) > idle and self.start(self._policy.resources) is not None:
            idle += 1
