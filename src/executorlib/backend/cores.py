"""Which cores of a node each worker of its agent is bound to."""

from __future__ import annotations

import contextlib
import os
import socket


class Cores:
    """The cores that an agent may give out.

    It uses those of its own affinity mask, which are the allocation's on this node, and only if there is one for each
    slot: where the slots are more than the cores, the workers share all of them. The last cores are given out first,
    because Slurm gives the first to the steps of its own.

    Agents of several executors may have the same cores. A name in the abstract namespace of Unix sockets, which belongs
    to one process at a time and ends with it, says that a core is used.

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
        self._names: dict[int, socket.socket] = {}

    def take(self, worker: int, count: int) -> list[int]:
        """Set aside so many cores for a worker: those that nobody uses, then the least used of this agent."""
        order = sorted(self._users, key=self._users.__getitem__)
        ours: list[int] = []
        for core in order:
            if len(ours) < count and not self._users[core] and self._hold(core):
                ours.append(core)
        cores = [*ours, *(core for core in order if core not in ours)][:count]
        for core in cores:
            self._users[core] += 1
        self._taken[worker] = cores
        return cores

    def give_back(self, worker: int) -> None:
        for core in self._taken.pop(worker, ()):
            self._users[core] -= 1
            if not self._users[core] and core in self._names:
                self._names.pop(core).close()

    def bind(self, worker: int) -> None:
        """Bind this process, that of the worker, to its cores."""
        self.close()  # the names are the agent's
        if self._bound and self._taken.get(worker):
            os.sched_setaffinity(0, self._taken[worker])

    def close(self) -> None:
        """Let go of the names of cores, in this process."""
        while self._names:
            self._names.popitem()[1].close()

    def _hold(self, core: int) -> bool:
        """Say that a core is used; returns whether nobody else has said so."""
        name = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            name.bind(f"\0executorlib/{os.getuid()}/{os.environ.get('SLURM_JOB_ID', '')}/{core}")
        except OSError:
            name.close()
            return False
        self._names[core] = name
        return True
