"""What may be submitted, and what becomes of its errors."""

from __future__ import annotations

import functools
import importlib
import math
import operator
import sys
import time
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tasks

from conftest import MakeExecutor, Script
from executorlib import SingleNodeExecutor
from executorlib.standalone.errors import RemoteTraceback
from executorlib.standalone.select import batch_futures, split_future

OFFSET = 5


class Line:
    def __init__(self, slope: float) -> None:
        self.slope = slope

    def at(self, x: float) -> float:
        return self.slope * x

    def __call__(self, x: float) -> float:
        return self.at(x)

    @classmethod
    def flat(cls) -> float:
        return cls(0.0).at(3.0)

    @staticmethod
    def double(x: float) -> float:
        return 2 * x


def closure_over(value: list[int]) -> Any:
    def inner(x: int) -> list[int]:
        return [*value, x, OFFSET]

    return inner


def variadic(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


def odd_names(fn: Any = None, self: Any = None, args: Any = None, resource: Any = None, kwargs: Any = None) -> Any:
    return fn, self, args, resource, kwargs


def wants_resource_dict(resource_dict: Any) -> Any:
    return resource_dict


def needs(a: Any, b: Any, *, c: Any) -> Any:
    return a, b, c


def recursive(n: int) -> int:
    return 1 if n < 2 else n * recursive(n - 1)


@functools.lru_cache
def cached(x: float) -> float:
    return 2 * x


@pytest.mark.kinds
def test_positional_and_keyword_arguments(make_executor: MakeExecutor) -> None:
    with make_executor() as exe:
        assert exe.submit(variadic, 1, "two", three=3.0).result() == ((1, "two"), {"three": 3.0})


@pytest.mark.parametrize(
    ("fn", "args", "expected"),
    [
        pytest.param(lambda x: x + OFFSET, (1,), 6, id="lambda"),
        pytest.param(closure_over([1, 2]), (3,), [1, 2, 3, 5], id="closure"),
        pytest.param(Line(2.0).at, (3.0,), 6.0, id="bound method"),
        pytest.param(Line(2.0), (3.0,), 6.0, id="callable object"),
        pytest.param(Line.flat, (), 0.0, id="classmethod"),
        pytest.param(Line.double, (4.0,), 8.0, id="staticmethod"),
        pytest.param(Line, (4.0,), None, id="class"),
        pytest.param(functools.partial(variadic, 1, key=2), (3,), ((1, 3), {"key": 2}), id="partial"),
        pytest.param(functools.partial(functools.partial(Line(3.0).at), 2.0), (), 6.0, id="partial of partial"),
        pytest.param(time.sleep, (0.0,), None, id="time.sleep"),
        pytest.param(max, (3, 9, 4), 9, id="max"),
        pytest.param(math.hypot, (3.0, 4.0), 5.0, id="math.hypot"),
        pytest.param(dict, ([("a", 1)],), {"a": 1}, id="dict"),
        pytest.param("a,b".split, (",",), ["a", "b"], id="method of a builtin object"),
        pytest.param(operator.itemgetter(1), ("xyz",), "y", id="itemgetter"),
        pytest.param(recursive, (10,), 3628800, id="recursive"),
        pytest.param(cached, (4.0,), 8.0, id="lru_cache"),
    ],
)
def test_any_callable(make_executor: MakeExecutor, fn: Any, args: tuple[Any, ...], expected: Any) -> None:
    with make_executor() as exe:
        result = exe.submit(fn, *args).result()
    assert isinstance(result, Line) if fn is Line else result == expected


@pytest.mark.parametrize("name", ["fn", "self", "args", "resource", "kwargs"])
def test_names_of_keyword_arguments_are_free(make_executor: MakeExecutor, name: str) -> None:
    with make_executor() as exe:
        named: dict[str, Any] = {name: 7}
        result = exe.submit(odd_names, **named).result()
    assert dict(zip(("fn", "self", "args", "resource", "kwargs"), result, strict=True))[name] == 7


def test_a_parameter_called_resource_dict_is_refused(make_executor: MakeExecutor) -> None:
    with make_executor() as exe:
        for fn in (wants_resource_dict, functools.partial(wants_resource_dict), lambda *, resource_dict: None):
            with pytest.raises(ValueError, match="resource_dict"):
                exe.submit(fn, 1)
            with pytest.raises(ValueError, match="resource_dict"):
                exe.map(fn, [1])
        assert exe.submit(tasks.add, 1, 2).result() == 3


@pytest.mark.parametrize("wrong", [5, None, "text"])
def test_what_is_not_callable_fails(make_executor: MakeExecutor, wrong: Any) -> None:
    with make_executor() as exe, pytest.raises(TypeError):
        exe.submit(wrong).result()


@pytest.mark.kinds
def test_the_exception_arrives_with_its_remote_traceback(make_executor: MakeExecutor) -> None:
    with make_executor() as exe:
        future = exe.submit(tasks.fail, "the message")
        with pytest.raises(ValueError, match=r"^the message$") as caught:
            future.result()
    cause = caught.value.__cause__
    assert isinstance(cause, RemoteTraceback)
    assert "in fail" in str(cause)
    assert "tasks.py" in str(cause)
    assert "executorlib/backend" not in str(cause), "the library's own frames are of no interest"


def test_an_exception_of_a_class_of_main_or_a_closure(make_executor: MakeExecutor) -> None:
    class LocalError(Exception):
        def __init__(self, detail: str) -> None:
            super().__init__(detail)
            self.detail = detail

    def fails() -> None:
        raise LocalError("here")

    with make_executor() as exe:
        error = exe.submit(fails).exception()
    assert type(error).__name__ == "LocalError"
    assert getattr(error, "detail", None) == "here"


def test_exception_chains_are_told(make_executor: MakeExecutor) -> None:
    def fails() -> None:
        try:
            raise KeyError("first")
        except KeyError as error:
            raise OSError("second") from error

    with make_executor() as exe:
        error = exe.submit(fails).exception()
    assert isinstance(error, OSError)
    assert "first" in str(error.__cause__)
    assert "second" in str(error.__cause__)


def test_a_missing_argument_carries_a_note(make_executor: MakeExecutor) -> None:
    with make_executor() as exe:
        error = exe.submit(needs, 1, c=3).exception()
    assert isinstance(error, TypeError)
    notes = "\n".join(getattr(error, "__notes__", []))
    assert "'b'" in notes
    assert "init_function" in notes
    assert "'a'" not in notes


def test_a_missing_argument_of_a_callable_whose_signature_raises(make_executor: MakeExecutor) -> None:
    with make_executor() as exe, pytest.raises(TypeError, match="missing"):
        exe.submit(tasks.NoSignature()).result(20)


def test_an_unrelated_type_error_carries_no_note(make_executor: MakeExecutor) -> None:
    with make_executor() as exe:
        error = exe.submit(tasks.add, 1, "a").exception()
    assert isinstance(error, TypeError)
    assert not getattr(error, "__notes__", [])


def test_arguments_are_taken_when_submitted(make_executor: MakeExecutor, tmp_path: Path) -> None:
    """What a program changes after submit does not change the call; large arrays, of 64 kB and more, are not copied."""
    import numpy as np

    numbers, array = [1], np.ones(8_000)
    with make_executor(max_workers=1) as exe:
        blocker = exe.submit(tasks.wait_for, tmp_path / "go")
        first, second = exe.submit(tasks.identity, numbers), exe.submit(np.sum, array)
        numbers.append(2)
        array[:] = 0
        (tmp_path / "go").touch()
        blocker.result()
        assert first.result() == [1]
        assert second.result() == 8_000


def test_arrays_arrive_whole_and_writable(make_executor: MakeExecutor) -> None:
    import numpy as np

    def double(x: Any) -> Any:
        assert x.flags.writeable
        x *= 2
        return x

    arrays = [np.arange(n, dtype=dtype) for n in (0, 5, 300_000) for dtype in ("f8", "i2", "c16")]
    with make_executor() as exe:
        for array, future in [(a, exe.submit(double, a)) for a in arrays]:
            result = future.result()
            assert result.flags.writeable
            np.testing.assert_array_equal(result, 2 * array)
    np.testing.assert_array_equal(arrays[-1], np.arange(300_000))  # the caller's array is his own


def test_non_contiguous_and_object_arrays(make_executor: MakeExecutor) -> None:
    import numpy as np

    matrix = np.arange(1_000_000.0).reshape(1000, 1000)
    with make_executor() as exe:
        for array in (matrix[::2, ::3], matrix.T, np.asfortranarray(matrix), np.array([{"a": 1}, None], dtype=object)):
            np.testing.assert_array_equal(exe.submit(tasks.identity, array).result(), array)


def test_a_function_and_what_it_reads_is_that_of_the_submission(make_executor: MakeExecutor) -> None:
    """A redefinition, a changed default, a changed global and a changed closure are each seen by the next call."""
    scope: dict[str, Any] = {"__name__": "__main__"}
    source = "limit = 1\ndef read(x=10):\n    return limit + x\n"
    exec(source, scope)
    with make_executor() as exe:
        results = [exe.submit(scope["read"])]
        scope["limit"] = 2
        results.append(exe.submit(scope["read"]))
        scope["read"].__defaults__ = (20,)
        results.append(exe.submit(scope["read"]))
        exec("def read(x=10):\n    return 0\n", scope)
        results.append(exe.submit(scope["read"]))
        assert [future.result() for future in results] == [11, 12, 22, 0]


def test_a_submodule_that_is_imported_later_is_there_for_the_next_call(
    make_executor: MakeExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``import a.b.c`` makes no new global variable where ``import a`` was before."""
    for name in ("later", "later/inner"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    (tmp_path / "later" / "inner" / "deep.py").write_text("answer = 42\n")
    monkeypatch.syspath_prepend(tmp_path)
    scope: dict[str, Any] = {"__name__": "__main__"}
    exec("import later\ndef read():\n    return later.inner.deep.answer\n", scope)
    try:
        with make_executor() as exe:
            assert isinstance(exe.submit(scope["read"]).exception(20), AttributeError)
            importlib.import_module("later.inner")
            assert isinstance(exe.submit(scope["read"]).exception(20), AttributeError)
            importlib.import_module("later.inner.deep")
            assert exe.submit(scope["read"]).result(20) == 42
    finally:
        for name in ("later", "later.inner", "later.inner.deep"):
            sys.modules.pop(name, None)


def test_print_reaches_the_program(script: Script) -> None:
    done = script(
        "import sys\n"
        "from executorlib import SingleNodeExecutor\n"
        "def talk(x):\n"
        "    print('out', x)\n"
        "    print('err', x, file=sys.stderr)\n"
        "if __name__ == '__main__':\n"
        "    for block in (False, True):\n"
        "        with SingleNodeExecutor(max_workers=1, block_allocation=block) as exe:\n"
        "            exe.submit(talk, block).result()\n"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["out False", "out True"]
    assert done.stderr.splitlines() == ["err False", "err True"]


MAIN_SCRIPT = """
import sys
from dataclasses import dataclass
from executorlib import SingleNodeExecutor
import beside

FACTOR = 3

@dataclass
class Point:
    x: int
    def norm(self):
        return abs(self.x)

class OwnError(Exception):
    pass

def scale(point):
    return Point(point.x * FACTOR)

def fails():
    raise OwnError("mine")

def main(**options):
    with SingleNodeExecutor(max_workers=2, **options) as exe:
        result = exe.submit(scale, Point(-2)).result()
        assert result == Point(-6), result
        assert isinstance(result, Point)
        assert exe.submit(result.norm).result() == 6
        assert exe.submit(lambda: FACTOR).result() == 3
        assert exe.submit(beside.triple, 5).result() == 15
        assert exe.submit(beside.Shape(4).area).result() == 16
        assert isinstance(exe.submit(beside.Shape, 3).result(), beside.Shape)
        assert list(exe.map(scale, map(Point, range(5)))) == [Point(3 * i) for i in range(5)]
        error = exe.submit(fails).exception()
        assert isinstance(error, OwnError), repr(error)

if __name__ == "__main__":
    main()
    main(block_allocation=True)
    print("done")
"""


@pytest.mark.parametrize("fork_server", ["1", "0"])
def test_a_script_and_a_module_beside_it(script: Script, tmp_path: Path, fork_server: str) -> None:
    (tmp_path / "beside.py").write_text(
        "class Shape:\n    def __init__(self, a): self.a = a\n    def area(self): return self.a ** 2\n"
        "def triple(x): return 3 * x\n"
    )
    done = script(MAIN_SCRIPT, env={"EXECUTORLIB_FORK_SERVER": fork_server}, cwd="/")
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_a_script_without_a_main_guard(script: Script) -> None:
    """Nothing imports the script again in a worker, so it needs no ``if __name__ == "__main__"``."""
    done = script(
        "from executorlib import SingleNodeExecutor\n"
        "print('once')\n"
        "with SingleNodeExecutor(max_workers=1) as exe:\n"
        "    print(exe.submit(lambda: 6 * 7).result())\n"
    )
    assert (done.returncode, done.stdout) == (0, "once\n42\n"), done.stderr


def test_code_from_standard_input_and_the_command_line(script: Script, script_environment: dict[str, str]) -> None:
    import subprocess
    import sys

    code = (
        "from executorlib import SingleNodeExecutor\n"
        "def f(x): return x + 1\n"
        "with SingleNodeExecutor(max_workers=1) as exe: print(exe.submit(f, 1).result())\n"
    )
    for command, given in (([sys.executable, "-c", code], ""), ([sys.executable, "-"], code)):
        done = subprocess.run(
            command, input=given, env=script_environment, capture_output=True, text=True, timeout=40, check=False
        )
        assert (done.returncode, done.stdout) == (0, "2\n"), done.stderr


def test_a_script_in_a_weird_place(weird_path: Path, script_environment: dict[str, str]) -> None:
    import subprocess
    import sys

    (weird_path / "beside.py").write_text("def one(): return 1\n")
    path = weird_path / "it's a script.py"
    path.write_text(
        "import os, beside\n"
        "from executorlib import SingleNodeExecutor\n"
        "for block in (False, True):\n"
        "    with SingleNodeExecutor(max_workers=1, block_allocation=block) as exe:\n"
        "        assert exe.submit(beside.one).result() == 1\n"
        "        assert exe.submit(os.getcwd).result() == os.getcwd()\n"
    )
    for fork_server in ("1", "0"):
        done = subprocess.run(
            [sys.executable, str(path)],
            cwd=weird_path,
            env={**script_environment, "EXECUTORLIB_FORK_SERVER": fork_server},
            capture_output=True,
            text=True,
            timeout=40,
            check=False,
        )
        assert done.returncode == 0, done.stderr


def test_modules_of_the_workers_own_folder_are_not_found(make_executor: MakeExecutor) -> None:
    """The backend's folder holds files called worker.py and calls.py, which must not hide those of a user."""

    def find() -> list[bool]:
        import importlib.util

        return [importlib.util.find_spec(name) is not None for name in ("calls", "worker", "runner", "fork_server")]

    with make_executor() as exe:
        assert exe.submit(find).result() == [False] * 4


def test_the_place_of_a_fresh_worker_is_that_of_the_program_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sys.path, environment and working directory as they are when the call starts, not when the executor did."""

    def look() -> tuple[Any, ...]:
        import importlib
        import os

        return os.getcwd(), os.environ.get("SET_LATE"), os.environ.get("UNSET_LATE"), importlib.import_module("late").x

    monkeypatch.setenv("UNSET_LATE", "1")
    with SingleNodeExecutor(max_workers=1) as exe:
        assert exe.submit(tasks.add, 1, 1).result() == 2
        (tmp_path / "late.py").write_text("x = 8\n")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setenv("SET_LATE", "yes")
        monkeypatch.delenv("UNSET_LATE")
        monkeypatch.chdir(tmp_path)
        assert exe.submit(look).result() == (str(tmp_path), "yes", None, 8)


def test_default_mode_gives_every_call_a_fresh_process() -> None:
    with SingleNodeExecutor(max_workers=2) as exe:
        pids = [exe.submit(tasks.pid).result() for _ in range(4)]
    assert len(set(pids)) == 4


def test_block_allocation_keeps_its_processes() -> None:
    with SingleNodeExecutor(max_workers=2, block_allocation=True) as exe:
        pids = list(exe.map(_pid_of, range(200)))
    assert len(set(pids)) <= 2


def _pid_of(_: int) -> int:
    return tasks.pid()


def test_threads_submit_at_once(make_executor: MakeExecutor) -> None:
    import threading

    with make_executor() as exe:
        futures: list[list[Future[Any]]] = [[] for _ in range(10)]
        start = threading.Barrier(10)

        def submit(number: int) -> None:
            start.wait()
            futures[number] = [exe.submit(tasks.add, number, i) for i in range(20)]

        threads = [threading.Thread(target=submit, args=(n,)) for n in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for number, own in enumerate(futures):
            assert [future.result() for future in own] == [number + i for i in range(20)]


def test_callbacks_may_raise_submit_and_cancel(make_executor: MakeExecutor, caplog: pytest.LogCaptureFixture) -> None:
    import threading

    seen = SimpleNamespace(second=None, ready=threading.Event())

    def submits(future: Future[Any]) -> None:
        seen.second = exe.submit(tasks.add, future.result(), 1)
        seen.ready.set()

    def raises(future: Future[Any]) -> None:
        raise RuntimeError("a callback fails")

    with make_executor() as exe:
        first = exe.submit(tasks.add, 1, 1)
        first.add_done_callback(raises)
        first.add_done_callback(submits)
        first.add_done_callback(lambda _: exe.submit(time.sleep, 0).cancel())
        assert first.result() == 2
        assert seen.ready.wait(20)
        assert seen.second.result() == 3


def test_a_callback_that_exits_does_not_end_the_executor(make_executor: MakeExecutor, tmp_path: Path) -> None:
    def leaves(future: Future[Any]) -> None:
        raise SystemExit(1)

    with make_executor() as exe:
        first = exe.submit(tasks.hold, tmp_path / "begun", tmp_path / "go", (1, 2))
        first.add_done_callback(leaves)
        (part,) = split_future(first, 1)
        part.add_done_callback(leaves)
        (group,) = batch_futures([first], 1)
        group.add_done_callback(leaves)
        after = [exe.submit(tasks.add, part, 3), exe.submit(len, group), exe.submit(len, first)]
        (tmp_path / "go").touch()
        first.result()
        assert [future.result(20) for future in after] == [4, 1, 2], "the callbacks behind it are called"
        assert exe.submit(tasks.add, 2, 2).result() == 4


def test_large_results_and_many_at_once(make_executor: MakeExecutor) -> None:
    with make_executor() as exe:
        futures = [exe.submit(bytes, 20_000_000) for _ in range(3)]
        assert [len(future.result()) for future in futures] == [20_000_000] * 3
        big = bytes(30_000_000)
        assert exe.submit(len, big).result() == 30_000_000


def test_a_call_with_log_obj_size(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="executorlib"), SingleNodeExecutor(max_workers=1, log_obj_size=True) as exe:
        exe.submit(len, b"x" * 5000).result()
    assert any("bytes" in record.message for record in caplog.records)


def test_len_counts_what_waits(make_executor: MakeExecutor, tmp_path: Path) -> None:
    with make_executor(max_workers=1) as exe:
        assert len(exe) == 0
        assert bool(exe)
        running = exe.submit(tasks.hold, tmp_path / "begun", tmp_path / "go")
        tasks.wait_for(tmp_path / "begun")
        waiting = [exe.submit(tasks.add, i) for i in range(5)]
        assert 4 <= len(exe) <= 5  # one may have been sent ahead
        (tmp_path / "go").touch()
        for future in [running, *waiting]:
            future.result()
        assert len(exe) == 0
