"""Tasks of several MPI ranks."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tasks

from conftest import Eventually, MakeExecutor, StartScript, has_ended, needs_mpi, write_program
from executorlib import SingleNodeExecutor
from executorlib.standalone.errors import ExecutorlibSocketError, TaskExitError, WorkerDiedError, WorkerStartError

needs_mpi()
pytestmark = pytest.mark.mpi

TWO = {"cores": 2}


@pytest.mark.kinds
def test_results_of_all_ranks_in_order(make_executor: MakeExecutor) -> None:
    with make_executor(max_workers=None, max_cores=2, resource_dict=TWO) as exe:
        assert exe.submit(tasks.rank_and_size, 5).result() == [(5, 0, 2), (5, 1, 2)]
        assert exe.submit(tasks.reduce_pids).result() == [2, 2]


def test_cores_of_a_call() -> None:
    with SingleNodeExecutor(max_cores=3) as exe:
        assert exe.submit(tasks.rank_and_size, 1, resource_dict={"cores": 3}).result() == [(1, i, 3) for i in range(3)]
        assert exe.submit(tasks.add, 1).result() == 1
        assert exe.submit(tasks.add, 1, resource_dict=TWO).result() == [1, 1]


def test_arrays_small_and_large(make_executor: MakeExecutor) -> None:
    with make_executor(max_workers=None, max_cores=2, resource_dict=TWO) as exe:
        for size in (3, 300_000):
            first, second = exe.submit(tasks.rank_times, np.arange(float(size))).result()
            np.testing.assert_array_equal(first, np.zeros(size))
            np.testing.assert_array_equal(second, np.arange(size) + 1)
            assert second.flags.writeable


def test_more_arrays_than_fit_into_a_message_that_mpi_sends_at_once() -> None:
    """What says how many there are may wait for its receiver: who sleeps is woken first."""
    with SingleNodeExecutor(max_cores=2, block_allocation=True, resource_dict=TWO) as exe:
        assert exe.submit(len, [np.zeros(8192) for _ in range(2500)]).result(40) == [2500, 2500]


def test_many_calls_of_a_block_allocation() -> None:
    with SingleNodeExecutor(max_cores=2, block_allocation=True, resource_dict=TWO) as exe:
        assert exe.max_workers == 1
        results = list(exe.map(tasks.rank_and_size, range(30)))
        assert results == [[(i, 0, 2), (i, 1, 2)] for i in range(30)]


def test_max_workers_counts_workers_in_a_block_allocation() -> None:
    with SingleNodeExecutor(max_workers=1, block_allocation=True, resource_dict=TWO) as exe:
        assert exe.max_workers == 1
        assert exe.submit(tasks.rank_and_size).result() == [(0, 0, 2), (0, 1, 2)]


def test_init_function_and_worker_id() -> None:
    def init() -> dict[str, Any]:
        from mpi4py import MPI

        return {"rank": MPI.COMM_WORLD.Get_rank(), "pid": os.getpid()}

    def use(rank: int, pid: int, executorlib_worker_id: int) -> tuple[int, bool, int]:
        return rank, pid == os.getpid(), executorlib_worker_id

    with SingleNodeExecutor(max_workers=1, block_allocation=True, resource_dict=TWO, init_function=init) as exe:
        assert exe.submit(use).result() == [(0, True, 0), (1, True, 0)]


def test_dependencies_between_serial_and_parallel_tasks() -> None:
    with SingleNodeExecutor(max_cores=2) as exe:
        first = exe.submit(tasks.add, 1, 1)
        ranks = exe.submit(tasks.rank_and_size, first, resource_dict=TWO)
        assert exe.submit(len, ranks).result() == 2
        assert ranks.result()[1] == (2, 1, 2)


def test_threads_and_cwd_of_ranks(tmp_path: Path) -> None:
    def look() -> tuple[str | None, str]:
        return os.environ.get("OMP_NUM_THREADS"), os.getcwd()

    resources = {"cores": 2, "threads_per_core": 2, "cwd": str(tmp_path / "there")}
    with SingleNodeExecutor(max_cores=4, resource_dict=resources) as exe:
        assert exe.submit(look).result() == [("2", str(tmp_path / "there"))] * 2


@pytest.mark.parametrize("block", [False, True])
def test_all_ranks_fail(block: bool) -> None:
    with SingleNodeExecutor(max_cores=2, resource_dict=TWO, block_allocation=block) as exe:
        with pytest.raises(ValueError, match="on purpose") as caught:
            exe.submit(tasks.fail).result(40)
        assert "in fail" in str(caught.value.__cause__)
        assert exe.submit(tasks.add, 1).result(40) == [1, 1]


@pytest.mark.parametrize("block", [False, True])
@pytest.mark.parametrize("bad", [0, 1])
def test_one_rank_fails_while_the_others_wait_for_it(bad: int, block: bool) -> None:
    with SingleNodeExecutor(max_cores=2, resource_dict=TWO, block_allocation=block) as exe:
        exe.submit(tasks.add, 1).result(40)
        start = time.monotonic()
        with pytest.raises(ValueError, match=f"rank {bad} fails"):
            exe.submit(tasks.one_rank_fails, bad).result(30)
        assert time.monotonic() - start < 20
        assert exe.submit(tasks.add, 1).result(40) == [1, 1]


@pytest.mark.parametrize("bad", [0, 1])
def test_one_rank_exits_while_the_others_wait_for_it(bad: int) -> None:
    """It is told: raised as it is, it would end the program that asks for the result."""

    def leave() -> None:
        from mpi4py import MPI

        if MPI.COMM_WORLD.Get_rank() == bad:
            raise SystemExit(3)
        MPI.COMM_WORLD.Barrier()

    with SingleNodeExecutor(max_cores=2, resource_dict=TWO, block_allocation=True) as exe:
        with pytest.raises(TaskExitError, match=r"leave raised SystemExit\(3\)"):
            exe.submit(leave).result(30)
        assert exe.submit(tasks.add, 1).result(40) == [1, 1]


@pytest.mark.parametrize("bad", [0, 1])
def test_one_rank_fails_alone(bad: int) -> None:
    with SingleNodeExecutor(max_cores=2, resource_dict=TWO, block_allocation=True) as exe:
        pids = exe.submit(tasks.pid).result(40)
        with pytest.raises(ValueError, match=f"rank {bad} fails"):
            exe.submit(tasks.one_rank_fails, bad, False).result(30)
        assert exe.submit(tasks.pid).result(40) == pids, "the worker goes on"


@pytest.mark.parametrize("bad", [0, 1])
def test_one_rank_dies(bad: int) -> None:
    with SingleNodeExecutor(max_cores=2, resource_dict=TWO, block_allocation=True) as exe:
        with pytest.raises(WorkerDiedError):
            exe.submit(tasks.one_rank_dies, bad).result(40)
        assert exe.submit(tasks.add, 1).result(40) == [1, 1]


def test_a_result_that_cannot_be_pickled() -> None:
    with SingleNodeExecutor(max_cores=2, resource_dict=TWO, block_allocation=True) as exe:
        with pytest.raises(TypeError, match="do not travel"):
            exe.submit(tasks.Unpicklable).result(40)
        assert exe.submit(tasks.add, 1).result(40) == [1, 1]


@pytest.mark.parametrize("block", [False, True])
def test_run_time_max_ends_all_ranks(tmp_path: Path, eventually: Eventually, block: bool) -> None:
    def wait() -> None:
        (tmp_path / f"pid{os.getpid()}").touch()
        time.sleep(600)

    limited = {"cores": 2, "run_time_max": 5}
    with SingleNodeExecutor(max_cores=2, resource_dict=limited, block_allocation=block) as exe:
        with pytest.raises(TimeoutError, match="run_time_max"):
            exe.submit(wait).result(40)
        pids = [int(path.name[3:]) for path in tmp_path.glob("pid*")]
        assert len(pids) == 2
        eventually(lambda: all(has_ended(pid) for pid in pids))


@pytest.mark.skipif(sys.platform != "linux", reason="where the memory has a file to be seen")
def test_killed_ranks_leave_no_shared_memory(make_executor: MakeExecutor, tmp_path: Path) -> None:
    def die() -> None:
        from mpi4py import MPI

        if MPI.COMM_WORLD.rank == 0:
            with open("/proc/self/maps", encoding="utf-8") as file:
                (tmp_path / "maps").write_text(file.read(), encoding="utf-8")
            tasks.end_self(9)
        MPI.COMM_WORLD.Barrier()

    with make_executor(max_workers=None, max_cores=2, resource_dict=TWO) as exe:
        with pytest.raises(WorkerDiedError):
            exe.submit(die).result(40)
        lines = (tmp_path / "maps").read_text(encoding="utf-8").splitlines()
        shared = [line.partition("/")[2] for line in lines if "/dev/shm/" in line]
        assert shared, "ranks of one machine share memory"
        assert not [name for name in shared if Path("/", name).exists()]


@pytest.mark.skipif(sys.platform != "linux", reason="where the memory has a file to be seen")
def test_mpi_of_a_serial_call_is_ended(make_executor: MakeExecutor) -> None:
    def world() -> tuple[int, list[str]]:
        from mpi4py import MPI

        with open("/proc/self/maps", encoding="utf-8") as file:
            names = [line.rstrip().partition("/")[2] for line in file if "/dev/shm/mpich" in line]
        return MPI.COMM_WORLD.size, names

    with make_executor() as exe:
        size, names = exe.submit(world).result(40)
    assert size == 1
    assert not [name for name in names if Path("/", name).exists()]


def test_mpi_may_be_used_until_the_interpreter_of_a_rank_ends(tmp_path: Path) -> None:
    """As by a module that frees its communicator when it is taken down."""
    (tmp_path / "frees_late.py").write_text(
        "import os\n"
        "from mpi4py import MPI\n"
        "class Owner:\n"
        "    def __init__(self):\n"
        "        self.comm = MPI.COMM_WORLD.Dup()\n"
        f"        self.note = os.open({str(tmp_path / 'freed')!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT)\n"
        "        self.write = os.write\n"
        "    def __del__(self):\n"
        "        self.comm.Free()\n"
        "        self.write(self.note, b'x')\n"
        "owner = Owner()\n"
    )

    def load() -> None:
        sys.path.insert(0, str(tmp_path))
        __import__("frees_late")

    with SingleNodeExecutor(max_cores=2, resource_dict=TWO) as exe:
        assert exe.submit(load).result(40) == [None, None]
    assert (tmp_path / "freed").read_text() == "xx"


def test_cancelled_and_shut_down() -> None:
    with SingleNodeExecutor(max_cores=2, resource_dict=TWO) as exe:
        futures = [exe.submit(tasks.add, i) for i in range(3)]
        cancelled = futures[2].cancel()
    assert futures[0].result() == [0, 0]
    assert cancelled == futures[2].cancelled()


@pytest.mark.parametrize("block", [False, True])
def test_the_program_is_killed(start_script: StartScript, tmp_path: Path, eventually: Eventually, block: bool) -> None:
    program = start_script(
        "import sys\n"
        "from executorlib import SingleNodeExecutor\n"
        "from tasks import sleep_with_child\n"
        "import os\n"
        "folder = sys.argv[1]\n"
        "def wait(folder): sleep_with_child(f'{folder}/pids{os.getpid()}')\n"
        "exe = SingleNodeExecutor(max_cores=2, resource_dict={'cores': 2}, block_allocation=sys.argv[2] == 'True')\n"
        "exe.submit(wait, folder).result()\n",
        str(tmp_path),
        str(block),
    )
    eventually(lambda: len([p for p in tmp_path.glob("pids*") if p.suffix == ""]) == 2, 40)
    family = psutil.Process(program.pid).children(recursive=True)
    assert len(family) >= 4
    program.kill()
    program.communicate(timeout=20)
    eventually(lambda: all(has_ended(process) for process in family), 5)


# Launchers


@pytest.fixture
def other_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like the bin of an environment, with this Python and whatever mpiexec a test puts there."""
    folder = tmp_path / "bin"
    folder.mkdir()
    python = folder / "python"
    write_program(python, f'exec "{sys.executable}" "$@"')
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("PATH", f"{folder}:/nowhere")
    return folder


@pytest.mark.parametrize("block", [False, True])
def test_a_launcher_of_another_mpi_library(other_launcher: Path, block: bool) -> None:
    """Such a launcher starts every rank as a world of its own."""
    launcher = other_launcher / "mpiexec"
    write_program(launcher, 'shift 2\n"$@" & "$@" &\nwait')
    with (
        SingleNodeExecutor(max_cores=2, resource_dict=TWO, block_allocation=block) as exe,
        pytest.raises(WorkerStartError, match="asked to run on 2 MPI ranks but sees 1") as caught,
    ):
        exe.submit(tasks.add, 1).result(40)
    assert "Use the mpiexec of the MPI library that mpi4py was built for" in str(caught.value)
    assert "see Troubleshooting: WorkerStartError" in str(caught.value)


@pytest.mark.parametrize("block", [False, True])
def test_a_launcher_that_fails(other_launcher: Path, block: bool) -> None:
    launcher = other_launcher / "mpiexec"
    write_program(launcher, "echo 'not enough slots' >&2\nexit 6")
    with SingleNodeExecutor(max_cores=2, resource_dict=TWO, block_allocation=block) as exe:
        for future in [exe.submit(tasks.add, i) for i in range(2)]:
            with pytest.raises(ExecutorlibSocketError, match="not enough slots") as caught:
                future.result(40)
            assert "exit code 6" in str(caught.value)


@pytest.mark.parametrize("block", [False, True])
def test_no_launcher(other_launcher: Path, block: bool) -> None:
    with SingleNodeExecutor(max_cores=2, resource_dict=TWO, block_allocation=block) as exe:
        for future in [exe.submit(tasks.add, i) for i in range(2)]:
            with pytest.raises(FileNotFoundError, match="pip install mpi4py"):
                future.result(40)


def test_oversubscription_is_passed_on(other_launcher: Path, tmp_path: Path) -> None:
    launcher = other_launcher / "mpiexec"
    write_program(launcher, f'printf "%s " "$@" > "{tmp_path}/arguments"\nexit 1')
    with SingleNodeExecutor(max_cores=2, resource_dict=TWO, openmpi_oversubscribe=True) as exe:
        assert exe.submit(tasks.add, 1).exception(40) is not None
    assert (tmp_path / "arguments").read_text().startswith("-n 2 --oversubscribe ")


def test_an_interpreter_without_mpi4py(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mpi4py").mkdir()
    (tmp_path / "mpi4py" / "__init__.py").write_text("raise ImportError('hidden by the test')\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    with (
        SingleNodeExecutor(max_cores=2, resource_dict=TWO) as exe,
        pytest.raises(ExecutorlibSocketError, match="pip install mpi4py"),
    ):
        exe.submit(tasks.add, 1).result(40)
