"""What is worth seeing of a workflow: boxes and arrows, with equal siblings drawn as one."""

import functools
import math
import reprlib
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from executorlib.standalone.workflow.record import (
    Argument,
    Batch,
    Constant,
    Foreign,
    Items,
    Leaf,
    Node,
    Result,
    Task,
    WorkflowGraph,
    leaves,
)

TIMES = "\N{MULTIPLICATION SIGN}"
# Beyond this many, tasks that stand in the same place of the graph share a box.
TASKS_DRAWN_ONE_BY_ONE = 20
# Beyond this many boxes, tasks need to resemble each other less to share one.
MOST_BOXES = 40
# A box tells of its arguments in so many lines.
MOST_LINES = 5


@dataclass(frozen=True, slots=True)
class Box:
    """`count` tasks of one function, a batch of results, or futures from elsewhere."""

    kind: type[Task | Batch | Foreign]
    title: str
    lines: tuple[str, ...]
    count: int


@dataclass(frozen=True, slots=True)
class Arrow:
    """Results of box number `source` are arguments in box number `target`."""

    source: int
    target: int
    label: str


@dataclass(frozen=True, slots=True)
class Outline:
    """A graph as it is drawn."""

    boxes: tuple[Box, ...]
    arrows: tuple[Arrow, ...]


@dataclass(frozen=True, slots=True)
class _Link:
    """One result among the arguments of a task."""

    source: int
    target: int
    parameter: str
    place: str
    keys: tuple[object, ...]


def outline(graph: WorkflowGraph) -> Outline:
    """Boxes and arrows for a graph of any size, in time proportional to its tasks and edges.

    A small graph is shown task by task. In a larger one, tasks of the same function whose inputs
    come from the same boxes and whose results go to the same boxes are one box, "f x 500".
    """
    links, foreign = _links(graph)
    nodes: list[Node | Foreign] = [*graph.nodes, *foreign]
    groups = _groups(nodes, links)
    members: list[list[Node | Foreign]] = [[] for _ in range(max(groups, default=-1) + 1)]
    for node, group in zip(nodes, groups, strict=True):
        members[group].append(node)
    return Outline(tuple(map(_box, members)), tuple(_arrows(links, groups)))


def describe(fn: Callable[..., Any]) -> str:
    """A short name for any callable, as one would speak of it."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    name = getattr(fn, "__qualname__", None) or getattr(fn, "__name__", type(fn).__qualname__)
    return str(name).rpartition("<locals>.")[2]


def _links(graph: WorkflowGraph) -> tuple[list[_Link], list[Foreign]]:
    """The edges, and the futures from elsewhere, whose numbers follow those of the nodes."""
    links = []
    foreign: dict[int, Foreign] = {}
    numbers: dict[int, int] = {}
    for target, node in enumerate(graph.nodes):
        for parameter, place, leaf in _leaves(node.arguments):
            if isinstance(leaf, Constant):
                continue
            if isinstance(leaf, Result):
                source = leaf.source
            else:
                key = id(leaf.future)
                foreign.setdefault(key, leaf)
                source = numbers.setdefault(key, len(graph.nodes) + len(numbers))
            links.append(_Link(source, target, parameter, place, leaf.keys))
    return links, list(foreign.values())


def _leaves(arguments: Iterable[Argument]) -> Iterator[tuple[str, str, Leaf]]:
    for argument in arguments:
        for place, leaf in leaves(argument.name, argument.value):
            yield argument.name, place, leaf


# ---------------------------------------------------------------------------------------- grouping


def _groups(nodes: Sequence[Node | Foreign], links: Sequence[_Link]) -> list[int]:
    """For each node the number of its box."""
    if len(nodes) <= TASKS_DRAWN_ONE_BY_ONE:
        return list(range(len(nodes)))
    sources: list[set[int]] = [set() for _ in nodes]
    targets: list[set[int]] = [set() for _ in nodes]
    for link in links:
        sources[link.target].add(link.source)
        targets[link.source].add(link.target)
    alike = _numbered(map(_likeness, nodes))
    return _partition(alike, sources, targets)


def _partition(alike: list[int], sources: list[set[int]], targets: list[set[int]]) -> list[int]:
    """Split what looks alike by its place in the graph, as finely as the picture can bear.

    Every round tells apart nodes whose neighbours the round before told apart, so after round k
    two nodes share a box if all ways of k steps from them look the same. A long chain of one
    function never settles within the limit: one round leaves it as first, middle, last.
    """
    one_round = _refined(alike, sources, targets)
    coarser, finer = alike, one_round
    while _count(finer) <= MOST_BOXES:
        if _count(finer) == _count(coarser):
            return finer
        coarser, finer = finer, _refined(finer, sources, targets)
    return one_round if _count(one_round) <= MOST_BOXES else alike


def _refined(groups: list[int], sources: list[set[int]], targets: list[set[int]]) -> list[int]:
    def around(nodes: set[int]) -> frozenset[int]:
        return frozenset(groups[node] for node in nodes)

    places = zip(groups, map(around, sources), map(around, targets), strict=True)
    return _numbered(places)


def _numbered(keys: Iterable[Hashable]) -> list[int]:
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(key, len(numbers)) for key in keys]


def _count(groups: list[int]) -> int:
    return max(groups) + 1


def _likeness(node: Node | Foreign) -> tuple[object, ...]:
    """What two nodes must have in common to share a box at all."""
    if not isinstance(node, Task):
        return (type(node),)
    fn = node.function
    while isinstance(fn, functools.partial):
        fn = fn.func
    # Closures and bound methods made in a loop are other objects each time, with the same code.
    return (describe(fn), getattr(fn, "__code__", None), _needs(node.resources))


# ---------------------------------------------------------------------------------------- in words


def _box(members: Sequence[Node | Foreign]) -> Box:
    first = members[0]
    if isinstance(first, Task):
        tasks = [node for node in members if isinstance(node, Task)]
        needs = _needs(first.resources)
        lines = _argument_lines(tasks) + ((needs,) if needs else ())
        return Box(Task, describe(first.function), lines, len(members))
    if isinstance(first, Batch):
        sizes = [
            len(node.arguments[0].value.values)
            for node in members
            if isinstance(node, Batch) and isinstance(node.arguments[0].value, Items)
        ]
        return Box(Batch, "batch", (f"of {_span(sizes)}",), len(members))
    return Box(Foreign, "future", ("from elsewhere",), len(members))


def _argument_lines(tasks: Sequence[Task]) -> tuple[str, ...]:
    """The constant arguments, one in a line; of several tasks the range of their values."""
    constants: dict[tuple[str, int], list[object]] = {}
    for task in tasks:
        for index, argument in enumerate(task.arguments):
            # Arguments without a name are told apart by their position.
            position = -1 if argument.name else index
            for place, leaf in leaves(argument.name, argument.value):
                if isinstance(leaf, Constant):
                    constants.setdefault((place, position), []).append(leaf.value)
    lines = [f"{place} = {_values(values)}" if place else _values(values) for (place, _), values in constants.items()]
    if len(lines) <= MOST_LINES:
        return tuple(lines)
    shown = lines[: MOST_LINES - 1]
    return (*shown, f"… {len(lines) - len(shown)} more")


def _values(values: Sequence[object]) -> str:
    if len(values) > 1 and all(type(value) in (int, float) for value in values):
        numbers = [value for value in values if isinstance(value, int | float)]
        if not any(map(math.isnan, numbers)):
            return _span(numbers)
    texts = list(dict.fromkeys(map(_short, values)))
    return ", ".join(texts) if len(texts) <= 3 else f"{len(texts)} different values"


def _span(numbers: Sequence[float]) -> str:
    low, high = _short(min(numbers)), _short(max(numbers))
    return low if low == high else f"{low} … {high}"


_brief = reprlib.Repr()
_brief.maxlevel = 2
_brief.maxlist = _brief.maxtuple = _brief.maxdict = _brief.maxset = 3
_brief.maxstring = _brief.maxother = _brief.maxlong = 30


def _short(value: object) -> str:
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple) and shape:
        return f"{type(value).__name__} {TIMES.join(map(str, shape))}"
    if callable(value):
        return describe(value)
    text = _brief.repr(value)
    # The default representation says where in memory an object lies, which tells nobody anything.
    return type(value).__name__ if text.startswith("<") else text


def _needs(resources: Mapping[str, object]) -> str:
    """The part of the resource dictionary that makes one task weigh more than another."""
    needs = []
    for key, one, many in (
        ("cores", "", "cores"),
        ("threads_per_core", "", "threads per core"),
        ("gpus_per_core", "1 GPU per core", "GPUs per core"),
    ):
        amount = resources.get(key)
        if isinstance(amount, int) and amount > 1:
            needs.append(f"{amount} {many}")
        elif amount == 1 and one:
            needs.append(one)
    return ", ".join(needs)


def _arrows(links: Iterable[_Link], groups: Sequence[int]) -> Iterator[Arrow]:
    between: dict[tuple[int, int], list[_Link]] = defaultdict(list)
    for link in links:
        between[groups[link.source], groups[link.target]].append(link)
    for (source, target), bundle in between.items():
        yield Arrow(source, target, _arrow_label(bundle))


def _arrow_label(bundle: Sequence[_Link]) -> str:
    """Which item goes where; if there are many, the parameters and how many each task takes."""
    exact = list(dict.fromkeys(filter(None, map(_way, bundle))))
    if len(exact) <= 2:
        return ", ".join(exact)
    taken: dict[int, int] = defaultdict(int)
    for link in bundle:
        taken[link.target] += 1
    each = _span(list(taken.values()))
    parameters = list(dict.fromkeys(link.parameter for link in bundle if link.parameter))
    words = [*parameters[:3], "…"] if len(parameters) > 3 else parameters
    return f"{', '.join(words)} {TIMES} {each}".strip() if each != "1" else ", ".join(words)


def _way(link: _Link) -> str:
    if not link.keys:
        return link.place
    item = "".join(f"[{_short(key)}]" for key in link.keys)
    return f"{item} → {link.place}" if link.place else item
