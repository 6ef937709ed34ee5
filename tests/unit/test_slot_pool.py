"""Slots: jobs of Flux that are kept for one worker after the other."""

from __future__ import annotations

from executorlib.standalone.resources import Resources
from executorlib.task_scheduler.interactive.pool import Allotment
from executorlib.task_scheduler.interactive.slot_pool import SlotPool

SERIAL = Resources()
WIDE = Resources(threads_per_core=2)
RANKS = Resources(cores=2)


class Pool:
    """A pool, and what it has given up."""

    def __init__(self, slots: int, workers: int | None = None) -> None:
        self.given_up: list[str] = []
        self.threads: dict[str, int] = {}
        self.pool = SlotPool(slots, workers, lambda resources: resources.cores > 1, self.given_up.append, self.threads)

    def take(self, resources: Resources) -> Allotment:
        allotment = self.pool.take(resources)
        assert allotment is not None
        return allotment

    def place(self, resources: Resources) -> str:
        return self.take(resources).places[0].node


def test_a_slot_is_used_again() -> None:
    pool = Pool(4)
    first = pool.take(SERIAL)
    pool.pool.give_back(first)
    assert pool.take(SERIAL) == first
    assert pool.place(SERIAL) != first.places[0].node
    assert pool.given_up == []


def test_the_slot_that_was_used_last_comes_first() -> None:
    pool = Pool(4)
    first, second = pool.take(SERIAL), pool.take(SERIAL)
    pool.pool.give_back(second)
    pool.pool.give_back(first)
    assert pool.take(SERIAL) == first


def test_no_more_than_there_is() -> None:
    pool = Pool(3)
    for _ in range(3):
        pool.take(SERIAL)
    assert pool.pool.take(SERIAL) is None
    assert pool.pool.take(RANKS) is None
    assert Pool(4, workers=1).pool.take(SERIAL) is not None


def test_a_limit_of_workers() -> None:
    pool = Pool(4, workers=1)
    pool.take(SERIAL)
    assert pool.pool.take(SERIAL) is None


def test_slots_of_another_size_are_given_up_for_what_needs_their_cores() -> None:
    pool = Pool(2)
    first, second = pool.take(SERIAL), pool.take(SERIAL)
    pool.pool.give_back(first)
    pool.pool.give_back(second)
    wide = pool.take(WIDE)
    assert sorted(pool.given_up) == ["slot 1", "slot 2"]
    assert pool.threads == {wide.places[0].node: 2}
    pool.pool.give_back(wide)
    assert pool.place(SERIAL) == "slot 4"
    assert pool.given_up[2:] == ["slot 3"]


def test_slots_stay_where_there_is_room() -> None:
    pool = Pool(4)
    first = pool.take(SERIAL)
    pool.pool.give_back(first)
    pool.take(WIDE)
    assert pool.given_up == []
    pool.take(SERIAL)
    assert pool.threads == {"slot 1": 1, "slot 2": 2}


def test_jobs_of_their_own_take_the_cores_of_idle_slots() -> None:
    pool = Pool(3)
    idle, busy = pool.take(SERIAL), pool.take(SERIAL)
    pool.pool.give_back(idle)
    pool.take(RANKS)
    assert pool.given_up == [idle.places[0].node]
    assert busy.places[0].node in pool.threads


def test_jobs_have_the_lowest_free_number() -> None:
    pool = Pool(8)
    first = pool.take(RANKS)
    assert pool.place(RANKS) == "1"
    pool.pool.give_back(first)
    assert pool.place(RANKS) == "0"
    assert pool.pool.used_slots == 4


def test_what_is_larger_than_the_pool_is_let_in_alone() -> None:
    pool = Pool(1)
    assert pool.pool.take(RANKS) is not None
    assert pool.pool.take(SERIAL) is None
