"""Tells an observer of jobs that work through files: a job takes the place of a worker while it runs."""

from __future__ import annotations

import heapq
import itertools
import time

from executorlib.task_scheduler.file.task import FileTask
from executorlib.task_scheduler.observer import JobInfo, Observer


class ObservedJobs:
    """What the dispatcher says of its tasks, in the words of an `Observer`.

    Args:
        observer: who is told
        slots: cores that jobs may use at a time; None where that is not known
    """

    def __init__(self, observer: Observer, slots: int | None) -> None:
        self._observer = observer
        self._running: dict[int, tuple[JobInfo, float]] = {}
        self._free: list[int] = []
        self._places = itertools.count()
        self._numbers = itertools.count(1)
        if slots is not None:
            observer.capacity(slots)

    def submitted(self, task: FileTask) -> None:
        self._observer.submitted(task.number, task.name, task.resources.slots)

    def ready(self, task: FileTask) -> None:
        self._observer.ready(task.number)

    def begun(self, task: FileTask) -> None:
        """The task's job runs, for the first time or again."""
        if task.number in self._running:
            return
        place = heapq.heappop(self._free) if self._free else next(self._places)
        job = JobInfo(next(self._numbers), place)
        self._running[task.number] = (job, time.monotonic())
        self._observer.worker_started(job)

    def ended(self, task: FileTask, succeeded: bool) -> None:
        """The task has ended; where no job of it was seen, its result was in the cache, or it has not run."""
        known = self._running.pop(task.number, None)
        if known is None:
            self._observer.dropped(task.number, succeeded)
            return
        job, began = known
        heapq.heappush(self._free, job.place)
        self._observer.ran(task.number, job, began, time.monotonic() - began, succeeded)
        self._observer.worker_gone(job)

    def close(self) -> None:
        self._observer.close()
