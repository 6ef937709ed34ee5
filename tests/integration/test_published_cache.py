"""executorlib 1.11.0 itself, in an environment of its own: each reads the other's cache and gives the same keys.

EXECUTORLIB_PUBLISHED_PYTHON names the interpreter of an environment that has it already (with the Python and the
cloudpickle of this one: both are part of the keys).
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from executorlib.standalone import hdf

# One environment serves them all.
pytestmark = [pytest.mark.integration, pytest.mark.timeout(600), pytest.mark.xdist_group("published")]

Published = Callable[..., Any]
UNREACHABLE = ("No matching distribution", "Could not find a version", "Connection", "Temporary failure in name")


@pytest.fixture(scope="session")
def published_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The interpreter of an environment with executorlib 1.11.0."""
    given = os.environ.get("EXECUTORLIB_PUBLISHED_PYTHON")
    if given:
        return given
    folder = tmp_path_factory.mktemp("published")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = str(folder / ("Scripts" if os.name == "nt" else "bin") / "python")
    versions = [f"{name}=={importlib.metadata.version(name)}" for name in ("cloudpickle", "h5py", "numpy")]
    installed = subprocess.run(
        [python, "-m", "pip", "install", "-q", "--no-input", "executorlib==1.11.0", *versions],
        capture_output=True,
        text=True,
        check=False,
    )
    if installed.returncode and any(text in installed.stderr for text in UNREACHABLE):
        pytest.skip(f"pip cannot get executorlib 1.11.0: {installed.stderr.strip().splitlines()[-1]}")
    assert installed.returncode == 0, installed.stderr
    return python


@pytest.fixture
def published(published_python: str, tmp_path: Path) -> Published:
    """Runs a script under executorlib 1.11.0 and returns what it prints, as JSON."""

    def run(code: str, *arguments: str) -> Any:
        return run_script(published_python, tmp_path / "script.py", code, *arguments)

    return run


@pytest.fixture
def ours(tmp_path: Path) -> Published:
    """The same with this executorlib; a script has the same path in both."""

    def run(code: str, *arguments: str) -> Any:
        return run_script(
            sys.executable, tmp_path / "script.py", code, *arguments, PYTHONPATH=os.pathsep.join(sys.path)
        )

    return run


def run_script(python: str, path: Path, code: str, *arguments: str, **environment: str) -> Any:
    path.write_text(code)
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ended = subprocess.run(
        [python, str(path), *arguments],
        env={**inherited, **environment},
        cwd=path.parent,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


def test_it_is_the_published_one(published: Published) -> None:
    version, path = published(
        "import executorlib, json; print(json.dumps([executorlib.__version__, executorlib.__file__]))"
    )
    assert version == "1.11.0"
    assert "site-packages" in path


# Files

READ = """
import json, sys
from executorlib.standalone import hdf
content = hdf.load(sys.argv[1])
entry, = hdf.get_cache_data(sys.argv[2])
print(json.dumps({
    "call": content["fn"](*content["args"], **content["kwargs"]),
    "resource_dict": content["resource_dict"],
    "output": hdf.get_output(sys.argv[1]),
    "runtime": hdf.get_runtime(sys.argv[1]),
    "queue_id": hdf.get_queue_id(sys.argv[1]),
    "entry": sorted(entry),
    "entry output": entry["output"],
}))
"""
WRITE = """
import sys
from executorlib.standalone import hdf

def add(a, b):
    return a + b

hdf.dump(sys.argv[1], {"fn": add, "args": [1], "kwargs": {"b": 2}, "resource_dict": {"cores": 1}})
hdf.dump(sys.argv[1], {"output": [3.5] * 1000, "runtime": 0.5, "queue_id": 7, "error_log_file": None})
print("null")
"""
READ_BACK = {
    "call": 3,
    "resource_dict": {"cores": 1},
    "output": [True, True, [3.5] * 1000],
    "runtime": 0.5,
    "queue_id": 7,
    "entry": [
        "error_log_file",
        "filename",
        "function",
        "input_args",
        "input_kwargs",
        "output",
        "queue_id",
        "resource_dict",
        "runtime",
    ],
    "entry output": [3.5] * 1000,
}


def test_it_reads_what_we_write(published: Published, ours: Published, tmp_path: Path) -> None:
    path = tmp_path / "cache" / "add_o.h5"
    ours(WRITE, str(path))
    assert published(READ, str(path), str(path.parent)) == READ_BACK


def test_we_read_what_it_writes(published: Published, ours: Published, tmp_path: Path) -> None:
    path = tmp_path / "cache" / "add_o.h5"
    published(WRITE, str(path))
    assert ours(READ, str(path), str(path.parent)) == READ_BACK


ADD = """
import sys
from executorlib.standalone import hdf
hdf.dump(sys.argv[1], {"queue_id": 12, "output": "second", "runtime": 2.0})
print("null")
"""


@pytest.mark.parametrize("first", ["ours", "published"])
def test_one_adds_to_the_file_of_the_other(published: Published, ours: Published, tmp_path: Path, first: str) -> None:
    path = str(tmp_path / "add_i.h5")
    write, add = (ours, published) if first == "ours" else (published, ours)
    write(WRITE.replace('"queue_id": 7, ', ""), path)
    add(ADD, path)
    for run in (ours, published):
        assert run(READ, path, str(tmp_path)) == {**READ_BACK, "queue_id": 12}


def test_an_error_is_an_error_in_both(published: Published, tmp_path: Path) -> None:
    hdf.dump(str(tmp_path / "ours_o.h5"), {"error": ValueError("no", 1)})
    read = """
import json, sys
from executorlib.standalone import hdf
hdf.dump("published_o.h5", {"error": KeyError("k")})
ended, succeeded, error = hdf.get_output("ours_o.h5")
print(json.dumps([ended, succeeded, type(error).__name__, error.args]))
"""
    assert published(read) == [True, False, "ValueError", ["no", 1]]
    ended, succeeded, error = hdf.get_output(str(tmp_path / "published_o.h5"))
    assert (ended, succeeded) == (True, False)
    assert isinstance(error, KeyError)


def test_arrays_arrive_in_both(published: Published, tmp_path: Path) -> None:
    hdf.dump(str(tmp_path / "ours_o.h5"), {"output": {"x": np.arange(50_000.0)}, "fn": math.hypot})
    program = """
import json
import numpy as np
from executorlib.standalone import hdf
hdf.dump("published_o.h5", {"output": {"x": np.arange(50_000.0)}})
print(json.dumps(float(hdf.get_output("ours_o.h5")[2]["x"].sum())))
"""
    assert published(program) == np.arange(50_000.0).sum()
    np.testing.assert_array_equal(hdf.get_output(str(tmp_path / "published_o.h5"))[2]["x"], np.arange(50_000.0))


# Keys

KEYS = """
import functools, json, math, operator, os, sys, time
from collections import OrderedDict
import numpy as np
if sys.argv[1] == "published":
    from executorlib.standalone.serialize import serialize_funct
    def key(fn, args, kwargs): return serialize_funct(fn, args, kwargs)[0]
else:
    from executorlib.standalone.cache_key import default_key as key

FACTOR = 3

def scaled(x, by=2): return helper(x) * by * FACTOR
def helper(x): return math.sqrt(x)
def annotated(x: int, *, y: "str" = "y") -> float:
    "With a docstring."
    return [x for _ in y]
def closure(n):
    def inner(x): return x + n
    return inner
@functools.wraps(scaled)
def wrapper(*args): return scaled(*args)
def generator(x): yield from (y for y in range(x))

print(json.dumps([key(*call) for call in [
    (scaled, (4,), {}),
    (scaled, [4], {}),
    (scaled, (4,), {"by": 3}),
    (scaled, (), {"x": 4, "by": 3}),
    (scaled, (), {"by": 3, "x": 4}),
    (annotated, (1,), {"y": "z"}),
    (closure(3), (1,), {}),
    (wrapper, (1,), {}),
    (generator, (3,), {}),
    (lambda x, y=2: x, (1,), {}),
    (functools.partial(scaled, by=1), (2,), {}),
    (functools.partial(math.hypot, 1), (2,), {}),
    (math.hypot, (3, 4), {}),
    (time.sleep, (1,), {}),
    (os.path.join, ("a", "b"), {}),
    (operator.itemgetter(1), ([1, 2],), {}),
    (operator.methodcaller("upper"), ("a",), {}),
    (str.upper, ("a",), {}),
    ("a".upper, (), {}),
    ([1].append, (2,), {}),
    (dict.fromkeys, ("ab",), {}),
    (OrderedDict, ([("a", 1)],), {}),
    (np.linalg.norm, (np.eye(3),), {}),
    (np.sum, (np.arange(100_000.0).reshape(100, 1000)[:, ::2],), {"axis": 0}),
    (len, ({1, 2, 30},), {}),
    (len, ({"one"},), {}),
    (len, (b"\\x8f\\x91" * 100,), {}),
    (print, (1, 2.5, None, True, "text", b"bytes", 3j, ..., slice(1, 2), range(3)), {"sep": "\\n"}),
]]))
"""


def test_the_same_calls_have_the_same_keys(published: Published, ours: Published) -> None:
    theirs = published(KEYS, "published")
    assert len(set(theirs)) == len(theirs) > 25
    assert ours(KEYS, "ours") == theirs


CALL = """
import json, os, sys

def noted(x):
    with open(os.path.join(os.path.dirname(__file__), "note"), "a") as file:
        file.write("x")
    return 2 * x
"""
RUN_PUBLISHED = (
    CALL
    + """
if __name__ == "__main__" and sys.argv[1] == "run":
    from executorlib import SingleNodeExecutor
    with SingleNodeExecutor(max_workers=1, cache_directory="cache") as exe:
        print(json.dumps(exe.submit(noted, 4).result()))
elif __name__ == "__main__":
    from executorlib.standalone import hdf
    from executorlib.standalone.cache_key import call_key
    from executorlib.standalone.cache_paths import CachePaths
    paths = CachePaths.of("cache", call_key(noted, (4,), {}).key)
    if sys.argv[1] == "write":
        hdf.dump(paths.output, {"fn": noted, "args": (4,), "kwargs": {}, "output": 8, "runtime": 0.1})
    print(json.dumps([paths.output, hdf.get_output(paths.output)]))
"""
)


def test_its_executor_finds_our_result(published: Published, ours: Published, tmp_path: Path) -> None:
    path, _ = ours(RUN_PUBLISHED, "write")
    assert published(RUN_PUBLISHED, "run") == 8
    assert not (tmp_path / "note").exists(), "the function ran"
    assert os.listdir(tmp_path / "cache") == [os.path.basename(path)]


def test_we_find_the_result_of_its_executor(published: Published, ours: Published, tmp_path: Path) -> None:
    assert published(RUN_PUBLISHED, "run") == 8
    assert (tmp_path / "note").read_text() == "x"
    path, output = ours(RUN_PUBLISHED, "read")
    assert output == [True, True, 8]
    assert os.listdir(tmp_path / "cache") == [os.path.basename(path)]


# The executors that work through files

CLUSTER = """
import json, os, sys
from executorlib import get_cache_data, get_future_from_cache, get_item_from_future, split_future
from executorlib.api import TestClusterExecutor

def note(text):
    with open(os.path.join(os.path.dirname(__file__), "note"), "a") as file:
        file.write(text)
def first(x):
    note("1")
    return {"item": x, "pair": [x, 2 * x]}
def second(x, *, y=0):
    note("2")
    return x, y
def failing(x):
    note("3")
    raise KeyError("failed", x)

if __name__ == "__main__":
    results = []
    with TestClusterExecutor(cache_directory="cache") as exe:
        one = exe.submit(first, 4)
        two = exe.submit(second, get_item_from_future(one, "item"), y=one)
        three = exe.submit(second, split_future(two, 2)[0])
        four = exe.submit(failing, 5)
        five = exe.submit(second, four)
        results += [future.result() for future in (one, two, three)]
        for future in (four, five):
            error = future.exception()
            results.append([type(error).__name__, error.args])
    keys = sorted(os.path.basename(entry["filename"]) for entry in get_cache_data("cache"))
    print(json.dumps([results, keys]))
"""


def test_jobs_of_its_executor_are_results_of_ours(published: Published, ours: Published, tmp_path: Path) -> None:
    """References to other tasks are part of the names, and so is whether two of them are one string."""
    found = published(CLUSTER)
    ran = (tmp_path / "note").read_text()
    assert sorted(ran) == list("1223")
    assert ours(CLUSTER) == found
    assert (tmp_path / "note").read_text() == ran, "a function ran again"
    assert found[0][0] == {"item": 4, "pair": [4, 8]}
    assert found[0][4] == ["KeyError", ["failed", 5]]
    assert len(found[1]) == 5


def test_jobs_of_ours_are_results_of_its_executor(published: Published, ours: Published, tmp_path: Path) -> None:
    """Also an error, with the traceback that ours adds to it.

    What depends on others is left out: with the result of a task that it has seen to be done, executorlib 1.11 makes
    another name for a call than with a reference to it, so that its names depend on who was faster.
    """
    alone = CLUSTER.replace("future in (one, two, three)", "future in (one,)")
    alone = "".join(
        line for line in alone.splitlines(True) if not line.strip().startswith(("two =", "three =", "five"))
    )
    alone = alone.replace("(four, five)", "(four,)")
    found = ours(alone)
    assert (tmp_path / "note").read_text() in ("13", "31")
    assert published(alone) == found
    assert (tmp_path / "note").read_text() in ("13", "31"), "a function ran again"
    assert found[0] == [{"item": 4, "pair": [4, 8]}, ["KeyError", ["failed", 5]]]
    assert len(found[1]) == 2


WAITING = """
import json, os, sys
from executorlib.api import TestClusterExecutor
from executorlib.standalone import hdf

def doubled(x):
    return 2 * x

if __name__ == "__main__":
    if sys.argv[1] == "write":
        hdf.dump("cache/key_i.h5", {"fn": doubled, "args": [4], "kwargs": {}, "resource_dict": {"cores": 1}})
    with TestClusterExecutor(cache_directory="cache") as exe:
        if sys.argv[1] == "run":
            print(json.dumps(exe.submit(doubled, 4, resource_dict={"cache_key": "key"}).result()))
        else:
            print("null")
"""


def test_we_run_what_it_has_left_waiting(published: Published, ours: Published, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    published(WAITING, "write")
    assert ours(WAITING, "run") == 8
    assert os.listdir(tmp_path / "cache") == ["key_o.h5"]


def test_it_runs_what_we_have_left_waiting(published: Published, ours: Published, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    ours(WAITING, "write")
    assert published(WAITING, "run") == 8
    assert os.listdir(tmp_path / "cache") == ["key_o.h5"]
