"""Slots in a queueing system that has its own mind about places. No input, no output."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

from executorlib.standalone.resources import Resources
from executorlib.task_scheduler.interactive.pool import Allotment, Place, ResourcePool


class Slot(NamedTuple):
    """Cores that are held for one worker after the other."""

    name: str
    threads: int


class SlotPool(ResourcePool):
    """Cores that are counted here and placed by Flux.

    A worker without a job of its own gets a slot: a job that is kept for the next worker. The cores of a job belong to
    it alone, so that slots without a worker are given up where a job needs the cores.

    Args:
        slots: cores that may be used at a time
        workers: worker processes; None for no limit of their number
        needs_job: tells whether a task becomes a job of its own
        give_up: called with the name of a slot whose job is to end
        threads: is kept up to date with the cores of each slot, by its name
    """

    def __init__(
        self,
        slots: int,
        workers: int | None,
        needs_job: Callable[[Resources], bool],
        give_up: Callable[[str], None],
        threads: dict[str, int],
    ) -> None:
        super().__init__(slots, workers)
        self._needs_job = needs_job
        self._give_up = give_up
        self._names = itertools.count(1)
        self._idle: list[Slot] = []
        self._threads = threads
        self._jobs: set[str] = set()

    def take(self, resources: Resources) -> Allotment | None:
        if self.workers is not None and self.used_workers >= self.workers:
            return None
        if self.used_workers and self.used_slots + resources.slots > self.slots:
            return None
        place = self._job(resources) if self._needs_job(resources) else self._slot(resources.threads_per_core or 1)
        self.used_slots += resources.slots
        self.used_workers += 1
        return Allotment(resources.slots, places=(place,))

    def give_back(self, allotment: Allotment) -> None:
        super().give_back(allotment)
        for place in allotment.places:
            if place.node in self._jobs:
                self._jobs.remove(place.node)
            else:
                self._idle.append(Slot(place.node, place.cores))

    def _job(self, resources: Resources) -> Place:
        self._make_room(resources.slots)
        number = next(name for name in map(str, itertools.count()) if name not in self._jobs)
        self._jobs.add(number)
        return Place(number, resources.cores, resources.slots)

    def _slot(self, threads: int) -> Place:
        # The one that was used last is the one that is most likely to be there still.
        for at in reversed(range(len(self._idle))):
            if self._idle[at].threads == threads:
                return Place(self._idle.pop(at).name, 1, threads)
        self._make_room(threads)
        name = f"slot {next(self._names)}"
        self._threads[name] = threads
        return Place(name, 1, threads)

    def _make_room(self, slots: int) -> None:
        while self._idle and self.used_slots + sum(slot.threads for slot in self._idle) + slots > self.slots:
            name = self._idle.pop(0).name
            del self._threads[name]
            self._give_up(name)
