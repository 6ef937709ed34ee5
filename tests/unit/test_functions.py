"""Functions are pickled once, recognised when they come again, and never confused."""

from __future__ import annotations

import functools
import math
import os
from typing import Any

import numpy as np
import pytest

from executorlib.standalone.callables import function_name, takes_parameter
from executorlib.standalone.functions import FunctionTable, same_bytes
from executorlib.standalone.serialize import loads


def script(source: str, **names: Any) -> dict[str, Any]:
    """The namespace of a program, whose functions travel by value."""
    scope: dict[str, Any] = {"__name__": "__main__", **names}
    exec(source, scope)
    return scope


def plain(x: int) -> int:
    return x + 1


@pytest.fixture
def table() -> FunctionTable:
    return FunctionTable()


def ref_of(table: FunctionTable, fn: Any) -> Any:
    return table.known(fn) or table.add(fn)


# Recognition


@pytest.mark.parametrize(
    "fn",
    [
        plain,
        math.hypot,
        len,
        script("def f(x): return x")["f"],
        script("import math\nC = 3\ndef g(x): return x * C\ndef f(x): return math.sin(g(x))")["f"],
        script("def f(n): return n and f(n - 1)")["f"],
        script("f = (lambda c: lambda x: x + c)(5)")["f"],
        script("def f(frame): return frame.eval('a')")["f"],
    ],
)
def test_a_function_that_cannot_change_is_recognised_without_pickling(table: FunctionTable, fn: Any) -> None:
    assert table.known(fn) is None
    ref = table.add(fn)
    assert ref.reusable
    assert table.known(fn) is ref


@pytest.mark.parametrize(
    "fn",
    [
        script("d = {}\ndef f(): return d")["f"],
        script("n = 0\ndef f():\n    global n\n    n += 1\n    return n")["f"],
        script("def f(x=[]): return x")["f"],
        script("def f(): pass\nf.attribute = 1")["f"],
        script("def outer():\n    n = 0\n    def f():\n        nonlocal n\n        n += 1\n    return f\nf = outer()")[
            "f"
        ],
        script("class C:\n    n = 0\ndef f(): C.n += 1")["f"],
        script(
            "def outer():\n    def a(*, v=1, w=1, x=1, y=1, z=1): return v\n"
            "    def b(*, v=[], w=1, x=1, y=1, z=1): return v\n    def f(): return a(), b()\n    return f\nf = outer()"
        )["f"],
        script("n = 0\ndef f():\n    globals()['n'] = 1")["f"],
        script("def g(): pass\ndef f(): setattr(g, 'n', 1)")["f"],
        script("n = 0\ndef f(): exec('global n; n += 1')")["f"],
        script("n = 0\ndef f(): f.__globals__['n'] = 1")["f"],
        script("def g(): pass\ndef f(): object.__setattr__(g, 'n', 1)")["f"],
        functools.partial(plain, 1),
        [].append,
    ],
)
def test_a_function_with_state_gets_a_fresh_copy_for_each_call(table: FunctionTable, fn: Any) -> None:
    ref = table.add(fn)
    assert not ref.reusable
    assert table.known(fn) is None
    assert table.add(fn) is ref, "its pickle is the same and is not sent again"


def test_loaded_again_it_does_the_same(table: FunctionTable) -> None:
    scope = script("C = 3\ndef g(x): return x * C\ndef f(x): return g(x) + 1")
    assert loads(ref_of(table, scope["f"]).payload)(2) == 7


# Changes


@pytest.mark.parametrize(
    "change",
    [
        "C = 4",
        "def g(x): return 0",
        "f.__defaults__ = (9,)",
        "f.__code__ = (lambda x=1: x).__code__",
        "g.__defaults__ = (9,)",
        "g.__code__ = (lambda x: -x).__code__",
        "import cmath as math",
        "del C",
        "f.attribute = 1",
        "f.__kwdefaults__ = {'k': 2}",
    ],
)
def test_a_change_of_what_it_reads_is_seen(table: FunctionTable, change: str) -> None:
    source = "import math\nC = 3\ndef g(x): return x * C\ndef f(x=1, *, k=0): return math.sqrt(g(x)) + k"
    scope = script(source)
    before = table.add(scope["f"])
    assert table.known(scope["f"]) is before
    exec(change, scope)
    assert table.known(scope["f"]) is None
    assert table.add(scope["f"]) is not before


def test_a_name_that_appears_is_seen(table: FunctionTable) -> None:
    scope = script("def f(): return missing")
    table.add(scope["f"])
    scope["missing"] = 5
    assert table.known(scope["f"]) is None


def test_a_closure_that_changes_is_seen(table: FunctionTable) -> None:
    scope = script(
        "def outer():\n    n = 1\n    def f(): return n\n    def change():\n        nonlocal n\n        n = 2\n"
        "    return f, change\nf, change = outer()"
    )
    before = table.add(scope["f"])
    assert table.known(scope["f"]) is before
    scope["change"]()
    assert table.known(scope["f"]) is None
    assert loads(table.add(scope["f"]).payload)() == 2


def test_another_object_at_the_same_address_is_not_taken_for_the_first(table: FunctionTable) -> None:
    numbers = set()
    for i in range(200):
        fn = script(f"def f(): return {i}")["f"]
        ref = ref_of(table, fn)
        assert loads(ref.payload)() == i
        numbers.add(ref.number)
        del fn
    assert len(numbers) == 200


def test_equal_functions_are_sent_once(table: FunctionTable) -> None:
    first = table.add(functools.partial(plain, 1))
    assert table.add(functools.partial(plain, 1)) is first
    assert table.add(functools.partial(plain, 2)) is not first


def test_large_data_behind_a_function_is_compared_and_not_shared(table: FunctionTable) -> None:
    class Likelihood:
        def __init__(self, data: Any) -> None:
            self.data = data

        def __call__(self) -> float:
            return float(self.data.sum())

    data = np.ones(100_000)
    likelihood = Likelihood(data)
    first = table.add(likelihood)
    assert table.add(likelihood) is first
    data[5] = 2
    second = table.add(likelihood)
    assert second is not first
    assert loads(first.payload)() == 100_000
    assert loads(second.payload)() == 100_001


def test_the_table_does_not_grow_without_limit(table: FunctionTable) -> None:
    import gc
    import weakref

    fn = script("def f(): return 1")["f"]
    reference = weakref.ref(fn)
    table.add(fn)
    del fn
    for i in range(300):
        table.add(script(f"def f(): return {i} + 1000")["f"])
    gc.collect()
    assert reference() is None


def test_the_table_does_not_keep_all_data_that_functions_carried(
    table: FunctionTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("executorlib.standalone.functions._KEPT_BYTES", 1_000_000)
    data: list[str] = []
    fn = functools.partial(len, data)
    for i in range(20):
        data.append(str(i) * 50_000)
        ref = table.add(fn)
    assert table.add(fn) is ref
    assert sum(len(key) for key in table._by_pickle) < 1_000_000 + len(ref.payload.data)


def test_errors_of_pickling_pass_through(table: FunctionTable) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            raise RuntimeError("do not pickle me")

        def __call__(self) -> None: ...

    with pytest.raises(RuntimeError, match="do not pickle me"):
        table.add(Trap())


# Names and parameters


class Callable_:
    def __call__(self, a: int, b: int = 0) -> int:
        return a + b

    def method(self, a: int) -> int:
        return a


def decorated(fn: Any) -> Any:
    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)

    return wrapper


@pytest.mark.parametrize(
    ("fn", "name"),
    [
        (plain, "plain"),
        (functools.partial(functools.partial(plain, 1)), "plain"),
        (lambda: 0, "<lambda>"),
        (Callable_(), "Callable_"),
        (Callable_().method, "method"),
        (len, "len"),
        (dict, "dict"),
        (decorated(plain), "plain"),
        (np.sin, "sin"),
    ],
)
def test_names(fn: Any, name: str) -> None:
    assert function_name(fn) == name


@pytest.mark.parametrize(
    ("fn", "takes"),
    [
        (lambda a: a, True),
        (lambda *, a: a, True),
        (lambda b, a=1: a, True),
        (lambda b: b, False),
        (lambda *a: a, False),
        (lambda **a: a, False),
        (functools.partial(lambda x, a: a, 1), True),
        (Callable_(), True),
        (Callable_().method, True),
        (decorated(lambda a: a), True),
        (decorated(lambda b: b), False),
        (max, False),
        (os.getcwd, False),
    ],
)
def test_takes_parameter(fn: Any, takes: bool) -> None:
    assert takes_parameter(fn, "a") is takes


def test_a_local_variable_is_no_parameter() -> None:
    def fn(b: int) -> int:
        a = b + 1
        return a * b

    assert not takes_parameter(fn, "a")


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 1000, 1003])
def test_same_bytes(size: int) -> None:
    data = os.urandom(size)
    assert same_bytes(data, bytearray(data))
    assert same_bytes(memoryview(data), np.frombuffer(data, "u1") if size else b"")
    for position in {0, size // 2, size - 1} if size else ():
        other = bytearray(data)
        other[position] ^= 1
        assert not same_bytes(data, other)
    assert not same_bytes(data, data + b"\0")
