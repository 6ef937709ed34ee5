"""FluxClusterExecutor on a real Flux: jobs that work through files, and workers that are jobs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tasks
from flux_fixtures import FIXTURES, Instance

from conftest import Eventually, StartScript, needs_mpi
from executorlib import (
    FluxClusterExecutor,
    get_cache_data,
    get_cache_data_queue,
    get_future_from_cache,
    terminate_task_in_cache,
    terminate_tasks_in_cache,
)
from executorlib.standalone.errors import SubmissionError, WorkerDiedError

flux_instances, shared_instance, instance = FIXTURES[:3]
pytestmark = [pytest.mark.flux, pytest.mark.xdist_group("flux")]

Make = Callable[..., FluxClusterExecutor]

TEMPLATE = """\
#!/bin/bash
#flux: --nslots={{cores}}
{%- if run_time_max %}
#flux: --time-limit={{run_time_max}}s
{%- endif %}
export OF_THE_TEMPLATE={{colour}}
{{command}}
"""


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def make_cluster(instance: Instance, cache: Path) -> Iterator[Make]:
    """Makes executors on the instance; what the test has not shut down then is. No job may be left."""
    made: list[FluxClusterExecutor] = []

    def make(**options: Any) -> FluxClusterExecutor:
        made.append(FluxClusterExecutor(**{"cache_directory": str(cache), **options}))
        return made[-1]

    yield make
    while made:
        made.pop().kill_workers()
    deadline = time.monotonic() + 20  # the job of a template is an instance, which takes some time to end
    while left := instance.jobs():
        assert time.monotonic() < deadline, f"jobs are left: {left}"
        time.sleep(0.1)


def job_id() -> str:
    return os.environ["FLUX_JOB_ID"]


def rank_and_size() -> tuple[int, int]:
    from mpi4py import MPI

    return MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size


def begin(exe: FluxClusterExecutor, folder: Path, eventually: Eventually, **resources: Any) -> Any:
    future = exe.submit(tasks.hold, folder / "begun", folder / "go", 5, resource_dict=resources)
    eventually(lambda: (folder / "begun").exists(), 20)
    eventually(future.running)
    return future


def test_each_call_is_a_job(make_cluster: Make, instance: Instance, cache: Path) -> None:
    with make_cluster() as exe:
        futures = [exe.submit(job_id, resource_dict={"cache_key": f"call{i}"}) for i in range(3)]
        assert len({future.result() for future in futures}) == 3
    for future in futures:
        assert isinstance(future.queue_id, int)  # type: ignore[attr-defined]
    assert {path.name for path in cache.iterdir() if path.suffix} == {f"call{i}_o.h5" for i in range(3)}
    names = instance.command("jobs", "-a", "--no-header", "--format={name}", "--count=3").split()
    assert names == ["job_id"] * 3


def test_map(make_cluster: Make) -> None:
    with make_cluster() as exe:
        assert list(exe.map(abs, range(-20, 0))) == list(range(20, 0, -1))


def test_what_a_job_needs(make_cluster: Make, instance: Instance, tmp_path: Path, eventually: Eventually) -> None:
    with make_cluster() as exe:
        resources: dict[str, Any] = {"threads_per_core": 2, "priority": 12, "run_time_max": 50, "num_nodes": 1}
        future = begin(exe, tmp_path, eventually, **resources)
        form = "--format={urgency} {duration} {ncores} {nnodes} {status}"
        assert instance.command("jobs", "--no-header", form).strip() == "12 50.0 2 1 RUN"
        (tmp_path / "go").touch()
        assert future.result(10) == 5
        resources = {"threads_per_core": 2, "cwd": str(tmp_path / "new")}
        assert exe.submit(_threads_and_folder, resource_dict=resources).result() == ("2", str(tmp_path / "new"))


def _threads_and_folder() -> tuple[str, str]:
    return os.environ["OMP_NUM_THREADS"], os.getcwd()


def test_what_a_job_prints(make_cluster: Make, cache: Path) -> None:
    with make_cluster() as exe:
        exe.submit(print, "said", resource_dict={"cache_key": "loud"}).result()
        exe.submit(abs, 1, resource_dict={"cache_key": "quiet"}).result()
    assert (cache / "loud.log").read_text() == "said\n"
    assert not (cache / "quiet.log").exists()


def test_a_weird_path(make_cluster: Make, weird_path: Path) -> None:
    with make_cluster(cache_directory=str(weird_path / "cache")) as exe:
        assert exe.submit(abs, -1).result(20) == 1
        with pytest.raises(ValueError, match="two braces"):
            exe.submit(abs, -1, resource_dict={"cache_directory": str(weird_path / "{{id}}")}).result(20)
        assert exe.submit(os.getcwd, resource_dict={"cwd": str(weird_path)}).result(20) == str(weird_path)


def test_flux_orders_jobs(make_cluster: Make, instance: Instance, tmp_path: Path, eventually: Eventually) -> None:
    with make_cluster() as exe:
        first = begin(exe, tmp_path, eventually)
        second = exe.submit(tasks.add, first, 1)
        third = exe.submit(tasks.add, second, first)
        eventually(lambda: third.queue_id is not None)  # type: ignore[attr-defined]
        states = instance.command("jobs", "--no-header", "--format={state}").split()
        assert sorted(states) == ["DEPEND", "DEPEND", "RUN"]
        (tmp_path / "go").touch()
        assert third.result(20) == 11


def test_inputs_that_have_ended_and_are_forgotten(make_cluster: Make, instance: Instance) -> None:
    with make_cluster() as exe:
        first = exe.submit(abs, -1)
        first.result()
        instance.command("job", "purge", "--force", "--num-limit=0")
        assert exe.submit(tasks.add, first, 1).result(20) == 2


def test_ranks(make_cluster: Make) -> None:
    needs_mpi()
    with make_cluster() as exe:
        assert exe.submit(rank_and_size, resource_dict={"cores": 2}).result(30) == [(0, 2), (1, 2)]


def test_the_input_of_a_call_fails(make_cluster: Make) -> None:
    with make_cluster() as exe:
        future = exe.submit(tasks.add, exe.submit(tasks.fail, "at first"), 1)
        with pytest.raises(ValueError, match="at first"):
            future.result(20)


# With a template


@pytest.mark.parametrize("cores", [1, 2])
def test_a_template(make_cluster: Make, cores: int) -> None:
    if cores > 1:
        needs_mpi()
    resources = {"submission_template": TEMPLATE, "colour": "blue", "cores": cores}
    with make_cluster() as exe:
        with pytest.warns(UserWarning, match="colour"):
            future = exe.submit(os.getenv, "OF_THE_TEMPLATE", resource_dict=resources)
        assert future.result(30) == ("blue" if cores == 1 else ["blue", "blue"])


def test_a_template_and_dependencies(make_cluster: Make) -> None:
    with make_cluster(resource_dict={"submission_template": TEMPLATE}) as exe:
        future = exe.submit(abs, -1)
        for _ in range(2):
            future = exe.submit(tasks.add, future, 1)
        assert future.result(40) == 3


def test_a_configuration_of_pysqa(make_cluster: Make, tmp_path: Path) -> None:
    folder = tmp_path / "config"
    folder.mkdir()
    (folder / "queue.yaml").write_text(
        "queue_type: FLUX\nqueue_primary: main\nqueues:\n  main: {cores_max: 4, cores_min: 1, script: main.sh}\n"
    )
    (folder / "main.sh").write_text(TEMPLATE.replace("{{colour}}", "red"))
    with make_cluster(pysqa_config_directory=str(folder)) as exe:
        assert exe.submit(os.getenv, "OF_THE_TEMPLATE").result(30) == "red"


def test_a_template_that_flux_refuses(make_cluster: Make) -> None:
    refused = TEMPLATE.replace("#flux: --nslots", "#flux: --no-such-option")
    with make_cluster() as exe, pytest.raises(SubmissionError, match=r"(?s)Flux refuses the job: .*no-such-option"):
        exe.submit(abs, -1, resource_dict={"submission_template": refused}).result(30)


@pytest.mark.filterwarnings("ignore:.*colour")
def test_variables_without_a_template(make_cluster: Make) -> None:
    with make_cluster() as exe, pytest.raises(ValueError, match="no submission_template whose variables colour"):
        exe.submit(abs, -1, resource_dict={"colour": "blue"}).result(20)


# What breaks


@pytest.mark.faults
def test_a_job_is_cancelled(make_cluster: Make, instance: Instance, tmp_path: Path, eventually: Eventually) -> None:
    with make_cluster() as exe:
        future = begin(exe, tmp_path, eventually)
        dependent = exe.submit(tasks.add, future, 1)
        eventually(lambda: dependent.queue_id is not None)  # type: ignore[attr-defined]
        instance.command("cancel", "--message=for a test", str(future.queue_id))
        with pytest.raises(WorkerDiedError, match="of hold has ended without a result: cancel: for a test"):
            future.result(15)
        with pytest.raises(WorkerDiedError, match="of hold has ended without a result: cancel: for a test"):
            dependent.result(15)


@pytest.mark.faults
def test_a_job_dies(make_cluster: Make) -> None:
    with make_cluster() as exe:
        with pytest.raises(WorkerDiedError, match=r"SIGKILL") as caught:
            exe.submit(_die, "last words").result(15)
        assert "last words" in str(caught.value)


def _die(words: str) -> None:
    print(words, flush=True)
    os.kill(os.getpid(), 9)


@pytest.mark.faults
def test_a_job_can_never_start(make_cluster: Make) -> None:
    with make_cluster() as exe, pytest.raises(WorkerDiedError, match="alloc: unsatisfiable request"):
        exe.submit(abs, 1, resource_dict={"cores": 1000}).result(15)


@pytest.mark.faults
def test_the_time_is_up(make_cluster: Make, tmp_path: Path) -> None:
    with make_cluster() as exe, pytest.raises(TimeoutError, match="timeout: resource allocation expired"):
        exe.submit(tasks.wait_for, tmp_path / "never", resource_dict={"run_time_max": 1}).result(15)


@pytest.mark.faults
def test_a_waiting_and_a_running_job_are_cancelled(
    make_cluster: Make, instance: Instance, tmp_path: Path, eventually: Eventually
) -> None:
    with make_cluster() as exe:
        running = begin(exe, tmp_path, eventually)
        waiting = exe.submit(tasks.add, running, 1)
        eventually(lambda: waiting.queue_id is not None)  # type: ignore[attr-defined]
        assert waiting.cancel()
        assert not running.cancel()
        assert exe.cancel(running)
        eventually(lambda: not instance.jobs())


@pytest.mark.faults
def test_the_instance_ends(
    flux_instances: object, monkeypatch: pytest.MonkeyPatch, cache: Path, tmp_path: Path, eventually: Eventually
) -> None:
    own = Instance(1)
    monkeypatch.setenv("FLUX_URI", own.uri)
    with FluxClusterExecutor(cache_directory=str(cache)) as exe:
        future = begin(exe, tmp_path, eventually)
        own.close()
        with pytest.raises(WorkerDiedError, match=r"cancel|lost"):
            future.result(20)


# Disconnect, reconnect, terminate

PROGRAM = """
import sys, time
from executorlib import FluxClusterExecutor
import tasks
folder, way = sys.argv[1:]
exe = FluxClusterExecutor(cache_directory=f"{folder}/cache", wait=False)
first = exe.submit(tasks.hold, f"{folder}/begun", f"{folder}/go", 5, resource_dict={"cache_key": "first"})
second = exe.submit(tasks.add, first, 1, resource_dict={"cache_key": "second"})
while second.queue_id is None:
    time.sleep(0.01)
print(first.queue_id, second.queue_id, flush=True)
if way == "killed":
    time.sleep(60)
exe.shutdown(wait=False, cancel_futures=False)
"""


@pytest.mark.parametrize("way", ["left", "killed"])
def test_jobs_outlive_the_program(
    make_cluster: Make,
    instance: Instance,
    start_script: StartScript,
    tmp_path: Path,
    cache: Path,
    eventually: Eventually,
    way: str,
) -> None:
    process = start_script(PROGRAM, str(tmp_path), way)
    assert process.stdout is not None
    numbers = process.stdout.readline().split()
    if way == "killed":
        process.kill()
    process.wait(20)
    assert len(instance.jobs()) == 2
    with make_cluster() as exe:
        first = exe.submit(tasks.hold, "", "", resource_dict={"cache_key": "first"})
        second = exe.submit(tasks.add, first, 1, resource_dict={"cache_key": "second"})
        eventually(lambda: second.queue_id is not None)  # type: ignore[attr-defined]
        assert [str(future.queue_id) for future in (first, second)] == numbers  # type: ignore[attr-defined]
        later = get_future_from_cache(str(cache), "second")
        (tmp_path / "go").touch()
        assert (first.result(20), second.result(20), later.result(20)) == (5, 6, 6)
    assert {entry["output"] for entry in get_cache_data(str(cache))} == {5, 6}


def test_states_and_termination(
    make_cluster: Make, instance: Instance, tmp_path: Path, cache: Path, eventually: Eventually
) -> None:
    exe = make_cluster(wait=False)
    first = exe.submit(tasks.hold, tmp_path / "begun", tmp_path / "go", resource_dict={"cache_key": "first"})
    second = exe.submit(tasks.add, first, 1, resource_dict={"cache_key": "second"})
    exe.submit(abs, -1, resource_dict={"cache_key": "done"}).result(20)
    eventually(lambda: first.running() and second.queue_id is not None)  # type: ignore[attr-defined]
    exe.shutdown(wait=False, cancel_futures=False)

    def states() -> dict[str, str]:
        found = get_cache_data_queue(str(cache), queue_type="flux")
        return {Path(entry["filename"]).name.rpartition("_")[0]: entry["status"] for entry in found}

    assert states() == {"first": "running", "second": "pending", "done": "finished"}
    terminate_task_in_cache(str(cache), "second", backend="flux")
    eventually(lambda: len(instance.jobs()) == 1)
    terminate_tasks_in_cache(str(cache), backend="flux")
    eventually(lambda: not instance.jobs())


def test_the_state_of_a_job_that_was_killed(
    make_cluster: Make, instance: Instance, tmp_path: Path, cache: Path, eventually: Eventually
) -> None:
    exe = make_cluster(wait=False)
    future = begin(exe, tmp_path, eventually)
    exe.shutdown(wait=False, cancel_futures=False)
    instance.command("job", "kill", "--signal=KILL", str(future.queue_id))
    eventually(lambda: not instance.jobs())
    assert [entry["status"] for entry in get_cache_data_queue(str(cache), queue_type="flux")] == ["aborted"]


# Workers that are jobs


def test_block_allocation(make_cluster: Make, instance: Instance) -> None:
    def supply() -> dict[str, int]:
        return {"made_by": os.getpid()}

    def use(made_by: int) -> bool:
        return made_by == os.getpid()

    with make_cluster(block_allocation=True, max_workers=2, init_function=supply, cache_directory=None) as exe:
        assert all(exe.map(_is_own, [supply] * 5))
        assert all(future.result() for future in [exe.submit(use) for _ in range(20)])
        assert len(instance.jobs()) == 2
    with pytest.raises(ValueError, match="requires a fixed set of computational resources"):
        make_cluster(block_allocation=True)
    with pytest.raises(ValueError, match="there is no template"):
        make_cluster(block_allocation=True, max_workers=1, resource_dict={"submission_template": TEMPLATE})


def _is_own(supply: Callable[[], dict[str, int]]) -> bool:
    return supply()["made_by"] == os.getpid()


def test_block_allocation_of_ranks(make_cluster: Make) -> None:
    needs_mpi()
    resources = {"cores": 2}
    with make_cluster(block_allocation=True, max_workers=1, resource_dict=resources, cache_directory=None) as exe:
        assert [exe.submit(rank_and_size).result(30)[1] for _ in range(3)] == [(1, 2)] * 3
