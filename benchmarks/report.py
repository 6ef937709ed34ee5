"""The figures as a table, in Markdown and in JSON."""

# The sign of multiplication is meant.
# ruff: noqa: RUF001
from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from measure import Outcome
from rows import NAMES, OURS, PEERS, ROWS, Goal, Row


@dataclass(frozen=True, slots=True)
class Line:
    """A row with its figures.

    Attributes:
        row: what was measured
        outcomes: the median of each library, or why it has none
        single: all measurements of each library
    """

    row: Row
    outcomes: dict[str, Outcome]
    single: dict[str, list[Outcome]]

    def value(self, library: str) -> float | None:
        outcome = self.outcomes.get(library)
        return outcome.value if outcome else None

    @property
    def ours(self) -> float | None:
        return self.value(OURS)

    @property
    def best_peer(self) -> str | None:
        """The peer with the best figure."""
        figures = {peer: value for peer in PEERS if (value := self.value(peer)) is not None}
        if not figures:
            return None
        return (max if self.row.more_is_better else min)(figures, key=figures.__getitem__)

    def advantage(self, peer: str) -> float | None:
        """How many times better this library is than a peer; below 1 it is worse."""
        ours, theirs = self.ours, self.value(peer)
        if ours is None or theirs is None:
            return None
        if self.row.unit.startswith("%"):  # Less than this is nothing: no ratio can be told.
            ours, theirs = max(ours, 0.1), max(theirs, 0.1)
        if min(ours, theirs) <= 0:
            return None
        return ours / theirs if self.row.more_is_better else theirs / ours


@dataclass(frozen=True, slots=True)
class Table:
    """All figures of a run, and where they come from.

    Attributes:
        machine: names and values
        repeat: measurements behind each figure
        load: processes that wanted to run, before and after
        minutes: how long it took
        lines: the rows
        anew: the keys of those that were measured once more, later than the rest
    """

    machine: dict[str, str]
    repeat: int
    load: tuple[float, float]
    minutes: float
    lines: list[Line]
    anew: tuple[str, ...] = ()

    def reached(self, line: Line, goal: Goal) -> float | None:
        """What a goal bounds: our figure, or its ratio. None if there is no such figure."""
        if goal.of is None or line.ours is None:
            return line.ours
        measure: float | None
        if goal.of.startswith("row:"):
            measure = next((other.ours for other in self.lines if other.row.key == goal.of[4:]), None)
        else:
            peer = line.best_peer if goal.of == "best" else goal.of
            measure = line.value(peer) if peer else None
        return line.ours / measure if measure else None

    def met(self, line: Line, goal: Goal) -> bool | None:
        """Whether a goal is reached; None if that is not known."""
        reached = self.reached(line, goal)
        if reached is None:
            return None
        return reached >= goal.bound if goal.at_least else reached <= goal.bound


def number(value: float) -> str:
    """A number with three digits that count."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def figure(line: Line, library: str) -> str:
    """The figure of a library as text."""
    outcome = line.outcomes.get(library)
    if outcome is None:
        return "-"
    return outcome.failure or "-" if outcome.value is None else number(outcome.value)


def _goal_text(row: Row, goal: Goal) -> str:
    sign, bound = "≥" if goal.at_least else "≤", f"{goal.bound:,g}"
    if goal.of is None:
        return f"{sign} {bound} {row.unit}"
    if goal.of.startswith("row:"):
        return f"{sign} {bound} × " + next(other.title for other in ROWS if other.key == goal.of[4:])
    return f"{sign} {bound} × {NAMES.get(goal.of, 'the best peer')}"


def _reached_text(table: Table, line: Line, goal: Goal) -> str:
    reached = table.reached(line, goal)
    if reached is None:
        return "-"
    unit = "" if goal.of is None else " ×"
    return f"{'yes' if table.met(line, goal) else '**no**'}, {number(reached)}{unit}"


def _grid(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *body]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _goals_row(table: Table, line: Line) -> list[str]:
    best = line.best_peer
    advantage = line.advantage(best) if best else None
    return [
        line.row.title,
        f"{figure(line, OURS)} {line.row.unit}",
        "<br>".join(_goal_text(line.row, goal) for goal in line.row.goals),
        "<br>".join(_reached_text(table, line, goal) for goal in line.row.goals),
        f"{figure(line, best)} ({NAMES[best]})" if best else "-",
        "-" if advantage is None else f"{number(advantage)} ×",
    ]


def as_markdown(table: Table) -> str:
    """The table of the goals, and the table of all figures."""
    goals = [_goals_row(table, line) for line in table.lines]
    libraries = [library for library in NAMES if any(library in line.outcomes for line in table.lines)]
    figures = [
        [f"{line.row.title} [{line.row.unit}]", *(_short_figure(line, library) for library in libraries)]
        for line in table.lines
    ]
    machine = ", ".join(f"{name}: {value}" for name, value in table.machine.items())
    return (
        "# Results\n\n"
        f"{machine}.\n\n"
        f"Median of {table.repeat}, of fewer where a peer takes long; two workers where nothing else is said. "
        f"Load of the machine before and after: {table.load[0]:.1f} and {table.load[1]:.1f}. "
        f"It took {table.minutes:.0f} minutes. {_anew_text(table)}\n\n"
        + _grid(["work", "this library", "goal", "reached", "best peer", "better by"], goals)
        + "\n## All figures\n\n"
        + _grid(["", *(NAMES[library] for library in libraries)], figures)
        + _notes(table)
    )


def as_summary(table: Table) -> str:
    """The table of the README."""
    rows = [
        [
            line.row.title,
            f"{figure(line, OURS)} {line.row.unit}",
            figure(line, "futures"),
            f"{figure(line, best)} ({NAMES[best]})" if (best := line.best_peer) else "-",
            "-" if not best or (advantage := line.advantage(best)) is None else f"{number(advantage)} ×",
        ]
        for line in table.lines
    ]
    machine = ", ".join(f"{name}: {value}" for name, value in table.machine.items())
    return f"{machine}.\n\n" + _grid(
        ["work", "this library", NAMES["futures"], "best of the other libraries", "better than that by"], rows
    )


def _anew_text(table: Table) -> str:
    titles = [line.row.title for line in table.lines if line.row.key in table.anew]
    return f"Measured once more, later: {'; '.join(titles)}." if titles else ""


def _short_figure(line: Line, library: str) -> str:
    outcome = line.outcomes.get(library)
    failed = "failed" if outcome and outcome.failure and outcome.failure != "timed out" else ""
    return failed or figure(line, library) + ("*" if library in line.row.fewer and library in line.outcomes else "")


def _notes(table: Table) -> str:
    """What the stars in the second table mean."""
    starred = any(line.row.fewer.keys() & line.outcomes.keys() for line in table.lines)
    return "\n\\* With less work, as the same would take minutes: see `fewer` in `results.json`.\n" if starred else ""


def from_json(text: str) -> Table:
    """The table that `as_json` has written, without rows that there are no more."""
    found = json.loads(text)
    lines = []
    for each in found["rows"]:
        row = next((row for row in ROWS if row.key == each["key"]), None)
        if row is not None:
            figures = each["figures"].items()
            lines.append(
                Line(
                    row,
                    {library: Outcome(known["median"], known["failure"]) for library, known in figures},
                    {library: [Outcome(value) for value in known["all"]] for library, known in figures},
                )
            )
    load = found["load"]
    return Table(
        found["machine"], found["repeat"], (load[0], load[1]), found["minutes"], lines, tuple(found.get("anew", ()))
    )


def as_json(table: Table) -> str:
    """Everything, with the single measurements."""
    return json.dumps(
        {
            "machine": table.machine,
            "repeat": table.repeat,
            "load": [round(value, 2) for value in table.load],
            "minutes": round(table.minutes, 1),
            "anew": list(table.anew),
            "rows": [_json_row(table, line) for line in table.lines],
        },
        indent=1,
        ensure_ascii=False,
    )


def _json_row(table: Table, line: Line) -> dict[str, Any]:
    goals = [
        {"goal": _goal_text(line.row, goal), "reached": table.reached(line, goal), "met": table.met(line, goal)}
        for goal in line.row.goals
    ]
    best = line.best_peer
    return {
        "key": line.row.key,
        "title": line.row.title,
        "unit": line.row.unit,
        "more_is_better": line.row.more_is_better,
        "arguments": dict(line.row.arguments),
        "fewer": {library: dict(changed) for library, changed in line.row.fewer.items()},
        "goals": goals,
        "best_peer": best,
        "better_by": line.advantage(best) if best else None,
        "figures": {
            library: {
                "median": outcome.value,
                "failure": outcome.failure,
                "all": [single.value for single in line.single[library]],
            }
            for library, outcome in line.outcomes.items()
        },
    }
