"""What the tests of the file scheduler stand on: a test module takes its fixtures from here."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from executorlib.executor.single import TestClusterExecutor

Files = Callable[[], list[str]]


class MakeCluster(Protocol):
    def __call__(self, **options: Any) -> TestClusterExecutor: ...


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """The cache directory."""
    return tmp_path / "cache"


@pytest.fixture
def make_cluster(cache: Path) -> Iterator[MakeCluster]:
    """Makes executors on one cache directory; what the test has not shut down then is ended."""
    made: list[TestClusterExecutor] = []

    def make(**options: Any) -> TestClusterExecutor:
        made.append(TestClusterExecutor(**{"cache_directory": str(cache), **options}))
        return made[-1]

    yield make
    while made:
        made.pop().kill_workers()


@pytest.fixture
def files(cache: Path) -> Files:
    """Names what lies in the cache directory."""

    def listed() -> list[str]:
        return sorted(name for name in os.listdir(cache) if name != ".executorlib-moved")

    return listed


FIXTURES = cache, make_cluster, files
