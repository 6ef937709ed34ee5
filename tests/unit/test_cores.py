"""The cores that an agent gives to its workers."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from executorlib.backend.cores import Cores

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="agents run on Linux")


@pytest.fixture(autouse=True)
def _job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", f"test-{os.getpid()}")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})


@pytest.fixture
def make_cores() -> Iterator[Callable[[], Cores]]:
    from executorlib.backend.cores import Cores

    made: list[Cores] = []

    def make() -> Cores:
        made.append(Cores(4))
        return made[-1]

    yield make
    for cores in made:
        cores.close()


def test_the_last_cores_first_and_each_for_one(make_cores: Callable[[], Cores]) -> None:
    cores = make_cores()
    assert [cores.take(1, 1), cores.take(2, 2), cores.take(3, 1)] == [[3], [2, 1], [0]]
    cores.give_back(2)
    assert cores.take(4, 1) == [2]


def test_two_executors_of_one_job_use_different_cores(make_cores: Callable[[], Cores]) -> None:
    first, second = make_cores(), make_cores()
    assert [first.take(1, 1), second.take(1, 1), first.take(2, 1)] == [[3], [2], [1]]
    first.give_back(1)
    assert second.take(2, 1) == [3]


def test_more_workers_than_cores_share_them(make_cores: Callable[[], Cores]) -> None:
    first, second = make_cores(), make_cores()
    assert first.take(1, 4) == [3, 2, 1, 0]
    assert second.take(1, 2) == [3, 2]
    assert second.take(2, 1) == [1]
