"""Which cores of a node each worker of its agent is bound to."""

from __future__ import annotations

import contextlib
import os


class Cores:
    """The cores that an agent may give out.

    It uses those of its own affinity mask, which are the allocation's on this node, and only if there is one for each
    slot: where the slots are more than the cores, the workers share all of them. The last cores are given out first,
    because Slurm gives the first to the steps of its own.

    Args:
        slots: how many cores the dispatcher counts on this node
    """

    def __init__(self, slots: int) -> None:
        mask = os.sched_getaffinity(0)
        if len(mask) < slots:  # a site may bind each step to one core; the kernel allows no more than there are
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, range(os.cpu_count() or 1))
            mask = os.sched_getaffinity(0)
        self._bound = len(mask) == slots
        self._users = dict.fromkeys(sorted(mask, reverse=True), 0)
        self._taken: dict[int, list[int]] = {}

    def take(self, worker: int, count: int) -> None:
        """Set aside so many cores for a worker: the least used."""
        cores = sorted(self._users, key=self._users.__getitem__)[:count]
        for core in cores:
            self._users[core] += 1
        self._taken[worker] = cores

    def give_back(self, worker: int) -> None:
        for core in self._taken.pop(worker, ()):
            self._users[core] -= 1

    def bind(self, worker: int) -> None:
        """Bind this process, that of the worker, to its cores."""
        if self._bound and self._taken.get(worker):
            os.sched_setaffinity(0, self._taken[worker])
