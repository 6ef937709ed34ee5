"""Pictures of a workflow: Graphviz text, and files and notebook output made from it."""

import html
import importlib
import os
from pathlib import Path
from typing import Any

from executorlib.standalone.workflow.outline import TIMES, Arrow, Box, outline
from executorlib.standalone.workflow.record import Batch, Foreign, WorkflowGraph

_TEXT_FORMATS = ("", "dot", "gv")
_IMAGE_FORMATS = ("svg", "png", "pdf", "jpg", "jpeg", "gif", "ps", "eps")

_FONT = "Helvetica,Arial,sans-serif"
_HEAD = f"""\
digraph workflow {{
  graph [rankdir=TB, nodesep=0.3, ranksep=0.45, bgcolor=white, dpi=96]
  node [shape=box, style="rounded,filled", fillcolor="#e8f0fb", color="#3b6ea8",
        fontname="{_FONT}", fontsize=12, margin="0.14,0.07"]
  edge [color="#606060", fontcolor="#404040", fontname="{_FONT}", fontsize=10, arrowsize=0.7]
"""


def check_drawable(filename: str | os.PathLike[str] | None = None) -> None:
    """Find out before the work begins whether `draw` can draw.

    Raises:
        ImportError: the picture needs a library that is not installed; the message says how to
            install it.
        ValueError: the filename ends in a format that cannot be written.
    """
    if filename is None:
        _require("pygraphviz")
        _require("IPython")
    elif _format_of(filename) in _IMAGE_FORMATS:
        _require("pygraphviz")


def draw(graph: WorkflowGraph, filename: str | os.PathLike[str] | None = None) -> None:
    """Draw the graph, into a file or into the notebook.

    Args:
        graph: what `WorkflowRecorder.graph()` returned.
        filename: file to write; its extension selects the format: svg, png, pdf, dot (also jpg,
            gif, ps, eps). Without extension it is dot, Graphviz' own text, which needs no library.
            Without a filename the picture appears in the notebook; outside of one, a line of text
            says how many tasks it has.

    Raises:
        ImportError, ValueError: as `check_drawable`.
        OSError: the file cannot be written.
    """
    text = to_dot(graph)
    if filename is None:
        _show(_rendered(text, "svg"), len(graph.nodes))
        return
    file_format = _format_of(filename)
    is_text = file_format in _TEXT_FORMATS
    Path(filename).write_bytes(text.encode() if is_text else _rendered(text, file_format))


def to_dot(graph: WorkflowGraph) -> str:
    """The picture in Graphviz' language."""
    sketch = outline(graph)
    boxes = (_box_statement(number, box) for number, box in enumerate(sketch.boxes))
    arrows = map(_arrow_statement, sketch.arrows)
    return _HEAD + "".join(f"  {statement}\n" for statement in (*boxes, *arrows)) + "}\n"


def _box_statement(number: int, box: Box) -> str:
    times = f" {TIMES} {box.count}" if box.count > 1 else ""
    rows = [f"<b>{_escaped(box.title)}</b>{times}"]
    rows += [f'<font point-size="10">{_escaped(line)}</font>' for line in box.lines]
    attributes = [f"label=<{'<br/>'.join(rows)}>"]
    if box.count > 1:
        attributes.append("peripheries=2")
    if box.kind is Batch:
        attributes.append('fillcolor="#f4f4f4", color="#808080"')
    elif box.kind is Foreign:
        attributes.append('fillcolor=white, color="#808080", style="rounded,dashed"')
    return f"{number} [{', '.join(attributes)}]"


def _arrow_statement(arrow: Arrow) -> str:
    label = f" [label=<{_escaped(f' {arrow.label} ')}>]" if arrow.label else ""
    return f"{arrow.source} -> {arrow.target}{label}"


def _escaped(text: str) -> str:
    # Graphviz reads labels as XML, which has no way at all to spell a control character.
    printable = "".join(char if char.isprintable() else "?" for char in text)
    return html.escape(printable)


def _format_of(filename: str | os.PathLike[str]) -> str:
    file_format = Path(filename).suffix.lower().removeprefix(".")
    if file_format not in (*_TEXT_FORMATS, *_IMAGE_FORMATS):
        raise ValueError(
            f"cannot draw a dependency graph as {file_format!r} ({os.fspath(filename)!r}): "
            f"use one of {', '.join(('dot', *_IMAGE_FORMATS))}"
        )
    return file_format


def _rendered(text: str, file_format: str) -> bytes:
    image: bytes = _require("pygraphviz").AGraph(string=text).draw(format=file_format, prog="dot")
    return image


def _require(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"drawing a dependency graph needs {module}, which cannot be imported ({error}): "
            "pip install 'executorlib[graph]'"
            + (" ipython, or give plot_dependency_graph_filename" if module == "IPython" else "")
        ) from error


def _show(svg: bytes, tasks: int) -> None:
    ipython = _require("IPython.display")

    class DependencyGraph(ipython.SVG):  # type: ignore[misc, name-defined]
        def __repr__(self) -> str:  # what a terminal shows instead of the picture
            return (
                f"<dependency graph, {tasks} task{'s' * (tasks != 1)}, to be seen in a notebook; "
                "plot_dependency_graph_filename writes it to a file>"
            )

    ipython.display(DependencyGraph(data=svg.decode()))
