"""Slots: how many tasks may run at a time, and on which GPUs. No input, no output."""

from __future__ import annotations

import heapq
from collections import deque
from typing import NamedTuple

from executorlib.standalone.resources import Resources
from executorlib.task_scheduler.interactive.task import Task


class Place(NamedTuple):
    """What a task has of a compute node."""

    node: str
    ranks: int
    cores: int
    gpus: int = 0


class Allotment(NamedTuple):
    """What a task has been given.

    Attributes:
        slots: cores
        gpus: names of GPUs
        places: on which compute nodes, where there are several
        overlap: whether others may have been given the same cores
    """

    slots: int
    gpus: tuple[str, ...] = ()
    places: tuple[Place, ...] = ()
    overlap: bool = False


class ResourcePool:
    """The cores and GPUs that an executor may use at a time.

    Args:
        slots: cores
        workers: worker processes; None for no limit of their number
        gpus: names of the GPUs; None where a queueing system gives them out
    """

    def __init__(self, slots: int, workers: int | None = None, gpus: tuple[str, ...] | None = ()) -> None:
        self.slots = slots
        self.workers = workers
        self.used_slots = 0
        self.used_workers = 0
        self._gpus = None if gpus is None else deque(gpus)

    def take(self, resources: Resources) -> Allotment | None:
        """Take what a task needs; None if that is not free.

        A task that is larger than the pool is let in when it is alone: whether there may be such a task was decided
        when it was submitted.
        """
        if self.is_full():
            return None
        if self.used_workers and self.used_slots + resources.slots > self.slots:
            return None
        if self._gpus is not None and resources.gpus > len(self._gpus):
            return None
        self.used_slots += resources.slots
        self.used_workers += 1
        gpus = () if self._gpus is None else tuple(self._gpus.popleft() for _ in range(resources.gpus))
        return Allotment(resources.slots, gpus)

    def is_full(self) -> bool:
        """Whether no further worker can be let in, whatever it needs."""
        return self.workers is not None and self.used_workers >= self.workers

    def give_back(self, allotment: Allotment) -> None:
        self.used_slots -= allotment.slots
        self.used_workers -= 1
        if self._gpus is not None:
            self._gpus.extend(allotment.gpus)

    def leave_out(self, node: str) -> bool:
        """Use a compute node no more; returns whether that is possible."""
        return False

    def is_left_out(self, allotment: Allotment) -> bool:
        """Whether a compute node of this allotment is used no more."""
        return False


class ReadyQueue:
    """Tasks that could start now: higher priority first, then in the order of their submission."""

    def __init__(self) -> None:
        self._queues: dict[int, deque[Task]] = {}  # none is empty
        self._order: list[int] = []  # a heap of their priorities, negative
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def push(self, task: Task) -> None:
        self._queue(task.resources.priority).append(task)
        self._size += 1

    def push_front(self, task: Task) -> None:
        """For a task that was taken back: it keeps its turn."""
        self._queue(task.resources.priority).appendleft(task)
        self._size += 1

    def first(self) -> Task | None:
        return self._queues[-self._order[0]][0] if self._order else None

    def pop(self) -> Task:
        """The first task.

        Raises:
            IndexError: there is none
        """
        return self.pop_like(1)[0]

    def pop_like(self, count: int) -> list[Task]:
        """The first task and those right behind it that call the same function, at most so many.

        Raises:
            IndexError: there is none
        """
        priority = -self._order[0]
        queue = self._queues[priority]
        tasks = [queue.popleft()]
        fn = tasks[0].fn
        while len(tasks) < count and queue and queue[0].fn is fn:
            tasks.append(queue.popleft())
        self._size -= len(tasks)
        if not queue:
            del self._queues[priority]
            heapq.heappop(self._order)
        return tasks

    def clear(self) -> list[Task]:
        tasks = [task for priority in sorted(self._queues, reverse=True) for task in self._queues[priority]]
        self._queues.clear()
        self._order.clear()
        self._size = 0
        return tasks

    def _queue(self, priority: int) -> deque[Task]:
        queue = self._queues.get(priority)
        if queue is None:
            queue = self._queues[priority] = deque()
            heapq.heappush(self._order, -priority)
        return queue
