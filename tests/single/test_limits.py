"""How much runs at a time: max_workers, max_cores, and changes of them under load."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import tasks

from conftest import Eventually, MakeExecutor
from executorlib import SingleNodeExecutor
from executorlib.standalone.hardware import usable_cpus


def inside(folder: Path) -> int:
    return sum(name.startswith("inside") for name in os.listdir(folder))


def most_at_a_time(exe: SingleNodeExecutor, folder: Path, count: int = 12, **options: Any) -> int:
    futures = [exe.submit(tasks.pass_through, folder, i, **options) for i in range(count)]
    return max(int(future.result()) for future in futures)


@pytest.mark.kinds
@pytest.mark.parametrize("limit", [1, 3])
def test_as_many_run_as_the_limit_says(
    make_executor: MakeExecutor, tmp_path: Path, limit: int, eventually: Eventually
) -> None:
    with make_executor(max_workers=limit) as exe:
        futures = [exe.submit(tasks.enter, tmp_path, i) for i in range(limit + 2)]
        eventually(lambda: inside(tmp_path) == limit, 30)
        (tmp_path / "go").touch()
        assert [future.result() for future in futures] == list(range(limit + 2))
    (tmp_path / "go").unlink()


def test_never_more_than_the_limit(make_executor: MakeExecutor, tmp_path: Path) -> None:
    with make_executor(max_workers=2) as exe:
        assert most_at_a_time(exe, tmp_path) <= 2


@pytest.mark.parametrize("limit", ["max_workers", "max_cores"])
def test_threads_count_as_cores(tmp_path: Path, limit: str) -> None:
    with SingleNodeExecutor(**{limit: 4}, resource_dict={"threads_per_core": 2}) as exe:  # type: ignore[arg-type]
        assert most_at_a_time(exe, tmp_path) <= 2
        assert most_at_a_time(exe, tmp_path, 4, resource_dict={"threads_per_core": 4}) == 1


def test_max_workers_and_max_cores_both_hold(tmp_path: Path) -> None:
    with SingleNodeExecutor(max_workers=2, max_cores=6) as exe:
        assert exe.max_workers == 2
        assert most_at_a_time(exe, tmp_path) <= 2
        assert most_at_a_time(exe, tmp_path, 4, resource_dict={"threads_per_core": 4}) == 1


def test_the_implicit_limit_is_that_of_the_machine(tmp_path: Path) -> None:
    with SingleNodeExecutor() as exe:
        assert exe.max_workers == usable_cpus()
        assert most_at_a_time(exe, tmp_path) <= usable_cpus()
    with SingleNodeExecutor(block_allocation=True) as exe:
        assert exe.max_workers == usable_cpus()


def test_a_task_larger_than_the_implicit_limit_runs_alone(tmp_path: Path) -> None:
    large = {"threads_per_core": usable_cpus() + 1}
    with SingleNodeExecutor() as exe:
        futures = []
        for i in range(4):
            futures.append(exe.submit(tasks.pass_through, tmp_path, 2 * i))
            futures.append(exe.submit(tasks.pass_through, tmp_path, 2 * i + 1, resource_dict=large))
        seen = [future.result() for future in futures]
    assert seen[1::2] == [1] * 4


def test_a_large_task_is_not_starved_by_small_ones(tmp_path: Path) -> None:
    """It stands in front of the queue and what came after it waits."""
    order = tmp_path / "order"
    with SingleNodeExecutor(max_cores=2) as exe:
        first = exe.submit(tasks.hold, tmp_path / "begun", tmp_path / "go")
        tasks.wait_for(tmp_path / "begun")
        large = exe.submit(tasks.append, order, "large", resource_dict={"threads_per_core": 2})
        small = [exe.submit(tasks.append, order, "small") for _ in range(5)]
        (tmp_path / "go").touch()
        for future in [first, large, *small]:
            future.result()
    assert order.read_text().split()[0] == "large"


@pytest.mark.parametrize("block", [False, True])
@pytest.mark.parametrize("limit", ["max_workers", "max_cores"])
@pytest.mark.parametrize("value", [0, -1])
def test_limits_are_positive(limit: str, value: int, block: bool) -> None:
    with pytest.raises(ValueError, match=limit):
        SingleNodeExecutor(**{limit: value}, block_allocation=block)  # type: ignore[arg-type]


@pytest.mark.parametrize("block", [False, True])
@pytest.mark.parametrize("value", ["2", 1.5])
def test_limits_are_integers(value: Any, block: bool) -> None:
    with pytest.raises((TypeError, ValueError)):
        SingleNodeExecutor(max_workers=value, block_allocation=block)


def test_max_workers_of_every_combination() -> None:
    for options, expected in (
        ({"max_workers": 3}, 3),
        ({"max_cores": 4}, 4),
        ({"max_cores": 4, "resource_dict": {"cores": 2}}, 2),
        ({"max_cores": 4, "max_workers": 1}, 1),
        ({"max_cores": 3, "resource_dict": {"cores": 2}, "block_allocation": True}, 1),
        ({"max_cores": 4, "resource_dict": {"threads_per_core": 2}, "block_allocation": True}, 2),
        ({"max_workers": 3, "block_allocation": True}, 3),
        ({"max_workers": 2, "max_cores": 8, "block_allocation": True}, 2),
    ):
        with SingleNodeExecutor(**options) as exe:
            assert exe.max_workers == expected, options


# Resizing


def test_another_max_workers_leaves_max_cores_as_it_was() -> None:
    with SingleNodeExecutor(max_workers=1, max_cores=2) as exe:
        exe.max_workers = 4
        assert exe.max_workers == 4
        assert exe.info is not None
        assert exe.info["max_cores"] == 2
        with pytest.raises(ValueError, match="max_cores=2"):
            exe.submit(tasks.add, 1, resource_dict={"cores": 3})


@pytest.mark.kinds
def test_growing_under_load(make_executor: MakeExecutor, tmp_path: Path, eventually: Eventually) -> None:
    with make_executor(max_workers=1) as exe:
        futures = [exe.submit(tasks.enter, tmp_path, i) for i in range(6)]
        eventually(lambda: inside(tmp_path) == 1, 30)
        exe.max_workers = 3
        assert exe.max_workers == 3
        eventually(lambda: inside(tmp_path) == 3, 30)
        (tmp_path / "go").touch()
        assert [future.result() for future in futures] == list(range(6))


@pytest.mark.kinds
def test_shrinking_under_load(make_executor: MakeExecutor, tmp_path: Path, eventually: Eventually) -> None:
    """What runs goes on; afterwards fewer run. No task is lost."""
    with make_executor(max_workers=3) as exe:
        futures = [exe.submit(tasks.enter, tmp_path, i) for i in range(3)]
        eventually(lambda: inside(tmp_path) == 3, 30)
        rest = tmp_path / "rest"
        rest.mkdir()
        exe.max_workers = 1
        waiting = [exe.submit(tasks.pass_through, rest, i) for i in range(8)]
        (tmp_path / "go").touch()
        assert [future.result() for future in futures] == [0, 1, 2]
        seen = [future.result() for future in waiting]
        assert exe.max_workers == 1
    assert seen == [1] * 8


def test_resizing_again_and_again(make_executor: MakeExecutor) -> None:
    with make_executor(max_workers=2) as exe:
        futures: list[Future[Any]] = []
        for size in (4, 1, 3, 1, 2, 5, 1):
            futures += [exe.submit(tasks.add, size, i) for i in range(10)]
            exe.max_workers = size
        assert [future.result() for future in futures] == [s + i for s in (4, 1, 3, 1, 2, 5, 1) for i in range(10)]


@pytest.mark.parametrize("value", [0, -3])
def test_resizing_to_nothing_is_refused(make_executor: MakeExecutor, value: int) -> None:
    with make_executor() as exe:
        with pytest.raises(ValueError, match="max_workers"):
            exe.max_workers = value
        assert exe.max_workers == 2
        assert exe.submit(tasks.add, 1, 1).result() == 2


def test_resizing_after_shutdown_does_no_harm(make_executor: MakeExecutor) -> None:
    exe = make_executor()
    exe.shutdown()
    with contextlib.suppress(RuntimeError):
        exe.max_workers = 3
    exe.shutdown()


def test_a_growing_block_allocation_gives_new_worker_ids(tmp_path: Path, eventually: Eventually) -> None:
    def who(folder: Path, number: int, executorlib_worker_id: int) -> int:
        tasks.enter(folder, number)
        return executorlib_worker_id

    submit: Callable[[int], Future[Any]]
    with SingleNodeExecutor(max_workers=1, block_allocation=True) as exe:
        submit = lambda i: exe.submit(who, tmp_path, i)  # noqa: E731
        futures = [submit(i) for i in range(3)]
        exe.max_workers = 3
        eventually(lambda: inside(tmp_path) == 3, 30)
        (tmp_path / "go").touch()
        assert sorted(future.result() for future in futures) == [0, 1, 2]
