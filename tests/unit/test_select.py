"""Parts of futures, and groups of them."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError, Future, wait
from concurrent.futures import TimeoutError as NotDoneError
from typing import Any

import pytest

from executorlib.standalone.select import FutureSelector, batch_futures, get_item_from_future, split_future


def done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


def test_an_item_by_index_and_by_key() -> None:
    assert FutureSelector(done([1, 2, 3]), 1).result() == 2
    assert FutureSelector(future=done({"a": 5}), selector="a").result() == 5
    assert get_item_from_future(future=done({"a": 5}), key="a").result() == 5
    assert [part.result() for part in split_future(future=done("xyz"), n=3)] == ["x", "y", "z"]


def test_it_is_a_future() -> None:
    whole: Future[Any] = Future()
    part = split_future(whole, 1)[0]
    called: list[Any] = []
    part.add_done_callback(called.append)
    assert isinstance(part, Future)
    assert not part.done()
    with pytest.raises(NotDoneError):
        part.result(timeout=0.01)
    with pytest.raises(NotDoneError):
        part.exception(timeout=0.01)
    threading.Timer(0.05, whole.set_result, [[7]]).start()
    assert part.result(timeout=20) == 7
    assert part.exception() is None
    assert called == [part]
    assert wait([part], timeout=1).done == {part}


def test_running_follows_the_whole() -> None:
    whole: Future[Any] = Future()
    part = FutureSelector(whole, 0)
    assert not part.running()
    whole.set_running_or_notify_cancel()
    assert part.running()
    assert not part.cancel()
    whole.set_result([1])
    assert not part.running()
    assert part.done()


@pytest.mark.parametrize(
    ("value", "selector", "error"),
    [([1], 5, IndexError), ({"a": 1}, "b", KeyError), (5, 0, TypeError), (None, "a", TypeError)],
)
def test_a_part_that_does_not_exist(value: Any, selector: Any, error: type[Exception]) -> None:
    part = FutureSelector(done(value), selector)
    assert isinstance(part.exception(), error)
    with pytest.raises(error):
        part.result()


def test_a_failed_whole_fails_its_parts_with_the_same_exception() -> None:
    whole: Future[Any] = Future()
    parts = split_future(whole, 2)
    error = ValueError("whole")
    whole.set_exception(error)
    assert [part.exception() for part in parts] == [error, error]


def test_a_cancelled_whole_cancels_its_parts_and_the_other_way_round() -> None:
    for cancel_part in (False, True):
        whole: Future[Any] = Future()
        parts = split_future(whole, 2)
        assert (parts[0] if cancel_part else whole).cancel()
        assert whole.cancelled()
        for part in parts:
            assert part.cancelled()
            assert part.done()
            with pytest.raises(CancelledError):
                part.result(timeout=1)
        assert wait(parts, timeout=1).not_done == set()


def test_no_item_of_a_negative_or_zero_count() -> None:
    assert split_future(done([1]), 0) == []


def test_parts_of_parts() -> None:
    whole: Future[Any] = Future()
    part = get_item_from_future(split_future(whole, 1)[0], "a")
    whole.set_result([{"a": "deep"}])
    assert part.result(timeout=1) == "deep"


# Groups


def test_groups_in_the_order_of_completion() -> None:
    futures: list[Future[int]] = [Future() for _ in range(5)]
    groups = batch_futures(futures, 2)
    assert len(groups) == 3
    for i in (3, 1, 4, 0, 2):
        futures[i].set_result(i)
    assert [group.result(timeout=1) for group in groups] == [[1, 3], [0, 4], [2]]


def test_groups_of_futures_that_are_done() -> None:
    groups = batch_futures([done(i) for i in range(4)], 4)
    assert [group.result(timeout=1) for group in groups] == [[0, 1, 2, 3]]
    assert batch_futures([], 3) == []
    assert [g.result() for g in batch_futures([done(1)], 10)] == [[1]]


@pytest.mark.parametrize("n", [0, -1])
def test_groups_of_nothing(n: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        batch_futures([done(1)], n)


def test_a_failed_or_cancelled_member_fails_its_group_only() -> None:
    futures: list[Future[int]] = [Future() for _ in range(4)]
    groups = batch_futures(futures, 2)
    futures[0].set_exception(ValueError("member"))
    futures[1].set_result(1)
    futures[2].set_result(2)
    futures[3].cancel()
    with pytest.raises(ValueError, match="member"):
        groups[0].result(timeout=1)
    with pytest.raises(CancelledError):
        groups[1].result(timeout=1)


def test_a_cancelled_group_does_no_harm() -> None:
    futures: list[Future[int]] = [Future() for _ in range(2)]
    (group,) = batch_futures(futures, 2)
    assert group.cancel()
    for future in futures:
        future.set_result(1)
    assert group.cancelled()


def test_futures_that_end_in_many_threads() -> None:
    futures: list[Future[int]] = [Future() for _ in range(400)]
    groups = batch_futures(futures, 7)
    start = threading.Barrier(4)

    def finish(part: int) -> None:
        start.wait()
        for i in range(part, 400, 4):
            futures[i].set_result(i)

    threads = [threading.Thread(target=finish, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(i for group in groups for i in group.result(timeout=5)) == list(range(400))
    assert all(len(group.result()) == 7 for group in groups[:-1])
