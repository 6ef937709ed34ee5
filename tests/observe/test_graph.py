"""Dependency graphs by way of an executor, as a user makes them."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from conftest import Script
from executorlib import SingleNodeExecutor, get_item_from_future, split_future
from executorlib.api import TestClusterExecutor

STEPS = """
def divide(a, b):
    return {"quotient": a // b, "remainder": a % b}

def add(x, y):
    return x + y

def total(values):
    return sum(values)

def pair(x):
    return [x, x + 1]
"""


@pytest.fixture
def steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of a user: functions of a test cannot be exported by name."""
    (tmp_path / "graph_steps.py").write_text(STEPS)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield __import__("graph_steps")
    del sys.modules["graph_steps"]


def submit_all(exe: Any, steps: Any) -> None:
    parts = exe.submit(steps.divide, 47, 5)
    first = exe.submit(steps.add, get_item_from_future(parts, "quotient"), y=1)
    low, high = split_future(exe.submit(steps.pair, first), 2)
    exe.submit(steps.total, [low, high, get_item_from_future(parts, "remainder")])


@pytest.mark.integration
@pytest.mark.parametrize("make", [SingleNodeExecutor, TestClusterExecutor])
def test_an_exported_workflow_is_loaded_and_run(steps: Any, tmp_path: Path, make: Any) -> None:
    reader = pytest.importorskip(
        "python_workflow_definition.purepython", reason="runs the workflow; in executorlib[integration]"
    )
    path = str(tmp_path / "workflow.json")
    with make(cache_directory=str(tmp_path / "cache"), export_workflow_filename=path) as exe:
        submit_all(exe, steps)
    with SingleNodeExecutor(max_workers=1) as exe:  # the same, run
        parts = exe.submit(steps.divide, 47, 5)
        first = exe.submit(steps.add, get_item_from_future(parts, "quotient"), y=1)
        low, high = split_future(exe.submit(steps.pair, first), 2)
        result = exe.submit(steps.total, [low, high, get_item_from_future(parts, "remainder")]).result()
    assert reader.load_workflow_json(path) == result == 23


def test_five_hundred_calls_are_a_handful_of_boxes(tmp_path: Path) -> None:
    pytest.importorskip("pygraphviz", reason="draws; in executorlib[graph]")
    path = tmp_path / "graph.svg"
    with SingleNodeExecutor(plot_dependency_graph_filename=str(path)) as exe:
        grids = [exe.submit(range, number) for number in range(166)]
        sums = [exe.submit(sum, grid) for grid in grids]
        squares = [exe.submit(pow, value, 2) for value in sums]
        exe.submit(max, squares)
    root = ElementTree.parse(path).getroot()
    texts = [element.text for element in root.iter() if element.tag.endswith("text")]
    boxes = [element for element in root.iter() if element.get("class") == "node"]
    assert len(boxes) == 4
    assert texts.count(f" {chr(215)} 166") == 3, texts
    assert float(str(root.get("width")).removesuffix("pt")) < 400


def test_in_a_notebook_the_picture_is_the_output(script: Script) -> None:
    pytest.importorskip("pygraphviz", reason="draws; in executorlib[graph]")
    pytest.importorskip("IPython", reason="shows the picture")
    done = script(
        "from IPython.core.interactiveshell import InteractiveShell\n"
        "from IPython.utils.capture import capture_output\n"
        "shell = InteractiveShell.instance()\n"
        "with capture_output() as captured:\n"
        "    shell.run_cell('''\n"
        "from executorlib import SingleNodeExecutor\n"
        "with SingleNodeExecutor(plot_dependency_graph=True) as exe:\n"
        "    exe.submit(sum, [exe.submit(pow, 2, 3), 1])\n"
        "''').raise_error()\n"
        "print([kind for output in captured.outputs for kind in output.data])\n"
    )
    assert "image/svg+xml" in done.stdout, done.stdout + done.stderr
