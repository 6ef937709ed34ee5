"""Results that are kept: a call with a ``cache_directory`` waits, ends and is cancelled as any other."""

from __future__ import annotations

import concurrent.futures
import pickle
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import tasks

from conftest import Eventually, MakeExecutor, needs_mpi
from executorlib import SingleNodeExecutor
from executorlib.standalone.cache_key import call_key
from executorlib.standalone.hdf import dump


@pytest.fixture
def log(tmp_path: Path) -> str:
    (tmp_path / "log").touch()
    return str(tmp_path / "log")


def lines(log: str) -> list[str]:
    return Path(log).read_text().split()


def test_the_with_block_waits_for_inputs_of_others(make_executor: MakeExecutor, tmp_path: Path, log: str) -> None:
    given: Future[int] = Future()
    with make_executor(cache_directory=str(tmp_path / "cache")) as exe:
        first = exe.submit(tasks.count, log, given)
        second = exe.submit(tasks.count, log, first)
        threading.Timer(0.2, given.set_result, [3]).start()
    assert (first.result(0), second.result(0)) == (6, 12)


def test_what_waits_is_cancelled_with_the_rest(make_executor: MakeExecutor, tmp_path: Path, log: str) -> None:
    exe = make_executor(cache_directory=str(tmp_path / "cache"))
    given: Future[int] = Future()
    future = exe.submit(tasks.count, log, given)
    exe.shutdown(cancel_futures=True)
    assert future.cancelled()
    given.set_result(3)
    assert lines(log) == []


def test_a_call_that_waits_is_cancelled_at_once(make_executor: MakeExecutor, tmp_path: Path, log: str) -> None:
    given: Future[int] = Future()
    with make_executor(cache_directory=str(tmp_path / "cache")) as exe:
        future = exe.submit(tasks.count, log, given)
        assert len(exe) == 1
        assert future.cancel()
        assert concurrent.futures.wait([future], timeout=10).done == {future}
        given.set_result(3)
    assert lines(log) == []


def test_a_dependent_that_runs_can_be_ended(
    make_executor: MakeExecutor, tmp_path: Path, eventually: Eventually
) -> None:
    with make_executor(cache_directory=str(tmp_path / "cache")) as exe:
        future = exe.submit(tasks.hold, str(tmp_path / "begun"), str(tmp_path / "never"), exe.submit(tasks.add, 1))
        eventually((tmp_path / "begun").exists)
        assert exe.cancel(future)
        with pytest.raises(concurrent.futures.CancelledError):
            future.result(20)


@pytest.mark.parametrize("dependent", [False, True])
def test_the_same_call_twice_runs_once(make_executor: MakeExecutor, tmp_path: Path, log: str, dependent: bool) -> None:
    with make_executor(cache_directory=str(tmp_path / "cache")) as exe:
        three: Any = exe.submit(tasks.add, 3) if dependent else 3
        futures = [exe.submit(tasks.count, log, three) for _ in range(4)]
        assert [future.result(20) for future in futures] == [6] * 4
        assert exe.submit(tasks.count, log, three).result(20) == 6
    assert lines(log) == ["3"]


@pytest.mark.parametrize("dependent", [False, True])
def test_the_same_call_twice_fails_for_both(make_executor: MakeExecutor, tmp_path: Path, dependent: bool) -> None:
    with make_executor(cache_directory=str(tmp_path / "cache")) as exe:
        words: Any = exe.submit(tasks.identity, "no") if dependent else "no"
        for future in [exe.submit(tasks.fail, words) for _ in range(2)]:
            with pytest.raises(ValueError, match="no"):
                future.result(20)


def test_who_cancels_one_of_two_equal_calls_does_not_cancel_the_other(tmp_path: Path, log: str) -> None:
    with SingleNodeExecutor(max_workers=1, cache_directory=str(tmp_path / "cache")) as exe:
        blocker = exe.submit(tasks.hold, str(tmp_path / "begun"), str(tmp_path / "go"))
        first, second, third = (exe.submit(tasks.count, log, 3) for _ in range(3))
        assert first.cancel()
        assert third.cancel()
        tasks.touch(tmp_path / "go")
        assert second.result(20) == 6
        blocker.result(20)
    assert lines(log) == ["3"]


def test_threads_that_submit_the_same_call_run_it_once(make_executor: MakeExecutor, tmp_path: Path, log: str) -> None:
    with (
        make_executor(cache_directory=str(tmp_path / "cache")) as exe,
        concurrent.futures.ThreadPoolExecutor(8) as pool,
    ):
        for i in range(5):
            barrier = threading.Barrier(8)

            def submit(_: int, i: int = i, barrier: threading.Barrier = barrier) -> Future[int]:
                barrier.wait(10)
                return exe.submit(tasks.count, log, i)

            assert [future.result(20) for future in pool.map(submit, range(8))] == [2 * i] * 8
    assert lines(log) == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("dependent", [False, True])
def test_pickling_that_exits_is_an_error_of_the_call(
    make_executor: MakeExecutor, tmp_path: Path, dependent: bool
) -> None:
    with make_executor(cache_directory=str(tmp_path / "cache")) as exe:
        other: Any = exe.submit(tasks.add, 1) if dependent else 1
        with pytest.raises(pickle.PicklingError, match=r"sys\.exit\(3\)"):
            exe.submit(tasks.add, other, tasks.ExitsInPickling()).result(20)
        assert exe.submit(tasks.add, other, 1).result(20) == 2


def test_a_dependent_with_a_failed_input_fails(make_executor: MakeExecutor, tmp_path: Path, log: str) -> None:
    with make_executor(cache_directory=str(tmp_path / "cache")) as exe:
        failed, cancelled = exe.submit(tasks.fail, "first"), Future[int]()
        cancelled.cancel()
        with pytest.raises(ValueError, match="first"):
            exe.submit(tasks.count, log, failed).result(20)
        with pytest.raises(concurrent.futures.CancelledError):
            exe.submit(tasks.count, log, cancelled).result(20)
    assert lines(log) == []


@pytest.mark.mpi
def test_a_call_on_two_cores_is_not_that_on_one(tmp_path: Path) -> None:
    needs_mpi()
    two = {"cores": 2}
    for _ in range(2):
        with SingleNodeExecutor(max_cores=2, cache_directory=str(tmp_path)) as exe:
            assert exe.submit(tasks.add, 1).result(40) == 1
            assert exe.submit(tasks.add, 1, resource_dict=two).result(40) == [1, 1]
    assert len(list(tmp_path.glob("*_o.h5"))) == 2


def test_a_list_of_several_ranks_is_no_result_of_one_core(tmp_path: Path) -> None:
    """executorlib 1.11 has one name for a call, on however many cores."""
    output = f"{tmp_path}/{call_key(tasks.add, (1,), {}).key}_o.h5"
    dump(output, {"fn": tasks.add, "resource_dict": {"cores": 2}, "output": [1, 1]})
    with SingleNodeExecutor(max_workers=1, cache_directory=str(tmp_path)) as exe:
        assert exe.submit(tasks.add, 1).result(20) == 1
