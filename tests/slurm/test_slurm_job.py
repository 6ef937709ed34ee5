"""SlurmJobExecutor in a real allocation: where calls run, on how much, and how fast."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import tasks
from slurm_fixtures import FIXTURES

import executorlib
from conftest import Eventually, needs_mpi
from executorlib import SlurmJobExecutor

slurm_conf, in_slurm, shared_allocation, allocation, make_job, steps = FIXTURES
pytestmark = [pytest.mark.slurm, pytest.mark.xdist_group("slurm")]

Make = Callable[..., SlurmJobExecutor]
Steps = Callable[[], list[str]]


def node() -> str:
    return os.environ["SLURMD_NODENAME"]


def place(path: Path | None = None) -> tuple[str, list[int], int]:
    if path is not None:
        tasks.append(path, 1)
        while len(path.read_text().split()) < 3:
            time.sleep(0.01)
    return node(), sorted(os.sched_getaffinity(0)), os.getpid()


def step_number() -> str:
    return os.environ["SLURM_STEP_ID"]


def rank_and_node() -> tuple[int, int, str]:
    from mpi4py import MPI

    return MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size, node()


def test_the_allocation_is_the_limit(make_job: Make) -> None:
    with make_job() as exe:
        assert exe.max_workers == 3
    with make_job(resource_dict={"threads_per_core": 2}, block_allocation=True) as exe:
        assert exe.max_workers == 1
    with make_job(max_cores=2) as exe:
        assert exe.max_workers == 2


@pytest.mark.parametrize("block", [False, True])
def test_calls_fill_the_nodes_and_have_cores_of_their_own(make_job: Make, tmp_path: Path, block: bool) -> None:
    with make_job(block_allocation=block) as exe:
        places = [future.result() for future in [exe.submit(place, tmp_path / "here") for _ in range(3)]]
    assert sorted(name for name, _, _ in places) == ["n1", "n1", "n2"]
    assert all(len(cores) == 1 for _, cores, _ in places)
    first, second = (cores for name, cores, _ in places if name == "n1")
    assert first != second
    assert len({pid for _, _, pid in places}) == 3


def test_threads_are_on_one_node(make_job: Make) -> None:
    with make_job() as exe:
        name, cores, _ = exe.submit(place, resource_dict={"threads_per_core": 2}).result()
        assert (name, len(cores)) == ("n1", 2)
        assert exe.submit(os.getenv, "OMP_NUM_THREADS", resource_dict={"threads_per_core": 2}).result() == "2"


def test_serial_calls_share_a_step_and_others_have_their_own(make_job: Make) -> None:
    with make_job(max_workers=1) as exe:
        shared = {exe.submit(step_number).result() for _ in range(3)}
        own = {exe.submit(step_number, resource_dict={"slurm_cmd_args": ["--comment=x"]}).result() for _ in range(2)}
    assert len(shared) == 1
    assert len(own) == 2
    assert not shared & own


def test_a_fresh_process_for_each_call(make_job: Make) -> None:
    with make_job(max_workers=1) as exe:
        assert len({exe.submit(os.getpid).result() for _ in range(4)}) == 4


def test_the_place_is_that_of_the_program(
    make_job: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OF_THE_PROGRAM", "yes")
    with make_job() as exe:
        assert exe.submit(os.getcwd).result() == os.getcwd()
        assert exe.submit(os.getenv, "OF_THE_PROGRAM").result() == "yes"
        assert exe.submit(os.getcwd, resource_dict={"cwd": str(tmp_path / "new")}).result() == str(tmp_path / "new")
        assert exe.submit(lambda: {name for name in os.environ if name.startswith("EXECUTORLIB")}).result() <= set(
            os.environ
        )
        exe.submit(print, "said by a call").result()
    assert "said by a call" in capfd.readouterr().out


def test_kept_workers_keep_their_state(make_job: Make) -> None:
    def supply() -> dict[str, int]:
        return {"made_by": os.getpid()}

    def use(made_by: int) -> bool:
        return made_by == os.getpid()

    with make_job(block_allocation=True, init_function=supply) as exe:
        assert all(exe.submit(use).result() for _ in range(20))
        assert exe.submit(lambda executorlib_worker_id: executorlib_worker_id).result() in (0, 1, 2)


@pytest.mark.parametrize("block", [False, True])
def test_without_agents_each_worker_is_a_step(
    make_job: Make, monkeypatch: pytest.MonkeyPatch, block: bool, steps: Steps
) -> None:
    """As with a Slurm before 20.11, whose steps cannot share a node."""
    monkeypatch.setenv("EXECUTORLIB_SLURM_AGENT", "0")
    with make_job(block_allocation=block, max_workers=2) as exe:
        numbers = [future.result() for future in [exe.submit(step_number) for _ in range(3)]]
    assert len(set(numbers)) == (len(set(numbers)) if block else 3)


# Ranks


def test_ranks_over_two_nodes(make_job: Make) -> None:
    needs_mpi()
    with make_job(pmi_mode="pmi2") as exe:
        over_two = exe.submit(rank_and_node, resource_dict={"cores": 2, "num_nodes": 2})
        assert over_two.result() == [(0, 2, "n1"), (1, 2, "n2")]
        assert exe.submit(rank_and_node, resource_dict={"cores": 2}).result() == [(0, 2, "n1"), (1, 2, "n1")]
        assert [size for _, size, _ in exe.submit(rank_and_node, resource_dict={"cores": 3}).result()] == [3, 3, 3]


def test_kept_ranks(make_job: Make) -> None:
    needs_mpi()
    with make_job(pmi_mode="pmi2", block_allocation=True, max_workers=1, resource_dict={"cores": 2}) as exe:
        assert [exe.submit(rank_and_node).result()[1][1] for _ in range(3)] == [2, 2, 2]


def test_a_serial_call_may_use_mpi(make_job: Make) -> None:
    """It is a world of its own: what the agent's step knows of ranks is none of its business."""
    needs_mpi()
    with make_job(pmi_mode="pmi2") as exe:
        assert exe.submit(rank_and_node).result()[:2] == (0, 1)


def test_a_serial_call_is_no_rank_of_the_program(make_job: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where ``srun --mpi=pmix`` has started the program."""
    monkeypatch.setenv("PMIX_RANK", "0")
    with make_job() as exe:
        assert exe.submit(os.getenv, "PMIX_RANK").result() is None


def test_a_pmi_mode_that_does_not_fit_says_so(make_job: Make) -> None:
    needs_mpi()
    with make_job(pmi_mode="none") as exe, pytest.raises(RuntimeError, match="asked to run on 2 MPI ranks but sees 1"):
        exe.submit(rank_and_node, resource_dict={"cores": 2}).result()


def test_more_gpus_than_there_are(make_job: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "1")
    with make_job() as exe, pytest.raises(TypeError, match="the allocation offers 2"):
        exe.submit(abs, 1, resource_dict={"gpus_per_core": 3})


# Batches


def test_short_calls_are_not_held_up_by_a_long_one(make_job: Make, tmp_path: Path) -> None:
    with make_job(block_allocation=True, max_workers=2) as exe:
        assert list(exe.map(abs, range(500))) == list(range(500))  # it is known to be short now
        go = str(tmp_path / "go")
        assert [future.result() for future in [exe.submit(_sometimes_long, 0, go) for _ in range(100)]] == [0] * 100
        calls = [exe.submit(_sometimes_long, i, go) for i in range(400)]
        try:
            assert [future.result(20) for i, future in enumerate(calls) if i != 50] == [*range(50), *range(51, 400)]
            assert not calls[50].done()
        finally:
            (tmp_path / "go").touch()
        assert calls[50].result(20) == 50


def _sometimes_long(i: int, path: str) -> int:
    while i == 50 and not os.path.exists(path):
        time.sleep(0.01)
    return i


def test_each_call_runs_once_under_load(make_job: Make, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with make_job(block_allocation=True) as exe:
        list(exe.map(tasks.append, [log] * 30, range(30)))
        log.unlink()
        durations = [0.0, 0.0, 0.0, 0.02, 0.0] * 60
        futures = [exe.submit(_append_after, log, i, seconds) for i, seconds in enumerate(durations)]
        assert [future.result() for future in futures] == list(range(300))
    assert sorted(map(int, log.read_text().split())) == list(range(300))


def _append_after(path: Path, i: int, seconds: float) -> int:
    time.sleep(seconds)
    tasks.append(path, i)
    return i


def _busy(exe: SlurmJobExecutor, go: Path, eventually: Eventually) -> tuple[Future[Any], list[Future[Any]]]:
    """One worker with a long call, and calls of a short function behind it."""
    list(exe.map(abs, range(300)))
    function = _sometimes_long
    assert [exe.submit(function, 0, str(go)).result() for _ in range(30)] == [0] * 30
    futures = [exe.submit(function, i, str(go)) for i in range(50, 60)]
    eventually(lambda: futures[0].running())
    return futures[0], futures[1:]


def test_what_waits_elsewhere_is_cancelled_by_the_executor(
    make_job: Make, tmp_path: Path, eventually: Eventually
) -> None:
    with make_job(block_allocation=True, max_workers=1) as exe:
        long, waiting = _busy(exe, tmp_path / "go", eventually)
        assert exe.cancel(waiting[-1])
        eventually(waiting[-1].cancelled)
        (tmp_path / "go").touch()
        assert long.result(10) == 50
        assert [future.result(10) for future in waiting[:-1]] == list(range(51, 59))


def test_shutdown_cancels_what_waits_elsewhere(make_job: Make, tmp_path: Path, eventually: Eventually) -> None:
    exe = make_job(block_allocation=True, max_workers=1)
    long, waiting = _busy(exe, tmp_path / "go", eventually)
    exe.shutdown(wait=False, cancel_futures=True)
    for future in waiting:
        eventually(future.cancelled)
    (tmp_path / "go").touch()
    exe.shutdown()
    assert long.result(0) == 50


def test_a_map_that_is_closed_cancels_what_waits_elsewhere(make_job: Make, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with make_job(block_allocation=True, max_workers=1) as exe:
        list(exe.map(_append_after, [log] * 30, range(30), [0.0] * 30))
        log.unlink()
        results = exe.map(_append_after, [log] * 200, range(200), [0.0, 0.5] + [0.0] * 198)
        assert next(results) == 0
        results.close()  # type: ignore[attr-defined]
    assert len(log.read_text().split() if log.exists() else []) < 100


def test_resizing(make_job: Make) -> None:
    with make_job(block_allocation=True, max_workers=1) as exe:
        assert len({exe.submit(os.getpid).result() for _ in range(5)}) == 1
        exe.max_workers = 3
        pids = {future.result() for future in [exe.submit(_pid_after, 0.1) for _ in range(12)]}
        assert len(pids) == 3
        exe.max_workers = 1
        assert list(exe.map(abs, range(50))) == list(range(50))


def _pid_after(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


# Limits


@pytest.mark.parametrize("own_step", [False, True])
def test_run_time_max(make_job: Make, own_step: bool, steps: Steps, eventually: Eventually) -> None:
    resources: dict[str, Any] = {"run_time_max": 0.5}
    if own_step:
        resources["slurm_cmd_args"] = ["--comment=x"]
    with make_job() as exe:
        start = time.monotonic()
        with pytest.raises(TimeoutError, match="run_time_max"):
            exe.submit(time.sleep, 30, resource_dict=resources).result()
        assert time.monotonic() - start < 5
        assert exe.submit(abs, -1).result() == 1


@pytest.mark.skipif(os.getuid() != 0, reason="these tests run as such a user anyway")
def test_as_another_user(slurm_conf: str) -> None:
    """Nothing here needs the rights of root."""
    import cloudpickle

    code = (
        "import os; from executorlib import SlurmJobExecutor\n"
        "with SlurmJobExecutor() as exe: print(os.getuid(), exe.submit(os.getuid).result(), flush=True)"
    )
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    candidates = ("/usr/bin/python3", os.path.realpath(sys.executable))
    check = "import sys; sys.exit(sys.version_info < (3, 10))"
    usable = [path for path in candidates if _runs([*nobody, path, "-c", check])]
    if not usable:
        pytest.skip("there is no Python here that other users than root may run")
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        # The environment of the tests may be root's alone.
        for package in (executorlib, cloudpickle):
            source = Path(str(package.__file__)).parent
            shutil.copytree(source, Path(folder, source.name), ignore=shutil.ignore_patterns("__pycache__"))
        os.chmod(folder, 0o755)
        done = subprocess.run(
            [*nobody, "salloc", "--quiet", "--immediate=20", "--ntasks=1", usable[0], "-c", code],
            env={"PATH": os.environ["PATH"], "SLURM_CONF": slurm_conf, "PYTHONPATH": folder, "HOME": "/"},
            cwd="/",
            capture_output=True,
            text=True,
            timeout=30,
        )
    assert done.stdout.split() == ["65534", "65534"], done.stderr


def _runs(command: list[str]) -> bool:
    try:
        return subprocess.run(command, cwd="/", capture_output=True).returncode == 0
    except OSError:
        return False
