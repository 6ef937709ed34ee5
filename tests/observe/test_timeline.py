"""The timeline of a run: what is kept, what is made of it, and that it costs next to nothing."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from conftest import Eventually, MakeExecutor, needs_mpi
from executorlib import SingleNodeExecutor
from executorlib.api import TestClusterExecutor
from executorlib.standalone.timeline import Attempt, Life, Run, write_timeline
from executorlib.standalone.timeline.account import functions, moments, shares
from executorlib.standalone.timeline.picture import duration, findings, headline
from executorlib.standalone.timeline.record import DIED, DONE, FAILED, TRIED_AGAIN
from executorlib.task_scheduler.observer import JobInfo
from executorlib.task_scheduler.timeline import Timeline


def nap(seconds: float, after: object = None) -> float:
    time.sleep(seconds)
    return seconds


def meet(mine: str, other: str) -> None:
    """Run at the same time as another call."""
    Path(mine).touch()
    while not os.path.exists(other):
        time.sleep(0.002)
    time.sleep(0.05)


def rest(note: str) -> None:
    Path(note).touch()
    time.sleep(50)


def die_once(note: str) -> None:
    if not os.path.exists(note):
        Path(note).touch()
        os.kill(os.getpid(), signal.SIGKILL)


def events(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The events of a trace by their category, or the kind of event."""
    document = json.loads(path.read_text())
    found: dict[str, list[dict[str, Any]]] = {}
    for event in document["traceEvents"]:
        found.setdefault(event.get("cat", event["ph"]), []).append(event)
    return found


def test_a_trace_tells_which_worker_did_what_when(make_executor: MakeExecutor, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    start = time.monotonic()
    with make_executor(export_timeline_filename=str(path), restart_limit=1) as exe:
        one, two = str(tmp_path / "one"), str(tmp_path / "two")
        first = [exe.submit(meet, one, two), exe.submit(meet, two, one), *(exe.submit(nap, 0.05) for _ in range(2))]
        exe.submit(nap, 0.02, after=first)
        exe.submit(die_once, str(tmp_path / "note"))
        failed = exe.submit(divmod, 1, 0)
        exe.submit(nap, 0.0, after=failed)
    seconds = time.monotonic() - start
    found = events(path)
    tasks = found["task"]
    assert sorted((task["name"], task["args"]["outcome"]) for task in tasks) == [
        ("die_once", "done"),
        ("die_once", "worker died, tried again"),
        ("divmod", "failed"),
        *[("meet", "done")] * 2,
        *[("nap", "done")] * 3,
    ]
    calls = sorted((task for task in tasks if task["name"] in ("meet", "nap")), key=lambda task: float(task["ts"]))
    assert all(50e3 <= task["dur"] < 1e6 * seconds for task in calls[:4])
    assert calls[4]["ts"] >= max(task["ts"] + task["dur"] for task in calls[:4]), "it needs the others"
    assert calls[4]["args"]["waited for inputs (s)"] > 0.05
    assert min(task["ts"] for task in tasks) >= 0
    assert max(task["ts"] + task["dur"] for task in tasks) < 1e6 * seconds
    assert {task["tid"] for task in tasks} == {0, 1}
    assert {event["name"] for event in found["C"]} == {"cores", "calls that wait"}
    assert max(event["args"]["calls run"] for event in found["C"] if event["name"] == "cores") == 2
    assert {event["args"]["name"] for event in found["M"]} == {"workers", "worker 0", "worker 1"}
    for task in tasks:  # Perfetto draws only what lies inside
        around = [
            life
            for life in found["process"]
            if life["tid"] == task["tid"] and life["ts"] <= task["ts"] <= life["ts"] + life["dur"]
        ]
        assert len(around) == 1
        assert task["ts"] + task["dur"] <= around[0]["ts"] + around[0]["dur"] + 0.01  # they are rounded to 1 ns


def test_a_map_and_a_change_of_size(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    with SingleNodeExecutor(max_workers=1, block_allocation=True, export_timeline_filename=str(path)) as exe:
        assert sum(exe.map(int, range(300))) == 44850
        exe.max_workers = 3
        exe.submit(nap, 0.01).result()
    found = events(path)
    assert len(found["task"]) == 301
    sums = {sum(event["args"].values()) for event in found["C"] if event["name"] == "cores"}
    assert sums == {1, 3}


@pytest.mark.mpi
def test_ranks_are_one_call_on_several_cores(tmp_path: Path) -> None:
    needs_mpi()
    path = tmp_path / "run.json"
    with SingleNodeExecutor(max_cores=2, export_timeline_filename=str(path)) as exe:
        exe.submit(nap, 0.01, resource_dict={"cores": 2}).result()
    (task,) = events(path)["task"]
    assert (task["args"]["cores"], task["args"]["outcome"]) == (2, "done")


def test_jobs_that_work_through_files(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    cache = str(tmp_path / "cache")
    for _ in range(2):
        with TestClusterExecutor(cache_directory=cache, export_timeline_filename=str(path)) as exe:
            first = [exe.submit(nap, 0.01 * number) for number in range(3)]
            exe.submit(nap, 0.5, after=first[1])
            exe.submit(nap, 0.01)  # the same call again
        if _ == 0:
            found = events(path)
    assert len(found["task"]) == len(found["process"]) == 4
    assert {task["name"] for task in found["task"]} == {"nap"}
    assert max(task["dur"] for task in found["task"]) >= 0.5e6
    assert "task" not in events(path), "all results were found"


@pytest.mark.parametrize("ending", ["svg", "html"])
def test_pictures(make_executor: MakeExecutor, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"run.{ending}"
    with make_executor(export_timeline_filename=str(path)) as exe:
        exe.submit(nap, 0.05, after=exe.submit(nap, 0.01))
        exe.submit(lambda x: x / 0, "<&>")
    text = path.read_text()
    assert "3 calls in " in text
    assert "1 failed" in text
    assert "&lt;lambda&gt;" in text
    svg = text[text.index("<svg") : text.index("</svg>") + 6]
    titles = [element.text for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("title")]
    assert sum("nap, " in str(title) for title in titles) == 2
    assert os.stat(path).st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_file_that_cannot_be_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.json, \.svg, \.html, not as 'run\.png'"):
        SingleNodeExecutor(export_timeline_filename="run.png")
    with pytest.raises(FileNotFoundError, match="no directory"):
        TestClusterExecutor(cache_directory=str(tmp_path), export_timeline_filename=str(tmp_path / "no" / "run.svg"))


def test_a_file_that_cannot_be_written_costs_no_result(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with (
        caplog.at_level(logging.ERROR),
        SingleNodeExecutor(max_workers=1, export_timeline_filename=str(folder / "run.svg")) as exe,
    ):
        future = exe.submit(nap, 0.01)
        (folder / "run.svg").mkdir()
    assert future.result() == 0.01
    assert "run.svg cannot be written" in caplog.text


def test_what_never_ran_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "run.html"
    with SingleNodeExecutor(max_workers=1, export_timeline_filename=str(path)) as exe:
        first = exe.submit(meet, str(tmp_path / "begun"), str(tmp_path / "go"))
        others = [exe.submit(nap, 1.0) for _ in range(3)]
        assert all(future.cancel() for future in others)
        (tmp_path / "go").touch()
        first.result()
    assert "3 not run" in path.read_text()


def test_cancelled_running_calls_and_a_hasty_end(tmp_path: Path, eventually: Eventually) -> None:
    path = tmp_path / "run.json"
    with SingleNodeExecutor(max_workers=2, block_allocation=True, export_timeline_filename=str(path)) as exe:
        notes = [tmp_path / str(number) for number in range(2)]
        futures = [exe.submit(rest, str(note)) for note in notes]
        eventually(lambda: all(note.exists() for note in notes))
        exe.cancel(futures[0])
        exe.terminate_workers()
    assert {task["args"]["outcome"] for task in events(path)["task"]} == {"worker died"}


# What is made of a run


@pytest.fixture
def run() -> Run:
    """Two cores for 10 s: a call of 4 s on one, a call of 2 s on both that needs it, and one that fails."""
    return Run(
        began=0.0,
        seconds=10.0,
        keep=False,
        capacity=[(0.0, 2)],
        attempts=[
            Attempt("a", 0, 1, 1, 0.0, 0.0, 1.0, 5.0, DONE),
            Attempt("b", 0, 2, 2, 0.0, 5.0, 6.0, 8.0, DONE),
            Attempt("c", 1, 3, 1, 0.0, 0.0, 0.0, 1.0, FAILED),
        ],
        lives=[Life(1, 0, 11, "here", 0.5, 5.0), Life(2, 0, 12, "here", 5.5, 8.5), Life(3, 1, 13, "here", 0.0, 1.0)],
    )


def test_where_the_time_of_the_cores_has_gone(run: Run) -> None:
    found = shares(run)
    assert found == {
        "running": 4.0 + 4.0 + 1.0,
        "process": 0.5 + 2 * 0.5 + 2 * 0.5,
        "waiting": 0.5 + 2 * 0.5,
        "inputs": 4.0,
        "empty": 2 * 1.5,
    }
    assert sum(found.values()) == 20.0
    assert [moment.ready for moment in moments(run) if moment.time == 0.5] == [1]
    assert [moment.blocked for moment in moments(run) if moment.time == 1.0] == [1]


def test_in_words(run: Run) -> None:
    assert headline(run) == "3 calls in 10 s, 3 processes, 1 failed"
    assert findings(run) == ["cores busy 45%", "calls wait for the results of others"]
    first, second, third = functions(run)
    assert (first.name, first.calls, first.total, first.queued) == ("a", 1, 4.0, 1.0)
    assert (second.name, third.failed) == ("b", 1)
    run.attempts.append(Attempt("a", 0, 1, 1, 0.0, 0.0, 1.0, 9.0, TRIED_AGAIN))
    run.attempts.append(Attempt("a", 0, 1, 1, 0.0, 0.0, 1.0, 9.0, DIED))
    assert headline(run) == "4 calls in 10 s, 3 processes, 2 failed, 1 restart"
    assert functions(run)[0].restarts == 1
    assert findings(run)[-1] == "one call of a took 8 s, 80% of the run"


def test_durations_as_one_says_them() -> None:
    assert [duration(seconds) for seconds in (0.0, 2e-5, 0.0123, 1.5, 90, 200, 7300)] == [
        "under 1 µs",
        "20 µs",
        "12.3 ms",
        "1.5 s",
        "90 s",
        "3 min 20 s",
        "2 h 1 min",
    ]


@pytest.mark.parametrize("ending", [".json", ".svg", ".html"])
def test_a_run_without_calls(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"run{ending}"
    with SingleNodeExecutor(export_timeline_filename=str(path)):
        pass
    assert path.stat().st_size > 100


def test_a_hundred_thousand_calls_are_drawn_in_few_shapes(tmp_path: Path) -> None:
    attempts = [Attempt("f", at % 4, at % 4, 1, 0.0, 0.0, at * 1e-4, at * 1e-4 + 3.9e-4, DONE) for at in range(100_000)]
    run = Run(0.0, 10.0, True, [(0.0, 4)], attempts, [])
    start = time.monotonic()
    write_timeline(run, str(tmp_path / "run.svg"))
    assert time.monotonic() - start < 20.0
    assert (tmp_path / "run.svg").stat().st_size < 500_000
    assert re.search(r"\d+ \N{MULTIPLICATION SIGN} f, 390 µs each", (tmp_path / "run.svg").read_text())


def test_the_clock_of_another_host(tmp_path: Path) -> None:
    timeline = Timeline(str(tmp_path / "run.json"), keep=True)
    worker = JobInfo(1, 0, 17, "elsewhere")
    timeline.worker_started(worker)
    timeline.submitted(1, "f", 1)
    timeline.submitted(2, "f", 1)
    ahead = 1e6  # that host has been up for longer
    for task in (1, 2):
        timeline.ran(task, worker, time.monotonic() + ahead - 0.25, 0.25, True)
        time.sleep(0.05)
    timeline.worker_gone(worker)
    first, second = timeline.run().attempts
    assert 0.0 <= first.start < 5.0
    assert first.seconds <= 0.25 + 1e-6
    assert 0.04 < second.end - first.end < 5.0


def test_an_executor_without_a_timeline_keeps_nothing() -> None:
    with SingleNodeExecutor(max_workers=1) as exe:
        assert exe._task_scheduler._dispatcher._observer is None  # type: ignore[union-attr]
