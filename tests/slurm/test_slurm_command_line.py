"""The command line on a real Slurm: what `doctor` finds, and what `cache` does with tasks that batch jobs have left."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from slurm_fixtures import FIXTURES

from conftest import Eventually
from executorlib import SlurmClusterExecutor, SlurmJobExecutor
from executorlib.cli import main

slurm_conf, in_slurm, shared_allocation, allocation, make_job, steps = FIXTURES
pytestmark = [pytest.mark.slurm, pytest.mark.xdist_group("slurm"), pytest.mark.timeout(90)]
pytest.importorskip("pysqa")

Run = Callable[..., Any]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command; returns what --json prints."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str, status: int = 0) -> Any:
        assert main([*arguments, "--json"]) == status, capfd.readouterr()
        return json.loads(capfd.readouterr().out)

    return command


def test_doctor_outside_of_an_allocation(in_slurm: None, run: Run) -> None:
    checks = run("doctor", "slurm", "pysqa")["checks"]
    assert "outside of an allocation" in checks["slurm"]["said"]
    assert "slurm tells it of" in checks["pysqa"]["said"]


@pytest.fixture
def until(tmp_path: Path) -> Iterator[str]:
    """A file that jobs wait for. They end with the test, whatever became of it: others need their cores."""
    path = tmp_path / "until"
    yield str(path)
    path.touch()


def test_tasks_of_batch_jobs(in_slurm: None, run: Run, tmp_path: Path, until: str, eventually: Eventually) -> None:
    cache = str(tmp_path / "cache")
    exe = SlurmClusterExecutor(cache_directory=cache, wait=False)
    exe.submit(hold, until, resource_dict={"cache_key": "held"})
    exe.submit(needs, until, resource_dict={"cache_key": "again"})
    eventually(lambda: os.path.isdir(cache))
    eventually(lambda: _states(run, cache).get("held") == "running", 60)
    eventually(lambda: _states(run, cache).get("again") == "failed", 60)
    exe.shutdown(wait=False)
    assert run("cache", "terminate", cache, "held") == ["held"]
    assert "held" not in _states(run, cache)
    Path(until).touch()
    run("cache", "resubmit", cache, "again", "--backend", "slurm")
    eventually(lambda: _states(run, cache).get("again") == "done", 60)


def _states(run: Run, cache: str) -> dict[str, str]:
    return {task["key"]: task["state"] for task in run("cache", "list", cache)}


def hold(until: str) -> None:
    import time

    while not os.path.exists(until):
        time.sleep(0.05)


def needs(path: str) -> bool:
    if not os.path.exists(path):
        raise FileNotFoundError(path)
    return True


# From here on an allocation is held, which leaves too little memory for batch jobs.


def test_doctor_in_an_allocation(allocation: Any, run: Run) -> None:
    found = run("doctor", "slurm")["checks"]["slurm"]
    assert f"in allocation {allocation.job}" in found["said"]
    assert found["details"]["job"] == allocation.job


def test_a_timeline_of_job_steps(make_job: Callable[..., SlurmJobExecutor], tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    with make_job(max_workers=2, block_allocation=True, export_timeline_filename=str(path)) as exe:
        assert sum(exe.map(int, range(20))) == 190
    events = json.loads(path.read_text())["traceEvents"]
    assert sum(event.get("cat") == "task" for event in events) == 20
