"""The resource_dict: what each key does, and what becomes of wrong ones."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import tasks

from conftest import Eventually, MakeExecutor, Script, has_ended
from executorlib import SingleNodeExecutor

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)


@pytest.fixture
def no_thread_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)


# threads_per_core


@pytest.mark.kinds
@pytest.mark.usefixtures("no_thread_variables")
def test_threads_are_one_by_default(make_executor: MakeExecutor) -> None:
    with make_executor() as exe:
        assert exe.submit(tasks.environment, *THREAD_VARIABLES).result() == ["1"] * 7


@pytest.mark.kinds
@pytest.mark.usefixtures("no_thread_variables")
def test_threads_of_the_users_environment_are_kept(
    make_executor: MakeExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    with make_executor() as exe:
        assert exe.submit(tasks.environment, *THREAD_VARIABLES).result() == ["4"] + ["1"] * 6


@pytest.mark.kinds
def test_threads_that_are_asked_for_win(make_executor: MakeExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    with make_executor(max_workers=None, max_cores=4, resource_dict={"threads_per_core": 2}) as exe:
        assert exe.submit(tasks.environment, *THREAD_VARIABLES).result() == ["2"] * 7


def test_threads_of_a_call_win_over_those_of_the_executor() -> None:
    with SingleNodeExecutor(max_cores=4, resource_dict={"threads_per_core": 2}) as exe:
        future = exe.submit(tasks.environment, *THREAD_VARIABLES, resource_dict={"threads_per_core": 3})
        assert future.result() == ["3"] * 7


# cwd


@pytest.mark.kinds
def test_cwd_is_made_and_used(make_executor: MakeExecutor, weird_path: Path) -> None:
    place = weird_path / "not" / "there yet"
    with make_executor(resource_dict={"cwd": str(place)}) as exe:
        assert exe.submit(os.getcwd).result() == str(place)
    assert place.is_dir()


def test_cwd_of_a_call_and_as_a_path(tmp_path: Path) -> None:
    with SingleNodeExecutor(max_workers=1, resource_dict={"cwd": tmp_path / "one"}) as exe:
        assert exe.submit(os.getcwd).result() == str(tmp_path / "one")
        assert exe.submit(os.getcwd, resource_dict={"cwd": tmp_path / "two"}).result() == str(tmp_path / "two")
        assert exe.submit(os.getcwd, resource_dict={"cwd": None}).result() == os.getcwd()


def test_cwd_relative_to_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with SingleNodeExecutor(max_workers=1) as exe:
        assert exe.submit(os.getcwd, resource_dict={"cwd": "sub"}).result() == str(tmp_path / "sub")


def test_a_cwd_that_cannot_be_made_fails_the_call(make_executor: MakeExecutor, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with make_executor(resource_dict={"cwd": str(tmp_path / "file" / "below")}) as exe:
        with pytest.raises(OSError, match="file"):
            exe.submit(os.getcwd).result()
        with pytest.raises(OSError, match="file"):
            exe.submit(os.getcwd).result()


def test_a_cwd_that_cannot_be_made_fails_no_other_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the call is cancelled in this moment."""
    makedirs, futures, wrong = os.makedirs, list[Any](), str(tmp_path / "wrong")

    def cancel_first(name: str, *args: Any, **kwargs: Any) -> None:
        if name != wrong:
            makedirs(name, *args, **kwargs)
            return
        futures[0].cancel()
        raise OSError("no such place")

    monkeypatch.setattr(os, "makedirs", cancel_first)
    with SingleNodeExecutor(max_workers=1) as exe:
        first = exe.submit(tasks.hold, tmp_path / "begun", tmp_path / "go")
        tasks.wait_for(tmp_path / "begun")
        futures += [exe.submit(os.getcwd, resource_dict={"cwd": wrong}), exe.submit(tasks.add, 1, 1)]
        tasks.touch(tmp_path / "go")
        assert futures[1].result(20) == 2
        assert futures[0].cancelled()
        first.result(20)


# error_log_file


@pytest.mark.kinds
def test_error_log_file_has_all_of_it(make_executor: MakeExecutor, tmp_path: Path) -> None:
    log = tmp_path / "errors.log"
    with make_executor(resource_dict={"error_log_file": str(log)}) as exe:
        exe.submit(tasks.fail, "one reason").exception()
        exe.submit(tasks.add, 1, y="b").exception()
        exe.submit(tasks.add, 1, 2).result()
    text = log.read_text()
    assert text.count("function:") == 2
    assert "one reason" in text
    assert "in fail" in text
    assert "function: <function add" in text
    assert "args: (1,)" in text
    assert "kwargs: {'y': 'b'}" in text


def test_error_log_file_with_arguments_that_have_no_repr(make_executor: MakeExecutor, tmp_path: Path) -> None:
    log = tmp_path / "errors.log"
    with make_executor(resource_dict={"error_log_file": str(log)}) as exe:
        error = exe.submit(tasks.fail, message=tasks.NoReprError()).exception(20)
        assert type(error) is ValueError
    assert "in fail" in log.read_text()


def test_error_log_file_of_a_call(tmp_path: Path) -> None:
    log = tmp_path / "errors.log"
    with SingleNodeExecutor(max_workers=1) as exe:
        exe.submit(tasks.fail, "logged", resource_dict={"error_log_file": str(log)}).exception()
        exe.submit(tasks.fail, "other").exception()
    assert "logged" in log.read_text()
    assert "other" not in log.read_text()


def test_error_log_file_entries_of_parallel_writers_are_whole(make_executor: MakeExecutor, tmp_path: Path) -> None:
    log = tmp_path / "errors.log"
    with make_executor(max_workers=4, resource_dict={"error_log_file": str(log)}) as exe:
        futures = [exe.submit(tasks.fail_with, letter, 20_000) for letter in "abcdefgh" * 5]
        for future in futures:
            assert future.exception() is not None
    entries = log.read_text().split("function:")[1:]
    assert len(entries) == 40
    for entry in entries:
        letter = entry[entry.index("args: ('") + 8]
        assert f"ValueError: {letter * 20_000}\n" in entry


def test_error_log_file_that_cannot_be_written_does_not_hide_the_error(
    make_executor: MakeExecutor, tmp_path: Path
) -> None:
    log = tmp_path / "no" / "folder" / "log"
    with make_executor(resource_dict={"error_log_file": str(log)}) as exe, pytest.raises(ValueError, match="purpose"):
        exe.submit(tasks.fail).result()


# run_time_max


@pytest.mark.kinds
def test_run_time_max_ends_the_task_and_what_it_started(
    make_executor: MakeExecutor, tmp_path: Path, eventually: Eventually
) -> None:
    note = tmp_path / "pids"
    with make_executor(max_workers=1) as exe:
        start = time.monotonic()
        future = exe.submit(tasks.sleep_with_child, note, resource_dict={"run_time_max": 4})
        with pytest.raises(TimeoutError, match="run_time_max"):
            future.result()
        assert time.monotonic() - start > 3.9
        pids = [int(word) for word in note.read_text().split()]
        eventually(lambda: all(has_ended(pid) for pid in pids))
        assert exe.submit(tasks.add, 1, 2).result() == 3


def test_run_time_max_counts_from_the_begin_of_the_task(make_executor: MakeExecutor, tmp_path: Path) -> None:
    """Neither the time in the queue nor that of other tasks counts."""
    with make_executor(max_workers=1) as exe:
        first = exe.submit(tasks.hold, tmp_path / "begun", tmp_path / "go")
        second = [exe.submit(tasks.add, i, 1, resource_dict={"run_time_max": 3}) for i in range(3)]
        tasks.wait_for(tmp_path / "begun")
        time.sleep(3.5)  # the time is the matter here
        (tmp_path / "go").touch()
        first.result()
        assert [future.result() for future in second] == [1, 2, 3]


def test_run_time_max_with_many_tasks_hurts_the_slow_one_only(make_executor: MakeExecutor) -> None:
    with make_executor(resource_dict={"run_time_max": 3}) as exe:
        futures = [exe.submit(time.sleep, 600 if i == 5 else 0) for i in range(30)]
        errors = [future.exception() for future in futures]
    assert isinstance(errors[5], TimeoutError)
    assert [error for i, error in enumerate(errors) if i != 5] == [None] * 29


def test_a_task_that_ends_in_time_is_left_alone(make_executor: MakeExecutor) -> None:
    with make_executor(max_workers=1, resource_dict={"run_time_max": 30}) as exe:
        assert list(exe.map(tasks.add, range(20))) == list(range(20))


# priority


def test_higher_priority_first(make_executor: MakeExecutor, tmp_path: Path) -> None:
    order = tmp_path / "order"
    with make_executor(max_workers=1) as exe:
        first = exe.submit(tasks.hold, tmp_path / "begun", tmp_path / "go")
        tasks.wait_for(tmp_path / "begun")
        for priority in (0, 5, -1, 5, 1):
            exe.submit(tasks.append, order, priority, resource_dict={"priority": priority})
        exe.submit(tasks.append, order, "default")
        (tmp_path / "go").touch()
        first.result()
    assert order.read_text().split() == ["5", "5", "1", "0", "default", "-1"]


# wrong keys and types

WRONG: list[tuple[dict[str, Any], list[str]]] = [
    ({"core": 2}, ["'core'", "'cores'"]),
    ({"treads_per_core": 2}, ["'treads_per_core'", "'threads_per_core'"]),
    ({"runtime_max": 2}, ["'runtime_max'", "'run_time_max'"]),
    ({"partition": "short"}, ["'partition'"]),
    ({"cores": "two"}, ["'cores'", "positive integer", "'two'"]),
    ({"cores": 0}, ["'cores'", "positive integer"]),
    ({"cores": 1.5}, ["'cores'"]),
    ({"cores": True}, ["'cores'"]),
    ({"threads_per_core": -1}, ["'threads_per_core'"]),
    ({"gpus_per_core": -1}, ["'gpus_per_core'"]),
    ({"cwd": 5}, ["'cwd'"]),
    ({"openmpi_oversubscribe": "yes"}, ["'openmpi_oversubscribe'"]),
    ({"slurm_cmd_args": "-A account"}, ["'slurm_cmd_args'", "list"]),
    ({"run_time_max": 0}, ["'run_time_max'"]),
    ({"run_time_max": "1h"}, ["'run_time_max'"]),
    ({"priority": "high"}, ["'priority'"]),
    ({"error_log_file": 3}, ["'error_log_file'"]),
    ({"cache_key": 3}, ["'cache_key'"]),
    ({"core": 1, "cwd": 5}, ["'core'", "'cwd'"]),
]


@pytest.mark.parametrize(("resources", "words"), WRONG, ids=lambda value: str(value)[:30])
def test_wrong_resources_are_refused(resources: dict[str, Any], words: list[str]) -> None:
    pydantic = pytest.importorskip("pydantic")
    before = dict(resources)
    with pytest.raises(pydantic.ValidationError) as caught:
        SingleNodeExecutor(max_workers=2, resource_dict=resources)
    with SingleNodeExecutor(max_workers=2) as exe, pytest.raises(pydantic.ValidationError) as again:
        exe.submit(tasks.add, 1, resource_dict=resources)
    for word in words:
        assert word in str(caught.value)
        assert word in str(again.value)
    assert resources == before


def test_wrong_resources_without_pydantic(script: Script) -> None:
    done = script(
        "import sys\n"
        "class Blocker:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('pydantic', 'pydantic_core'):\n"
        "            raise ImportError(f'{name} is not here')\n"
        "sys.meta_path.insert(0, Blocker())\n"
        "from executorlib import SingleNodeExecutor\n"
        "from test_resources import WRONG\n"
        "for resources, words in WRONG:\n"
        "    with SingleNodeExecutor(max_workers=2) as exe:\n"
        "        for attempt in (lambda: exe.submit(len, [], resource_dict=resources),\n"
        "                        lambda: SingleNodeExecutor(max_workers=2, resource_dict=resources)):\n"
        "            try:\n"
        "                attempt()\n"
        "            except TypeError as error:\n"
        "                assert all(word in str(error) for word in words), (error, words)\n"
        "            else:\n"
        "                raise AssertionError(resources)\n"
        "        assert exe.submit(len, [1], resource_dict={'cores': 1, 'priority': 3}).result() == 1\n"
        "assert 'pydantic' not in sys.modules\n",
        env={"PYTHONPATH": os.pathsep.join([*_paths(), str(Path(__file__).parent)])},
    )
    assert done.returncode == 0, done.stderr


def _paths() -> list[str]:
    here = Path(__file__).parent
    return [str(here.parent.parent / "src"), str(here.parent)]


def test_the_callers_dict_is_never_changed(make_executor: MakeExecutor, tmp_path: Path) -> None:
    common: dict[str, Any] = {"cores": 1, "cwd": str(tmp_path), "slurm_cmd_args": ["-v"]}
    own: dict[str, Any] = {"cores": 1, "priority": 2}
    copies = {**common, "slurm_cmd_args": ["-v"]}, dict(own)
    with make_executor(resource_dict=common) as exe:
        exe.submit(tasks.add, 1, resource_dict=own).result()
        exe.submit(tasks.add, 1, resource_dict=own).result()
    assert (common, own) == copies


def test_the_executor_is_not_changed_by_the_callers_dict(make_executor: MakeExecutor, tmp_path: Path) -> None:
    common = {"cwd": str(tmp_path / "one")}
    with make_executor(resource_dict=common) as exe:
        common["cwd"] = str(tmp_path / "two")
        assert exe.submit(os.getcwd).result() == str(tmp_path / "one")


def test_numpy_integers_are_integers(make_executor: MakeExecutor) -> None:
    import numpy as np

    with make_executor(resource_dict={"cores": np.int64(1)}) as exe:
        assert exe.submit(tasks.add, 1, 2, resource_dict={"priority": np.int8(3)}).result() == 3


def test_none_stands_for_the_default() -> None:
    with SingleNodeExecutor(max_workers=1, resource_dict={"cwd": None, "run_time_max": None, "priority": None}) as exe:
        assert exe.submit(tasks.add, 1, 2, resource_dict={"error_log_file": None}).result() == 3


# more than there is


@pytest.mark.parametrize("others", [{}, {"max_workers": 4}])
def test_more_cores_than_the_limit(others: dict[str, Any]) -> None:
    with SingleNodeExecutor(max_cores=2, **others) as exe:
        for resources in ({"cores": 3}, {"threads_per_core": 3}, {"cores": 2, "threads_per_core": 2}):
            with pytest.raises(ValueError, match="2"):
                exe.submit(tasks.add, 1, resource_dict=resources)
        assert exe.submit(tasks.add, 1, resource_dict={"threads_per_core": 2}).result() == 1


def test_more_cores_than_the_limit_at_construction() -> None:
    with pytest.raises(ValueError, match="max_cores"):
        SingleNodeExecutor(max_cores=2, resource_dict={"cores": 4})
    with pytest.raises(ValueError, match="max_cores"):
        SingleNodeExecutor(max_cores=2, resource_dict={"threads_per_core": 4}, block_allocation=True)


def test_resources_that_a_kept_worker_does_not_have_are_not_ignored(tmp_path: Path) -> None:
    """The call gets what it asks for, or it is refused; it does not run with something else."""
    import contextlib

    requests: list[tuple[dict[str, Any], Any, Any]] = [
        ({"cores": 2}, tasks.add, [1, 1]),
        ({"threads_per_core": 2}, _omp_threads, "2"),
        ({"cwd": str(tmp_path / "of the call")}, _cwd, str(tmp_path / "of the call")),
    ]
    with SingleNodeExecutor(max_workers=2, block_allocation=True) as exe:
        for resources, fn, expected in requests:
            with contextlib.suppress(ValueError):
                assert exe.submit(fn, 1, resource_dict=resources).result() == expected
        assert exe.submit(tasks.add, 1, resource_dict={"cores": 1, "priority": 2}).result() == 1


def _omp_threads(_: int) -> str | None:
    return os.environ.get("OMP_NUM_THREADS")


def _cwd(_: int) -> str:
    return os.getcwd()


@pytest.mark.usefixtures("no_gpus")
def test_gpus_that_are_not_there() -> None:
    with pytest.raises(TypeError, match="GPU"):
        SingleNodeExecutor(max_workers=1, resource_dict={"gpus_per_core": 1})
    with SingleNodeExecutor(max_workers=1) as exe:
        with pytest.raises(TypeError, match="GPU"):
            exe.submit(tasks.add, 1, resource_dict={"gpus_per_core": 1})
        assert exe.submit(tasks.add, 1, resource_dict={"gpus_per_core": 0}).result() == 1


@pytest.fixture
def no_gpus() -> None:
    from executorlib.standalone.hardware import gpus

    if gpus():
        pytest.skip("this machine has GPUs")


GPU_SCRIPT = """
import os, sys
from executorlib import SingleNodeExecutor
from tasks import hold, wait_for

folder, block = sys.argv[1], sys.argv[2] == "block"

def see(number):
    open(f"{folder}/begun{number}", "w").close()
    wait_for(f"{folder}/go")
    return os.environ["CUDA_VISIBLE_DEVICES"]

with SingleNodeExecutor(max_workers=2, block_allocation=block, resource_dict={"gpus_per_core": 1}) as exe:
    futures = [exe.submit(see, i) for i in range(2)]
    for i in range(2):
        wait_for(f"{folder}/begun{i}")
    open(f"{folder}/go", "w").close()
    assert sorted(f.result() for f in futures) == ["3", "GPU-a"]
    assert {f.result() for f in [exe.submit(see, i) for i in range(6)]} <= {"GPU-a", "3"}
    try:
        exe.submit(see, 0, resource_dict={"gpus_per_core": 3})
    except (TypeError, ValueError) as error:
        print(type(error).__name__)
if not block:
    with SingleNodeExecutor(max_workers=2) as exe:
        assert exe.submit(see, 0, resource_dict={"gpus_per_core": 2}).result() in ("GPU-a,3", "3,GPU-a")
print("done")
"""


@pytest.mark.parametrize("mode", ["fresh", "block"])
def test_every_task_has_its_own_gpus(script: Script, tmp_path: Path, mode: str) -> None:
    done = script(GPU_SCRIPT, str(tmp_path), mode, env={"CUDA_VISIBLE_DEVICES": "GPU-a,3"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "done"


@pytest.mark.mpi
@pytest.mark.parametrize("mode", ["fresh", "block"])
def test_every_rank_has_its_own_gpu(script: Script, mode: str) -> None:
    done = script(
        "import os, sys\n"
        "from executorlib import SingleNodeExecutor\n"
        "def see(): return os.environ['CUDA_VISIBLE_DEVICES']\n"
        "with SingleNodeExecutor(max_cores=2, block_allocation=sys.argv[1] == 'block',\n"
        "                        resource_dict={'cores': 2, 'gpus_per_core': 1}) as exe:\n"
        "    print(*exe.submit(see).result())\n",
        mode,
        env={"CUDA_VISIBLE_DEVICES": "0,1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0", "1"]


def test_gpu_tasks_wait_for_gpus_not_for_cores(script: Script, tmp_path: Path) -> None:
    """One GPU: two tasks that want it run one after the other, although there are cores for both."""
    done = script(
        "import os, sys, time\n"
        "from executorlib import SingleNodeExecutor\n"
        "folder = sys.argv[1]\n"
        "def alone():\n"
        "    fd = os.open(folder + '/lock', os.O_CREAT | os.O_EXCL)\n"
        "    time.sleep(0.1)\n"
        "    os.close(fd)\n"
        "    os.unlink(folder + '/lock')\n"
        "    return True\n"
        "with SingleNodeExecutor(max_workers=4, resource_dict={'gpus_per_core': 1}) as exe:\n"
        "    assert all(f.result() for f in [exe.submit(alone) for _ in range(4)])\n",
        str(tmp_path),
        env={"CUDA_VISIBLE_DEVICES": "0"},
    )
    assert done.returncode == 0, done.stderr


def test_the_key_of_the_channel_is_not_on_a_command_line_nor_in_the_environment_of_tasks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EXECUTORLIB_FORK_SERVER", "0")
    with SingleNodeExecutor(max_workers=1) as exe:
        names, command = exe.submit(_environment_and_command).result()
    assert not [name for name in names if name.startswith("EXECUTORLIB_KEY")]
    assert "KEY" not in command


def _environment_and_command() -> tuple[list[str], str]:
    with open("/proc/self/cmdline") as file:
        command = file.read()
    child = subprocess.run(["env"], capture_output=True, text=True, check=True).stdout
    return [*os.environ, *(line.partition("=")[0] for line in child.splitlines())], command
