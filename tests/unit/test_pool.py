"""Slots, the ready queue and the dependency graph: rules without processes."""

from __future__ import annotations

import pickle
import random
from concurrent.futures import CancelledError, Future
from typing import Any

import pytest

from executorlib.standalone.functions import FunctionRef
from executorlib.standalone.resources import Resources
from executorlib.standalone.serialize import Payload
from executorlib.task_scheduler.interactive.pool import ReadyQueue, ResourcePool
from executorlib.task_scheduler.interactive.task import DependencyGraph, Task, TaskFuture, failed_input

FUNCTION = FunctionRef(Payload(b""), "function", True)


def task(inputs: list[Future[Any]] | None = None, **resources: Any) -> Task:
    return Task(FUNCTION, Payload(b""), Resources(**resources), TaskFuture(), inputs)


# ResourcePool


def test_slots_are_taken_and_given_back() -> None:
    pool = ResourcePool(3)
    one, two = Resources(), Resources(threads_per_core=2)
    first, second = pool.take(one), pool.take(two)
    assert first is not None
    assert second is not None
    assert pool.take(one) is None
    pool.give_back(second)
    assert pool.take(two) is not None
    assert pool.take(one) is None
    pool.give_back(first)
    assert pool.take(one) is not None


def test_cores_and_threads_multiply() -> None:
    pool = ResourcePool(6)
    assert pool.take(Resources(cores=2, threads_per_core=3)) is not None
    assert pool.take(Resources()) is None


def test_what_is_larger_than_the_pool_runs_alone() -> None:
    pool = ResourcePool(2)
    large = Resources(cores=5)
    allotment = pool.take(large)
    assert allotment is not None
    assert pool.take(Resources()) is None
    pool.give_back(allotment)
    small = pool.take(Resources())
    assert pool.take(large) is None
    assert small is not None
    pool.give_back(small)
    assert pool.take(large) is not None


def test_workers_are_a_limit_of_their_own() -> None:
    pool = ResourcePool(10, workers=2)
    first = pool.take(Resources())
    assert first is not None
    assert pool.take(Resources()) is not None
    assert pool.take(Resources()) is None
    pool.give_back(first)
    assert pool.take(Resources()) is not None


def test_each_gpu_belongs_to_one_at_a_time() -> None:
    pool = ResourcePool(10, gpus=("a", "b", "c"))
    first = pool.take(Resources(gpus_per_core=2))
    second = pool.take(Resources(gpus_per_core=1))
    assert first is not None
    assert second is not None
    assert sorted(first.gpus + second.gpus) == ["a", "b", "c"]
    assert pool.take(Resources(gpus_per_core=1)) is None
    assert pool.take(Resources()) is not None, "a task without GPUs does not wait for them"
    pool.give_back(first)
    again = pool.take(Resources(cores=2, gpus_per_core=1))
    assert again is not None
    assert sorted(again.gpus) == sorted(first.gpus)


def test_a_refusal_takes_nothing() -> None:
    pool = ResourcePool(4, gpus=("a",))
    for _ in range(5):
        assert pool.take(Resources(gpus_per_core=2)) is None
    assert (pool.used_slots, pool.used_workers) == (0, 0)
    assert pool.take(Resources(gpus_per_core=1)) is not None


def test_a_smaller_pool_waits_until_enough_is_given_back() -> None:
    pool = ResourcePool(4)
    allotments = [pool.take(Resources()) for _ in range(4)]
    pool.slots = 2
    for allotment in allotments[:2]:
        assert pool.take(Resources()) is None
        assert allotment is not None
        pool.give_back(allotment)
    assert pool.take(Resources()) is None
    assert allotments[2] is not None
    pool.give_back(allotments[2])
    assert pool.take(Resources()) is not None


@pytest.mark.parametrize("seed", range(5))
def test_never_more_than_there_is(seed: int) -> None:
    """After any sequence of takes and returns the counts are right and no GPU is held twice."""
    rng = random.Random(seed)
    pool = ResourcePool(8, workers=6, gpus=tuple("abcd"))
    held: list[Any] = []
    for _ in range(2000):
        if held and rng.random() < 0.5:
            pool.give_back(held.pop(rng.randrange(len(held))))
            continue
        resources = Resources(
            cores=rng.randint(1, 3), threads_per_core=rng.choice([None, 1, 2]), gpus_per_core=rng.choice([0, 0, 1])
        )
        allotment = pool.take(resources)
        if allotment is not None:
            held.append(allotment)
        gpus = [gpu for each in held for gpu in each.gpus]
        assert len(gpus) == len(set(gpus))
        assert sum(each.slots for each in held) == pool.used_slots <= 8
        assert len(held) == pool.used_workers <= 6
    for each in held:
        pool.give_back(each)
    assert (pool.used_slots, pool.used_workers) == (0, 0)


# ReadyQueue


def test_first_come_first_served() -> None:
    queue = ReadyQueue()
    tasks = [task() for _ in range(5)]
    for each in tasks:
        queue.push(each)
    assert len(queue) == 5
    assert queue.first() is tasks[0]
    assert [queue.pop() for _ in range(5)] == tasks
    assert len(queue) == 0
    assert queue.first() is None
    with pytest.raises(IndexError):
        queue.pop()


def test_higher_priority_first() -> None:
    queue = ReadyQueue()
    tasks = [task(priority=p) for p in (0, 5, -3, 5, 2)]
    for each in tasks:
        queue.push(each)
    assert [each.resources.priority for each in (queue.pop() for _ in range(5))] == [5, 5, 2, 0, -3]
    late = task(priority=9)
    queue.push(task())
    queue.push(late)
    assert queue.first() is late


def test_nothing_is_kept_of_priorities_that_are_over() -> None:
    """Else each task of many, with a priority of its own, would take longer than the one before."""
    queue = ReadyQueue()
    empty = pickle.dumps(queue)
    for priority in range(1000):
        queue.push(task(priority=priority))
        assert queue.pop().resources.priority == priority
    assert pickle.dumps(queue) == empty


def test_any_order_of_priorities() -> None:
    queue, rest, chance = ReadyQueue(), list[int](), random.Random(5)
    for _ in range(2000):
        if chance.random() < 0.5:
            rest.append(chance.randrange(10))
            queue.push(task(priority=rest[-1]))
        elif rest:
            rest.remove(max(rest))
            queue.pop()
        first = queue.first()
        assert (first.resources.priority if first is not None else None) == max(rest, default=None)
        assert len(queue) == len(rest)


def test_what_was_taken_back_keeps_its_turn() -> None:
    queue = ReadyQueue()
    tasks = [task() for _ in range(4)]
    for each in tasks:
        queue.push(each)
    sent = [queue.pop(), queue.pop()]
    for each in reversed(sent):
        queue.push_front(each)
    assert [queue.pop() for _ in range(4)] == tasks


def test_clear_gives_all_in_order() -> None:
    queue = ReadyQueue()
    low, high, normal = task(priority=-1), task(priority=1), task()
    for each in (low, high, normal):
        queue.push(each)
    assert queue.clear() == [high, normal, low]
    assert len(queue) == 0
    assert queue.first() is None
    queue.push(low)
    assert queue.pop() is low


# DependencyGraph


def test_a_task_without_inputs_is_ready() -> None:
    graph = DependencyGraph(lambda _: None)
    assert graph.add(task())
    assert graph.add(task([]))


def test_a_task_is_ready_after_its_last_input() -> None:
    done: list[Task] = []
    graph = DependencyGraph(done.append)
    inputs: list[Future[int]] = [Future() for _ in range(3)]
    waiting = task(list(inputs))
    assert not graph.add(waiting)
    for future, last in zip(inputs, (False, False, True), strict=True):
        future.set_result(1)
        assert graph.input_done(done.pop()) is last


def test_inputs_that_are_done_already_are_told_too() -> None:
    done: list[Task] = []
    graph = DependencyGraph(done.append)
    future: Future[int] = Future()
    future.set_result(1)
    waiting = task([future])
    assert not graph.add(waiting), "the count goes down with the call of `input_done`, in the dispatcher"
    assert done == [waiting]
    assert graph.input_done(waiting)


def test_the_first_failed_input_is_the_reason() -> None:
    good: Future[int] = Future()
    good.set_result(1)
    bad: Future[int] = Future()
    error = ValueError("bad")
    bad.set_exception(error)
    cancelled: Future[int] = Future()
    cancelled.cancel()
    assert failed_input(task([good])) is None
    assert failed_input(task(None)) is None
    assert failed_input(task([good, bad, cancelled])) is error
    assert isinstance(failed_input(task([good, cancelled, bad])), CancelledError)


# TaskFuture


def test_the_future_of_a_task_by_itself() -> None:
    future = TaskFuture()
    assert future.set_running_or_notify_cancel()
    future.put_back()
    assert not future.running()
    assert future.cancel()
    assert future.cancelled()
    assert not future.set_running_or_notify_cancel()


def test_a_done_future_is_not_put_back() -> None:
    future = TaskFuture()
    future.set_running_or_notify_cancel()
    future.set_result(3)
    future.put_back()
    assert future.result() == 3
    assert not future.cancel()
