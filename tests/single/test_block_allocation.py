"""Workers that are kept: their init function, their numbers, and what one call leaves to the next."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Iterator
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tasks

from conftest import Eventually, MakeExecutor
from executorlib import SingleNodeExecutor

only_block = pytest.mark.kinds("block", "block-spawned")
only_fresh = pytest.mark.kinds("fresh", "fresh-spawned")


def supply() -> dict[str, Any]:
    return {"a": 10, "b": 20, "unused": 30}


def combine(a: int, b: int = 1, *, c: int = 2) -> tuple[int, int, int]:
    return a, b, c


def worker_id(executorlib_worker_id: int) -> int:
    return executorlib_worker_id


class Method:
    def combine(self, a: int, b: int = 1) -> tuple[int, int]:
        return a, b

    def __call__(self, a: int, b: int = 1) -> tuple[int, int]:
        return a, b


@only_block
def test_init_values_fill_what_the_call_leaves_open(make_executor: MakeExecutor) -> None:
    with make_executor(init_function=supply) as exe:
        assert exe.submit(combine).result() == (10, 20, 2)
        assert exe.submit(combine, 1).result() == (1, 20, 2)
        assert exe.submit(combine, 1, 2).result() == (1, 2, 2)
        assert exe.submit(combine, b=3, c=4).result() == (10, 3, 4)
        assert exe.submit(functools.partial(combine, b=5), 6).result() == (6, 5, 2)
        assert list(exe.map(combine, [7, 8])) == [(7, 20, 2), (8, 20, 2)]


def test_init_values_for_callables_of_all_sorts() -> None:
    with SingleNodeExecutor(max_workers=1, block_allocation=True, init_function=supply) as exe:
        assert exe.submit(Method().combine).result() == (10, 20)
        assert exe.submit(Method()).result() == (10, 20)
        assert exe.submit(lambda a: a).result() == 10
        assert exe.submit(functools.partial(combine, 1)).result() == (1, 20, 2)
        assert exe.submit(max, 1, 2).result() == 2
        assert exe.submit(lambda **kwargs: kwargs).result() == {}


def test_init_values_are_not_supplied_for_positional_only_parameters_that_are_given() -> None:
    def positional(a: int, /, b: int) -> tuple[int, int]:
        return a, b

    with SingleNodeExecutor(max_workers=1, block_allocation=True, init_function=supply) as exe:
        assert exe.submit(positional, 1).result() == (1, 20)


@only_block
def test_init_runs_once_per_worker(make_executor: MakeExecutor, tmp_path: Path) -> None:
    log = tmp_path / "log"

    def init() -> dict[str, Any]:
        tasks.append(log, os.getpid())
        return {"made_by": os.getpid()}

    def use(x: int, made_by: int) -> bool:
        return made_by == os.getpid()

    with make_executor(init_function=init) as exe:
        assert all(exe.map(use, range(50)))
    pids = log.read_text().split()
    assert len(pids) == len(set(pids)) <= 2


def test_init_function_may_return_nothing_and_may_be_a_closure() -> None:
    place: list[int] = [4]

    def init() -> None:
        os.environ["FROM_INIT"] = str(place[0])

    with SingleNodeExecutor(max_workers=1, block_allocation=True, init_function=init) as exe:
        assert exe.submit(tasks.environment, "FROM_INIT").result() == ["4"]


def test_init_function_may_ask_for_the_worker_id() -> None:
    def init(executorlib_worker_id: int) -> dict[str, Any]:
        return {"mine": executorlib_worker_id + 100}

    def use(mine: int) -> int:
        return mine

    with SingleNodeExecutor(max_workers=2, block_allocation=True, init_function=init) as exe:
        assert {exe.submit(use).result() for _ in range(20)} <= {100, 101}


def test_init_values_may_be_objects_that_cannot_be_pickled() -> None:
    def init() -> dict[str, Any]:
        import threading

        return {"lock": threading.Lock()}

    def use(lock: Any) -> bool:
        with lock:
            return True

    with SingleNodeExecutor(max_workers=1, block_allocation=True, init_function=init) as exe:
        assert exe.submit(use).result()


def test_an_array_in_the_init_function_is_sent_and_writable() -> None:
    data = np.arange(300_000.0)

    def init() -> dict[str, Any]:
        data[0] = 5
        return {"data": data}

    def use(data: Any) -> float:
        return float(data[0] + data[-1])

    with SingleNodeExecutor(max_workers=2, block_allocation=True, init_function=init) as exe:
        assert exe.submit(use).result() == 300_004
    assert data[0] == 0


@only_block
def test_an_init_function_that_fails_fails_every_call_with_its_error(make_executor: MakeExecutor) -> None:
    def init() -> dict[str, Any]:
        raise LookupError("no licence")

    with make_executor(init_function=init) as exe:
        for future in [exe.submit(tasks.add, 1) for _ in range(5)]:
            with pytest.raises(LookupError, match="no licence") as caught:
                future.result()
            assert "in init" in str(caught.value.__cause__)


def test_an_init_function_that_returns_no_dictionary_fails_the_calls() -> None:
    with SingleNodeExecutor(max_workers=1, block_allocation=True, init_function=lambda: 5) as exe:
        assert exe.submit(tasks.add, 1).exception(20) is not None


@only_block
def test_an_init_function_that_kills_its_worker_fails_the_calls(make_executor: MakeExecutor) -> None:
    """The calls end, each with an error; no worker after worker is started for ever for one call."""
    with make_executor(init_function=lambda: os._exit(3)) as exe:
        futures = [exe.submit(tasks.add, i) for i in range(3)]
        for future in futures:
            error = future.exception(40)
            assert isinstance(error, RuntimeError)
            assert "exit code 3" in str(error)


def test_an_init_function_that_cannot_be_pickled_is_refused() -> None:
    lock = tasks.Unpicklable()
    with pytest.raises(TypeError, match="do not travel"):
        SingleNodeExecutor(max_workers=1, block_allocation=True, init_function=lambda: {"lock": lock})


def test_no_call_waits_for_an_init_function_while_another_worker_is_idle(tmp_path: Path) -> None:
    def init(executorlib_worker_id: int) -> None:
        import tasks

        if executorlib_worker_id == 1:
            tasks.hold(tmp_path / "second", tmp_path / "go")

    with SingleNodeExecutor(max_workers=1, block_allocation=True, init_function=init) as exe:
        assert exe.submit(tasks.add, 1, 1).result(20) == 2
        first = exe.submit(tasks.hold, tmp_path / "begun", tmp_path / "end")
        exe.max_workers = 2
        behind = exe.submit(tasks.add, 2, 2)
        tasks.wait_for(tmp_path / "second")
        tasks.touch(tmp_path / "end")
        first.result(20)
        assert behind.result(20) == 4
        tasks.touch(tmp_path / "go")


@only_block
def test_the_time_of_the_init_function_is_none_of_the_call(make_executor: MakeExecutor) -> None:
    with make_executor(max_workers=1, init_function=lambda: time.sleep(3.0)) as exe:
        assert exe.submit(tasks.add, 1, 1, resource_dict={"run_time_max": 2.5}).result(20) == 2


# Calls that were sent ahead


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a").mkdir()
    return tmp_path / "a"


def held_with_one_behind(exe: SingleNodeExecutor, folder: Path) -> Iterator[int]:
    """Two calls at one worker: the second was thought to have to wait for no time."""
    results: Iterator[int] = exe.map(tasks.hold_if, [folder] * 2, [0, 1])
    tasks.wait_for(folder / "begun")
    return results


def learn(exe: SingleNodeExecutor, folder: Path) -> None:
    """Let the executor see that calls of `tasks.hold_if` are short."""
    list(exe.map(tasks.hold_if, [folder] * 60, range(100, 160)))


def test_a_worker_more_takes_what_waits_behind_a_long_call(folder: Path) -> None:
    with SingleNodeExecutor(max_workers=1, block_allocation=True) as exe:
        learn(exe, folder)
        results = held_with_one_behind(exe, folder)
        exe.max_workers = 2
        tasks.wait_for(folder / "ran1")
        tasks.touch(folder / "go")
        assert list(results) == [0, 1]


def test_the_place_of_a_dead_worker_takes_what_waits_behind_a_long_call(tmp_path: Path, folder: Path) -> None:
    with SingleNodeExecutor(max_workers=2, block_allocation=True) as exe:
        learn(exe, folder)
        doomed = exe.submit(tasks.hold, tmp_path / "begun", tmp_path / "never")
        tasks.wait_for(tmp_path / "begun")
        results = held_with_one_behind(exe, folder)
        assert exe.cancel(doomed)
        tasks.wait_for(folder / "ran1")
        tasks.touch(folder / "go")
        assert list(results) == [0, 1]


def test_what_waits_behind_a_long_call_is_not_overtaken(tmp_path: Path, folder: Path) -> None:
    """Of all that waits it is the first for the next worker that is free."""
    with SingleNodeExecutor(max_workers=2, block_allocation=True, resource_dict={"priority": 5}) as exe:
        learn(exe, folder)
        other = exe.submit(tasks.hold, tmp_path / "begun", tmp_path / "go")
        tasks.wait_for(tmp_path / "begun")
        results = held_with_one_behind(exe, folder)
        # Each is a function of its own, of which nobody knows how long it takes: one at a time.
        scopes: list[dict[str, Any]] = [{"__name__": "__main__"} for _ in range(20)]
        for i, scope in enumerate(scopes):
            exec(f"def low(folder):\n    import tasks\n    tasks.note_number(folder, {200 + i})\n", scope)
        low = [exe.submit(scope["low"], folder, resource_dict={"priority": 0}) for scope in scopes]
        time.sleep(0.05)  # until the long call is seen to be long
        tasks.touch(tmp_path / "go")
        other.result(20)
        wait([low[5]], 20)
        assert (folder / "ran1").exists()
        tasks.touch(folder / "go")
        assert list(results) == [0, 1]


def test_an_init_function_needs_block_allocation() -> None:
    with pytest.raises(ValueError, match="block_allocation"):
        SingleNodeExecutor(max_workers=1, init_function=supply)


# executorlib_worker_id


@only_block
def test_worker_ids_count_from_zero(make_executor: MakeExecutor, tmp_path: Path, eventually: Eventually) -> None:
    def who(number: int, executorlib_worker_id: int) -> int:
        (tmp_path / f"begun{number}").touch()
        tasks.wait_for(tmp_path / "go")
        return executorlib_worker_id

    with make_executor(max_workers=3) as exe:
        futures = [exe.submit(who, i) for i in range(3)]
        eventually(lambda: len(list(tmp_path.glob("begun*"))) == 3, 30)
        (tmp_path / "go").touch()
        assert sorted(future.result() for future in futures) == [0, 1, 2]


@pytest.mark.kinds
def test_worker_id_in_every_mode(make_executor: MakeExecutor) -> None:
    with make_executor(max_workers=1) as exe:
        assert exe.submit(worker_id).result() == 0
        assert exe.submit(worker_id, executorlib_worker_id=7).result() == 7
        assert exe.submit(worker_id, 8).result() == 8


def test_a_replaced_worker_takes_the_number_of_the_lost_one() -> None:
    with SingleNodeExecutor(max_workers=1, block_allocation=True) as exe:
        assert exe.submit(worker_id).result() == 0
        assert exe.submit(tasks.exit_hard, 1).exception() is not None
        assert exe.submit(worker_id).result() == 0


# State


@pytest.mark.kinds
def test_every_call_gets_the_state_that_was_submitted(make_executor: MakeExecutor) -> None:
    """As with a pool of the standard library: the changes of a call to its function are nobody else's."""
    counter = tasks.Counter()
    accumulator = tasks.Accumulator(100)
    with make_executor(max_workers=1) as exe:
        assert [exe.submit(counter).result() for _ in range(4)] == [1] * 4
        assert [exe.submit(accumulator.add, 5).result() for _ in range(3)] == [105] * 3
        counter.calls = 10
        assert exe.submit(counter).result() == 11
        assert list(exe.map(accumulator.add, [1, 2, 3])) == [101, 102, 103]
    assert counter.calls == 10


def test_closures_and_defaults_start_afresh() -> None:
    seen: list[int] = []

    def remember(x: int, default: list[int] = []) -> tuple[int, int]:  # noqa: B006
        seen.append(x)
        default.append(x)
        return len(seen), len(default)

    with SingleNodeExecutor(max_workers=1, block_allocation=True) as exe:
        assert [exe.submit(remember, i).result() for i in range(3)] == [(1, 1)] * 3


def test_globals_of_a_script_start_afresh() -> None:
    scope: dict[str, Any] = {"__name__": "__main__"}
    exec("count = 0\ndef step():\n    global count\n    count += 1\n    return count\n", scope)
    with SingleNodeExecutor(max_workers=1, block_allocation=True) as exe:
        assert [exe.submit(scope["step"]).result() for _ in range(3)] == [1, 1, 1]


def test_globals_that_are_written_by_another_way_start_afresh() -> None:
    scope: dict[str, Any] = {"__name__": "__main__"}
    exec("count = 0\ndef step():\n    globals()['count'] = count + 1\n    return count\n", scope)
    with SingleNodeExecutor(max_workers=1, block_allocation=True) as exe:
        assert [exe.submit(scope["step"]).result() for _ in range(3)] == [1, 1, 1]


def test_arrays_of_a_function_start_afresh() -> None:
    class Holder:
        def __init__(self) -> None:
            self.data = np.zeros(500_000)

        def __call__(self) -> float:
            self.data += 1
            return float(self.data.sum())

    holder = Holder()
    with SingleNodeExecutor(max_workers=1, block_allocation=True) as exe:
        assert [exe.submit(holder).result() for _ in range(3)] == [500_000.0] * 3
        holder.data[:] = 1
        assert exe.submit(holder).result() == 1_000_000.0


@only_block
def test_a_kept_process_keeps_its_modules_and_environment(make_executor: MakeExecutor) -> None:
    with make_executor(max_workers=1) as exe:
        exe.submit(os.putenv, "X", "1").result()
        exe.submit(tasks.set_environment, "KEPT", "yes").result()
        assert exe.submit(tasks.environment, "KEPT").result() == ["yes"]


@only_fresh
def test_a_fresh_process_knows_nothing_of_the_last_call(make_executor: MakeExecutor) -> None:
    with make_executor(max_workers=1) as exe:
        exe.submit(tasks.set_environment, "KEPT", "yes").result()
        assert exe.submit(tasks.environment, "KEPT").result() == [None]
        exe.submit(os.chdir, "/").result()
        assert exe.submit(os.getcwd).result() == os.getcwd()
        exe.submit(tasks.import_module, "wave").result()
        assert exe.submit(tasks.is_imported, "wave").result() is False


@pytest.mark.kinds
def test_fresh_random_numbers(make_executor: MakeExecutor) -> None:
    """Forks of one process must not repeat each other's random numbers."""

    def draw() -> tuple[float, float]:
        import random

        return random.random(), float(np.random.default_rng().random())

    with make_executor() as exe:
        numbers = [exe.submit(draw).result() for _ in range(6)]
    assert len({a for a, _ in numbers}) == 6
    assert len({b for _, b in numbers}) == 6


@pytest.mark.kinds
def test_exit_handlers_and_threads_of_a_task_come_to_their_end(make_executor: MakeExecutor, tmp_path: Path) -> None:
    """When a worker ends in peace, it does what the interpreter does at the end of a program."""

    def prepare(folder: Path) -> None:
        import atexit
        import threading
        import time

        def late() -> None:
            time.sleep(0.1)
            (folder / "thread").touch()

        atexit.register(lambda: (folder / "atexit").touch())
        threading.Thread(target=late).start()

    with make_executor(max_workers=1) as exe:
        exe.submit(prepare, tmp_path).result()
    assert (tmp_path / "thread").exists()
    assert (tmp_path / "atexit").exists()


def test_info_tells_the_settings(make_executor: MakeExecutor, tmp_path: Path) -> None:
    with make_executor(max_workers=2, resource_dict={"cwd": str(tmp_path), "priority": 3}) as exe:
        info = exe.info
        assert info is not None
        expected = {
            "cores": 1,
            "cwd": str(tmp_path),
            "openmpi_oversubscribe": False,
            "cache_directory": None,
            "hostname_localhost": None,
            "log_obj_size": False,
            "max_workers": 2,
            "priority": 3,
        }
        assert {key: info.get(key) for key in expected} == expected
    assert exe.info is None
