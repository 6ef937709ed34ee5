"""Calls that become jobs: their results, inputs, errors and resources, and what is kept of them."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import time
import warnings
from concurrent.futures import CancelledError, Future, as_completed, wait
from pathlib import Path
from typing import Any

import file_tasks
import pytest
from file_fixtures import FIXTURES, Files
from file_fixtures import MakeCluster as Make

from conftest import Eventually, Script
from executorlib import SingleNodeExecutor, get_cache_data, get_future_from_cache, get_item_from_future, split_future
from executorlib.api import TestClusterExecutor
from executorlib.standalone.cache_paths import CachePaths
from executorlib.standalone.command import get_command_path
from executorlib.standalone.errors import ExecutorlibSocketError, RemoteTraceback
from executorlib.standalone.hdf import dump, load
from executorlib.standalone.resources import Resources
from executorlib.task_scheduler.file.shared import FutureItem
from executorlib.task_scheduler.file.task import Call

cache, make_cluster, files = FIXTURES


def test_a_call_leaves_its_output_and_nothing_else(make_cluster: Make, files: Files) -> None:
    with make_cluster() as exe:
        future = exe.submit(file_tasks.add, 1, y=2)
        assert future.result() == 3
    (name,) = files()
    assert name.startswith("add")
    assert name.endswith("_o.h5")


def test_the_file_says_what_was_called(make_cluster: Make, cache: Path) -> None:
    with make_cluster(resource_dict={"threads_per_core": 2}) as exe:
        exe.submit(file_tasks.add, 1, y=2, resource_dict={"priority": 3, "cache_key": "key"}).result()
    (entry,) = get_cache_data(str(cache))
    assert entry["function"] is file_tasks.add
    assert (entry["input_args"], entry["input_kwargs"], entry["output"]) == ([1], {"y": 2}, 3)
    assert entry["resource_dict"] == {
        "cores": 1,
        "threads_per_core": 2,
        "gpus_per_core": 0,
        "cwd": None,
        "openmpi_oversubscribe": False,
        "exclusive": False,
        "priority": 3,
    }
    assert entry["error_log_file"] is None
    assert 0 <= entry["runtime"] < 5
    assert entry["filename"] == str(cache / "key_o.h5")


def test_many_calls_run_on_as_many_cores_as_there_are(make_cluster: Make, tmp_path: Path) -> None:
    with make_cluster() as exe:
        assert list(exe.map(file_tasks.double, range(12))) == list(range(0, 24, 2))
        assert exe.max_workers is not None
        assert exe.max_workers >= 1


def test_what_is_known_is_not_run_again(make_cluster: Make, tmp_path: Path) -> None:
    note = str(tmp_path / "note")
    for _ in range(2):
        with make_cluster() as exe:
            futures = [exe.submit(file_tasks.noted, note, 1) for _ in range(3)]
            assert [future.result() for future in futures] == [1, 1, 1]
            assert exe.submit(file_tasks.noted, note, 1).result() == 1
    assert Path(note).read_text() == "1\n"


def test_the_same_call_twice_is_one_job(make_cluster: Make, tmp_path: Path, eventually: Eventually) -> None:
    begun, until = str(tmp_path / "begun"), tmp_path / "until"
    with make_cluster() as exe:
        first = exe.submit(file_tasks.hold, begun, str(until), 5)
        eventually(lambda: os.path.exists(begun))
        eventually(first.running)
        second = exe.submit(file_tasks.hold, begun, str(until), 5)
        eventually(second.running)
        until.touch()
        assert first.result() == second.result() == 5
        assert first.queue_id == second.queue_id  # type: ignore[attr-defined]


def test_one_of_two_futures_of_a_call_is_cancelled(make_cluster: Make, tmp_path: Path, eventually: Eventually) -> None:
    slow = Future[int]()
    with make_cluster() as exe:
        first, second = (exe.submit(file_tasks.add, slow, 1, resource_dict={"cache_key": "k"}) for _ in range(2))
        assert first.cancel()
        slow.set_result(1)
        assert second.result() == 2
        assert first.cancelled()


# Inputs


def test_futures_are_inputs_wherever_they_stand(make_cluster: Make) -> None:
    with make_cluster() as exe:
        one, two = exe.submit(file_tasks.add, 1), exe.submit(file_tasks.add, 2)
        assert exe.submit(file_tasks.add, one, y=two).result() == 3
        assert exe.submit(file_tasks.total, [one, two, 3]).result() == 6
        assert exe.submit(file_tasks.total, {"x": one, "y": (two)}).result() == 3
        assert exe.submit(file_tasks.add, (one,), (two, 5)).result() == (1, 2, 5)
        chain = one
        for _ in range(5):
            chain = exe.submit(file_tasks.add, chain, 1)
        assert chain.result() == 6


def test_an_input_is_a_reference_to_its_file(make_cluster: Make, cache: Path) -> None:
    """As in executorlib 1.11: the name of a call that depends on another is known before the other has ended."""
    with make_cluster() as exe:
        one = exe.submit(file_tasks.add, 1, resource_dict={"cache_key": "one"})
        exe.submit(file_tasks.add, one, resource_dict={"cache_key": "two"}).result()
    (item,) = load(str(cache / "two_o.h5"))["args"]
    assert type(item) is FutureItem
    assert vars(item) == {"_file_name": str(cache / "one_o.h5"), "_selector": None}
    assert item.done()
    assert item.result() == 1
    assert FutureItem.__module__ == "executorlib.task_scheduler.file.shared"


def test_items_of_results_are_inputs(make_cluster: Make, cache: Path) -> None:
    with make_cluster() as exe:
        both = exe.submit(file_tasks.pair, 4)
        a, b = get_item_from_future(both, "a"), get_item_from_future(both, "b")
        assert exe.submit(file_tasks.add, a, resource_dict={"cache_key": "item"}).result() == 4
        assert exe.submit(file_tasks.total, split_future(b, 2)).result() == 12
        missing = exe.submit(file_tasks.add, get_item_from_future(both, "c"))
        with pytest.raises(KeyError):
            missing.result()
    assert vars(load(str(cache / "item_o.h5"))["args"][0])["_selector"] == "a"


def test_futures_of_others_are_waited_for(make_cluster: Make) -> None:
    mine = Future[int]()
    with SingleNodeExecutor(max_workers=1) as other, make_cluster() as exe:
        theirs = other.submit(file_tasks.add, 20)
        early = exe.submit(file_tasks.add, mine, theirs)
        late = exe.submit(file_tasks.add, early, 1)
        mine.set_result(1)
        assert late.result() == 22
        assert other.submit(file_tasks.add, early).result() == 21
        assert exe.submit(file_tasks.total, exe.batched([early, late], n=2)[0]).result() == 43


def test_a_failed_input_fails_what_depends_on_it(make_cluster: Make, files: Files) -> None:
    with make_cluster() as exe:
        bad = exe.submit(file_tasks.fail)
        then = exe.submit(file_tasks.add, bad)
        last = exe.submit(file_tasks.total, [then])
        for future in (bad, then, last):
            with pytest.raises(ValueError, match="on purpose"):
                future.result()
        assert then.exception() is bad.exception()
        theirs = Future[int]()
        waiting = exe.submit(file_tasks.add, theirs)
        theirs.set_exception(KeyError("theirs"))
        with pytest.raises(KeyError):
            waiting.result()
    assert all(name.endswith("_o.h5") for name in files()), "their errors are kept with them"


def test_a_cancelled_input_cancels_what_depends_on_it(make_cluster: Make) -> None:
    theirs = Future[int]()
    with make_cluster() as exe:
        first = exe.submit(file_tasks.add, theirs)
        second = exe.submit(file_tasks.add, first)
        assert first.cancel()
        with pytest.raises(CancelledError):
            second.result(timeout=10)
        assert wait([first, second], timeout=5).not_done == set()
        third = exe.submit(file_tasks.add, theirs, 1)
        theirs.cancel()
        theirs.set_running_or_notify_cancel()
        with pytest.raises(CancelledError):
            third.result(timeout=10)
        assert exe.submit(file_tasks.add, 1).result() == 1


def test_without_dependencies_a_future_is_refused(make_cluster: Make) -> None:
    with make_cluster(disable_dependencies=True) as exe:
        future = exe.submit(file_tasks.add, exe.submit(file_tasks.add, 1))
        with pytest.raises(ValueError, match="Future objects are not supported as input if disable_dependencies=True"):
            future.result()
        with pytest.raises(TypeError):
            exe.submit(file_tasks.total, [Future[int]()]).result()


def test_futures_do_what_those_of_the_standard_library_do(make_cluster: Make) -> None:
    with make_cluster() as exe:
        futures = [exe.submit(file_tasks.add, n) for n in range(3)]
        assert {future.result() for future in as_completed(futures)} == {0, 1, 2}
        seen: list[Any] = []
        future = exe.submit(file_tasks.add, 5)
        future.add_done_callback(lambda done: seen.append(exe.submit(file_tasks.add, done.result(), 1)))
        future.add_done_callback(lambda done: 1 / 0)
        assert wait([future]).done
        deadline = time.monotonic() + 5
        while not seen and time.monotonic() < deadline:
            time.sleep(0.01)
        assert seen[0].result() == 6
        assert len(exe) == 0


# Errors


def test_an_error_is_kept_with_its_traceback(make_cluster: Make, cache: Path) -> None:
    """As in executorlib 1.11 the same call raises again, without running; whoever wants it run removes the file."""
    for _ in range(2):
        with make_cluster() as exe:
            for _ in range(2):
                future = exe.submit(file_tasks.fail, "twice", resource_dict={"cache_key": "bad"})
                with pytest.raises(ValueError, match="twice") as caught:
                    future.result()
                assert isinstance(caught.value.__cause__, RemoteTraceback)
                assert "file_tasks.py" in str(caught.value.__cause__)
    again = get_future_from_cache(str(cache), "bad")
    assert isinstance(again.exception(timeout=5), ValueError)
    (cache / "bad_o.h5").unlink()
    with make_cluster() as exe:
        assert exe.submit(file_tasks.add, 1, resource_dict={"cache_key": "bad"}).result() == 1


@pytest.mark.parametrize("leave", [functools.partial(file_tasks.leave, 3), file_tasks.interrupt])
def test_an_exit_is_an_error_of_the_task(make_cluster: Make, leave: Any) -> None:
    with make_cluster() as exe, pytest.raises(ExecutorlibSocketError, match=r"SystemExit\(3\)|KeyboardInterrupt"):
        exe.submit(leave).result()


def test_the_error_log_file_is_in_the_jobs_directory(make_cluster: Make, tmp_path: Path) -> None:
    resources = {"error_log_file": "errors.txt", "cwd": str(tmp_path / "new" / "place")}
    with make_cluster(resource_dict=resources) as exe:
        assert exe.submit(file_tasks.fail).exception() is not None
    text = (tmp_path / "new" / "place" / "errors.txt").read_text()
    assert text.startswith("function: <function fail")
    assert text.endswith("ValueError: on purpose\n")


# Resources


def test_a_job_runs_in_the_cache_directory_or_where_it_is_told(make_cluster: Make, cache: Path, tmp_path: Path) -> None:
    with make_cluster() as exe:
        assert exe.submit(file_tasks.place).result()[0] == str(cache)
        cwd = str(tmp_path / "a" / "b")
        assert exe.submit(file_tasks.place, resource_dict={"cwd": cwd, "cache_key": "p"}).result()[0] == cwd


def test_a_job_has_the_threads_that_it_asks_for(make_cluster: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with make_cluster() as exe:
        two = {"threads_per_core": 2, "cache_key": "two"}
        assert exe.submit(file_tasks.place).result()[1] == "1"
        assert exe.submit(file_tasks.place, resource_dict=two).result()[1] == "2"


def test_a_job_does_not_see_the_key_of_a_socket_interface(make_cluster: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXECUTORLIB_KEY_40123", "secret")
    with make_cluster() as exe:
        assert exe.submit(os.getenv, "EXECUTORLIB_KEY_40123").result() is None
        assert exe.submit(os.getenv, "PATH").result()


def test_keys_that_are_not_known_are_for_templates(make_cluster: Make) -> None:
    with pytest.warns(UserWarning, match=r"not recognized and cannot be validated: \['partition', 'memory_max'\]"):
        exe = make_cluster(resource_dict={"partition": "main", "memory_max": 2})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert exe.submit(file_tasks.add, 1, resource_dict={"cores": 1}).result() == 1
    with pytest.warns(UserWarning, match="queue"):
        assert exe.submit(file_tasks.add, 1, resource_dict={"queue": "x"}).result() == 1
    with pytest.raises((TypeError, ValueError), match="cores"):
        exe.submit(file_tasks.add, 1, resource_dict={"cores": "x"})
    exe.shutdown()


def test_the_cache_directory_of_a_call_counts(make_cluster: Make, tmp_path: Path, files: Files) -> None:
    with make_cluster() as exe:
        other = {"cache_directory": str(tmp_path / "other"), "cache_key": "deep/down"}
        assert exe.submit(file_tasks.add, 1, resource_dict=other).result() == 1
        assert exe.submit(file_tasks.add, 2, resource_dict={"cache_key": "k"}).result() == 2
    assert (tmp_path / "other" / "deep" / "down_o.h5").is_file()
    assert os.listdir(tmp_path / "other" / "deep") == ["down_o.h5"]
    assert files() == ["k_o.h5"]


def test_the_default_directory_is_executorlib_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with TestClusterExecutor() as exe:
        monkeypatch.chdir("/")
        assert exe.info is not None
        assert exe.submit(file_tasks.add, 1, resource_dict={"cache_key": "k"}).result() == 1
    assert (tmp_path / "executorlib_cache" / "k_o.h5").exists()


@pytest.mark.parametrize("key", ["a/../../out", "../out", "/abs", "with space", "new\nline", "q'\"`$(id)", "x" * 300])
def test_no_key_leads_out_of_the_cache_directory(make_cluster: Make, cache: Path, tmp_path: Path, key: str) -> None:
    with make_cluster() as exe:
        assert exe.submit(file_tasks.add, 7, resource_dict={"cache_key": key}).result() == 7
        one = exe.submit(file_tasks.add, 7, resource_dict={"cache_key": key})
        assert exe.submit(file_tasks.add, one, 1).result() == 8
    assert {path.name for path in tmp_path.iterdir()} == {"cache"}
    assert get_future_from_cache(str(cache), key).result(timeout=5) == 7


def test_a_weird_directory(weird_path: Path) -> None:
    with TestClusterExecutor(cache_directory=str(weird_path / "cache")) as exe:
        one = exe.submit(file_tasks.add, 1)
        assert exe.submit(file_tasks.add, one, 1).result() == 2


def test_what_a_job_prints_lies_beside_its_file(make_cluster: Make, cache: Path, files: Files) -> None:
    with make_cluster() as exe:
        exe.submit(file_tasks.say, "hello", resource_dict={"cache_key": "loud"}).result()
        exe.submit(file_tasks.add, 1, resource_dict={"cache_key": "quiet"}).result()
    assert files() == ["loud.log", "loud_o.h5", "quiet_o.h5"]
    assert (cache / "loud.log").read_text() == "hello\n"


def test_a_function_that_asks_for_its_worker_gets_a_number(make_cluster: Make) -> None:
    with make_cluster() as exe:
        assert exe.submit(file_tasks.worker_id).result() == 0
        assert exe.submit(file_tasks.worker_id, executorlib_worker_id=4).result() == 4


def test_priority_decides_who_is_first(make_cluster: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("executorlib.task_scheduler.file.task_scheduler.usable_cpus", lambda: 1)
    note, until = str(tmp_path / "note"), tmp_path / "until"
    with make_cluster() as exe:
        exe.submit(file_tasks.hold, str(tmp_path / "begun"), str(until))
        for name, priority in (("low", 0), ("high", 5), ("middle", 2)):
            exe.submit(file_tasks.noted, note, name, resource_dict={"priority": priority})
        assert len(exe) >= 3
        assert exe.future_queue.qsize() >= 3
        until.touch()
    assert Path(note).read_text().split() == ["high", "middle", "low"]


@pytest.mark.mpi
def test_all_ranks_have_results(make_cluster: Make, files: Files) -> None:
    with make_cluster() as exe:
        ranks = exe.submit(file_tasks.rank, resource_dict={"cores": 2, "cache_key": "ranks"})
        assert ranks.result(timeout=40) == [(0, 2), (1, 2)]
    assert files() == ["ranks_o.h5"]


@pytest.mark.mpi
def test_a_call_on_two_cores_is_another_one(make_cluster: Make) -> None:
    with make_cluster() as exe:
        one, two = (exe.submit(file_tasks.double, 5, resource_dict={"cores": cores}) for cores in (1, 2))
        assert (one.result(timeout=40), two.result(timeout=40)) == (10, [10, 10])
        one, two = (exe.submit(file_tasks.double, 5, resource_dict={"cores": cores}) for cores in (1, 2))
        assert (one.result(timeout=40), two.result(timeout=40)) == (10, [10, 10])


def test_a_kept_result_is_that_of_the_same_number_of_cores(make_cluster: Make, cache: Path) -> None:
    """Files of executorlib 1.11 have one name for all numbers."""
    serial = Call.of(file_tasks.double, [5], {}, Resources(cache_directory=str(cache)))
    dump(serial.paths.output, {"fn": file_tasks.double, "resource_dict": {"cores": 2}, "output": ["a", "b"]})
    with make_cluster() as exe:
        assert exe.submit(file_tasks.double, 5, resource_dict={"cores": 2}).result(timeout=20) == ["a", "b"]
        for _ in range(2):
            assert exe.submit(file_tasks.double, 5).result(timeout=20) == 10
        assert exe.submit(file_tasks.double, 5, resource_dict={"cores": 2}).result(timeout=20) == ["a", "b"]


@pytest.mark.mpi
def test_a_launcher_that_does_not_fit_is_no_outcome(tmp_path: Path) -> None:
    """When it is put right the call is to run."""
    paths = CachePaths.of(tmp_path, "key")
    dump(paths.input, {"fn": file_tasks.double, "args": [5], "kwargs": {}, "resource_dict": {"cores": 2}})
    command = [sys.executable, get_command_path("cache_parallel.py"), paths.input]
    done = subprocess.run(command, capture_output=True, text=True, timeout=40)
    assert done.returncode == 70
    assert "asked to run on 2 MPI ranks but sees 1" in done.stderr
    for word in ("Here mpi4py uses ", "mpiexec", "pmi_mode", "Troubleshooting: WorkerStartError"):
        assert word in done.stderr
    assert os.listdir(tmp_path) == ["key_i.h5"]


@pytest.mark.mpi
def test_a_failing_rank_does_not_leave_the_others_waiting(make_cluster: Make) -> None:
    with make_cluster() as exe:
        start = time.monotonic()
        with pytest.raises(ValueError, match="rank 1"):
            exe.submit(file_tasks.one_rank_fails, resource_dict={"cores": 2}).result(timeout=40)
        assert time.monotonic() - start < 15
        with pytest.raises(ValueError, match="on purpose"):
            exe.submit(file_tasks.fail, resource_dict={"cores": 2}).result(timeout=40)


# The face


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ({"max_workers": 2}, "The number of workers cannot be controlled with the pysqa based backend."),
        ({"max_cores": 2}, "The number of cores cannot be controlled with the pysqa based backend."),
        ({"hostname_localhost": True}, "The option to connect to hosts based on their hostname is not available"),
        ({"block_allocation": True}, "The option block_allocation is not available with the pysqa based backend."),
        ({"init_function": dict}, "The option to specify an init_function is not available"),
    ],
)
def test_what_jobs_cannot_have_is_refused(option: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        TestClusterExecutor(**option)


def test_the_settings_are_told(make_cluster: Make, cache: Path) -> None:
    given = {"cores": 1}
    with make_cluster(resource_dict=given, refresh_rate=0.5) as exe:
        info = exe.info
        assert info is not None
        assert info["executor_kwargs"]["cache_directory"] == str(cache)
        assert (info["refresh_rate"], info["wait"], info["backend"]) == (0.5, True, None)
        with pytest.raises(NotImplementedError):
            exe.max_workers = 3
        with pytest.raises(ValueError, match="resource_dict"):
            exe.submit(lambda resource_dict: 1)
    assert given == {"cores": 1}
    assert exe.info is None
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        exe.submit(file_tasks.add, 1)
    assert len(exe) == 0


def test_a_graph_is_written_and_nothing_runs(make_cluster: Make, tmp_path: Path, cache: Path) -> None:
    with make_cluster(export_workflow_filename=str(tmp_path / "workflow.json")) as exe:
        assert exe.submit(file_tasks.add, exe.submit(file_tasks.add, 1)).result() is None
    assert (tmp_path / "workflow.json").is_file()
    assert not cache.exists()


def test_a_call_of_a_script_is_found_when_the_script_has_moved(script: Script, tmp_path: Path, cache: Path) -> None:
    code = (
        "import os, shutil, subprocess, sys\n"
        "from executorlib.api import TestClusterExecutor\n"
        "def f(x): print('ran'); return x\n"
        "if __name__ == '__main__':\n"
        f"    with TestClusterExecutor(cache_directory={str(cache)!r}) as exe: print(exe.submit(f, 3).result())\n"
        "    moved = os.path.join(os.path.dirname(__file__), 'moved.py')\n"
        "    if __file__ != moved:\n"
        "        shutil.copy(__file__, moved)\n"
        "        sys.exit(subprocess.call([sys.executable, moved]))\n"
    )
    done = script(code)
    assert done.stdout.split() == ["3", "3"], done.stderr
    assert len([name for name in os.listdir(cache) if name.endswith("_o.h5")]) == 1


def test_an_input_of_the_published_executor_is_run(make_cluster: Make, cache: Path) -> None:
    """It says nothing of who runs it, so that it is taken for abandoned."""
    paths = CachePaths.of(cache, "theirs")
    dump(paths.input, {"fn": file_tasks.add, "args": [1], "kwargs": {"y": 2}, "resource_dict": {"cores": 1}})
    with make_cluster() as exe:
        assert exe.submit(file_tasks.add, 1, y=2, resource_dict={"cache_key": "theirs"}).result() == 3
