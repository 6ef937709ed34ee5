"""Submit calls become a graph: tasks as nodes, the futures among their arguments as edges."""

import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeAlias


@dataclass(frozen=True, slots=True)
class Constant:
    """A value that was there when the task was submitted."""

    value: object


@dataclass(frozen=True, slots=True)
class Result:
    """What node number `source` returns, narrowed by `keys`: `result[keys[0]][keys[1]]...`."""

    source: int
    keys: tuple[object, ...] = ()


@dataclass(frozen=True, slots=True)
class Foreign:
    """The result of a future that this recorder never saw, such as one of another executor."""

    future: Future[Any]
    keys: tuple[object, ...] = ()


@dataclass(frozen=True, slots=True)
class Items:
    """A list or tuple with a future somewhere in it."""

    values: tuple["Value", ...]


@dataclass(frozen=True, slots=True)
class Entries:
    """A dictionary with a future somewhere among its values."""

    values: tuple[tuple[object, "Value"], ...]


Value: TypeAlias = Constant | Result | Foreign | Items | Entries
Leaf: TypeAlias = Constant | Result | Foreign


@dataclass(frozen=True, slots=True)
class Argument:
    """A value and the parameter it fills; `name` is empty where the signature does not tell."""

    name: str
    value: Value


@dataclass(frozen=True, slots=True)
class Task:
    """One submitted call."""

    function: Callable[..., Any]
    arguments: tuple[Argument, ...]
    positional: int  # so many of the arguments were given by position
    resources: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Batch:
    """A list of results, as `batched()` makes them: no function runs."""

    arguments: tuple[Argument, ...]


Node: TypeAlias = Task | Batch


@dataclass(frozen=True, slots=True)
class WorkflowGraph:
    """Everything recorded so far; a node's number is its place in `nodes`.

    A node only ever takes results of nodes before it, so the order is a valid order of execution.
    """

    nodes: tuple[Node, ...]


class WorkflowRecorder:
    """Writes down submit calls without running them, in time proportional to tasks plus edges.

    Lists, tuples and dictionaries are copied as they are recorded: a program that fills the same
    dictionary anew for every call gets what it wrote at each call, as it would from a worker.
    """

    def __init__(self) -> None:
        self._nodes: list[Node] = []
        # Futures hash by identity; as keys they also stay alive, so no other can take their place.
        self._numbers: dict[Future[Any], int] = {}
        # By id, since a callable need not be hashable; the recorded tasks keep each one alive.
        self._parameters: dict[int, tuple[str, ...]] = {}

    def __len__(self) -> int:
        return len(self._nodes)

    def add(
        self,
        fn: Callable[..., Any],
        args: Sequence[object],
        kwargs: Mapping[str, object],
        future: Future[Any],
        resource_dict: Mapping[str, object] | None = None,
    ) -> None:
        """Record `submit(fn, *args, **kwargs)`, which returned `future`.

        Futures given to an earlier `add` or `add_batch` become edges, wherever they are nested in
        lists, tuples and dictionaries; so does what `split_future` and `get_item_from_future` made
        of them. Only lists, tuples and dictionaries are looked into.
        """
        names = self._parameter_names(fn)
        unnamed = [""] * (len(args) - len(names))
        positional = [
            Argument(name, self._value(arg)) for name, arg in zip([*names[: len(args)], *unnamed], args, strict=True)
        ]
        named = [Argument(name, self._value(arg)) for name, arg in kwargs.items()]
        task = Task(fn, (*positional, *named), len(positional), dict(resource_dict or {}))
        self._append(task, future)

    def add_batch(self, members: Iterable[Future[Any]], future: Future[Any]) -> None:
        """Record that `future` stands for the list of the members' results."""
        values = tuple(self._value(member) for member in members)
        self._append(Batch((Argument("", Items(values)),)), future)

    def graph(self) -> WorkflowGraph:
        """What has been recorded until now."""
        return WorkflowGraph(tuple(self._nodes))

    def _append(self, node: Node, future: Future[Any]) -> None:
        self._numbers[future] = len(self._nodes)
        self._nodes.append(node)

    def _parameter_names(self, fn: Callable[..., Any]) -> tuple[str, ...]:
        if id(fn) not in self._parameters:
            self._parameters[id(fn)] = _positional_parameters(fn)
        return self._parameters[id(fn)]

    def _value(self, value: object) -> Value:
        if isinstance(value, Future):
            return self._reference(value)
        if isinstance(value, list | tuple):
            return self._items(value)
        if isinstance(value, dict):
            return self._entries(value)
        return Constant(value)

    def _reference(self, future: Future[Any]) -> Result | Foreign:
        keys: list[object] = []
        parent = future
        # A FutureSelector, told by its attributes; one may have been made of another.
        while isinstance(inner := getattr(parent, "_future", None), Future):
            keys.append(getattr(parent, "_selector", None))
            parent = inner
        selection = tuple(reversed(keys))
        if parent in self._numbers:
            return Result(self._numbers[parent], selection)
        return Foreign(parent, selection)

    def _items(self, value: list[object] | tuple[object, ...]) -> Value:
        parts = self._parts(value)
        if any(not isinstance(part, Constant) for part in parts):
            return Items(parts)
        # Of a subclass (a named tuple) nobody knows how to make another: that one is kept.
        kind = type(value)
        return Constant(kind(_constants(value, parts)) if kind in (list, tuple) else value)

    def _entries(self, value: dict[object, object]) -> Value:
        parts = self._parts(value.values())
        if any(not isinstance(part, Constant) for part in parts):
            return Entries(tuple(zip(value, parts, strict=True)))
        if type(value) is not dict:
            return Constant(value)
        return Constant(dict(zip(value, _constants(value.values(), parts), strict=True)))

    def _parts(self, values: Collection[object]) -> tuple[Value, ...]:
        """The values one by one, or nothing if none of them needs a closer look."""
        # One pass in C tells the usual list of a million numbers.
        kinds = set(map(type, values))
        if not any(issubclass(kind, (Future, list, tuple, dict)) for kind in kinds):
            return ()
        return tuple(self._value(value) for value in values)


def leaves(path: str, value: Value) -> Iterator[tuple[str, Leaf]]:
    """The constants and results that an argument is made of, each with its place: `a[0]['k']`."""
    if isinstance(value, Items):
        for index, item in enumerate(value.values):
            yield from leaves(f"{path}[{index}]", item)
    elif isinstance(value, Entries):
        for key, item in value.values:
            yield from leaves(f"{path}[{key!r}]", item)
    else:
        yield path, value


def _positional_parameters(fn: Callable[..., Any]) -> tuple[str, ...]:
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):  # many builtins have no signature to show
        return ()
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(parameter.name for parameter in parameters if parameter.kind in by_position)


def _constants(values: Collection[object], parts: tuple[Value, ...]) -> Collection[object]:
    return [part.value for part in parts if isinstance(part, Constant)] if parts else values
