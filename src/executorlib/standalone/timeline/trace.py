"""A run in the Trace Event Format of Chrome, which https://ui.perfetto.dev opens.

The format: https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU ("X" is a span, "C" the
value of a counter, "M" a name). Times are microseconds. Spans of one thread must lie inside of each other: a task in
the life of its worker.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from executorlib.standalone.timeline.account import KINDS, Moment, moments
from executorlib.standalone.timeline.record import Run

_PROCESS = 1
# A counter that changes more often than this is drawn as a block anyway.
_MOST_POINTS = 5000


def trace(run: Run) -> Iterator[str]:
    """The text of the file, in pieces."""
    yield '{"displayTimeUnit": "ms", "otherData": '
    yield json.dumps({"began": run.began, "seconds": run.seconds, "writer": "executorlib"})
    yield ', "traceEvents": [\n'
    between = ""
    for event in _events(run):
        yield between + json.dumps(event)
        between = ",\n"
    yield "\n]}\n"


def _events(run: Run) -> Iterator[dict[str, Any]]:
    yield _named("process_name", 0, "workers")
    for place in sorted({life.place for life in run.lives} | {attempt.place for attempt in run.attempts}):
        yield _named("thread_name", place, f"worker {place}")
    for life in run.lives:
        name = f"process {life.pid}" + (f" on {life.host}" if life.host else "")
        yield _span(name, "process", life.place, life.start, life.end, {"worker": life.number})
    for attempt in run.attempts:
        yield _span(
            attempt.name,
            "task",
            attempt.place,
            attempt.start,
            attempt.end,
            {
                "outcome": attempt.outcome,
                "cores": attempt.slots,
                "waited for inputs (s)": round(attempt.ready - attempt.submitted, 6),
                "waited for cores (s)": round(attempt.start - attempt.ready, 6),
            },
        )
    for moment in thinned(moments(run), run.seconds, _MOST_POINTS):
        cores = dict(zip(KINDS.values(), moment.cores, strict=True))
        yield _counter("cores", moment, cores)
        yield _counter("calls that wait", moment, {"for cores": moment.ready, "for inputs": moment.blocked})


def thinned(found: list[Moment], seconds: float, most: int) -> Iterator[Moment]:
    """The moments, but of those that lie close together only the last."""
    step = seconds / most
    for moment, following in zip(found, [*found[1:], None], strict=True):
        if following is None or following.time - moment.time >= step or moment.time // step != following.time // step:
            yield moment


def _named(what: str, thread: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": _PROCESS, "tid": thread, "args": {"name": name}}


def _span(name: str, kind: str, thread: int, start: float, end: float, args: dict[str, Any]) -> dict[str, Any]:
    times = {"ts": round(1e6 * start, 3), "dur": round(1e6 * max(0.0, end - start), 3)}
    return {"ph": "X", "name": name, "cat": kind, "pid": _PROCESS, "tid": thread, **times, "args": args}


def _counter(name: str, moment: Moment, values: dict[str, int]) -> dict[str, Any]:
    return {"ph": "C", "name": name, "pid": _PROCESS, "tid": 0, "ts": round(1e6 * moment.time, 3), "args": values}
