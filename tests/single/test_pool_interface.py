"""What other libraries ask of an executor or a pool."""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import pytest
import tasks

import executorlib
from conftest import MakeExecutor
from executorlib import BaseExecutor, SingleNodeExecutor
from executorlib.standalone.hardware import usable_cpus


def test_sizes(make_executor: MakeExecutor) -> None:
    with make_executor(max_workers=3) as exe:
        assert type(exe.max_workers) is int
        assert (exe.max_workers, exe._max_workers, exe._processes, exe.size) == (3, 3, 3, 3)
    with make_executor(max_workers=None) as exe:
        assert type(exe.max_workers) is int
        assert exe._max_workers == exe._processes == exe.size == usable_cpus()


@pytest.mark.parametrize("name", ["_max_workers", "_processes", "size"])
def test_the_other_names_of_the_size_are_read_only(make_executor: MakeExecutor, name: str) -> None:
    with make_executor() as exe, pytest.raises(AttributeError):
        setattr(exe, name, 5)


def test_it_is_an_executor(make_executor: MakeExecutor) -> None:
    with make_executor() as exe:
        assert isinstance(exe, Executor)
        assert isinstance(exe, BaseExecutor)
        assert bool(exe)
        future = exe.submit(tasks.add, 1)
        assert isinstance(future, Future)
        assert future.result(timeout=20) == 1
        assert future.exception(timeout=20) is None
        assert future.done()
        assert not future.running()
        assert exe.__enter__() is exe


def test_futures_take_attributes(make_executor: MakeExecutor) -> None:
    with make_executor() as exe:
        future = exe.submit(tasks.add, 1)
        future.task_ = 3  # type: ignore[attr-defined]
        assert future.task_ == 3  # type: ignore[attr-defined]
        assert {future: 1}[future] == 1


def test_a_subclass_in_front_of_the_executor(make_executor: MakeExecutor) -> None:
    """Other projects put a class of their own in front."""

    class Mine:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.count = 0

        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
            self.count += 1
            return super().submit(fn, *args, **kwargs)  # type: ignore[misc]

    class Both(Mine, SingleNodeExecutor):
        pass

    with Both(max_workers=1) as exe:
        assert exe.submit(tasks.add, 1).result() == 1
        assert exe.count == 1


def test_wait_and_as_completed(make_executor: MakeExecutor, tmp_path: Path) -> None:
    with make_executor() as exe:
        quick = [exe.submit(tasks.add, i) for i in range(5)]
        slow = exe.submit(tasks.wait_for, tmp_path / "go")
        assert concurrent.futures.wait(quick, timeout=30).not_done == set()
        first = concurrent.futures.wait([slow, *quick], timeout=30, return_when=concurrent.futures.FIRST_COMPLETED)
        assert slow in first.not_done
        with pytest.raises(concurrent.futures.TimeoutError):
            slow.result(timeout=0.01)
        assert concurrent.futures.wait([slow], timeout=0.01).not_done == {slow}
        with pytest.raises(concurrent.futures.TimeoutError):
            list(concurrent.futures.as_completed([slow], timeout=0.01))
        (tmp_path / "go").touch()
        assert set(concurrent.futures.as_completed([slow, *quick], timeout=30)) == {slow, *quick}
        failing = exe.submit(tasks.fail)
        done = concurrent.futures.wait([failing], timeout=30, return_when=concurrent.futures.FIRST_EXCEPTION).done
        assert done == {failing}


def test_many_threads_wait_for_one_future(make_executor: MakeExecutor, tmp_path: Path) -> None:
    with make_executor() as exe, concurrent.futures.ThreadPoolExecutor(8) as threads:
        future = exe.submit(tasks.hold, tmp_path / "begun", tmp_path / "go", 5)
        results = [threads.submit(future.result, 30) for _ in range(8)]
        (tmp_path / "go").touch()
        assert [result.result() for result in results] == [5] * 8


def test_a_future_with_a_timeout_and_a_result_at_the_same_time(make_executor: MakeExecutor) -> None:
    with make_executor() as exe:
        for _ in range(50):
            future = exe.submit(tasks.add, 1)
            while True:
                try:
                    assert future.result(timeout=0.0005) == 1
                    break
                except concurrent.futures.TimeoutError:
                    continue


@pytest.mark.kinds
def test_asyncio_wrap_future(make_executor: MakeExecutor) -> None:
    async def main() -> list[int]:
        return list(await asyncio.gather(*(asyncio.wrap_future(exe.submit(tasks.add, i, 1)) for i in range(5))))

    with make_executor() as exe:
        assert asyncio.run(main()) == [1, 2, 3, 4, 5]


def test_asyncio_run_in_executor(make_executor: MakeExecutor) -> None:
    async def main() -> tuple[Any, ...]:
        loop = asyncio.get_running_loop()
        good = await loop.run_in_executor(exe, tasks.add, 1, 2)
        with pytest.raises(ValueError, match="on purpose"):
            await loop.run_in_executor(exe, tasks.fail)
        return (good,)

    with make_executor() as exe:
        assert asyncio.run(main()) == (3,)


def test_asyncio_cancellation_reaches_the_call(make_executor: MakeExecutor, tmp_path: Path) -> None:
    async def main() -> None:
        blocker = exe.submit(tasks.hold, tmp_path / "begun", tmp_path / "go")
        tasks.wait_for(tmp_path / "begun")
        pending = exe.submit(tasks.add, 1)
        wrapped = asyncio.wrap_future(pending)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(wrapped, timeout=0.05)
        await asyncio.sleep(0)
        assert pending.cancelled()
        (tmp_path / "go").touch()
        await asyncio.wrap_future(blocker)

    with make_executor(max_workers=1) as exe:
        asyncio.run(main())


@pytest.mark.kinds
def test_an_executor_inside_a_task(make_executor: MakeExecutor) -> None:
    def outer(block: bool) -> list[int]:
        with SingleNodeExecutor(max_workers=1, block_allocation=block) as inner:
            return list(inner.map(tasks.add, range(3)))

    with make_executor(max_workers=1) as exe:
        assert exe.submit(outer, False).result() == [0, 1, 2]
        assert exe.submit(outer, True).result() == [0, 1, 2]


def test_multiprocessing_and_subprocess_inside_a_task(make_executor: MakeExecutor) -> None:
    def outer() -> tuple[list[int], str]:
        import multiprocessing
        import subprocess

        with multiprocessing.get_context("fork").Pool(1) as pool:
            numbers = pool.map(abs, [-1, -2])
        said = subprocess.run(["echo", "hello"], capture_output=True, text=True, check=True).stdout
        return numbers, said

    with make_executor(max_workers=1) as exe:
        assert exe.submit(outer).result() == ([1, 2], "hello\n")


def test_a_standard_process_pool_inside_a_task(make_executor: MakeExecutor) -> None:
    def outer() -> list[int]:
        from concurrent.futures import ProcessPoolExecutor

        with ProcessPoolExecutor(1) as pool:
            return list(pool.map(abs, [-3]))

    with make_executor(max_workers=1) as exe:
        assert exe.submit(outer).result() == [3]


def test_threads_inside_a_task_may_use_signals_of_the_main_thread(make_executor: MakeExecutor) -> None:
    """A task runs in the main thread of its process: signal handlers can be set."""

    def outer() -> bool:
        import signal
        import threading

        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        return threading.current_thread() is threading.main_thread()

    with make_executor(max_workers=1) as exe:
        assert exe.submit(outer).result()


def test_the_names_of_the_package() -> None:
    for name in executorlib.__all__:
        assert getattr(executorlib, name) is not None
        assert name in dir(executorlib)
    assert executorlib.__version__.startswith("1.11.")
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = executorlib.no_such_name
    assert inspect.isclass(executorlib.SingleNodeExecutor)


def test_exceptions_and_executor_are_picklable_where_it_makes_sense(make_executor: MakeExecutor) -> None:
    """A function that refers to the executor itself is refused clearly, it does not hang."""
    with make_executor() as exe:
        future = exe.submit(lambda: exe.max_workers)
        assert isinstance(future.exception(20), (TypeError, RuntimeError)) or future.exception(20) is not None
        assert exe.submit(tasks.add, 1).result() == 1
