"""SlurmClusterExecutor: calls as batch jobs of a real Slurm."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import cluster_tasks
import pytest
from slurm_fixtures import FIXTURES

from conftest import Eventually, StartScript, needs_mpi, write_program
from executorlib import (
    SlurmClusterExecutor,
    get_cache_data_queue,
    get_future_from_cache,
    terminate_task_in_cache,
)
from executorlib.standalone.errors import SubmissionError, WorkerDiedError

slurm_conf, in_slurm, *_ = FIXTURES
pytestmark = [pytest.mark.slurm, pytest.mark.xdist_group("slurm"), pytest.mark.timeout(90)]
pytest.importorskip("pysqa")

Make = Callable[..., SlurmClusterExecutor]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def make_cluster(in_slurm: None, cache: Path) -> Iterator[Make]:
    """Makes executors on one cache directory; what the test has not shut down then is, and no job may be left."""
    made: list[SlurmClusterExecutor] = []

    def make(**options: Any) -> SlurmClusterExecutor:
        made.append(SlurmClusterExecutor(**{"cache_directory": str(cache), **options}))
        return made[-1]

    yield make
    while made:
        made.pop().kill_workers()
    deadline = time.monotonic() + 30  # an element of an array may just have started, to find nothing to do
    while left := queue():
        assert time.monotonic() < deadline, f"jobs are left: {left}"
        time.sleep(0.2)


def queue() -> list[str]:
    command = ["squeue", "--noheader", "--format=%i %T %r"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def start_again(number: str) -> None:
    """Slurm holds back for two minutes what was put back into the queue: this job not."""
    deadline = time.monotonic() + 20
    while not any(line.startswith(f"{number} PENDING") for line in queue()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(2)  # a node refuses a job that it has just killed
    subprocess.run(["scontrol", "update", f"JobId={number}", "StartTime=now"], check=True)


def left_in(cache: Path) -> list[str]:
    return sorted(name for name in os.listdir(cache) if not name.endswith("_o.h5") and name != ".executorlib-moved")


def test_calls_with_dependencies(make_cluster: Make, cache: Path, eventually: Eventually) -> None:
    with make_cluster() as exe:
        first = exe.submit(cluster_tasks.add, 1, y=2)
        second = exe.submit(cluster_tasks.add, first, first)
        job, name = exe.submit(cluster_tasks.job_of, second).result(40)
        assert (first.result(), second.result(), name) == (3, 6, "job_of")
        failed = exe.submit(cluster_tasks.fail, "no data")
        dependent = exe.submit(cluster_tasks.add, failed)
        for future in (failed, dependent):
            assert isinstance(future.exception(40), LookupError)
        assert int(job) > second.queue_id > first.queue_id > 0  # type: ignore[attr-defined]
    # The dependent has failed with its input, and its job may be about to find that out itself.
    eventually(lambda: left_in(cache) == [])


def test_a_dependent_that_has_begun_when_its_input_fails_tidies_up(
    make_cluster: Make, cache: Path, tmp_path: Path, eventually: Eventually
) -> None:
    """Slurm starts it before the program, which looks at the cache seldom, knows of the failure."""
    begun, until = tmp_path / "begun", tmp_path / "until"
    with make_cluster(refresh_rate=6.0) as exe:
        failed = exe.submit(cluster_tasks.fail, "no data")
        dependent = exe.submit(cluster_tasks.add, failed, cluster_tasks.HeldUp(str(begun), str(until)))
        assert isinstance(dependent.exception(40), LookupError)
    until.touch()
    eventually(lambda: queue() == [], 30)
    assert left_in(cache) == []


def test_the_job_of_a_call_whose_input_has_failed_leaves_the_queue(make_cluster: Make, tmp_path: Path) -> None:
    with make_cluster() as exe:
        held = exe.submit(cluster_tasks.hold, str(tmp_path / "begun"), str(tmp_path / "until"), 1)
        dependent = exe.submit(cluster_tasks.add, held, exe.submit(cluster_tasks.fail, "no data"))
        assert isinstance(dependent.exception(40), LookupError)
        deadline = time.monotonic() + 20
        while len(queue()) > 1:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        (tmp_path / "until").touch()
        assert held.result(30) == 1


def test_a_cache_directory_where_others_may_write(make_cluster: Make, eventually: Eventually) -> None:
    """Neither script nor log is opened by Slurm there: see tests/faults/test_hostile_jobs.py."""
    needs_mpi()
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o777)
        with make_cluster(cache_directory=folder, pmi_mode="pmi2") as exe:
            resources = {"cache_key": "one", "cores": 2}
            one = exe.submit(cluster_tasks.say_and_leave_a_file, 0, resource_dict=resources)
            assert len(list(exe.map(cluster_tasks.say_and_leave_a_file, range(1, 4)))) == 3
            assert one.result(40) == [os.path.join(folder, "one")] * 2
        wanted = ["said 0\nsaid 0\n", "said 1\n", "said 2\n", "said 3\n"]
        # What ranks print goes through srun, and may come after the result.
        eventually(lambda: sorted(path.read_text() for path in Path(folder).glob("*.log")) == wanted)
        eventually(lambda: not queue(), 20)


def test_a_working_directory_is_made(make_cluster: Make, tmp_path: Path) -> None:
    wanted = tmp_path / "there" / "below"
    with make_cluster() as exe:
        assert exe.submit(os.getcwd, resource_dict={"cwd": str(wanted)}).result(40) == str(wanted)


def test_scancel_does_not_answer(
    make_cluster: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The job goes on, and so does the executor."""
    with make_cluster() as exe:
        held = exe.submit(cluster_tasks.hold, str(tmp_path / "begun"), str(tmp_path / "until"))
        with monkeypatch.context() as patch:
            slow = tmp_path / "scancel"
            write_program(slow, "exec sleep 30")
            patch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
            patch.setattr("executorlib.standalone.slurm_queue._QUERY_SECONDS", 0.3)
            assert exe.cancel(held)
            with pytest.raises(CancelledError):
                held.result(10)
            assert exe.submit(cluster_tasks.add, 1, 2).result(40) == 3
        (tmp_path / "until").touch()
    assert "cannot be cancelled" in caplog.text


def test_the_queue_orders_jobs(make_cluster: Make, tmp_path: Path) -> None:
    """A job is handed over before its inputs have ended."""
    with make_cluster() as exe:
        first = exe.submit(cluster_tasks.hold, str(tmp_path / "begun"), str(tmp_path / "until"), 1)
        second = exe.submit(cluster_tasks.add, first, 1)
        deadline = time.monotonic() + 20
        while not (waiting := [line for line in queue() if "Dependency" in line]):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        (tmp_path / "until").touch()
        assert second.result(30) == 2
        assert waiting[0].split()[0] == str(second.queue_id)  # type: ignore[attr-defined]


def test_what_breaks_is_told_with_slurms_words(make_cluster: Make, tmp_path: Path) -> None:
    memory = {"memory_max": 1, "slurm_cmd_args": []}
    with make_cluster() as exe:
        killed = exe.submit(cluster_tasks.say_and_kill_self, "last words")
        dependent = exe.submit(cluster_tasks.add, killed)
        with pytest.warns(UserWarning, match="partition"):
            refused = exe.submit(cluster_tasks.add, 1, resource_dict={"partition": "no_such_partition"})
        with pytest.warns(UserWarning, match="memory_max"):
            too_large = exe.submit(cluster_tasks.take_memory, 1_500_000_000, resource_dict=memory)
        cancelled = exe.submit(cluster_tasks.hold, str(tmp_path / "begun"), str(tmp_path / "until"))
        limited = exe.submit(time.sleep, 40, resource_dict={"run_time_max": 2})
        assert isinstance(refused.exception(20), SubmissionError)
        assert "invalid partition specified" in str(refused.exception())
        deadline = time.monotonic() + 20
        while not (tmp_path / "begun").exists():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        subprocess.run(["scancel", str(cancelled.queue_id)], check=True)  # type: ignore[attr-defined]
        for future, words in ((killed, "last words"), (cancelled, "CANCELLED"), (too_large, "")):
            error = future.exception(40)
            assert isinstance(error, WorkerDiedError)
            assert words in str(error)
            assert f"job {future.queue_id} of" in str(error)  # type: ignore[attr-defined]
        assert isinstance(dependent.exception(30), WorkerDiedError)
        with pytest.raises(TimeoutError, match="run_time_max of 2 s"):
            limited.result(40)


def test_a_job_for_which_no_node_is_large_enough(make_cluster: Make) -> None:
    """Slurm takes it, and would let it wait for ever."""
    with make_cluster() as exe:
        impossible = exe.submit(cluster_tasks.add, 1, resource_dict={"threads_per_core": 999})
        error = impossible.exception(30)
        assert isinstance(error, WorkerDiedError)
        assert "it can never start: PartitionConfig" in str(error)
    assert queue() == []


def test_a_map_is_an_array(make_cluster: Make, cache: Path, tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    with make_cluster() as exe:
        start = time.monotonic()
        assert list(exe.map(cluster_tasks.note_place, [log] * 60, range(60))) == list(range(60))
        seconds = time.monotonic() - start
        launcher = exe._task_scheduler._dispatcher._launcher  # type: ignore[union-attr]
        assert launcher._queue.questions <= 1 + seconds / 5
    lines = [line.split() for line in Path(log).read_text().splitlines()]
    assert sorted(int(value) for value, _ in lines) == list(range(60)), "each ran once"
    assert len({element for _, element in lines}) < 60, "elements have helped others"
    assert left_in(cache) == []


@pytest.mark.parametrize("cores", [1, 2])
def test_elements_have_working_directories_of_their_own(make_cluster: Make, cache: Path, cores: int) -> None:
    if cores > 1:
        needs_mpi()
    with make_cluster(pmi_mode="pmi2", resource_dict={"cores": cores}) as exe:
        found = list(exe.map(_note_here, range(2)))
    places = [each if cores == 1 else each[0] for each in found]
    assert sorted(place for place in left_in(cache) if not place.endswith(".log")) == sorted(
        os.path.basename(place) for place in places
    )
    assert [Path(place, "note").read_text() for place in places] == ["0", "1"]


def _note_here(i: int) -> str:
    Path("note").write_text(str(i))
    return os.getcwd()


def test_an_element_that_breaks_fails_its_own_future(make_cluster: Make) -> None:
    with make_cluster() as exe:
        results = exe.map(_kill_three, range(6))
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(WorkerDiedError, match="of _kill_three has ended without a result") as caught:
            next(results)
        assert "this is three" in str(caught.value)


def _kill_three(i: int) -> int:
    if i == 3:
        cluster_tasks.say_and_kill_self("this is three")
    return i


def test_long_elements_run_side_by_side(make_cluster: Make, tmp_path: Path) -> None:
    with make_cluster() as exe:
        futures = exe.map(_meet, [str(tmp_path)] * 3, range(3))
        assert list(futures) == [0, 1, 2]


def _meet(folder: str, i: int) -> int:
    Path(folder, f"here{i}").touch()
    deadline = time.monotonic() + 30
    while len(list(Path(folder).glob("here*"))) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return i


def test_cancelling(make_cluster: Make, tmp_path: Path, eventually: Eventually) -> None:
    with make_cluster() as exe:
        future = exe.submit(cluster_tasks.hold, str(tmp_path / "begun"), str(tmp_path / "until"))
        eventually((tmp_path / "begun").exists, 20)
        assert exe.cancel(future)
        with pytest.raises(CancelledError):
            future.result(5)
        eventually(lambda: not queue(), 10)


def test_a_call_that_another_element_runs_is_ended(
    make_cluster: Make, cache: Path, tmp_path: Path, eventually: Eventually
) -> None:
    """Two nodes, two elements at a time: the first two are short, and their elements go on with the others."""
    with make_cluster(resource_dict={"exclusive": True, "cwd": str(tmp_path)}) as exe:
        results = exe.map(cluster_tasks.hold_from_two, range(4))
        assert [next(results), next(results)] == [None, None]
        eventually(lambda: list(tmp_path.glob("begun[23]")), 40)
        marks = {path.read_text() for path in cache.glob(".executorlib-array-*/[23].begun")}
        assert marks, "begun"
        assert marks <= {"0", "1"}
        exe.kill_workers()
        del results
        eventually(lambda: not queue(), 20)


def test_a_job_that_is_put_back_into_the_queue_is_waited_for(
    make_cluster: Make, tmp_path: Path, eventually: Eventually
) -> None:
    with make_cluster() as exe:
        future = exe.submit(cluster_tasks.hold, str(tmp_path / "begun"), str(tmp_path / "until"), 5)
        eventually((tmp_path / "begun").exists, 20)
        subprocess.run(["scontrol", "requeue", str(future.queue_id)], check=True)  # type: ignore[attr-defined]
        start_again(str(future.queue_id))  # type: ignore[attr-defined]
        (tmp_path / "until").touch()
        assert future.result(40) == 5


def test_ranks(make_cluster: Make) -> None:
    needs_mpi()
    with make_cluster(pmi_mode="pmi2") as exe:
        future = exe.submit(cluster_tasks.rank_and_node, resource_dict={"cores": 2, "num_nodes": 2})
        assert future.result(40) == [(0, 2, "n1"), (1, 2, "n2")]


def test_an_executor_in_the_allocation_of_a_job(make_cluster: Make) -> None:
    with make_cluster() as exe:
        assert exe.submit(cluster_tasks.run_in_job, 5, resource_dict={"threads_per_core": 2}).result(40) == [
            1,
            2,
            3,
            4,
            5,
        ]


def test_the_program_comes_back(make_cluster: Make, cache: Path, tmp_path: Path, eventually: Eventually) -> None:
    arguments = (str(tmp_path / "begun"), str(tmp_path / "until"), 7)
    with make_cluster(wait=False) as exe:
        first = exe.submit(cluster_tasks.hold, *arguments, resource_dict={"cache_key": "long"})
        then = exe.submit(cluster_tasks.add, first, 1, resource_dict={"cache_key": "then"})
        eventually(lambda: first.queue_id is not None and then.queue_id is not None)  # type: ignore[attr-defined]
    eventually((tmp_path / "begun").exists, 20)
    states = {Path(entry["filename"]).stem: entry for entry in get_cache_data_queue(str(cache), queue_type="slurm")}
    assert states["long_i"]["status"] == "running"
    assert states["then_i"]["status"] == "pending"
    assert states["long_i"]["queue_id"] == first.queue_id  # type: ignore[attr-defined]
    with make_cluster() as exe:
        again = exe.submit(cluster_tasks.hold, *arguments, resource_dict={"cache_key": "long"})
        eventually(lambda: again.queue_id is not None)  # type: ignore[attr-defined]
        assert again.queue_id == first.queue_id, "it was not submitted again"  # type: ignore[attr-defined]
        (tmp_path / "until").touch()
        assert again.result(30) == 7
    assert get_future_from_cache(str(cache), "then").result(30) == 8


def test_a_task_is_terminated(make_cluster: Make, cache: Path, tmp_path: Path, eventually: Eventually) -> None:
    with make_cluster() as exe:
        arguments = (str(tmp_path / "begun"), str(tmp_path / "until"))
        future = exe.submit(cluster_tasks.hold, *arguments, resource_dict={"cache_key": "key"})
        eventually((tmp_path / "begun").exists, 20)
        terminate_task_in_cache(str(cache), "key", backend="slurm")
        eventually(lambda: not queue(), 10)
        with pytest.raises(RuntimeError):
            future.result(30)


def test_a_configuration_of_pysqa(make_cluster: Make, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.mkdir()
    (config / "queue.yaml").write_text(
        "queue_type: SLURM\nqueue_primary: short\nqueues:\n  short: {cores_max: 2, cores_min: 1, script: short.sh}\n"
    )
    (config / "short.sh").write_text(
        "#!/bin/bash\n#SBATCH --ntasks={{cores}}\nexport FROM_TEMPLATE={{greeting}}\n\n{{command}}\n"
    )
    with (
        make_cluster(pysqa_config_directory=str(config)) as exe,
        pytest.warns(UserWarning, match="greeting"),
    ):
        assert exe.submit(os.getenv, "FROM_TEMPLATE", resource_dict={"greeting": "hello"}).result(40) == "hello"


def test_a_submission_template(make_cluster: Make) -> None:
    template = "#!/bin/bash\n#SBATCH --ntasks={{cores}}\nexport FROM_TEMPLATE={{cores}}\n{{command}}\n"
    with make_cluster(resource_dict={"submission_template": template, "threads_per_core": 2}) as exe:
        assert exe.submit(os.getenv, "FROM_TEMPLATE").result(40) == "2"


def test_odd_places(make_cluster: Make, weird_path: Path) -> None:
    with make_cluster(cache_directory=str(weird_path / "cache")) as exe:
        assert exe.submit(os.getcwd, resource_dict={"cwd": str(weird_path)}).result(40) == str(weird_path)
        assert list(exe.map(cluster_tasks.add, range(3))) == [0, 1, 2]


def test_a_function_goes_on_where_it_was_when_its_job_is_put_back(make_cluster: Make, tmp_path: Path) -> None:
    with make_cluster(restart_limit=2) as exe:
        future = exe.submit(cluster_tasks.count_to, str(tmp_path / "count"), 2, 60.0)
        deadline = time.monotonic() + 20
        while not (tmp_path / "count").exists():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        number = str(future.queue_id)  # type: ignore[attr-defined]
        subprocess.run(["scontrol", "requeue", number], check=True)
        start_again(number)
        assert future.result(40) == 2


PROGRAM = """
import sys, time
from executorlib import SlurmClusterExecutor
import cluster_tasks
exe = SlurmClusterExecutor(cache_directory=sys.argv[1])
exe.submit(cluster_tasks.hold, sys.argv[2], sys.argv[3], 9, resource_dict={"cache_key": "key"})
time.sleep(60)
"""


def test_the_program_is_killed_and_its_jobs_go_on(
    make_cluster: Make,
    cache: Path,
    tmp_path: Path,
    start_script: StartScript,
    script_environment: dict[str, str],
    eventually: Eventually,
) -> None:
    begun, until = str(tmp_path / "begun"), str(tmp_path / "until")
    paths = os.pathsep.join([script_environment["PYTHONPATH"], str(Path(__file__).parent)])
    process = start_script(PROGRAM, str(cache), begun, until, env={"PYTHONPATH": paths})
    eventually(Path(begun).exists, 30)
    process.kill()
    process.wait()
    with make_cluster() as exe:
        future = exe.submit(cluster_tasks.hold, begun, until, 9, resource_dict={"cache_key": "key"})
        Path(until).touch()
        assert future.result(30) == 9
