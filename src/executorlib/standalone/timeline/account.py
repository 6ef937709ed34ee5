"""Where the time of the cores has gone: the answer to "why was my run slow?"."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from executorlib.standalone.timeline.record import DONE, TRIED_AGAIN, Attempt, Run

KINDS = {
    "running": "calls run",
    "process": "processes start and end",
    "waiting": "free, though calls wait for cores",
    "inputs": "free: calls wait for their inputs",
    "empty": "free: nothing is submitted",
}
"""What a core can do, and how a picture says it."""


class Moment(NamedTuple):
    """How many cores do what, from this time on.

    Attributes:
        time: seconds since the beginning
        cores: by the keys of KINDS
        ready: calls that wait for cores
        blocked: calls that wait for inputs
    """

    time: float
    cores: tuple[int, ...]
    ready: int
    blocked: int


@dataclass(frozen=True, slots=True)
class FunctionSummary:
    """The calls of one function; times in seconds.

    Attributes:
        calls: how often it has run to an end
        failed: how many of these raised, or lost their worker
        restarts: how often its worker died and it was tried again
        total: sum of its run times
        median, longest: run time
        queued: median time between the moment when a call could have started and its start
    """

    name: str
    calls: int
    failed: int
    restarts: int
    total: float
    median: float
    longest: float
    queued: float


def moments(run: Run) -> list[Moment]:
    """The state of the cores over time; it changes at each of these moments."""
    changes: dict[float, list[int]] = defaultdict(lambda: [0, 0, 0, 0, 0])  # capacity, running, process, ready, blocked
    known = 0
    for time, slots in run.capacity:
        changes[time][0] += slots - known
        known = slots
    for column, start, end, number in _spans(run):
        if end > start:
            changes[start][column] += number
            changes[end][column] -= number
    found = []
    capacity = running = process = ready = blocked = 0
    for time in sorted(changes):
        change = changes[time]
        capacity, running, process = capacity + change[0], running + change[1], process + change[2]
        ready, blocked = ready + change[3], blocked + change[4]
        process_now = min(process, max(0, capacity - running))
        free = max(0, capacity - running - process_now)
        waiting = free if ready else 0
        inputs = free if blocked and not ready else 0
        found.append(Moment(time, (running, process_now, waiting, inputs, free - waiting - inputs), ready, blocked))
    return found


def shares(run: Run) -> dict[str, float]:
    """Core-seconds by the keys of KINDS."""
    total = dict.fromkeys(KINDS, 0.0)
    states = moments(run)
    for state, following in zip(states, [*states[1:], None], strict=True):
        seconds = (following.time if following is not None else run.seconds) - state.time
        for kind, cores in zip(KINDS, state.cores, strict=True):
            total[kind] += cores * max(0.0, seconds)
    return total


def functions(run: Run) -> list[FunctionSummary]:
    """The functions that were called, the one that took most time first."""
    by_name: dict[str, list[Attempt]] = defaultdict(list)
    for attempt in run.attempts:
        by_name[attempt.name].append(attempt)
    found = []
    for name, attempts in by_name.items():
        ended = [attempt for attempt in attempts if attempt.outcome != TRIED_AGAIN]
        times = [attempt.seconds for attempt in attempts]
        found.append(
            FunctionSummary(
                name,
                len(ended),
                sum(attempt.outcome != DONE for attempt in ended),
                len(attempts) - len(ended),
                sum(times),
                statistics.median(times),
                max(times),
                statistics.median(attempt.start - attempt.ready for attempt in attempts),
            )
        )
    return sorted(found, key=lambda summary: -summary.total)


def _spans(run: Run) -> Iterator[tuple[int, float, float, int]]:
    """Column of `moments`, beginning, end, and how many cores or calls."""
    begun = {life.number: life.start for life in run.lives}
    gone = {life.number: life.end for life in run.lives}
    first: dict[int, Attempt] = {}
    for attempt in run.attempts:
        known = first.get(attempt.worker)
        if known is None or attempt.start < known.start:
            first[attempt.worker] = attempt
        yield 1, attempt.start, attempt.end, attempt.slots
        yield 3, attempt.ready, attempt.start, 1
        yield 4, attempt.submitted, attempt.ready, 1
    for attempt in first.values():
        started = begun.get(attempt.worker)
        if started is not None:
            yield 2, started, attempt.start, attempt.slots
            if not run.keep:
                yield 2, attempt.end, gone[attempt.worker], attempt.slots
