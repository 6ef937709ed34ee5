"""Keys and file names of the cache: the same call has the same key in the next process, and no other call has it."""

from __future__ import annotations

import functools
import hashlib
import math
import operator
import os
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from executorlib.standalone import hdf
from executorlib.standalone.cache_key import CallKey, alias_key, call_key, default_key
from executorlib.standalone.cache_paths import CachePaths, aliased_output, remember_alias


def identity(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


class Callable_:
    def __init__(self, value: Any) -> None:
        self.value = value

    def __call__(self) -> Any:
        return self.value

    def method(self) -> Any:
        return self.value


class Words(set[str]):
    """A set of a type of its own."""


class Ring:
    """A set that contains what contains it."""

    def __init__(self) -> None:
        self.all = {self, "a", "b"}


def published_key(fn: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> str:
    """executorlib 1.11's, as far as no notebook is involved; `tests/integration/test_published_cache.py` shows it."""
    name: str = getattr(fn, "__name__", type(fn).__name__)
    return name + hashlib.md5(cloudpickle.dumps({"fn": fn, "args": args, "kwargs": kwargs})).hexdigest()


# executorlib 1.11's key


@pytest.mark.parametrize(
    ("fn", "args", "kwargs"),
    [
        (math.hypot, (3, 4), {}),
        (math.hypot, [3, 4], {}),
        (identity, (), {"b": 1, "a": 2}),
        (lambda x: x, (1,), {}),
        (functools.partial(identity, 1), (), {}),
        (operator.itemgetter(1), ([1, 2],), {}),
        (Callable_(1), (), {}),
        (Callable_(1).method, (), {}),
        (Callable_, (1,), {}),
        (str.upper, ("a",), {}),
        ("a".upper, (), {}),
        (identity, (np.arange(100_000.0), np.float64(3)), {}),
        (identity, ({1, 9, 2**40, Fraction(1, 3), 0.5, (1, 2)},), {}),
        (identity, ({"only one"}, frozenset(), set()), {}),
        (identity, (b"\x8f\x91", "/ipykernel_ without a slash"), {}),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_call_that_is_pickled_alike_everywhere_has_the_published_key(
    fn: Callable[..., Any], args: Any, kwargs: dict[str, Any]
) -> None:
    assert default_key(fn, args, kwargs) == published_key(fn, args, kwargs)


def test_a_call_that_cannot_be_pickled_has_no_key() -> None:
    with pytest.raises(TypeError, match="pickle"):
        default_key(identity, (sys._getframe(),), {})


# The same key in the next process

PROGRAM = """
import abc, dataclasses, enum, functools, os, sys, typing
from executorlib.standalone.cache_key import alias_key, call_key

place, number = sys.argv[1], int(sys.argv[2])
here = os.path.dirname(os.path.abspath(__file__))

def identity(*args, **kwargs):
    return args, kwargs

def membership(x):
    return x in {"a", "b", "c", "d", "e"}

T = typing.TypeVar("T")

class Plain:
    kind = {"x", "y", "z"}

    def __init__(self, value):
        self.value = value
        self.second = self.third = value

@dataclasses.dataclass(frozen=True)
class Point:
    x: int
    y: str = "y"

class Colour(enum.Enum):
    RED = 1
    BLUE = 2

class Base(abc.ABC):
    @abc.abstractmethod
    def run(self): ...

class Words(set):
    pass

for name in ("A", "B", "C", "D"):
    Base.register(type(name, (), {}))

if place == "notebook":
    source = "def cell(x):\\n    return (lambda y: x + y)(1)\\nclass InCell:\\n    def f(self): pass\\n"
    exec(compile(source, f"/tmp/ipykernel_{10 ** number}/{number}.py", "exec"))
elif place == "prompt":
    source = "def cell(x): return x\\nclass InCell:\\n    def f(self): pass\\n"
    exec(compile(source, f"<ipython-input-{10 ** number}-abc>", "exec"))
else:
    cell, InCell = identity, Plain

letters = [chr(97 + index) for index in range(20)]
calls = {
    "set": (os.path.join, ({*letters},), {}),
    "frozenset": (os.path.join, (frozenset(letters),), {}),
    "nested set": (os.path.join, ({"x": [{(letter, 1) for letter in letters}]},), {}),
    "set of sets": (os.path.join, ({frozenset({letter, letter + "x", "z"}) for letter in letters},), {}),
    "mixed set": (os.path.join, ({1, "a", (2, "b"), b"c", None, 2.5},), {}),
    "set type": (identity, (Words(letters),), {}),
    "set twice": (os.path.join, ((lambda s: (s, s))(set(letters))), {}),
    "constant in the code": (membership, ("a",), {}),
    "class": (Plain, (1,), {}),
    "instance": (identity, (Plain(1), Plain([2])), {}),
    "method": (Plain(1).__init__, (1,), {}),
    "dataclass": (identity, ({Point(1), Point(2), Point(3, "z")},), {"point": Point(4)}),
    "enum": (identity, ([Colour.RED, {Colour.RED, Colour.BLUE}],), {}),
    "abstract class": (identity, (Base,), {}),
    "type variable": (identity, (T,), {}),
    "cell": (cell, (1,), {}),
    "class in a cell": (identity, (InCell(),) if place else (InCell(1),), {}),
    "closure": ((lambda s: lambda x: x in s)({*letters}), (1,), {}),
    "partial": (functools.partial(identity, {*letters}), (), {}),
    "function": (identity, (1,), {}),
}
for name, (fn, args, kwargs) in calls.items():
    key = call_key(fn, args, kwargs)
    print(name, key.key, key.movable, alias_key(fn, args, kwargs), sep="|")
"""


def keys_of(script: Path, place: str, number: int) -> dict[str, list[str]]:
    environment = {**os.environ, "PYTHONHASHSEED": str(number), "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(
        [sys.executable, str(script), place, str(number)], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return {line.split("|")[0]: line.split("|")[1:] for line in ended.stdout.splitlines()}


@pytest.mark.parametrize("place", ["notebook", "prompt"])
def test_the_same_call_has_the_same_key_in_the_next_process(tmp_path: Path, place: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(PROGRAM)
    first, *others = (keys_of(script, place, number) for number in (1, 2, 3))
    assert len(first) > 15
    for other in others:
        assert {name: other[name] for name in first if other[name] != first[name]} == {}
    keys = [key for key, _, _ in first.values()]
    assert len(set(keys)) == len(keys)
    assert first["function"][1] == "True"
    assert first["cell"][1] == "False"


def test_a_script_that_was_moved_knows_its_calls_by_their_aliases(tmp_path: Path) -> None:
    places = [tmp_path / "one" / "script.py", tmp_path / "two" / "other.py"]
    for script in places:
        script.parent.mkdir()
        script.write_text(PROGRAM)
    here, there = (keys_of(script, "notebook", 1) for script in places)
    assert here["function"][0] != there["function"][0], "the key is executorlib 1.11's, which holds the path"
    assert {name: keys[2] for name, keys in here.items()} == {name: keys[2] for name, keys in there.items()}


def test_a_set_in_another_order_is_the_same_set() -> None:
    # So many that some want the same place in the table, whatever the hash seed: who comes first has it.
    one, other = ({f"word {number}" for number in numbers} for numbers in (range(1000), range(999, -1, -1)))
    assert list(one) != list(other)
    assert default_key(identity, (one,), {}) == default_key(identity, (other,), {})


def test_a_set_that_contains_itself_has_a_key() -> None:
    assert default_key(identity, (Ring(),), {}).startswith("identity")
    assert alias_key(identity, (Ring(),), {}) is None


# No two calls with one key

SHARED = {"a", "b"}


def in_file(name: str, source: str = "lambda x: x") -> Any:
    return eval(compile(source, name, "eval"), {"__name__": "__main__"})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((identity, ({"a", "b"},), {}), (identity, ({"a", "c"},), {})),
        ((identity, ({"a", "b"},), {}), (identity, (["a", "b"],), {})),
        ((identity, ({"a", "b"},), {}), (identity, (("set", ["a", "b"]),), {})),
        ((identity, ({"a", "b"},), {}), (identity, (frozenset({"a", "b"}),), {})),
        ((identity, ({"a", "b"},), {}), (identity, (Words({"a", "b"}),), {})),
        ((identity, ({"a", "b"},), {}), (identity, ({"a", "b"}, 1), {})),
        ((identity, ({"a", 1},), {}), (identity, ({"a", 1.0},), {})),
        ((identity, ({"a", 1},), {}), (identity, ({"a", True},), {})),
        ((identity, (SHARED, SHARED), {}), (identity, (SHARED, set(SHARED)), {})),
        ((identity, ({"a", ("b", 1)},), {}), (identity, ({"b", ("a", 1)},), {})),
        ((identity, ({"a", "b"},), {}), (default_key, ({"a", "b"},), {})),
        ((identity, (), {"a": 1, "b": 2}), (identity, (), {"b": 2, "a": 1})),
        (
            (in_file("/tmp/ipykernel_1/2.py"), ("a",), {}),
            (in_file("/tmp/ipykernel_1/2.py", "lambda x: -x"), ("a",), {}),
        ),
        ((in_file("/tmp/ipykernel_1/2.py"), ("a/",), {}), (in_file("/tmp/ipykernel_1/2.py"), ("b/",), {})),
        ((identity, ("/ipykernel_a/",), {}), (identity, ("/ipykernel_b/",), {})),
        ((identity, ("/ipykernel_", "a", "/"), {}), (identity, ("/ipykernel_", "b", "/"), {})),
    ],
)
def test_different_calls_have_different_keys(one: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    assert default_key(*one) != default_key(*other)
    assert alias_key(*one) != alias_key(*other)


def test_a_canonical_key_is_never_a_published_one() -> None:
    assert alias_key(identity, (1,), {}) != default_key(identity, (1,), {})


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
        | st.frozensets(st.text(max_size=3) | st.integers(), max_size=4)
    ),
    max_leaves=10,
)


@given(values, values)
def test_two_values_have_one_key_if_they_are_equal_in_value_and_type(one: Any, other: Any) -> None:
    if repr(normal(one)) != repr(normal(other)):
        assert default_key(identity, (one,), {}) != default_key(identity, (other,), {})
        assert alias_key(identity, (one,), {}) != alias_key(identity, (other,), {})


def normal(value: Any) -> Any:
    if isinstance(value, frozenset):
        return "frozenset", sorted(map(repr, value))
    if isinstance(value, dict):
        return {key: normal(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(normal, value))
    return value


# File names


@pytest.mark.parametrize(
    "key",
    [
        "add3aa71f9a10808f7e9ea89ede63bff604",
        "mykey",
        "with space",
        "quo'te\"",
        "<lambda>1",
        "ünï",
        "a_o.h5",
        "a.b",
        ".a",
    ],
)
def test_ordinary_keys_have_the_published_names(tmp_path: Path, key: str) -> None:
    paths = CachePaths.of(tmp_path, key)
    assert paths.input == f"{tmp_path}/{key}_i.h5"
    assert paths.running == f"{tmp_path}/{key}_r.h5"
    assert paths.output == f"{tmp_path}/{key}_o.h5"
    assert paths.job_directory == f"{tmp_path}/{key}"


def test_a_slash_in_a_key_is_a_folder_as_in_the_published_names(tmp_path: Path) -> None:
    assert CachePaths.of(tmp_path, "project/run 1").output == f"{tmp_path}/project/run 1_o.h5"


ODD_KEYS = [
    "",
    ".",
    "..",
    "../outside",
    "a/../../outside",
    "/etc/passwd",
    "a//b",
    "a/",
    "a/.",
    "new\nline",
    "a\0b",
    "\x1b[31m",
    "\ud800",
    "x" * 300,
    "ü" * 200,
    "a/" + "x" * 300,
    ".executorlib-moved/x",
    "; echo $HOME `id` %s {x} \\",
    "$(touch outside)",
]


@pytest.mark.parametrize("key", ODD_KEYS, ids=ascii)
def test_no_key_leads_out_of_the_directory(tmp_path: Path, key: str) -> None:
    cache = tmp_path / "cache"
    paths = CachePaths.of(cache, key)
    hdf.dump(paths.input, {"fn": identity})
    hdf.dump(paths.output, {"output": key})
    os.makedirs(paths.job_directory)
    assert os.listdir(tmp_path) == ["cache"]
    for path in (paths.input, paths.running, paths.output, paths.job_directory, paths.job_output):
        assert os.path.commonpath([cache, os.path.realpath(path)]) == str(cache)
        assert path.isprintable()
    assert hdf.get_future_from_cache(str(cache), key).result(timeout=0) == key


def test_odd_keys_have_different_files(tmp_path: Path) -> None:
    keys = [*ODD_KEYS, "x" * 299, "new_line", "new\n\nline", "a", "_", "outside"]
    assert len({CachePaths.of(tmp_path, key).output for key in keys}) == len(keys)


@given(st.text() | st.lists(st.sampled_from(["..", ".", "", "a", "~", "b" * 250]), max_size=5).map("/".join))
def test_any_text_is_a_key(key: str) -> None:
    paths = CachePaths.of("/cache", key)
    assert os.path.normpath(paths.output) == paths.output
    assert paths.output.startswith("/cache/")
    assert all(len(os.fsencode(part)) <= 255 for part in paths.output.split("/"))
    assert CachePaths.of("/cache", paths.stem) == paths, "the name of a file is the key of the same file"


def test_the_files_beside_a_file(tmp_path: Path) -> None:
    paths = CachePaths.of(tmp_path, "sub/a_i.h5")
    for path in (paths.input, paths.running, paths.output):
        assert CachePaths.of_file(path).output == paths.output
    with pytest.raises(ValueError, match="no cache file"):
        CachePaths.of_file(tmp_path / "a.h5")


# Aliases


def test_an_output_is_found_by_its_alias(tmp_path: Path) -> None:
    paths = CachePaths.of(tmp_path, "sub/f123")
    hdf.dump(paths.output, {"output": 1})
    assert aliased_output(tmp_path, "f456") is None
    remember_alias(paths, "f456")
    remember_alias(paths, "f456")
    assert aliased_output(tmp_path, "f456") == paths
    assert len(hdf.get_cache_data(str(tmp_path))) == 1


def test_an_output_that_was_removed_has_no_alias(tmp_path: Path) -> None:
    old, new = CachePaths.of(tmp_path, "f1"), CachePaths.of(tmp_path, "f2")
    hdf.dump(old.output, {"output": 1})
    remember_alias(old, "alias")
    os.unlink(old.output)
    assert aliased_output(tmp_path, "alias") is None
    hdf.dump(new.output, {"output": 2})
    remember_alias(new, "alias")
    assert aliased_output(tmp_path, "alias") == new


def test_an_alias_that_leads_elsewhere_is_not_followed(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    hdf.dump(str(tmp_path / "outside_o.h5"), {"output": 1})
    paths = CachePaths.of(cache, "f1")
    hdf.dump(paths.output, {"output": 1})
    remember_alias(paths, "alias")
    ((folder, _, (link,)),) = [found for found in os.walk(cache) if "moved" in found[0]]
    os.unlink(os.path.join(folder, link))
    os.symlink("../../outside_o.h5", os.path.join(folder, link))
    assert aliased_output(cache, "alias") is None


def test_where_there_are_no_symbolic_links_there_are_no_aliases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "symlink", refuse)
    remember_alias(CachePaths.of(tmp_path, "f1"), "alias")
    assert aliased_output(tmp_path, "alias") is None


def test_a_key_says_whether_it_has_an_alias() -> None:
    assert call_key(math.hypot, (3, 4), {}) == CallKey(published_key(math.hypot, (3, 4), {}), movable=False)
