"""A workflow as a JSON file in the Python Workflow Definition format, version 0.1.0.

The format and the programs that read it: https://github.com/pythonworkflow/python-workflow-definition
(Janssen et al., Digital Discovery 2025, doi:10.1039/D5DD00231A). Functions are stored by name and
called by name of their parameters; inputs are JSON values. Three functions of that package stand
for what is not a task: `get_list` and `get_dict` build containers, `get_item` takes a part of a
result. A part under a text key is written as `sourcePort`; an index is not, because readers hand
the port to the result as text, and a list has no item "0".
"""

import inspect
import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from executorlib.standalone.workflow.record import (
    Argument,
    Batch,
    Constant,
    Entries,
    Foreign,
    Items,
    Result,
    Task,
    Value,
    WorkflowGraph,
)

_VERSION = "0.1.0"
_GET_LIST = "python_workflow_definition.shared.get_list"
_GET_DICT = "python_workflow_definition.shared.get_dict"
_GET_ITEM = "python_workflow_definition.executorlib.get_item"
_RESERVED_PORT = "__result__"  # what readers put in place of a missing sourcePort
_MOST_PROBLEMS_TOLD = 10


class WorkflowExportError(ValueError):
    """The workflow holds something that the format cannot express; the message names each case."""


class _UnfitError(Exception):
    """One argument or function that cannot be written; the text says why."""


def export_workflow(graph: WorkflowGraph, filename: str | os.PathLike[str]) -> None:
    """Write the workflow as Python Workflow Definition JSON.

    The output `result` is the last task submitted. Every submitted task is written, also when the
    same call was submitted twice. Resource dictionaries have no place in the format. Tuples become
    lists, NumPy values their lists and numbers, results of finished foreign futures constants.

    Args:
        graph: what `WorkflowRecorder.graph()` returned.
        filename: file to write; it is not touched if the workflow cannot be exported.

    Raises:
        WorkflowExportError: no task was submitted, or a function cannot be imported by name (a
            lambda, a function inside a function, a method, a partial), is not a Python function
            (readers skip builtins), does not accept the arguments by name, or a value has no JSON.
        OSError: the file cannot be written.

    Warns:
        UserWarning: a function lives in `__main__`: only this script or notebook can load the
            file. Or a task has no input at all: some readers do not call such a function.
    """
    Path(filename).write_text(json.dumps(_Writer().document(graph), indent=4), encoding="utf-8")


class _Writer:
    """Collects nodes and edges; the number of a task in the graph is its id in the file."""

    def __init__(self) -> None:
        self._nodes: list[dict[str, object]] = []
        self._edges: list[dict[str, object]] = []
        self._constants: dict[str, int] = {}  # JSON text of a number or string: its node
        self._problems: list[str] = []
        self._main_functions: dict[str, None] = {}
        self._without_input: list[str] = []

    def document(self, graph: WorkflowGraph) -> dict[str, object]:
        if not graph.nodes:
            raise WorkflowExportError("cannot export the workflow: no task was submitted")
        self._nodes = [{} for _ in graph.nodes]
        for number, node in enumerate(graph.nodes):
            if isinstance(node, Batch):
                self._fill_container(number, _GET_LIST, node.arguments[0].value)
            else:
                self._fill_task(number, node)
        self._connect(len(graph.nodes) - 1, None, self._new_node(type="output", name="result"), None)
        self._speak()
        return {"version": _VERSION, "nodes": self._nodes, "edges": self._edges}

    def _speak(self) -> None:
        if self._problems:
            told = self._problems[:_MOST_PROBLEMS_TOLD]
            if len(self._problems) > len(told):
                told.append(f"… and {len(self._problems) - len(told)} more")
            raise WorkflowExportError("cannot export the workflow:\n  " + "\n  ".join(told))
        if self._main_functions:
            warnings.warn(
                f"the exported workflow calls {', '.join(self._main_functions)}: only this script "
                "or notebook can load it; functions in a module of their own travel with the file",
                stacklevel=4,
            )
        if self._without_input:
            warnings.warn(
                f"the exported workflow calls {', '.join(self._without_input)} without any input: "
                "some readers, among them the purepython one, do not call such a function",
                stacklevel=4,
            )

    # ------------------------------------------------------------------------------------- nodes

    def _new_node(self, **content: object) -> int:
        self._nodes.append({"id": len(self._nodes), **content})
        return len(self._nodes) - 1

    def _connect(self, source: int, source_port: str | None, target: int, target_port: str | None) -> None:
        self._edges.append(
            {
                "target": target,
                "targetPort": target_port,
                "source": source,
                "sourcePort": source_port,
            }
        )

    def _fill_task(self, number: int, task: Task) -> None:
        label = f"task {number}"
        try:
            name = _importable_name(task.function)
            label = f"task {number}, {name}"
            arguments = _named_arguments(task)
        except _UnfitError as reason:
            self._problems.append(f"{label}: {reason}")
            return
        self._nodes[number] = {"id": number, "type": "function", "value": name}
        if name.startswith("__main__."):
            self._main_functions[name] = None
        if not arguments:
            self._without_input.append(name)
        for argument in arguments:
            try:
                self._feed(argument.value, number, argument.name)
            except _UnfitError as reason:
                self._problems.append(f"{label}, argument {argument.name!r}: {reason}")

    def _feed(self, value: Value, target: int, port: str) -> None:
        """Make the value arrive at a parameter of a node."""
        source_port: str | None = None
        if isinstance(value, Result):
            source, source_port = self._part(value.source, value.keys)
        elif isinstance(value, Items | Entries):
            source = self._new_node()
            self._fill_container(source, _GET_LIST if isinstance(value, Items) else _GET_DICT, value)
        else:
            constant = value.value if isinstance(value, Constant) else _finished(value)
            source = self._input(constant, port)
        self._connect(source, source_port, target, port)

    def _fill_container(self, number: int, function: str, value: Value) -> None:
        self._nodes[number] = {"id": number, "type": "function", "value": function}
        if isinstance(value, Items):
            for index, item in enumerate(value.values):
                self._feed(item, number, str(index))
        elif isinstance(value, Entries):
            for key, item in value.values:
                self._feed(item, number, _text_key(key))

    def _part(self, source: int, keys: tuple[object, ...]) -> tuple[int, str | None]:
        """Node and port that give `result[key][key]...` of a node."""
        port: str | None = None
        for key in keys:
            if port is None and isinstance(key, str) and key != _RESERVED_PORT:
                port = key
                continue
            item = self._new_node(type="function", value=_GET_ITEM)
            self._connect(source, port, item, "obj")
            self._connect(self._input(key, "key"), None, item, "key")
            source, port = item, None
        return source, port

    def _input(self, value: object, name: str) -> int:
        """The node of a constant; equal numbers and strings share one."""
        encoded = _encoded(value)
        content = {"type": "input", "value": encoded, "name": name}
        if isinstance(encoded, list | dict):
            # Tasks that run in one process must not see what another does to its list.
            return self._new_node(**content)
        text = json.dumps(encoded)  # tells 1, 1.0 and true apart, and finds nan equal to nan
        if text not in self._constants:
            self._constants[text] = self._new_node(**content)
        return self._constants[text]


# --------------------------------------------------------------------------------------- functions


def _importable_name(fn: Callable[..., Any]) -> str:
    """`module.function`, if that is what a reader would find there."""
    module, name = getattr(fn, "__module__", None), getattr(fn, "__qualname__", None)
    if not module or not name:
        raise _UnfitError(f"{fn!r} has no name that could be imported")
    full = f"{module}.{name}"
    if "<lambda>" in name:
        raise _UnfitError(f"{full} is a lambda, which cannot be imported by name")
    if "<locals>" in name:
        raise _UnfitError(f"{full} is defined inside a function and cannot be imported by name")
    if "." in name:
        raise _UnfitError(f"{full} belongs to a class; only functions of a module can be imported")
    if not inspect.isfunction(fn):
        raise _UnfitError(f"{full} is no Python function (def …), and readers call nothing else")
    if module in sys.modules and getattr(sys.modules[module], name, None) is not fn:
        raise _UnfitError(f"{full} is not the function that was submitted")
    return full


def _named_arguments(task: Task) -> list[Argument]:
    """The arguments, each by the name of a parameter."""
    signature = inspect.signature(task.function)
    by_position, by_name = task.arguments[: task.positional], task.arguments[task.positional :]
    try:
        signature.bind(*by_position, **{argument.name: argument for argument in by_name})
    except TypeError as error:
        raise _UnfitError(f"the call does not fit the function: {error}") from None
    if not all(argument.name for argument in by_position):
        raise _UnfitError("arguments for *args have no name, and the format knows only names")
    parameters = signature.parameters
    for argument in by_position:
        if parameters[argument.name].kind is inspect.Parameter.POSITIONAL_ONLY:
            raise _UnfitError(f"{argument.name!r} is positional-only; readers pass names")
    return list(task.arguments) or _first_default(signature)


def _first_default(signature: inspect.Signature) -> list[Argument]:
    """An input for a call that has none, since some readers call only functions with inputs."""
    for parameter in signature.parameters.values():
        if parameter.default is not parameter.empty and _is_plain(parameter.default):
            return [Argument(parameter.name, Constant(parameter.default))]
    return []


# ------------------------------------------------------------------------------------------ values


def _encoded(value: object) -> object:
    """The value as JSON knows it."""
    if value is None or isinstance(value, bool | int | float | str):
        # NumPy's float64 is a float, and an enum member may be an int: written as what they equal.
        return value
    if isinstance(value, list | tuple):
        return [_encoded(item) for item in value]
    if isinstance(value, dict):
        return {_text_key(key): _encoded(item) for key, item in value.items()}
    if hasattr(type(value), "__array_interface__"):  # a NumPy array or scalar
        plain = value.tolist()  # type: ignore[attr-defined]
        if type(plain) is not type(value):
            return _encoded(plain)
    raise _UnfitError(f"a value of type {type(value).__qualname__} has no JSON")


def _is_plain(value: object) -> bool:
    try:
        _encoded(value)
    except _UnfitError:
        return False
    return True


def _text_key(key: object) -> str:
    if isinstance(key, str):
        return key
    raise _UnfitError(f"the dictionary key {key!r} is no text, and JSON would make it one")


def _finished(foreign: Foreign) -> object:
    """The result of a future of which nobody knows where it comes from."""
    if not foreign.future.done():
        raise _UnfitError("the future was not made by this executor and has not finished")
    try:
        result = foreign.future.result()
        for key in foreign.keys:
            result = result[key]
    except Exception as error:
        raise _UnfitError(f"the future, not made by this executor, failed: {error!r}") from error
    return result
