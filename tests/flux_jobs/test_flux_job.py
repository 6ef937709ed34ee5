"""FluxJobExecutor in a real Flux instance: where calls run, on how much, and as which jobs."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tasks
from flux_fixtures import FIXTURES, Instance

from conftest import Eventually, needs_mpi
from executorlib import FluxJobExecutor

flux_instances, shared_instance, instance, make_job = FIXTURES
pytestmark = [pytest.mark.flux, pytest.mark.xdist_group("flux")]

Make = Callable[..., FluxJobExecutor]


def job_id() -> str:
    return os.environ["FLUX_JOB_ID"]


def place(path: Path, count: int) -> tuple[str, str, list[int], int]:
    tasks.append(path, 1)
    while len(path.read_text().split()) < count:
        time.sleep(0.01)
    return job_id(), os.environ["FLUX_URI"], sorted(os.sched_getaffinity(0)), os.getpid()


def rank_and_size() -> tuple[int, int, str]:
    from mpi4py import MPI

    return MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size, os.environ["FLUX_URI"]


def cores_of(instance: Instance) -> int:
    return int(instance.command("resource", "list", "-n", "-s", "up", "-o", "{ncores}"))


def test_the_instance_is_the_limit(make_job: Make, instance: Instance) -> None:
    cores = cores_of(instance)
    with make_job() as exe:
        assert exe.max_workers == cores
    with make_job(max_cores=1) as exe:
        assert exe.max_workers == 1
    with pytest.raises(ValueError, match=f"max_workers={cores + 1} needs {cores + 1} cores, .* has {cores}"):
        make_job(max_workers=cores + 1)
    with pytest.raises(ValueError, match=f"needs {2 * cores} cores, .* has {cores}"):
        make_job(max_workers=cores, block_allocation=True, resource_dict={"threads_per_core": 2})


def test_oversubscription_is_refused(make_job: Make) -> None:
    with pytest.raises(ValueError, match="openmpi_oversubscribe"):
        make_job(openmpi_oversubscribe=True)
    with pytest.raises(ValueError, match="openmpi_oversubscribe"):
        make_job(resource_dict={"openmpi_oversubscribe": True})
    with make_job() as exe, pytest.raises(ValueError, match="openmpi_oversubscribe"):
        exe.submit(abs, 1, resource_dict={"openmpi_oversubscribe": True})


def test_gpus_that_are_not_there(make_job: Make) -> None:
    with make_job() as exe, pytest.raises(TypeError, match="needs 1 GPUs"):
        exe.submit(abs, 1, resource_dict={"gpus_per_core": 1})


@pytest.mark.parametrize("block", [False, True])
def test_calls_fill_the_brokers(make_job: Make, instance: Instance, tmp_path: Path, block: bool) -> None:
    cores = cores_of(instance)
    with make_job(block_allocation=block) as exe:
        places = [f.result() for f in [exe.submit(place, tmp_path / "here", cores) for _ in range(cores)]]
    assert len({job for job, _, _, _ in places}) == cores
    assert len({pid for _, _, _, pid in places}) == cores
    assert len({uri for _, uri, _, _ in places}) == instance.brokers
    assert len({(uri, *bound) for _, uri, bound, _ in places}) == cores  # each has a core of its own


def test_serial_calls_share_a_job_and_others_have_their_own(make_job: Make) -> None:
    with make_job(max_workers=1) as exe:
        shared = {exe.submit(job_id).result() for _ in range(3)}
        own = {exe.submit(job_id, resource_dict={"num_nodes": 1}).result() for _ in range(2)}
        again = exe.submit(job_id).result()
    assert len(shared) == 1
    assert len(own) == 2
    assert not shared & own
    assert again not in shared  # the job with the only core has had to end for the others


def test_a_fresh_process_for_each_call(make_job: Make) -> None:
    with make_job(max_workers=1) as exe:
        assert len({exe.submit(os.getpid).result() for _ in range(4)}) == 4


def test_threads_are_cores(make_job: Make) -> None:
    with make_job() as exe:
        resources = {"threads_per_core": 2}
        assert len(exe.submit(os.sched_getaffinity, 0, resource_dict=resources).result()) == 2
        assert exe.submit(os.getenv, "OMP_NUM_THREADS", resource_dict=resources).result() == "2"
        assert len(exe.submit(os.sched_getaffinity, 0).result()) == 1


def test_two_executors_share_an_instance(make_job: Make) -> None:
    """The cores of jobs without a call are given back for the other executor."""
    with make_job() as first, make_job() as second:
        workers = first.max_workers
        assert workers is not None
        assert list(first.map(abs, range(2 * workers))) == list(range(2 * workers))
        assert second.submit(abs, -1).result(20) == 1


def test_the_place_is_that_of_the_program(
    make_job: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OF_THE_PROGRAM", "yes")
    own = {"num_nodes": 1}
    with make_job() as exe:
        for resources in ({}, own):
            folder = str(tmp_path / f"new{len(resources)}")
            assert exe.submit(os.getcwd, resource_dict=resources).result() == os.getcwd()
            assert exe.submit(os.getenv, "OF_THE_PROGRAM", resource_dict=resources).result() == "yes"
            assert exe.submit(os.getcwd, resource_dict={**resources, "cwd": folder}).result() == folder
            named = exe.submit(_our_variables, resource_dict=resources).result()
            assert named == []
            exe.submit(_say, f"by {len(resources)}", resource_dict=resources).result()
    said = capfd.readouterr()
    for number in range(2):
        assert f"said by {number}" in said.out
        assert f"whispered by {number}" in said.err


def _our_variables() -> list[str]:
    return [name for name in os.environ if name.startswith("EXECUTORLIB")]


def _say(what: str) -> None:
    import sys

    print("said", what)
    print("whispered", what, file=sys.stderr)


def test_much_output_blocks_nobody(make_job: Make, capfd: pytest.CaptureFixture[str]) -> None:
    with make_job() as exe:
        exe.submit(_shout, 1000, resource_dict={"num_nodes": 1}).result(30)
        exe.submit(_shout, 1000).result(30)
    assert capfd.readouterr().err.count("x" * 99) == 2000


def _shout(lines: int) -> None:
    import sys

    for _ in range(lines):
        print("x" * 99, file=sys.stderr)


def test_kept_workers_keep_their_state(make_job: Make) -> None:
    def supply() -> dict[str, int]:
        return {"made_by": os.getpid()}

    def use(made_by: int) -> bool:
        return made_by == os.getpid()

    with make_job(block_allocation=True, init_function=supply) as exe:
        assert all(exe.submit(use).result() for _ in range(20))
        assert exe.submit(_worker_id).result() < (exe.max_workers or 0)
        assert list(exe.map(abs, range(500))) == list(range(500))


def _worker_id(executorlib_worker_id: int) -> int:
    return executorlib_worker_id


def test_resizing(make_job: Make) -> None:
    with make_job(block_allocation=True, max_workers=1) as exe:
        assert len({exe.submit(os.getpid).result() for _ in range(5)}) == 1
        exe.max_workers = 2
        assert len({future.result() for future in [exe.submit(_pid_after, 0.3) for _ in range(4)]}) == 2


def _pid_after(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def test_dependencies(make_job: Make) -> None:
    with make_job() as exe:
        future = exe.submit(abs, -1)
        for _ in range(5):
            future = exe.submit(sum, [future, 1])
        assert future.result() == 6


# Ranks


def test_ranks(make_job: Make, instance: Instance) -> None:
    needs_mpi()
    with make_job() as exe:
        found = exe.submit(rank_and_size, resource_dict={"cores": 2, "num_nodes": instance.brokers}).result()
        assert [(rank, size) for rank, size, _ in found] == [(0, 2), (1, 2)]
        assert len({uri for _, _, uri in found}) == instance.brokers


def test_kept_ranks(make_job: Make) -> None:
    needs_mpi()
    with make_job(block_allocation=True, max_workers=1, resource_dict={"cores": 2}) as exe:
        assert [exe.submit(rank_and_size).result()[1][1] for _ in range(3)] == [2, 2, 2]


def test_a_serial_call_may_use_mpi(make_job: Make) -> None:
    needs_mpi()
    with make_job() as exe:
        assert exe.submit(rank_and_size).result()[:2] == (0, 1)


def test_a_pmi_mode_that_does_not_fit_says_so(make_job: Make) -> None:
    needs_mpi()
    with make_job(pmi_mode="off") as exe, pytest.raises(RuntimeError, match="asked to run on 2 MPI ranks but sees 1"):
        exe.submit(rank_and_size, resource_dict={"cores": 2}).result()


def test_a_whole_node(make_job: Make) -> None:
    with make_job() as exe:
        bound = exe.submit(os.sched_getaffinity, 0, resource_dict={"num_nodes": 1, "exclusive": True}).result()
    assert len(bound) > 1


# What Flux knows of the jobs


def test_urgency_and_duration(make_job: Make, instance: Instance, tmp_path: Path, eventually: Eventually) -> None:
    def jobs() -> list[str]:
        return instance.command("jobs", "--no-header", "--format={urgency} {duration} {status}").splitlines()

    with make_job() as exe:
        resources = {"num_nodes": 1, "priority": 12, "run_time_max": 100}
        future = exe.submit(tasks.hold, tmp_path / "begun", tmp_path / "go", resource_dict=resources)
        eventually(lambda: (tmp_path / "begun").exists())
        assert jobs() == ["12 160.0 RUN"]
        (tmp_path / "go").touch()
        future.result(10)


@pytest.mark.parametrize("cwd", [True, False])
def test_log_files(make_job: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cwd: bool) -> None:
    if not cwd:
        monkeypatch.chdir(tmp_path)
    resources = {"cwd": str(tmp_path)} if cwd else None
    with make_job(flux_log_files=True, max_workers=1, resource_dict=resources) as exe:
        exe.submit(_say, "first").result()
        exe.submit(_say, "second").result()
    assert (tmp_path / "flux_0.out").read_text() == "said first\nsaid second\n"
    assert (tmp_path / "flux_0.err").read_text() == "whispered first\nwhispered second\n"
    with make_job(flux_log_files=True, block_allocation=True, max_workers=1, resource_dict={"cwd": str(tmp_path)}) as e:
        e.submit(_say, "third").result()
    assert (tmp_path / "flux_0.out").read_text() == "said third\n"


@pytest.mark.parametrize("block", [False, True])
def test_an_executor_of_the_user(make_job: Make, instance: Instance, block: bool) -> None:
    import flux.job

    with flux.job.FluxExecutor(poll_interval=0.02) as flux_executor:
        with make_job(flux_executor=flux_executor, block_allocation=block) as exe:
            assert exe.submit(abs, -1).result(20) == 1
        assert not instance.jobs()
        with make_job(flux_executor=flux_executor, block_allocation=block) as exe:  # it was not shut down
            assert exe.submit(abs, -2).result(20) == 2


def _nested() -> tuple[list[int], int, str]:
    with FluxJobExecutor() as exe:
        return (
            [future.result() for future in [exe.submit(abs, -i) for i in range(3)]],
            exe.max_workers or 0,
            os.environ["FLUX_URI"],
        )


@pytest.mark.timeout(120)
def test_an_instance_for_each_call(make_job: Make, instance: Instance) -> None:
    with make_job(flux_executor_nesting=True, max_workers=1) as exe:
        found, workers, uri = exe.submit(_nested).result(60)
    assert (found, workers) == ([0, 1, 2], 1)
    assert uri != instance.uri


def test_an_executor_in_a_call(make_job: Make) -> None:
    """Without nesting it shares the instance, whose other core it needs."""
    with make_job(max_workers=1) as exe:
        assert exe.submit(_nested).result(30)[0] == [0, 1, 2]


# Handles


def test_one_handle_for_an_executor(make_job: Make) -> None:
    def sockets() -> int:
        gc.collect()  # objects of flux-python refer to each other
        return sum(os.readlink(f"/proc/self/fd/{fd}").startswith("socket:") for fd in _descriptors())

    with make_job() as exe:
        exe.submit(abs, 1).result()
    before = sockets()
    for _ in range(3):
        with make_job() as exe:
            exe.submit(abs, 1).result()
    assert sockets() == before


def _descriptors() -> list[str]:
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue
        found.append(fd)
    return found


def test_waiting_costs_nothing(make_job: Make, tmp_path: Path, eventually: Eventually) -> None:
    with make_job(max_workers=1) as exe:
        future = exe.submit(tasks.hold, tmp_path / "begun", tmp_path / "go")
        exe.submit(abs, 1)
        eventually(lambda: (tmp_path / "begun").exists())
        time.sleep(0.5)
        start = time.process_time()
        time.sleep(1.0)
        used = time.process_time() - start
        (tmp_path / "go").touch()
        future.result()
    assert used < 0.05


def test_many_threads_submit(make_job: Make) -> None:
    results: list[Any] = []
    with make_job(block_allocation=True) as exe:
        threads = [threading.Thread(target=lambda: results.append(sum(exe.map(abs, range(50))))) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == [sum(range(50))] * 5
