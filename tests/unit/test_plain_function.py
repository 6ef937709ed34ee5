"""Functions that are pickled without cloudpickle: what arrives is the same function."""

from __future__ import annotations

import pickle
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import Script
from executorlib.standalone import plain_function
from executorlib.standalone.functions import FunctionTable

PRELUDE = """
import math, os.path, xml, xml.dom.minidom, sys
import numpy as np
from pathlib import Path
LIMIT = 10
def empty(): pass
def documented(x: int, y: "float" = 2.5, *, z=None) -> "bool":
    "What it does."
    return x, y, z
def factorial(n): return 1 if n < 2 else n * factorial(n - 1)
def modules(): return math.pi, os.path.basename("a/b"), xml.dom.minidom.parseString("<a/>").toxml(), np.arange(3).sum()
def constant(): return LIMIT, __name__
def inner(): return [(lambda k: k + LIMIT)(i) for i in range(2)]
def generator(n):
    yield from range(n)
async def coroutine(): return 1
def missing(): return not_there
"""
NOT_SIMPLE = """
def helper(): return 1
def uses_function(): return helper()
def make():
    n = 5
    return lambda: n
closure = make()
class C: pass
def uses_class(): return C
def list_default(a=[]): return a
def annotated(a: C): return a
PATH = Path("x")
def uses_object(): return PATH
"""


@pytest.fixture(scope="module")
def functions() -> dict[str, Any]:
    """Functions of a ``__main__`` that no other process can import."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(PRELUDE + NOT_SIMPLE, "main.py", "exec", dont_inherit=True), namespace)
    return namespace


def sent(fn: Callable[..., Any]) -> tuple[bytes, Any]:
    data = FunctionTable().add(fn).payload.data
    return data, pickle.loads(data)


def test_it_is_the_same_function(functions: dict[str, Any]) -> None:
    _, fn = sent(functions["documented"])
    assert fn is not functions["documented"]
    for name in ("__name__", "__qualname__", "__module__", "__doc__", "__defaults__", "__kwdefaults__"):
        assert getattr(fn, name) == getattr(functions["documented"], name)
    assert fn.__annotations__ == {"x": int, "y": "float", "return": "bool"}
    assert fn(1, z=3) == (1, 2.5, 3)
    assert fn.__code__.co_filename == functions["documented"].__code__.co_filename


@pytest.mark.parametrize("name", ["empty", "modules", "constant", "inner"])
def test_it_finds_what_it_reads(functions: dict[str, Any], name: str) -> None:
    data, fn = sent(functions[name])
    assert b"cloudpickle" not in data
    assert fn() == functions[name]()


def test_it_may_call_itself_and_be_a_generator_or_a_coroutine(functions: dict[str, Any]) -> None:
    assert sent(functions["factorial"])[1](5) == 120
    assert list(sent(functions["generator"])[1](3)) == [0, 1, 2]
    with pytest.raises(StopIteration, match="1"):
        sent(functions["coroutine"])[1]().send(None)
    with pytest.raises(NameError, match="not_there"):
        sent(functions["missing"])[1]()


def test_it_has_its_values_of_the_moment_it_was_sent(functions: dict[str, Any]) -> None:
    data, _ = sent(functions["constant"])
    functions["LIMIT"] = 11
    try:
        assert pickle.loads(data)() == (10, "__main__")
        assert sent(functions["constant"])[1]() == (11, "__main__")
    finally:
        functions["LIMIT"] = 10


def test_code_with_a_strange_constant_is_left_to_cloudpickle(functions: dict[str, Any]) -> None:
    fn = functions["empty"]
    strange = types.FunctionType(fn.__code__.replace(co_consts=(*fn.__code__.co_consts, range(3))), fn.__globals__)
    assert plain_function.dump_plain(strange, [strange.__code__], {}) is None


@pytest.mark.parametrize("name", ["uses_function", "closure", "uses_class", "list_default", "annotated", "uses_object"])
def test_what_is_less_simple_is_left_to_cloudpickle(functions: dict[str, Any], name: str) -> None:
    assert b"cloudpickle" in sent(functions[name])[0]


def test_another_python_is_named(functions: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    data, _ = sent(functions["empty"])

    class Other:
        cache_tag = "cpython-27"

    monkeypatch.setattr(sys, "implementation", Other)
    with pytest.raises(ImportError, match=r"empty was compiled by cpython-3.*cpython-27: .* the same version"):
        pickle.loads(data)


def test_neither_the_program_nor_its_first_worker_imports_cloudpickle(script: Script) -> None:
    """Nor dataclasses and what they import: a script has its first result the sooner."""
    done = script(
        "import sys\n"
        "from executorlib import SingleNodeExecutor\n"
        "def modules(x):\n"
        "    return {'cloudpickle', 'dataclasses', 'inspect', 'numpy'} & set(sys.modules)\n"
        "with SingleNodeExecutor() as exe:\n"
        "    print(exe.submit(modules, 1).result(), modules(1))\n",
    )
    assert done.stdout == "set() set()\n", done.stderr


def test_a_submodule_is_imported_where_the_function_runs(tmp_path: Path) -> None:
    """``import a.b`` binds ``a``; the worker has not imported ``a.b``."""
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text("")
    (tmp_path / "pack" / "part.py").write_text("answer = 42\n")
    code = (
        "import sys, pickle\n"
        "import pack.part\n"
        "from executorlib.standalone.functions import FunctionTable\n"
        "def ask(): return pack.part.answer\n"
        "sys.stdout.buffer.write(FunctionTable().add(ask).payload.data)\n"
    )
    environment = {"PYTHONPATH": f"{tmp_path}:{':'.join(sys.path)}"}
    data = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True).stdout
    assert b"cloudpickle" not in data
    ask = "import pickle, sys; print(pickle.loads(sys.stdin.buffer.read())())"
    done = subprocess.run([sys.executable, "-c", ask], env=environment, input=data, capture_output=True, check=True)
    assert done.stdout == b"42\n"
