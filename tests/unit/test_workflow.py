"""The dependency graph: what is recorded of a run that does not happen, drawn and exported."""

import functools
import json
import re
import subprocess
import sys
import types
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from executorlib.standalone.select import get_item_from_future, split_future
from executorlib.standalone.workflow import (
    WorkflowExportError,
    WorkflowRecorder,
    check_drawable,
    draw,
    export_workflow,
    to_dot,
)
from executorlib.standalone.workflow.outline import Outline, outline

FORMAT_SIGNATURES = {
    "svg": b"<?xml",
    "png": b"\x89PNG",
    "pdf": b"%PDF",
    "jpg": b"\xff\xd8",
    "gif": b"GIF8",
    "eps": b"%!PS",
}


# Functions of a module, as a user would have them; the exported files find them here.


def add(x: Any, y: Any) -> Any:
    return x + y


def collect(values: Any) -> Any:
    return values


def divide(a: int, b: int) -> list[int]:
    return [a // b, a % b]


def describe(n: int) -> dict[str, Any]:
    return {"value": n, "digits": [int(digit) for digit in str(n)]}


def preset(n: int = 4, unit: object = None) -> int:
    return n


def no_parameters() -> int:
    return 1


def many(*values: int) -> int:
    return sum(values)


def keywords(**values: int) -> dict[str, int]:
    return values


def positional_only(a: int, /, b: int) -> int:
    return a + b


class Potential:
    def energy(self, x: float) -> float:
        return x

    def __call__(self, x: float) -> float:
        return x


class Session:
    """Submits as an executor would that only records."""

    def __init__(self) -> None:
        self.recorder = WorkflowRecorder()

    def submit(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> "Future[Any]":
        return self.submit_with({}, fn, *args, **kwargs)

    def submit_with(
        self, resources: dict[str, object], fn: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> "Future[Any]":
        future: Future[Any] = Future()
        self.recorder.add(fn, args, kwargs, future, resources)
        return future

    def batched(self, futures: Sequence["Future[Any]"], n: int) -> list["Future[Any]"]:
        batches: list[Future[Any]] = []
        for start in range(0, len(futures), n):
            batches.append(Future())
            self.recorder.add_batch(futures[start : start + n], batches[-1])
        return batches

    def outline(self) -> Outline:
        return outline(self.recorder.graph())

    def export(self, folder: Path) -> dict[str, Any]:
        path = folder / "workflow.json"
        export_workflow(self.recorder.graph(), path)
        document: dict[str, Any] = json.loads(path.read_text())
        return document


@pytest.fixture
def session() -> Session:
    return Session()


def edges(session: Session) -> list[tuple[str, str, str]]:
    """The arrows by the names of what they join."""
    sketch = session.outline()
    return [
        (sketch.boxes[arrow.source].title, arrow.label, sketch.boxes[arrow.target].title) for arrow in sketch.arrows
    ]


def texts(session: Session) -> list[tuple[str, ...]]:
    return [(box.title, *box.lines) for box in session.outline().boxes]


def sizes(session: Session) -> list[tuple[str, int]]:
    return [(box.title, box.count) for box in session.outline().boxes]


# --------------------------------------------------------------------------------------- recording


def test_a_future_argument_is_an_edge_named_after_the_parameter(session: Session) -> None:
    total = session.submit(add, 1, 2)
    session.submit(collect, values=total)
    assert edges(session) == [("add", "values", "collect")]


def test_futures_are_found_inside_lists_tuples_and_dictionaries(session: Session) -> None:
    a, b, c = (session.submit(describe, n) for n in range(3))
    session.submit(collect, [(a, 5), {"k": [b]}, {"m": {"n": (c,)}}])
    assert [label for _, label, _ in edges(session)] == [
        "values[0][0]",
        "values[1]['k'][0]",
        "values[2]['m']['n'][0]",
    ]
    assert texts(session)[-1] == ("collect", "values[0][1] = 5")


def test_a_part_of_a_result_is_an_edge_from_the_task_that_made_it(session: Session) -> None:
    quotient, rest = split_future(session.submit(divide, 7, 2), 2)
    session.submit(add, quotient, rest)
    digits = get_item_from_future(session.submit(describe, 12), "digits")
    session.submit(collect, get_item_from_future(digits, "first"))
    assert edges(session) == [
        ("divide", "[0] → x, [1] → y", "add"),
        ("describe", "['digits']['first'] → values", "collect"),
    ]


def test_a_future_from_elsewhere_is_shown_as_such(session: Session) -> None:
    foreign: Future[int] = Future()
    session.submit(add, foreign, 1)
    session.submit(add, foreign, 2)
    assert texts(session)[2:] == [("future", "from elsewhere")]
    assert edges(session) == [("future", "x", "add"), ("future", "x", "add")]


def test_a_batch_stands_between_the_tasks_it_joins(session: Session) -> None:
    batches = session.batched([session.submit(describe, n) for n in range(3)], 2)
    session.submit(collect, batches[0])
    assert texts(session)[3:5] == [("batch", "of 2"), ("batch", "of 1")]
    assert edges(session)[-1] == ("batch", "values", "collect")


def test_arguments_are_what_they_were_at_submit(session: Session, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"T": 0, "nested": [0]}
    for temperature in (100, 200):
        settings["T"] = temperature
        settings["nested"][0] = temperature
        session.submit(collect, settings)
    values = [n["value"] for n in session.export(tmp_path)["nodes"] if n["type"] == "input"]
    assert values == [{"T": 100, "nested": [100]}, {"T": 200, "nested": [200]}]


@pytest.mark.parametrize(
    ("fn", "args", "expected"),
    [
        (sum, ([1, 2],), ("sum", "iterable = [1, 2]")),
        (dict, (), ("dict",)),
        (max, (1, 2), ("max", "1", "2")),
        (functools.partial(add, 1), (2,), ("add", "y = 2")),
        (Potential(), (0.5,), ("Potential", "x = 0.5")),
        (Potential().energy, (0.5,), ("Potential.energy", "x = 0.5")),
        (many, (1, 2), ("many", "1", "2")),
        (lambda x: x, ("a\n<b>",), ("<lambda>", r"x = 'a\n<b>'")),
    ],
)
def test_any_callable_has_a_name_in_the_picture(
    session: Session, fn: Callable[..., Any], args: tuple[Any, ...], expected: tuple[str, ...]
) -> None:
    session.submit(fn, *args)
    assert texts(session) == [expected]


def test_long_values_are_shortened(session: Session) -> None:
    np = pytest.importorskip("numpy", reason="shows arrays by their shape")
    session.submit(keywords, a=np.zeros((30, 40)), b="x" * 1000, c=list(range(1000)), d=object())
    (box,) = session.outline().boxes
    assert box.lines[0] == f"a = ndarray 30{chr(215)}40"
    assert box.lines[2:] == ("c = [0, 1, 2, ...]", "d = object")
    assert max(map(len, box.lines)) < 40


def test_a_task_with_many_arguments_shows_the_first(session: Session) -> None:
    session.submit(keywords, **{f"k{n}": n for n in range(30)})
    assert texts(session) == [("keywords", "k0 = 0", "k1 = 1", "k2 = 2", "k3 = 3", "… 26 more")]


def test_the_resources_of_a_heavy_task_are_shown(session: Session) -> None:
    session.submit_with({"cores": 4, "gpus_per_core": 1}, describe, 1)
    session.submit_with({"cores": 1, "threads_per_core": 1, "gpus_per_core": 0}, describe, 1)
    assert texts(session) == [
        ("describe", "n = 1", "4 cores, 1 GPU per core"),
        ("describe", "n = 1"),
    ]


# ------------------------------------------------------------------------------- readable pictures


def test_a_small_graph_is_drawn_task_by_task(session: Session) -> None:
    session.submit(collect, [session.submit(add, n, 1) for n in range(10)])
    assert sizes(session) == [("add", 1)] * 10 + [("collect", 1)]


def test_five_hundred_equal_siblings_are_one_box(session: Session) -> None:
    session.submit(collect, [session.submit(add, n, 1) for n in range(500)])
    assert sizes(session) == [("add", 500), ("collect", 1)]
    assert texts(session)[0] == ("add", "x = 0 … 499", "y = 1")
    assert edges(session) == [("add", f"values {chr(215)} 500", "collect")]


def test_siblings_in_another_place_of_the_graph_stay_apart(session: Session) -> None:
    firsts = [session.submit(add, n, 1) for n in range(100)]
    seconds = [session.submit(add, first, 1) for first in firsts]
    session.submit(collect, seconds)
    session.submit(describe, firsts[0])
    assert sorted(sizes(session)) == [
        ("add", 1),  # the one that describe takes, too
        ("add", 1),  # and what follows it
        ("add", 99),
        ("add", 99),
        ("collect", 1),
        ("describe", 1),
    ]


def test_different_functions_and_resources_do_not_share_a_box(session: Session) -> None:
    for n in range(30):
        session.submit(describe, n)
        session.submit(lambda n: n, n)
        session.submit_with({"cores": 2}, describe, n)
    assert sizes(session) == [("describe", 30), ("<lambda>", 30), ("describe", 30)]


def test_a_long_chain_is_first_middle_last(session: Session) -> None:
    state = session.submit(add, 0, 1)
    for n in range(499):
        state = session.submit(add, state, n)
    assert sizes(session) == [("add", 1), ("add", 498), ("add", 1)]
    assert ("add", "x", "add") in edges(session)


def test_no_graph_makes_more_boxes_than_one_can_read(session: Session) -> None:
    functions = [add, divide, positional_only]
    futures = [session.submit(add, 0, 1)]
    for n in range(500):  # each takes two earlier ones, all over the place
        futures.append(session.submit(functions[n % 3], futures[n // 2], futures[n * 7 % (n + 1)]))
    assert len(session.outline().boxes) <= 40


def test_a_huge_graph_is_drawn_in_seconds(session: Session) -> None:
    firsts = [session.submit(add, n, 1) for n in range(20_000)]
    session.submit(collect, [session.submit(add, first, 2) for first in firsts])
    assert sizes(session) == [("add", 20_000), ("add", 20_000), ("collect", 1)]


# ------------------------------------------------------------------------------------------- files


def test_dot_text_needs_no_library(session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pygraphviz", None)
    session.submit(collect, [session.submit(add, n, "<&>") for n in range(500)])
    for name in ("graph.dot", "graph.gv", "graph"):
        check_drawable(tmp_path / name)
        draw(session.recorder.graph(), tmp_path / name)
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert text == to_dot(session.recorder.graph())
        assert f"<b>add</b> {chr(215)} 500" in text
        assert "y = &#x27;&lt;&amp;&gt;&#x27;" in text


@pytest.mark.parametrize("extension", FORMAT_SIGNATURES)
def test_the_extension_selects_the_format(session: Session, tmp_path: Path, extension: str) -> None:
    pytest.importorskip("pygraphviz", reason="executorlib[graph] draws pictures")
    session.submit(add, session.submit(add, "ä\x00\x1b<b>", 2), Future())
    path = tmp_path / f"graph.{extension.upper()}"
    check_drawable(path)
    draw(session.recorder.graph(), str(path))
    assert path.read_bytes().startswith(FORMAT_SIGNATURES[extension])


def test_an_empty_graph_is_an_empty_picture(session: Session, tmp_path: Path) -> None:
    pytest.importorskip("pygraphviz", reason="executorlib[graph] draws pictures")
    draw(session.recorder.graph(), tmp_path / "graph.svg")
    assert (tmp_path / "graph.svg").stat().st_size > 0


def test_an_unknown_format_is_refused_before_anything_is_drawn(session: Session, tmp_path: Path) -> None:
    for action in (check_drawable, functools.partial(draw, session.recorder.graph())):
        with pytest.raises(ValueError, match=r"'docx'.*use one of dot, svg, png, pdf"):
            action(tmp_path / "graph.docx")
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_is_named(session: Session, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        draw(session.recorder.graph(), tmp_path / "nowhere" / "graph.dot")


def test_without_the_library_the_extra_is_named(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pygraphviz", None)
    for action in (check_drawable, functools.partial(draw, session.recorder.graph())):
        with pytest.raises(ImportError, match=re.escape("pip install 'executorlib[graph]'")):
            action(tmp_path / "graph.svg")
    assert not list(tmp_path.iterdir())


def test_a_notebook_shows_the_picture(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pygraphviz", reason="executorlib[graph] draws pictures")

    class SVG:
        def __init__(self, data: str) -> None:
            self.data = data

    shown: list[SVG] = []
    notebook = types.ModuleType("IPython.display")
    vars(notebook).update(SVG=SVG, display=shown.append)
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", notebook)
    session.submit(add, 1, 2)
    check_drawable()
    draw(session.recorder.graph())
    (picture,) = shown
    assert "<svg" in picture.data
    assert "1 task," in repr(picture)  # what a terminal prints in its place
    assert "plot_dependency_graph_filename" in repr(picture)


def test_importing_the_module_loads_no_library() -> None:
    heavy = ("networkx", "pygraphviz", "IPython", "numpy", "cloudpickle", "pydantic")
    code = f"""
import sys
import executorlib.standalone.workflow
print(*(name for name in {heavy} if name in sys.modules))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == []


# ------------------------------------------------------------------------------------------ export


def test_the_file_is_what_executorlib_1_11_writes(session: Session, tmp_path: Path) -> None:
    first = session.submit(add, 1, 2)
    second = session.submit(add, first, y=3)
    session.submit(add, first, second)
    name = f"{__name__}.add"
    assert session.export(tmp_path) == {
        "version": "0.1.0",
        "nodes": [
            {"id": 0, "type": "function", "value": name},
            {"id": 1, "type": "function", "value": name},
            {"id": 2, "type": "function", "value": name},
            {"id": 3, "type": "input", "value": 1, "name": "x"},
            {"id": 4, "type": "input", "value": 2, "name": "y"},
            {"id": 5, "type": "input", "value": 3, "name": "y"},
            {"id": 6, "type": "output", "name": "result"},
        ],
        "edges": [
            {"target": 0, "targetPort": "x", "source": 3, "sourcePort": None},
            {"target": 0, "targetPort": "y", "source": 4, "sourcePort": None},
            {"target": 1, "targetPort": "x", "source": 0, "sourcePort": None},
            {"target": 1, "targetPort": "y", "source": 5, "sourcePort": None},
            {"target": 2, "targetPort": "x", "source": 0, "sourcePort": None},
            {"target": 2, "targetPort": "y", "source": 1, "sourcePort": None},
            {"target": 6, "targetPort": None, "source": 2, "sourcePort": None},
        ],
    }


def test_equal_numbers_share_a_node_but_lists_and_types_do_not(session: Session, tmp_path: Path) -> None:
    for x, y in ((1, 1), (1.0, True), ("1", None), ([1], [1]), (float("nan"), float("nan"))):
        session.submit(add, x, y)
    values = [n["value"] for n in session.export(tmp_path)["nodes"] if n["type"] == "input"]
    assert list(map(repr, values)) == ["1", "1.0", "True", "'1'", "None", "[1]", "[1]", "nan"]


def test_the_same_call_twice_is_two_tasks(session: Session, tmp_path: Path) -> None:
    for _ in range(2):
        session.submit(preset, 1)
    functions = [n for n in session.export(tmp_path)["nodes"] if n["type"] == "function"]
    assert len(functions) == 2


def test_numpy_values_become_numbers_and_lists(session: Session, tmp_path: Path) -> None:
    np = pytest.importorskip("numpy", reason="exports arrays")
    session.submit(collect, np.arange(3))
    session.submit(collect, {"a": [np.int64(1), np.float64(0.5)], "b": (np.bool_(True),)})
    values = [n["value"] for n in session.export(tmp_path)["nodes"] if n["type"] == "input"]
    assert values == [[0, 1, 2], {"a": [1, 0.5], "b": [True]}]


def nested_function() -> Callable[[int], int]:
    def inner(x: int) -> int:
        return x

    return inner


def renamed(x: int) -> int:
    return x


original = renamed


def renamed(x: int) -> int:  # type: ignore[no-redef]
    return -x


@pytest.mark.parametrize(
    ("fn", "args", "reason"),
    [
        (lambda x: x, (1,), "is a lambda"),
        (nested_function(), (1,), "defined inside a function"),
        (Potential().energy, (1,), "belongs to a class"),
        (Potential(), (1,), "no name that could be imported"),
        (functools.partial(add, 1), (2,), "no name that could be imported"),
        (sum, ([1, 2],), "builtins.sum is no Python function"),
        (Potential, (), "is no Python function"),
        (original, (1,), "is not the function that was submitted"),
        (many, (1, 2), "have no name"),
        (positional_only, (1, 2), "'a' is positional-only"),
        (add, (1,), "missing a required argument: 'y'"),
        (add, (1, 2, 3), "too many positional arguments"),
        (collect, (object(),), "argument 'values': a value of type object has no JSON"),
        (collect, ({1: 2},), "dictionary key 1 is no text"),
        (collect, ([b"x"],), "type bytes has no JSON"),
        (collect, (1j,), "type complex has no JSON"),
        (collect, (Future(),), "not made by this executor and has not finished"),
    ],
)
def test_what_cannot_be_exported_is_said(
    session: Session,
    tmp_path: Path,
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    reason: str,
) -> None:
    session.submit(fn, *args)
    with pytest.raises(WorkflowExportError, match=reason) as caught:
        session.export(tmp_path)
    assert str(caught.value).startswith("cannot export the workflow:\n  task 0")
    assert not list(tmp_path.iterdir())


def test_every_problem_is_told_up_to_ten(session: Session, tmp_path: Path) -> None:
    for _ in range(500):
        session.submit(lambda x: x, 1)
    with pytest.raises(WorkflowExportError, match="is a lambda") as caught:
        session.export(tmp_path)
    assert str(caught.value).count("\n") == 11
    assert str(caught.value).endswith("… and 490 more")


def test_an_empty_workflow_is_refused(session: Session, tmp_path: Path) -> None:
    with pytest.raises(WorkflowExportError, match="no task was submitted"):
        session.export(tmp_path)


def test_a_function_of_the_script_is_exported_with_a_warning(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec("def step(x): return x", namespace)
    monkeypatch.setattr(sys.modules["__main__"], "step", namespace["step"], raising=False)
    session.submit(namespace["step"], 1)
    with pytest.warns(UserWarning, match=r"calls __main__\.step: only this script or notebook"):
        document = session.export(tmp_path)
    assert document["nodes"][0]["value"] == "__main__.step"


def test_a_task_without_any_input_is_exported_with_a_warning(session: Session, tmp_path: Path) -> None:
    session.submit(collect, session.submit(no_parameters))
    with pytest.warns(UserWarning, match=r"no_parameters without any input"):
        session.export(tmp_path)


def test_results_of_finished_foreign_futures_are_constants(session: Session, tmp_path: Path) -> None:
    foreign: Future[Any] = Future()
    foreign.set_result([5, 6])
    session.submit(add, split_future(foreign, 2)[1], 1)
    assert session.export(tmp_path)["nodes"][1] == {
        "id": 1,
        "type": "input",
        "value": 6,
        "name": "x",
    }
    failed: Future[Any] = Future()
    failed.set_exception(RuntimeError("boom"))
    session.submit(add, failed, 1)
    with pytest.raises(WorkflowExportError, match=r"task 1, .*'x'.*failed: RuntimeError\('boom'\)"):
        session.export(tmp_path)


# -------------------------------------------------------------- read by the package of the format


Run = Callable[[Session], Any]


@pytest.fixture
def run_exported(tmp_path: Path) -> Run:
    """Export, then load and run with nothing but the package that defines the format."""
    reason = "reads what export_workflow_filename writes; in executorlib[integration]"
    purepython = pytest.importorskip("python_workflow_definition.purepython", reason=reason)

    def run(session: Session) -> Any:
        session.export(tmp_path)
        return purepython.load_workflow_json(str(tmp_path / "workflow.json"))

    return run


def test_the_reader_runs_a_chain(session: Session, run_exported: Run) -> None:
    first = session.submit(add, 1, 2)
    second = session.submit(add, first, y=3)
    session.submit(add, x=first, y=second)
    assert run_exported(session) == 9


def test_the_reader_runs_parts_of_results(session: Session, run_exported: Run) -> None:
    quotient, rest = split_future(session.submit(divide, 47, 5), 2)
    details = session.submit(describe, session.submit(add, quotient, rest))
    digits = get_item_from_future(details, "digits")
    session.submit(
        collect,
        [
            get_item_from_future(details, "value"),
            digits,
            *split_future(digits, 2),
        ],
    )
    assert run_exported(session) == [11, [1, 1], 1, 1]


def test_the_reader_runs_containers_inside_containers(session: Session, run_exported: Run) -> None:
    a, b = session.submit(add, 1, 2), session.submit(add, 10, 20)
    session.submit(collect, {"pair": (a, b), "more": [[a], {"k k": b, "constant": [1, None]}, 5]})
    assert run_exported(session) == {
        "pair": [3, 30],
        "more": [[3], {"k k": 30, "constant": [1, None]}, 5],
    }


def test_the_reader_keeps_the_order_of_a_long_list(session: Session, run_exported: Run) -> None:
    session.submit(collect, [session.submit(add, n, 0.5) for n in range(50)])
    assert run_exported(session) == [n + 0.5 for n in range(50)]


def test_the_reader_runs_batches(session: Session, run_exported: Run) -> None:
    batches = session.batched([session.submit(add, n, 1) for n in range(5)], 2)
    session.submit(collect, [session.submit(collect, batch) for batch in batches])
    assert run_exported(session) == [[1, 2], [3, 4], [5]]


def test_the_reader_runs_a_task_that_only_has_defaults(session: Session, run_exported: Run) -> None:
    session.submit(add, session.submit(preset), 1)
    assert run_exported(session) == 5


def test_the_reader_takes_any_json_value(session: Session, run_exported: Run) -> None:
    values = [None, True, -0.0, 10**30, "a.b", float("inf"), {"k": [1, {"m": "ä"}]}]
    session.submit(collect, values)
    assert run_exported(session) == values


def test_the_reader_runs_keyword_arguments_of_any_name(session: Session, run_exported: Run) -> None:
    session.submit(keywords, a=1, b=session.submit(add, 1, 1))
    assert run_exported(session) == {"a": 1, "b": 2}


def test_exporting_and_drawing_say_nothing_when_all_is_well(session: Session, tmp_path: Path) -> None:
    session.submit(add, 1, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        session.export(tmp_path)
        draw(session.recorder.graph(), tmp_path / "graph.dot")
