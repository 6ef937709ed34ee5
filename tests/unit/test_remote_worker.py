"""A worker elsewhere, as the dispatcher sees it: which tasks come back to it."""

from __future__ import annotations

from typing import Any, cast

from executorlib.standalone.resources import Resources
from executorlib.task_scheduler.interactive.pool import Allotment
from executorlib.task_scheduler.interactive.worker import Worker


class _Task:
    estimate = 0.0

    def __init__(self, number: int) -> None:
        self.number = number


def make(count: int) -> Worker:
    worker = Worker(1, 0, Resources(), Allotment(1))
    worker.sent = 0
    send(worker, count)
    return worker


def send(worker: Worker, count: int) -> None:
    assert worker.sent is not None
    worker.queue.extend(cast(Any, _Task(worker.sent + 1 + i)) for i in range(count))
    worker.sent += count


def numbers(tasks: Any) -> list[int]:
    return [task.number for task in tasks]


def test_those_that_have_not_begun_come_back() -> None:
    worker = make(5)
    assert numbers(worker.returned(2)) == [3, 4, 5]
    assert numbers(worker.queue) == [1, 2]


def test_results_that_came_meanwhile_do_not_matter() -> None:
    worker = make(5)
    worker.queue.popleft()
    assert numbers(worker.returned(2)) == [3, 4, 5]
    assert numbers(worker.queue) == [2]


def test_what_came_back_before_does_not_come_back_again() -> None:
    """The worker is still at its first task when others are sent and taken back for a second time."""
    worker = make(5)
    assert numbers(worker.returned(1)) == [2, 3, 4, 5]
    send(worker, 2)
    assert numbers(worker.returned(1)) == [6, 7]
    assert numbers(worker.queue) == [1]
    assert worker.returned(1) == []


def test_an_agent_that_could_take_nothing_back_is_asked_again() -> None:
    """The worker was stopped while it held the lock: the answer is then that all have begun."""
    worker = make(5)
    assert worker.returned(5) == []
    assert numbers(worker.returned(1)) == [2, 3, 4, 5]


def test_at_its_end_it_is_known_what_it_had_begun() -> None:
    worker = make(4)
    worker.begun = 1
    assert numbers(worker.take_back()) == [2, 3, 4]
    assert numbers(worker.queue) == [1]
