"""The state and the end of jobs in a queueing system, which an object in the place of pysqa stands in for."""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path
from typing import Any

import file_tasks
import pytest

from executorlib import get_cache_data_queue, terminate_task_in_cache, terminate_tasks_in_cache
from executorlib.standalone.cache_paths import CachePaths
from executorlib.standalone.hdf import dump


class QueueAdapter:
    """Answers as pysqa does."""

    jobs: dict[int, str]
    deleted: list[int]
    questions: int

    def __init__(self, directory: str | None = None, queue_type: str | None = None) -> None:
        if directory is None and queue_type is None:
            raise ValueError("QueueAdapter requires either a 'directory' or a 'queue_type' to be specified.")

    def get_status_of_jobs(self, process_id_lst: list[int]) -> list[str]:
        QueueAdapter.questions += 1
        return [self.jobs.get(number, "finished") for number in process_id_lst]

    def get_status_of_job(self, process_id: int) -> str | None:
        return self.jobs.get(process_id)

    def delete_job(self, process_id: int) -> str:
        self.deleted.append(process_id)
        return ""


@pytest.fixture(autouse=True)
def queue(monkeypatch: pytest.MonkeyPatch) -> type[QueueAdapter]:
    QueueAdapter.jobs, QueueAdapter.deleted, QueueAdapter.questions = {1: "running", 2: "pending"}, [], 0
    module = types.ModuleType("pysqa")
    module.QueueAdapter = QueueAdapter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pysqa", module)
    return QueueAdapter


@pytest.fixture
def cache(tmp_path: Path) -> str:
    call: dict[str, Any] = {"fn": file_tasks.add, "args": [1], "kwargs": {}}
    for name, number in (("runs", 1), ("waits", 2), ("gone", 3)):
        dump(CachePaths.of(tmp_path, name).input, {**call, "queue_id": number})
    dump(CachePaths.of(tmp_path, "local").input, call)
    dump(CachePaths.of(tmp_path, "ended").output, {**call, "output": 1, "queue_id": 1})
    dump(CachePaths.of(tmp_path, "failed").output, {**call, "error": ValueError()})
    return str(tmp_path)


def test_the_state_of_each_job_is_told(cache: str, queue: type[QueueAdapter]) -> None:
    entries = get_cache_data_queue(cache, queue_type="slurm")
    assert {Path(entry["filename"]).stem: entry["status"] for entry in entries} == {
        "runs_i": "running",
        "waits_i": "pending",
        "gone_i": "aborted",
        "local_i": "aborted",
        "ended_o": "finished",
        "failed_o": "finished",
    }
    assert queue.questions == 1, "one for all"
    assert get_cache_data_queue(os.path.join(cache, "missing"), config_directory="x") == []
    with pytest.raises(ValueError, match="queue_type"):
        get_cache_data_queue(cache)


def test_jobs_are_ended(cache: str, queue: type[QueueAdapter]) -> None:
    with pytest.raises(ValueError, match="queue_type"):
        terminate_task_in_cache(cache, "runs")
    terminate_task_in_cache(cache, "runs", backend="slurm")
    terminate_task_in_cache(cache, "local")
    assert queue.deleted == [1]
    assert not {"runs_i.h5", "local_i.h5"} & set(os.listdir(cache))
    terminate_tasks_in_cache(cache, pysqa_config_directory="x")
    assert queue.deleted == [1, 2]
    assert sorted(os.listdir(cache)) == ["ended_o.h5", "failed_o.h5"]
    with pytest.raises(FileNotFoundError):
        terminate_task_in_cache(cache, "ended")
