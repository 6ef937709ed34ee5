"""Which package imports which: the table of the architecture, and how little the import of the package loads."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import executorlib

PACKAGE = Path(executorlib.__file__).parent
ROOM = "executorlib"
MAY_IMPORT: dict[str, set[str]] = {
    "standalone": {"standalone"},
    "backend": {"backend", "standalone"},
    "task_scheduler": {"task_scheduler", "standalone"},
    "executor": {"executor", "task_scheduler", "backend", "standalone"},
    "cli": {"__init__", "api", "cli", "executor", "task_scheduler", "backend", "standalone"},
    "__main__": {"cli"},
    "api": {"api", "executor", "task_scheduler", "backend", "standalone"},
    "__init__": {"api", "executor", "task_scheduler", "backend", "standalone"},
}
HEAVY = ("zmq", "h5py", "pysqa", "pydantic", "flux", "numpy", "cloudpickle", "mpi4py", "networkx", "asyncio")
MODULES = sorted(PACKAGE.rglob("*.py"))


def room_of(name: str) -> str:
    """The first part of a module's name below the package."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def name_of(path: Path) -> str:
    parts = [ROOM, *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_by(path: Path) -> Iterator[tuple[int, str]]:
    """The modules of this package that a file imports, wherever in it, with the line."""
    package = name_of(path).split(".") if path.name == "__init__.py" else name_of(path).split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names] if module == ROOM else [module]
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, (ast.Name, ast.Attribute))
            and (node.func.id if isinstance(node.func, ast.Name) else node.func.attr) in ("import_module", "__import__")
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            names = [str(node.args[0].value)]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name.split(".")[0] == ROOM)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_never_go_up(path: Path) -> None:
    room = room_of(name_of(path))
    wrong = [f"line {line}: {name}" for line, name in imported_by(path) if room_of(name) not in MAY_IMPORT[room]]
    assert not wrong, f"{room} may import {sorted(MAY_IMPORT[room])} only"


def test_every_room_is_in_the_table() -> None:
    assert {room_of(name_of(path)) for path in MODULES} <= set(MAY_IMPORT)


def test_no_module_is_called_util() -> None:
    assert not [path for path in MODULES if path.stem in ("util", "utils", "helpers", "misc", "common")]


def run(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, *command],
        env={"PYTHONPATH": str(PACKAGE.parent), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_the_import_of_the_package_loads_nothing_heavy() -> None:
    lines = run("-X", "importtime", "-c", "import executorlib").splitlines()
    loaded = {line.rpartition("|")[2].strip().split(".")[0] for line in lines if line.startswith("import time:")}
    assert "executorlib" in loaded
    assert not loaded & set(HEAVY)


def test_an_executor_loads_nothing_heavy() -> None:
    """A call with plain arguments needs the standard library alone."""
    code = (
        "import sys, executorlib\n"
        "with executorlib.SingleNodeExecutor(max_workers=1) as exe:\n"
        "    print(exe.submit(max, 1, 2).result())\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules and name != 'asyncio'])\n"
    )
    assert run("-c", code) == "2\n[]\n"


def test_a_worker_loads_nothing_heavy() -> None:
    code = (
        "import executorlib\n"
        "with executorlib.SingleNodeExecutor(max_workers=1) as exe:\n"
        "    loaded = exe.submit(eval, '__import__(\"sys\").modules.keys() - set()').result()\n"
        f"print([name for name in {HEAVY!r} if name in loaded and name not in ('cloudpickle', 'asyncio')])\n"
    )
    assert run("-c", code) == "[]\n"


def test_the_first_result_does_not_wait_for_what_it_does_not_need() -> None:
    """A script waits for the start of the fork server: what that imports is the largest part of it."""
    late = ("enum", "pickle", "re", "selectors", "socket", "threading", "typing")
    look = f"[name for name in {late!r} if name in __import__('sys').modules]"
    code = (
        "import executorlib\n"
        "with executorlib.SingleNodeExecutor(max_workers=1) as exe:\n"
        f"    print(exe.submit(eval, {look!r}).result())\n"
    )
    assert run("-c", code) == run("-c", f"print({look})")


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_module_can_be_imported_alone(path: Path) -> None:
    """No module counts on another having been imported before (here: its names exist once it is imported)."""
    name = name_of(path)
    missing: str | None = None
    before = list(sys.path)
    try:
        importlib.import_module(name)
    except ImportError as error:  # an optional library that is not here
        missing = error.name
    assert not str(missing or "").startswith(ROOM)
    assert sys.path == before
