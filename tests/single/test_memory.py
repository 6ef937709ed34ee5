"""Nothing is held that is done with."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tasks

from conftest import Eventually, MakeExecutor
from executorlib import SingleNodeExecutor


def closure_over(thing: tasks.Thing) -> Callable[[], Any]:
    return lambda: thing.content


def reference_is_dead(reference: weakref.ref[Any]) -> Callable[[], bool]:
    return lambda: reference() is None


@pytest.fixture(autouse=True)
def no_cycles() -> Any:
    """Without the collector of cycles: what is released is released at once."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.kinds
def test_arguments_are_released_when_submitted(make_executor: MakeExecutor, eventually: Eventually) -> None:
    with make_executor() as exe:
        thing = tasks.Thing()
        reference = weakref.ref(thing)
        future = exe.submit(tasks.identity, thing)
        named = exe.submit(tasks.identity, x=thing)
        del thing
        eventually(lambda: reference() is None)
        assert isinstance(future.result(), tasks.Thing)
        assert isinstance(named.result(), tasks.Thing)


def test_arguments_of_a_waiting_call_are_released_too(make_executor: MakeExecutor, eventually: Eventually) -> None:
    gate: Future[int] = Future()
    with make_executor() as exe:
        thing = tasks.Thing(7)
        reference = weakref.ref(thing)
        future = exe.submit(lambda a, b: b.content, gate, thing)
        del thing
        eventually(lambda: reference() is None)
        gate.set_result(0)
        assert future.result() == 7


@pytest.mark.kinds
def test_results_are_released_with_their_future(make_executor: MakeExecutor, eventually: Eventually) -> None:
    with make_executor() as exe:
        future = exe.submit(tasks.make_thing)
        reference = weakref.ref(future.result())
        assert reference() is not None
        del future
        eventually(lambda: reference() is None)


def test_futures_are_released_when_done(make_executor: MakeExecutor, eventually: Eventually) -> None:
    with make_executor() as exe:
        good, bad = exe.submit(tasks.add, 1), exe.submit(tasks.fail)
        dependent = exe.submit(tasks.add, good)
        dependent.result()
        assert bad.exception() is not None
        references = [weakref.ref(future) for future in (good, bad, dependent)]
        del good, bad, dependent
        eventually(lambda: all(reference() is None for reference in references))


@pytest.mark.parametrize("cached", [False, True])
def test_dependents_are_released_before_their_input(
    make_executor: MakeExecutor, tmp_path: Path, eventually: Eventually, cached: bool
) -> None:
    with make_executor(cache_directory=str(tmp_path) if cached else None) as exe:
        first = exe.submit(tasks.identity, 1)
        dependent = exe.submit(tasks.make_thing, first)
        references = [weakref.ref(dependent), weakref.ref(dependent.result())]
        del dependent
        eventually(lambda: all(reference() is None for reference in references))
        assert first.result() == 1


def test_results_of_a_map_are_released_one_by_one(make_executor: MakeExecutor, eventually: Eventually) -> None:
    with make_executor() as exe:
        results = exe.map(tasks.make_thing, range(10))
        for _ in range(10):
            reference = weakref.ref(next(results))
            eventually(reference_is_dead(reference))


def test_functions_are_released(make_executor: MakeExecutor, eventually: Eventually) -> None:
    with make_executor() as exe:
        thing = tasks.Thing(3)
        reference = weakref.ref(thing)
        assert exe.submit(thing).result() == 3
        assert exe.submit(thing.method).result() == 3
        assert exe.submit(closure_over(thing)).result() == 3
        del thing
        gc.collect()
        eventually(lambda: reference() is None)


def test_inputs_are_released_when_their_dependents_are_sent(
    make_executor: MakeExecutor, eventually: Eventually
) -> None:
    with make_executor() as exe:
        first = exe.submit(tasks.make_thing)
        second = exe.submit(tasks.identity, first)
        second.result()
        reference = weakref.ref(first.result())
        del first
        eventually(lambda: reference() is None)


@pytest.mark.kinds
def test_the_memory_of_a_result_is_given_back_while_the_executor_idles(
    make_executor: MakeExecutor, eventually: Eventually
) -> None:
    """Also the buffers that it arrived in: the dispatcher, asleep then, holds on to nothing."""
    import psutil

    own = psutil.Process()
    with make_executor(max_workers=1) as exe:
        assert exe.submit(tasks.add, 1).result() == 1
        before = own.memory_info().rss
        array = exe.submit(np.ones, 25_000_000).result()  # 200 MB
        assert array.sum() == 25_000_000
        assert own.memory_info().rss - before > 150_000_000
        del array
        eventually(lambda: own.memory_info().rss - before < 100_000_000)


def test_callbacks_are_released(make_executor: MakeExecutor, eventually: Eventually) -> None:
    with make_executor() as exe:
        thing = tasks.Thing()
        reference = weakref.ref(thing)
        future = exe.submit(tasks.add, 1)
        future.add_done_callback(thing)
        del thing
        future.result()
        del future
        eventually(lambda: reference() is None)


def test_cancelled_calls_are_released(make_executor: MakeExecutor, tmp_path: Path, eventually: Eventually) -> None:
    never: Future[Any] = Future()
    with make_executor(max_workers=1) as exe:
        waiting = exe.submit(tasks.identity, never)
        assert waiting.cancel()
        reference = weakref.ref(waiting)
        del waiting
        exe.submit(tasks.add, 1).result()
        del never
        eventually(lambda: reference() is None)


def test_the_memory_of_a_worker_does_not_grow_with_its_calls() -> None:
    def rss() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    data = np.zeros(1_000_000)
    with SingleNodeExecutor(max_workers=1, block_allocation=True) as exe:
        for _ in range(5):
            exe.submit(tasks.identity, data).result()
        before = exe.submit(rss).result()
        for _ in range(40):
            exe.submit(tasks.identity, data).result()
        assert exe.submit(rss).result() - before < 60_000_000


def test_the_memory_of_a_worker_does_not_grow_with_its_functions() -> None:
    def rss() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    def make(i: int) -> Any:
        data = np.full(1_000_000, float(i))  # 8 MB
        return lambda: float(data[-1])

    with SingleNodeExecutor(max_workers=1, block_allocation=True) as exe:
        for i in range(60):
            assert exe.submit(make(i)).result() == float(i)
        assert exe.submit(rss).result() < 1_000_000_000


def test_the_memory_of_the_program_does_not_grow_with_large_results() -> None:
    import psutil

    own = psutil.Process()
    with SingleNodeExecutor(max_workers=1, block_allocation=True) as exe:
        for _ in range(3):
            exe.submit(np.zeros, 2_000_000).result()
        before = own.memory_info().rss
        for _ in range(30):
            exe.submit(np.zeros, 2_000_000).result()
        assert own.memory_info().rss - before < 100_000_000
