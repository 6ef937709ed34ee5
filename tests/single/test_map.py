"""map and starmap."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotDoneError  # on 3.10 not the one of the builtins
from pathlib import Path
from typing import Any

import pytest
import tasks

from conftest import Eventually, MakeExecutor
from executorlib import SingleNodeExecutor
from executorlib.standalone.functions import NO_FUNCTION
from executorlib.standalone.resources import Resources
from executorlib.task_scheduler.interactive.map_task import MapResults, MapTask


@pytest.mark.kinds
def test_results_are_in_order(make_executor: MakeExecutor) -> None:
    with make_executor(max_workers=3) as exe:
        assert list(exe.map(tasks.sleep_inversely, range(20))) == list(range(20))


def test_several_iterables_end_with_the_shortest(make_executor: MakeExecutor) -> None:
    with make_executor() as exe:
        assert list(exe.map(tasks.add, [1, 2, 3], (10, 20))) == [11, 22]
        assert list(exe.map(tasks.add, iter("ab"), itertools.repeat("c"))) == ["ac", "bc"]


def test_empty(make_executor: MakeExecutor) -> None:
    with make_executor() as exe:
        assert list(exe.map(tasks.add, [])) == []
        assert list(exe.map(tasks.add, [1], [])) == []
        assert list(exe.map(tasks.add, iter(()))) == []


def test_the_result_is_a_lazy_iterator(make_executor: MakeExecutor, tmp_path: Path) -> None:
    """map itself does not wait, and a result can be taken before the last call has run."""
    with make_executor(max_workers=2) as exe:
        results = exe.map(tasks.wait_if_last, [tmp_path] * 4, range(4))
        assert isinstance(results, Iterator)
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        (tmp_path / "go").touch()
        assert next(results) == 3
        with pytest.raises(StopIteration):
            next(results)


def test_the_calls_begin_without_anyone_asking_for_results(
    make_executor: MakeExecutor, tmp_path: Path, eventually: Eventually
) -> None:
    with make_executor() as exe:
        results = exe.map(tasks.note_number, [tmp_path] * 5, range(5))
        eventually(lambda: len(list(tmp_path.glob("ran*"))) == 5, 30)
        assert list(results) == list(range(5))


@pytest.mark.kinds
def test_timeout(make_executor: MakeExecutor, tmp_path: Path) -> None:
    with make_executor(max_workers=1) as exe:
        results = exe.map(tasks.wait_for, [tmp_path / "go"] * 3, timeout=0.2)
        start = time.monotonic()
        with pytest.raises(NotDoneError):
            next(results)
        assert time.monotonic() - start < 10
        (tmp_path / "go").touch()
        assert exe.submit(tasks.add, 1, 1).result() == 2


def test_a_late_word_of_one_call_is_not_taken_for_that_of_the_next() -> None:
    results = MapResults()
    task = MapTask(NO_FUNCTION, None, Resources(), results)
    waits = threading.Event()

    class Filled(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            if not waits.is_set():
                self.set()  # for the one before
                waits.set()
            return super().wait(timeout)

    results.filled = Filled()
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(task.result, 20)
        assert waits.wait(20)
        task.set_result("its own")
        assert result.result(20) == "its own"
    with pytest.raises(TimeoutError):
        MapTask(NO_FUNCTION, None, Resources(), results).result(0.01)


def test_a_timeout_that_is_long_enough(make_executor: MakeExecutor) -> None:
    with make_executor() as exe:
        assert list(exe.map(tasks.add, range(5), timeout=40)) == list(range(5))


@pytest.mark.parametrize("chunksize", [1, 7, 1000])
def test_chunksize(make_executor: MakeExecutor, chunksize: int) -> None:
    with make_executor() as exe:
        assert list(exe.map(tasks.add, range(50), chunksize=chunksize)) == list(range(50))
        with pytest.raises(ValueError, match="chunksize"):
            exe.map(tasks.add, [1], chunksize=0)


@pytest.mark.parametrize("seconds", [0.0, 0.003])
def test_many_short_calls(seconds: float) -> None:
    with SingleNodeExecutor(max_workers=2, block_allocation=True) as exe:
        count = 5000 if seconds == 0 else 200
        assert list(exe.map(tasks.sleep_and_return, range(count), itertools.repeat(seconds))) == list(range(count))


def test_one_slow_call_among_quick_ones_holds_up_none(tmp_path: Path) -> None:
    """What waits behind a long call at a worker moves to the other worker."""
    with SingleNodeExecutor(max_workers=2, block_allocation=True) as exe:
        list(exe.map(tasks.slow_if_seven, [tmp_path] * 7, range(7)))  # the calls are known to be short
        results = [exe.submit(tasks.slow_if_seven, tmp_path, i) for i in range(7, 100)]
        for future in results[1:]:
            future.result(20)
        (tmp_path / "go").touch()
        assert [future.result() for future in results] == list(range(7, 100))


@pytest.mark.kinds
def test_buffersize_bounds_what_is_taken_ahead(make_executor: MakeExecutor) -> None:
    taken: list[int] = []

    def source() -> Iterator[int]:
        for i in itertools.count():
            taken.append(i)
            yield i

    with make_executor() as exe:
        results = exe.map(tasks.add, source(), buffersize=4)
        assert taken == [0, 1, 2, 3]
        assert [next(results) for _ in range(10)] == list(range(10))
        assert len(taken) <= 14
        results.close()  # type: ignore[attr-defined]
        for wrong in (0, -1):
            with pytest.raises(ValueError, match="buffersize"):
                exe.map(tasks.add, [1], buffersize=wrong)


@pytest.mark.timeout(50)
def test_an_infinite_iterable() -> None:
    with SingleNodeExecutor(max_workers=2, block_allocation=True) as exe:
        results = exe.map(tasks.add, itertools.count())
        assert list(itertools.islice(results, 100)) == list(range(100))
        results.close()  # type: ignore[attr-defined]


def test_an_iterable_that_raises(make_executor: MakeExecutor) -> None:
    def source() -> Iterator[int]:
        yield 1
        yield 2
        raise OSError("the source ends")

    with make_executor() as exe:
        with pytest.raises(OSError, match="the source ends"):
            list(exe.map(tasks.add, source()))
        with pytest.raises(TypeError):
            exe.map(tasks.add, 5)  # type: ignore[arg-type]
        assert exe.submit(tasks.add, 1, 1).result() == 2


@pytest.mark.kinds
def test_an_exception_comes_at_its_place(make_executor: MakeExecutor) -> None:
    with make_executor() as exe:
        results = exe.map(tasks.fail_at, range(10))
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(LookupError, match="item 3") as caught:
            next(results)
        assert "fail_at" in str(caught.value.__cause__)
        with pytest.raises(StopIteration):
            next(results)


def test_an_exception_cancels_the_rest(make_executor: MakeExecutor, tmp_path: Path) -> None:
    with make_executor(max_workers=1) as exe:
        results = exe.map(tasks.fail_or_wait, [tmp_path] * 50, range(50))
        with pytest.raises(LookupError, match="the first"):
            list(results)
        assert len(exe) == 0  # and so the executor has heard of it
        (tmp_path / "go").touch()
        assert exe.submit(tasks.add, 1, 1).result() == 2
    assert len(list(tmp_path.glob("ran*"))) < 49


def test_leaving_early_cancels_the_rest(make_executor: MakeExecutor, tmp_path: Path) -> None:
    with make_executor(max_workers=1) as exe:
        results = exe.map(tasks.note_and_wait_after_two, [tmp_path] * 40, range(40))
        assert next(results) == 0
        results.close()  # type: ignore[attr-defined]
        assert len(exe) == 0  # and so the executor has heard of it
        (tmp_path / "go").touch()
    assert len(list(tmp_path.glob("ran*"))) < 40


def test_a_future_as_iterable(make_executor: MakeExecutor) -> None:
    with make_executor() as exe, ThreadPoolExecutor(1) as threads:
        items: Any = exe.submit(list, range(4))
        assert list(exe.map(tasks.add, items)) == [0, 1, 2, 3]
        later: Any = threads.submit(list, [10, 20])
        assert list(exe.map(tasks.add, [1, 2], later)) == [11, 22]
        failed: Any = exe.submit(tasks.fail)
        with pytest.raises(ValueError, match="on purpose"):
            list(exe.map(tasks.add, failed))


def test_futures_as_items(make_executor: MakeExecutor) -> None:
    with make_executor() as exe:
        items = [exe.submit(tasks.identity, i) for i in range(5)]
        assert list(exe.map(tasks.add, items, [1] * 5)) == [1, 2, 3, 4, 5]
        assert list(exe.map(sum, [items, items[:2]])) == [10, 1]
        never: Future[int] = Future()
        never.cancel()
        with pytest.raises(BaseException):  # noqa: B017  # CancelledError is no Exception in Python 3.10
            list(exe.map(tasks.add, [never]))


@pytest.mark.kinds
def test_starmap(make_executor: MakeExecutor) -> None:
    with make_executor() as exe:
        assert exe.starmap(tasks.add, [(1, 2), [3, 4]]) == [3, 7]
        assert exe.starmap(tasks.add, iter([("a", "b")]), chunksize=5) == ["ab"]
        assert exe.starmap(tasks.add, []) == []
        with pytest.raises(LookupError):
            exe.starmap(tasks.fail_at, [(3,)])


def test_items_that_cannot_be_pickled_fail_at_their_place(make_executor: MakeExecutor) -> None:
    with make_executor() as exe:
        results = exe.map(tasks.identity, [1, tasks.Unpicklable(), 3])
        assert next(results) == 1
        with pytest.raises(TypeError, match="do not travel"):
            next(results)


def test_a_function_that_cannot_be_pickled(make_executor: MakeExecutor) -> None:
    trap = tasks.Unpicklable()
    with make_executor() as exe, pytest.raises(TypeError, match="do not travel"):
        list(exe.map(lambda x: (trap, x), [1, 2]))


def test_none_and_exceptions_as_results(make_executor: MakeExecutor) -> None:
    with make_executor() as exe:
        results = list(exe.map(tasks.identity, [None, ValueError("as a value"), StopIteration]))
    assert results[0] is None
    assert isinstance(results[1], ValueError)
    assert results[2] is StopIteration


def test_a_stop_iteration_of_a_call_does_not_end_the_map_silently(make_executor: MakeExecutor) -> None:
    with make_executor() as exe, pytest.raises(RuntimeError):
        list(exe.map(tasks.stop_iteration, range(3)))


def test_two_maps_at_once_from_two_threads(make_executor: MakeExecutor) -> None:
    with make_executor() as exe, ThreadPoolExecutor(4) as threads:
        maps = [threads.submit(exe.map, tasks.add, range(30), [n] * 30) for n in range(4)]
        assert [list(each.result()) for each in maps] == [[n + i for i in range(30)] for n in range(4)]


def test_a_map_inside_the_iteration_of_another(make_executor: MakeExecutor) -> None:
    with make_executor() as exe:
        outer = exe.map(tasks.add, range(4))
        assert [sum(exe.map(tasks.add, range(i + 1))) for i in outer] == [0, 1, 3, 6]


def test_a_map_outlives_the_with_block(make_executor: MakeExecutor) -> None:
    with make_executor() as exe:
        results = exe.map(tasks.add, range(10))
    assert list(results) == list(range(10))


def test_map_uses_the_resources_of_the_executor(make_executor: MakeExecutor, tmp_path: Path) -> None:
    import os

    with make_executor(resource_dict={"cwd": str(tmp_path)}) as exe:
        assert set(exe.map(lambda _: os.getcwd(), range(3))) == {str(tmp_path)}
