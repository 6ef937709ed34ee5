"""Slots of several compute nodes. No input, no output."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from executorlib.standalone.resources import Resources
from executorlib.standalone.slurm import Node
from executorlib.task_scheduler.interactive.pool import Allotment, Place, ResourcePool


class NodePool(ResourcePool):
    """The cores of an allocation: every task gets its place, so that Slurm need not be asked.

    A task without a step of its own is one process on one node. The ranks of a step may be spread over nodes; all
    threads of a rank are on one.

    Args:
        nodes: the nodes
        slots: cores that may be used at a time. If these are more than there are, every node is filled so many times
            over as it takes
        workers: worker processes; None for no limit of their number
        needs_step: tells whether a task becomes a step of its own
    """

    def __init__(
        self, nodes: Sequence[Node], slots: int, workers: int | None, needs_step: Callable[[Resources], bool]
    ) -> None:
        super().__init__(slots, workers)
        self._nodes = {node.name: node for node in nodes}
        self._needs_step = needs_step
        self._used_cores = dict.fromkeys(self._nodes, 0)
        self._used_gpus = dict.fromkeys(self._nodes, 0)

    def take(self, resources: Resources) -> Allotment | None:
        if self.is_full():
            return None
        if self.used_workers and self.used_slots + resources.slots > self.slots:
            return None
        places = self._places(resources)
        if places is None:
            if self.used_workers:
                return None
            # It is larger than what is there, and alone. A step goes to Slurm, which says what it thinks of it.
            places = () if self._needs_step(resources) else (Place(max(self._nodes, key=self._room), 1, 0),)
        for place in places:
            self._used_cores[place.node] += place.cores
            self._used_gpus[place.node] += place.gpus
        self.used_slots += resources.slots
        self.used_workers += 1
        return Allotment(resources.slots, places=places, overlap=self._times > 1)

    def give_back(self, allotment: Allotment) -> None:
        super().give_back(allotment)
        for place in allotment.places:
            if place.node in self._nodes:
                self._used_cores[place.node] -= place.cores
                self._used_gpus[place.node] -= place.gpus

    def leave_out(self, node: str) -> bool:
        """Give no more tasks to a node; returns whether another is left, else it stays."""
        if node in self._nodes and len(self._nodes) > 1:
            times = self._times
            del self._nodes[node]
            self.slots = min(self.slots, times * sum(other.cores for other in self._nodes.values()))
        return node not in self._nodes

    def is_left_out(self, allotment: Allotment) -> bool:
        return any(place.node not in self._nodes for place in allotment.places)

    @property
    def _times(self) -> int:
        return max(1, -(-self.slots // max(1, sum(node.cores for node in self._nodes.values()))))

    def _room(self, name: str) -> int:
        return self._nodes[name].cores * self._times - self._used_cores[name]

    def _places(self, resources: Resources) -> tuple[Place, ...] | None:
        threads = resources.threads_per_core or 1
        if not self._needs_step(resources):
            name = max(self._nodes, key=self._room)
            return (Place(name, 1, threads),) if self._room(name) >= threads else None
        fits = {name: self._ranks_that_fit(name, threads, resources) for name in self._nodes}
        ranks = _spread(fits, resources.cores, resources.num_nodes)
        if ranks is None:
            return None
        return tuple(
            Place(
                name,
                count,
                self._nodes[name].cores if resources.exclusive else count * threads,
                count * resources.gpus_per_core,
            )
            for name, count in ranks.items()
        )

    def _ranks_that_fit(self, name: str, threads: int, resources: Resources) -> int:
        if resources.exclusive and self._used_cores[name]:
            return 0
        fit = self._room(name) // threads
        gpus = self._nodes[name].gpus
        if resources.gpus_per_core and gpus is not None:
            fit = min(fit, (gpus - self._used_gpus[name]) // resources.gpus_per_core)
        return max(0, fit)


def _spread(fits: dict[str, int], ranks: int, nodes: int | None) -> dict[str, int] | None:
    """How many ranks run on which node, in the order of the nodes; None if they do not fit.

    With a number of nodes they are spread as evenly as they fit, else over as few nodes as possible.
    """
    if nodes is not None:
        chosen = sorted(fits, key=fits.__getitem__, reverse=True)[:nodes]
        if len(chosen) < nodes or not all(fits[name] for name in chosen) or nodes > ranks:
            return None
        counts = dict.fromkeys((name for name in fits if name in chosen), 0)
        while ranks:
            open_nodes = [name for name in counts if counts[name] < fits[name]]
            if not open_nodes:
                return None
            counts[min(open_nodes, key=counts.__getitem__)] += 1
            ranks -= 1
        return counts
    enough = [name for name in fits if fits[name] >= ranks]
    if enough:
        return {min(enough, key=fits.__getitem__): ranks}
    counts = {}
    for name in sorted(fits, key=fits.__getitem__, reverse=True):
        if ranks and fits[name]:
            counts[name] = min(ranks, fits[name])
            ranks -= counts[name]
    return None if ranks else {name: counts[name] for name in fits if name in counts}
