"""``executorlib cache``: the tasks that runs have left behind."""

from __future__ import annotations

import json
import os
import pickle
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import Eventually
from executorlib.api import TestClusterExecutor
from executorlib.cli import main
from executorlib.standalone import cache_queue
from executorlib.standalone.cache_paths import CachePaths
from executorlib.standalone.hdf import dump, get_cache_data

Run = Callable[..., Any]

MODULE = """
import os, sys, time

def needs_a_file(path):
    print("looking for", path)
    if not os.path.exists(path):
        raise ValueError(f"no file {path}")
    return 40

def add(a, b):
    return a + b

def rest(seconds):
    time.sleep(seconds)
"""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A user's module."""
    (tmp_path / "users_work.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield __import__("users_work")
    del sys.modules["users_work"]


@pytest.fixture
def flag(tmp_path: Path) -> Path:
    """The file whose absence makes tasks fail."""
    return tmp_path / "flag"


@pytest.fixture
def cache(tmp_path: Path, work: Any, flag: Path) -> str:
    """A directory with a task in every state that needs no queueing system."""
    directory = tmp_path / "cache"
    with TestClusterExecutor(cache_directory=str(directory)) as exe:
        first = exe.submit(work.needs_a_file, str(flag), resource_dict={"cache_key": "sub/first"})
        second = exe.submit(work.add, first, 2, resource_dict={"cache_key": "second", "cores": 1})
        exe.submit(lambda x: x, 5, resource_dict={"cache_key": "fine"})
        assert isinstance(second.exception(), ValueError)
    dump(str(directory / "left_i.h5"), {"fn": work.add, "args": [1], "kwargs": {"b": 4}})
    (directory / "damaged_o.h5").write_text("nonsense")
    return str(directory)


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs the command without a queueing system; returns what --json prints."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)  # where pysqa leaves a note of a command that has failed

    def command(action: str, *arguments: str, status: int = 0) -> Any:
        assert main(["cache", action, *arguments, "--json"]) == status
        out = capfd.readouterr().out
        return json.loads(out) if out else None

    return command


def states(run: Run, cache: str) -> dict[str, str]:
    return {task["key"]: task["state"] for task in run("list", cache)}


def test_list_tells_of_every_task(run: Run, cache: str) -> None:
    tasks = {task["key"]: task for task in run("list", cache)}
    assert {key: (task["function"], task["state"]) for key, task in tasks.items()} == {
        "damaged": ("", "unreadable"),
        "fine": ("<lambda>", "done"),
        "left": ("users_work.add", "waiting"),
        "second": ("users_work.add", "failed"),
        "sub/first": ("users_work.needs_a_file", "failed"),
    }
    assert tasks["sub/first"]["error"].startswith("ValueError: no file ")
    assert 0.0 <= tasks["fine"]["runtime"] < 5.0
    assert tasks["fine"]["size"] == os.path.getsize(tasks["fine"]["file"])
    assert [task["key"] for task in run("list", cache, "--state", "done", "--state", "waiting")] == ["fine", "left"]


def test_list_imports_no_module_of_the_user(run: Run, cache: str) -> None:
    del sys.modules["users_work"]
    run("list", cache)
    found = "users_work" in sys.modules
    sys.modules.setdefault("users_work", sys)  # what the fixture takes out
    assert not found


def test_list_for_people(capfd: pytest.CaptureFixture[str], run: Run, cache: str) -> None:
    assert main(["cache", "list", cache]) == 0
    head, *rows, total = capfd.readouterr().out.splitlines()
    assert head.split("  ")[0] == "KEY"
    assert len(rows) == 5
    assert total.startswith("5 tasks: 1 done, 2 failed, 1 waiting, 1 unreadable; ")
    assert main(["cache", "show", cache, "sub/first", "left"]) == 0
    shown = capfd.readouterr().out
    assert "printed: looking for " in shown
    assert "raise ValueError(f" in shown, "the line of the worker's traceback"
    assert "keyword_arguments: {'b': 4}" in shown


def test_resubmit_runs_what_failed_and_what_that_needs(run: Run, cache: str, flag: Path) -> None:
    again = run("resubmit", cache, "second", status=1)
    assert [(task["key"], task["state"]) for task in again] == [("sub/first", "failed"), ("second", "failed")]
    flag.touch()
    again = run("resubmit", cache)
    assert {task["key"]: task["state"] for task in again} == {"left": "done", "second": "done", "sub/first": "done"}
    assert states(run, cache)["damaged"] == "unreadable"
    os.unlink(os.path.join(cache, "damaged_o.h5"))
    values = {os.path.basename(entry["filename"]): entry["output"] for entry in get_cache_data(cache)}
    assert values == {"first_o.h5": 40, "second_o.h5": 42, "fine_o.h5": 5, "left_o.h5": 5}


def test_resubmit_leaves_the_rest_alone(run: Run, cache: str, flag: Path) -> None:
    assert run("resubmit", cache, "fine", status=1) == []
    assert run("resubmit", cache, "nothing", status=1) is None
    assert states(run, cache)["fine"] == "done"


def test_what_is_needed_and_not_there(run: Run, cache: str, flag: Path, capfd: pytest.CaptureFixture[str]) -> None:
    os.unlink(os.path.join(cache, "sub", "first_o.h5"))
    assert main(["cache", "resubmit", cache, "second"]) == 1
    assert "which is not there" in capfd.readouterr().err
    assert states(run, cache)["second"] == "failed", "the record is kept"


def test_a_running_task_is_seen_and_ended(run: Run, cache: str, work: Any, eventually: Eventually) -> None:
    with TestClusterExecutor(cache_directory=cache) as exe:
        future = exe.submit(work.rest, 50, resource_dict={"cache_key": "long"})
        eventually(lambda: states(run, cache).get("long") == "running")
        assert run("clean", cache, "long", status=1) == []
        assert run("terminate", cache, "long") == ["long"]
        assert future.exception(timeout=20) is not None
    assert "long" not in states(run, cache)
    assert run("terminate", cache, "long", status=1) is None
    assert run("terminate", cache, status=2) is None
    assert run("terminate", cache, "--all") == ["left"]


def test_clean_removes_what_is_of_no_use(run: Run, cache: str) -> None:
    assert run("clean", cache, "--dry-run") == ["damaged", "second", "sub/first"]
    assert run("clean", cache, "--older-than", "1") == []
    assert run("clean", cache) == ["damaged", "second", "sub/first"]
    assert states(run, cache) == {"fine": "done", "left": "waiting"}
    assert os.listdir(os.path.join(cache, "sub")) == [], "the log too"
    assert run("clean", cache, "--done") == ["fine"]


def test_clean_leaves_what_may_be_whole(
    run: Run, cache: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Results of executorlib 1.11 where h5py is missing, and files of others."""
    h5py, numpy = pytest.importorskip("h5py"), pytest.importorskip("numpy")
    with h5py.File(os.path.join(cache, "old_o.h5"), "w") as file:
        file.create_dataset("output", data=numpy.frombuffer(pickle.dumps(1), dtype=numpy.uint8))
    os.chmod(os.path.join(cache, "fine_o.h5"), 0o666)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert {key for key, state in states(run, cache).items() if state == "unreadable"} == {"damaged", "fine", "old"}
    assert main(["cache", "clean", cache, "--json"]) == 0
    said = capfd.readouterr()
    assert json.loads(said.out) == ["damaged", "second", "sub/first"]
    assert "old: is not damaged, but cannot be read here: " in said.err
    assert run("clean", cache, "old") == ["old"], "it is named"


def test_a_directory_that_is_not_there(run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("list", str(tmp_path / "missing"), status=1) is None
    assert main(["cache", "list", str(tmp_path), "--state", "nonsense"]) == 2


def test_jobs_of_a_queueing_system_that_does_not_answer(
    run: Run, cache: str, work: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    dump(os.path.join(cache, "queued_i.h5"), {"fn": work.add, "args": [1, 2], "kwargs": {}, "queue_id": 17})
    (task,) = run("list", cache, "--state", "submitted")
    assert (task["key"], task["queue_id"]) == ("queued", 17)
    pytest.importorskip("pysqa", reason="asks the queueing system")
    assert main(["cache", "list", cache, "--backend", "slurm"]) == 0
    assert "slurm does not answer" in capfd.readouterr().err
    assert main(["cache", "terminate", cache, "queued", "--backend", "slurm"]) == 1
    assert "job 17 cannot be ended" in capfd.readouterr().err
    assert states(run, cache)["queued"] == "submitted"


def test_a_batch_job_is_known_by_the_number_beside_its_files(run: Run, cache: str) -> None:
    """It is in the hands of a queueing system: it does not wait for anybody, and is not run a second time."""
    paths = CachePaths.of(cache, "left")
    cache_queue.note(paths, "17_3")
    (task,) = run("list", cache, "--state", "submitted")
    assert (task["key"], task["queue_id"]) == ("left", "17_3")
    assert run("resubmit", cache, "left", "--local", status=1) == []
    assert cache_queue.number_of(paths) == "17_3"


def test_a_look_leaves_the_notes_of_other_machines(run: Run, cache: str) -> None:
    paths = CachePaths.of(cache, "left")
    os.symlink("0123456789ab-4711-99-serial", paths.claim)
    run("list", cache)
    run("show", cache, "left")
    assert os.path.lexists(paths.claim)


def test_two_thousand_tasks_are_listed_in_seconds(run: Run, tmp_path: Path, work: Any) -> None:
    directory = tmp_path / "many"
    directory.mkdir()
    dump(str(directory / "0_o.h5"), {"fn": work.add, "args": [1, 2], "kwargs": {}, "output": 3, "runtime": 0.1})
    for number in range(1, 2000):
        os.link(directory / "0_o.h5", directory / f"{number}_o.h5")
    start = time.monotonic()
    assert len(run("list", str(directory))) == 2000
    assert time.monotonic() - start < 5.0
