"""Cancelling calls at every stage."""

from __future__ import annotations

from concurrent.futures import CancelledError, Future, as_completed, wait
from pathlib import Path
from typing import Any

import pytest
import tasks

from conftest import MakeExecutor
from executorlib import SingleNodeExecutor

pytestmark = pytest.mark.faults


@pytest.mark.kinds
def test_pending_running_done(make_executor: MakeExecutor, tmp_path: Path) -> None:
    with make_executor(max_workers=1) as exe:
        done = exe.submit(tasks.note_number, tmp_path, 0)
        assert done.result() == 0
        assert not done.cancel()
        running = exe.submit(tasks.hold, tmp_path / "begun", tmp_path / "go", "held")
        pending = [exe.submit(tasks.note_number, tmp_path, i) for i in range(1, 5)]
        tasks.wait_for(tmp_path / "begun")
        assert running.running()
        assert not running.cancel()
        for future in pending[:3]:
            assert future.cancel()
            assert future.cancelled()
            assert future.done()
            assert future.cancel(), "a second time is as good"
            with pytest.raises(CancelledError):
                future.result()
        (tmp_path / "go").touch()
        assert running.result() == "held"
        assert pending[3].result() == 4
    assert sorted(path.name for path in tmp_path.glob("ran*")) == ["ran0", "ran4"]


def test_what_waits_at_a_worker_behind_a_running_call_can_be_cancelled(tmp_path: Path) -> None:
    """Short calls are sent ahead. Those that have not begun are taken back from the worker."""
    with SingleNodeExecutor(max_workers=1, block_allocation=True) as exe:
        list(exe.map(tasks.hold_if, [tmp_path] * 20, range(100, 120)))  # now they are known to be short
        running = exe.submit(tasks.hold_if, tmp_path, 0)
        behind = [exe.submit(tasks.hold_if, tmp_path, i) for i in range(1, 30)]
        tasks.wait_for(tmp_path / "begun")
        assert not running.cancel()
        assert all(future.cancel() for future in behind[:-1])
        (tmp_path / "go").touch()
        assert (running.result(), behind[-1].result()) == (0, 29)
    assert sorted(path.name for path in tmp_path.glob("ran?")) == ["ran0"]


def test_many_calls_are_cancelled_while_others_run(make_executor: MakeExecutor) -> None:
    with make_executor() as exe:
        futures = [exe.submit(tasks.add, i, 1) for i in range(300)]
        cancelled = [future for future in futures[::2] if future.cancel()]
        for i, future in enumerate(futures):
            if future in cancelled:
                assert future.cancelled()
            else:
                assert future.result() == i + 1


def test_callbacks_and_waiters_of_a_cancelled_call(make_executor: MakeExecutor, tmp_path: Path) -> None:
    called: list[Future[Any]] = []
    with make_executor(max_workers=1) as exe:
        exe.submit(tasks.hold, tmp_path / "begun", tmp_path / "go")
        tasks.wait_for(tmp_path / "begun")
        pending = exe.submit(tasks.add, 1)
        pending.add_done_callback(called.append)
        assert pending.cancel()
        assert called == [pending]
        assert wait([pending], timeout=20).done == {pending}
        assert list(as_completed([pending], timeout=20)) == [pending]
        (tmp_path / "go").touch()


def test_a_call_that_waits_for_an_input(make_executor: MakeExecutor) -> None:
    never: Future[int] = Future()
    with make_executor() as exe:
        waiting = exe.submit(tasks.add, never)
        assert not waiting.running()
        assert waiting.cancel()
        with pytest.raises(CancelledError):
            waiting.result(20)
    assert not never.done()


def test_cancelled_while_its_worker_starts(make_executor: MakeExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A spawned interpreter takes a while until it takes its first task."""
    monkeypatch.setenv("EXECUTORLIB_FORK_SERVER", "0")
    with make_executor(max_workers=1) as exe:
        first, second = exe.submit(tasks.add, 1), exe.submit(tasks.add, 2)
        if first.cancel():
            assert first.cancelled()
        assert second.result(30) == 2


@pytest.mark.kinds
def test_shutdown_with_cancel_futures(make_executor: MakeExecutor, tmp_path: Path) -> None:
    exe = make_executor(max_workers=1)
    running = exe.submit(tasks.hold, tmp_path / "begun", tmp_path / "go", "held")
    pending = [exe.submit(tasks.note_number, tmp_path, i) for i in range(10)]
    never: Future[int] = Future()
    waiting = exe.submit(tasks.add, never)
    tasks.wait_for(tmp_path / "begun")
    exe.shutdown(wait=False, cancel_futures=True)
    for future in [*pending, waiting]:
        with pytest.raises(CancelledError):
            future.result(20)
    assert not running.done()
    (tmp_path / "go").touch()
    exe.shutdown()
    assert running.result() == "held"
    assert not list(tmp_path.glob("ran*"))
