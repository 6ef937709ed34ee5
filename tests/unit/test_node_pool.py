"""The slots of several compute nodes."""

from __future__ import annotations

from typing import Any

import pytest

from executorlib.standalone.resources import Resources
from executorlib.standalone.slurm import Node, needs_step
from executorlib.task_scheduler.interactive.node_pool import NodePool
from executorlib.task_scheduler.interactive.pool import Allotment

NODES = (Node("a", 4), Node("b", 4), Node("c", 2))


def make(slots: int = 10, workers: int | None = None, nodes: tuple[Node, ...] = NODES) -> NodePool:
    return NodePool(nodes, slots, workers, needs_step)


def ask(pool: NodePool, **resources: Any) -> list[tuple[str, int]] | None:
    taken = pool.take(Resources().updated(resources))
    return None if taken is None else [(place.node, place.ranks) for place in taken.places]


def test_serial_tasks_fill_every_node() -> None:
    pool = make()
    found = [ask(pool) for _ in range(11)]
    assert found[-1] is None
    nodes = [place[0][0] for place in found[:-1] if place]
    assert {name: nodes.count(name) for name in "abc"} == {"a": 4, "b": 4, "c": 2}


def test_threads_are_on_one_node() -> None:
    pool = make()
    assert [ask(pool, threads_per_core=3) for _ in range(3)] == [[("a", 1)], [("b", 1)], None]
    assert ask(pool, threads_per_core=2) == [("c", 1)]


def test_ranks_are_on_as_few_nodes_as_possible() -> None:
    pool = make()
    assert ask(pool, cores=2) == [("c", 2)]
    assert ask(pool, cores=6) == [("a", 4), ("b", 2)]
    assert ask(pool, cores=3) is None
    assert ask(pool, cores=2) == [("b", 2)]


def test_ranks_are_spread_evenly_over_a_number_of_nodes() -> None:
    assert ask(make(), cores=6, num_nodes=2) == [("a", 3), ("b", 3)]
    assert ask(make(), cores=8, num_nodes=3) == [("a", 3), ("b", 3), ("c", 2)]


def test_exclusive_nodes() -> None:
    pool = make()
    assert ask(pool) == [("a", 1)]
    assert ask(pool, num_nodes=1, exclusive=True) == [("b", 1)]
    assert ask(pool, threads_per_core=4) is None, "b is taken as a whole"
    assert ask(pool, cores=2, num_nodes=2, exclusive=True) is None


def test_gpus() -> None:
    pool = make(nodes=(Node("a", 4, 1), Node("b", 4, 2)), slots=8)
    assert ask(pool, cores=2, gpus_per_core=1) == [("b", 2)]
    assert ask(pool, gpus_per_core=1) == [("a", 1)]
    assert ask(pool, gpus_per_core=1) is None
    assert ask(pool) is not None


def test_what_is_given_back_is_free() -> None:
    pool = make()
    taken = [pool.take(Resources(cores=4)) for _ in range(2)]
    assert ask(pool, cores=4) is None
    assert isinstance(taken[1], Allotment)
    pool.give_back(taken[1])
    assert ask(pool, cores=4) == [("b", 4)]


def test_limits_are_those_of_the_user() -> None:
    pool = make(slots=2)
    assert [ask(pool) is None for _ in range(3)] == [False, False, True]
    pool = make(workers=1)
    assert [ask(pool) is None for _ in range(2)] == [False, True]


def test_more_slots_than_cores_fill_the_nodes_several_times() -> None:
    pool = make(slots=20)
    taken = [pool.take(Resources()) for _ in range(21)]
    assert taken[20] is None
    assert all(allotment is not None and allotment.overlap for allotment in taken[:20])


def test_a_task_that_is_too_large_runs_alone() -> None:
    pool = make()
    assert ask(pool) == [("a", 1)]
    assert ask(pool, threads_per_core=9) is None
    assert ask(pool, cores=11) is None
    assert ask(make(), threads_per_core=9) == [("a", 1)]
    assert ask(make(), cores=11) == [], "it is for Slurm to say"


def test_a_node_is_left_out() -> None:
    pool = make()
    here = pool.take(Resources())
    assert here is not None
    assert not pool.is_left_out(here)
    assert pool.leave_out("a")
    assert pool.is_left_out(here)
    pool.give_back(here)
    assert pool.slots == 6
    assert {place[0][0] for place in [ask(pool) for _ in range(6)] if place} == {"b", "c"}
    assert ask(pool) is None
    assert pool.leave_out("b")
    assert not pool.leave_out("c"), "the last is kept, so that its error is told"


@pytest.mark.parametrize("limit", [3, 10, 30])
def test_a_left_out_node_keeps_the_limit_of_the_user(limit: int) -> None:
    pool = make(slots=limit)
    pool.leave_out("c")
    assert pool.slots == min(limit, 24 if limit == 30 else 8)
