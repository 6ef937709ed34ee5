"""Futures as inputs."""

from __future__ import annotations

import time
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import tasks

from conftest import MakeExecutor
from executorlib import SingleNodeExecutor, get_item_from_future, split_future
from executorlib.standalone.select import FutureSelector


def total(*values: Any, **named: Any) -> Any:
    return sum(values) + sum(named.values())


def flatten(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [item for key in value for item in flatten(value[key])]
    if isinstance(value, (list, tuple, set, frozenset)):
        return [item for part in value for item in flatten(part)]
    return [value]


def pair(x: int) -> tuple[int, int]:
    return x, x + 1


def named(x: int) -> dict[str, int]:
    return {"one": x, "two": 2 * x}


@pytest.mark.kinds
def test_futures_are_replaced_by_their_results(make_executor: MakeExecutor) -> None:
    with make_executor() as exe:
        one = exe.submit(tasks.add, 0, 1)
        two = exe.submit(tasks.add, one, 1)
        three = exe.submit(total, one, b=two)
        assert exe.submit(total, one, two, three).result() == 6


def test_futures_inside_containers(make_executor: MakeExecutor) -> None:
    with make_executor() as exe:
        one, two = exe.submit(tasks.identity, 1), exe.submit(tasks.identity, 2)
        nested = {"a": [one, (two, [one])], "b": (two,), "c": {"d": {"e": one}}, "f": 5}
        assert exe.submit(flatten, nested).result() == [1, 2, 1, 2, 1, 5]
        assert exe.submit(flatten, value=[[[one]]]).result() == [1]
        assert exe.submit(flatten, {one, two}).result() in ([1, 2], [2, 1])


def test_the_same_future_several_times(make_executor: MakeExecutor) -> None:
    with make_executor() as exe:
        one = exe.submit(tasks.identity, 1)
        assert exe.submit(flatten, [one] * 50).result() == [1] * 50


def test_a_future_inside_an_object(make_executor: MakeExecutor) -> None:
    class Box:
        def __init__(self, content: Any) -> None:
            self.content = content

    def unpack(box: Any) -> Any:
        return box.content

    with make_executor() as exe:
        assert exe.submit(unpack, Box([exe.submit(tasks.identity, 4)])).result() == [4]


def test_large_results_as_inputs(make_executor: MakeExecutor) -> None:
    import numpy as np

    with make_executor() as exe:
        array = exe.submit(np.arange, 500_000)
        doubled = exe.submit(np.multiply, array, 2)
        assert exe.submit(np.sum, [doubled, array]).result() == 3 * (499_999 * 500_000 // 2)


@pytest.mark.kinds
def test_a_failed_input_fails_its_dependents_with_the_same_exception(make_executor: MakeExecutor) -> None:
    with make_executor() as exe:
        failed = exe.submit(tasks.fail, "the cause")
        dependent = exe.submit(tasks.add, failed, 1)
        further = exe.submit(flatten, [dependent, exe.submit(tasks.add, 1, 1)])
        assert dependent.exception() is failed.exception()
        assert further.exception() is failed.exception()
        assert exe.submit(tasks.add, 1, 1).result() == 2


def test_a_cancelled_input_cancels_its_dependents(make_executor: MakeExecutor) -> None:
    never: Future[int] = Future()
    with make_executor() as exe:
        dependent = exe.submit(tasks.add, never, 1)
        further = exe.submit(tasks.add, dependent, 1)
        assert never.cancel()
        for future in (dependent, further):
            with pytest.raises(CancelledError):
                future.result(20)


def test_a_cancelled_dependent_leaves_its_input_alone(make_executor: MakeExecutor) -> None:
    foreign: Future[int] = Future()
    with make_executor() as exe:
        dependent, other = exe.submit(tasks.add, foreign, 1), exe.submit(tasks.add, foreign, 2)
        assert dependent.cancel()
        foreign.set_result(5)
        assert other.result() == 7
        assert dependent.cancelled()


def test_futures_of_other_executors(make_executor: MakeExecutor) -> None:
    with ThreadPoolExecutor(1) as threads, make_executor() as exe, SingleNodeExecutor(max_workers=1) as other:
        theirs = threads.submit(tasks.add, 1, 1)
        ours = exe.submit(tasks.add, theirs, 1)
        assert other.submit(tasks.add, ours, 1).result() == 4
        failed = exe.submit(tasks.add, threads.submit(tasks.fail, "thread"), 1)
        assert isinstance(failed.exception(), ValueError)


def test_done_futures_as_inputs(make_executor: MakeExecutor) -> None:
    done: Future[int] = Future()
    done.set_result(8)
    cancelled: Future[int] = Future()
    cancelled.cancel()
    with make_executor() as exe:
        assert exe.submit(tasks.add, done, 1).result() == 9
        with pytest.raises(CancelledError):
            exe.submit(tasks.add, cancelled, 1).result(20)


def test_an_input_whose_result_cannot_be_pickled_fails_the_dependent(make_executor: MakeExecutor) -> None:
    foreign: Future[Any] = Future()
    foreign.set_result(tasks.Unpicklable())
    with make_executor() as exe:
        with pytest.raises(TypeError, match="do not travel"):
            exe.submit(tasks.identity, foreign).result(20)
        assert exe.submit(tasks.add, 1).result() == 1


def test_an_open_input_takes_no_worker(make_executor: MakeExecutor) -> None:
    foreign: Future[int] = Future()
    with make_executor(max_workers=1) as exe:
        waiting = [exe.submit(tasks.add, foreign, i) for i in range(5)]
        assert exe.submit(tasks.add, 1, 1).result() == 2
        foreign.set_result(1)
        assert [future.result() for future in waiting] == [1, 2, 3, 4, 5]


# Parts of futures


@pytest.mark.kinds
def test_split_future(make_executor: MakeExecutor) -> None:
    with make_executor() as exe:
        first, second = split_future(exe.submit(pair, 5), 2)
        assert isinstance(first, FutureSelector)
        assert exe.submit(tasks.add, first, second).result() == 11
        assert (first.result(), second.result()) == (5, 6)


def test_get_item_from_future(make_executor: MakeExecutor) -> None:
    with make_executor() as exe:
        both = exe.submit(named, 5)
        one, two = get_item_from_future(both, "one"), get_item_from_future(both, key="two")
        assert exe.submit(flatten, {"x": [two, one]}).result() == [10, 5]
        missing = get_item_from_future(both, "three")
        with pytest.raises(KeyError, match="three"):
            missing.result(20)
        with pytest.raises(KeyError, match="three"):
            exe.submit(tasks.identity, missing).result(20)


def test_parts_of_a_failed_and_of_a_cancelled_future(make_executor: MakeExecutor) -> None:
    never: Future[Any] = Future()
    with make_executor() as exe:
        failed = split_future(exe.submit(tasks.fail, "whole"), 2)
        with pytest.raises(ValueError, match="whole"):
            exe.submit(tasks.add, failed[0], failed[1]).result(20)
        part = split_future(never, 1)[0]
        dependent = exe.submit(tasks.identity, part)
        assert part.cancel()
        assert never.cancelled()
        with pytest.raises(CancelledError):
            dependent.result(20)


def test_parts_of_parts(make_executor: MakeExecutor) -> None:
    with make_executor() as exe:
        whole = exe.submit(tasks.identity, {"a": [1, {"b": 7}]})
        part = get_item_from_future(split_future(get_item_from_future(whole, "a"), 2)[1], "b")
        assert exe.submit(tasks.add, part, 1).result() == 8


def test_batched(make_executor: MakeExecutor) -> None:
    with make_executor() as exe:
        futures = [exe.submit(tasks.identity, i) for i in range(10)]
        groups = exe.batched(futures, n=3)
        assert len(groups) == 4
        sums = [exe.submit(sum, group) for group in groups]
        assert sum(future.result() for future in sums) == 45
        assert sorted(len(group.result()) for group in groups) == [1, 3, 3, 3]
        assert exe.batched([], n=3) == []
        with pytest.raises(ValueError):
            exe.batched(futures, n=0)


def test_batched_groups_what_is_done_first(make_executor: MakeExecutor, tmp_path: Path) -> None:
    with make_executor() as exe:
        slow = exe.submit(tasks.hold, tmp_path / "begun", tmp_path / "go", -1)
        quick = [exe.submit(tasks.identity, i) for i in range(3)]
        first, second = exe.batched([slow, *quick], n=2)
        assert len(first.result(20)) == 2
        assert -1 not in first.result()
        assert not second.done()
        (tmp_path / "go").touch()
        assert -1 in second.result()


def test_batched_with_a_failed_member(make_executor: MakeExecutor) -> None:
    with make_executor() as exe:
        groups = exe.batched([exe.submit(tasks.fail, "member"), exe.submit(tasks.identity, 1)], n=2)
        with pytest.raises(ValueError, match="member"):
            exe.submit(sum, groups[0]).result(20)


# Large graphs


def test_a_chain(make_executor: MakeExecutor) -> None:
    with make_executor() as exe:
        future = exe.submit(tasks.identity, 0)
        for _ in range(60):
            future = exe.submit(tasks.add, future, 1)
        assert future.result() == 60


def test_a_graph_of_2001_tasks() -> None:
    """1,000 tasks, 1,000 that use two neighbours each, and one that uses them all."""
    with SingleNodeExecutor(max_workers=2, block_allocation=True) as exe:
        base = [exe.submit(tasks.identity, i) for i in range(1000)]
        middle = [exe.submit(tasks.add, base[i], base[(i + 1) % 1000]) for i in range(1000)]
        assert exe.submit(sum, middle).result() == 2 * sum(range(1000))


def test_20000_open_futures_of_one_input() -> None:
    gate: Future[int] = Future()
    with SingleNodeExecutor(max_workers=2, block_allocation=True) as exe:
        futures = [exe.submit(tasks.add, gate, i) for i in range(20_000)]
        start = time.monotonic()
        gate.set_result(1)
        assert [future.result() for future in futures] == list(range(1, 20_001))
    assert time.monotonic() - start < 40


def test_one_task_of_20000_inputs() -> None:
    inputs: list[Future[int]] = [Future() for _ in range(20_000)]
    with SingleNodeExecutor(max_workers=1, block_allocation=True) as exe:
        future = exe.submit(sum, inputs)
        for i, each in enumerate(inputs):
            each.set_result(i)
        assert future.result() == sum(range(20_000))


def test_a_chain_of_failed_futures_does_not_exhaust_the_stack(make_executor: MakeExecutor) -> None:
    gate: Future[int] = Future()
    with make_executor() as exe:
        future: Future[Any] = gate
        for _ in range(5000):
            future = exe.submit(tasks.add, future, 1)
        gate.set_exception(LookupError("at the start"))
        with pytest.raises(LookupError):
            future.result(30)


# disable_dependencies


def test_without_dependencies_futures_are_not_waited_for(make_executor: MakeExecutor) -> None:
    never: Future[int] = Future()
    with make_executor(disable_dependencies=True) as exe:
        assert exe.submit(tasks.add, 1, 2).result() == 3
        with pytest.raises(TypeError):  # a future cannot be pickled
            exe.submit(tasks.identity, never).result(20)
        assert list(exe.map(tasks.add, [1, 2], [3, 4])) == [4, 6]


def test_a_cycle_cannot_hang(make_executor: MakeExecutor) -> None:
    """A task that takes a future which its own result fills: cancelling that is the way out, and it works."""
    loop: Future[Any] = Future()

    def close(done: Future[Any]) -> None:
        if not loop.done():
            loop.set_result(None if done.cancelled() else done.result())

    with make_executor() as exe:
        task = exe.submit(tasks.identity, loop)
        task.add_done_callback(close)
        exe.shutdown(wait=False, cancel_futures=True)
        with pytest.raises(CancelledError):
            task.result(20)
