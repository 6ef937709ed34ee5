"""A run as a page: the picture, and a table of the functions."""

from __future__ import annotations

import html
import time
from collections.abc import Iterator, Sequence

from executorlib.standalone.timeline.account import KINDS, functions, shares
from executorlib.standalone.timeline.picture import KIND_COLOURS, colours, duration, headline, picture
from executorlib.standalone.timeline.record import Run

_STYLE = """
body{font:15px/1.45 system-ui,'Segoe UI',Helvetica,Arial,sans-serif;color:#222;margin:1.5rem auto;max-width:1180px;
padding:0 1rem}
svg{max-width:100%;height:auto}
.wide{overflow-x:auto}
table{border-collapse:collapse;margin:.5rem 0 1.5rem}
td,th{padding:.25rem .8rem;border-bottom:1px solid #ddd;text-align:right;white-space:nowrap}
td:first-child,th:first-child{text-align:left}
i{display:inline-block;width:.8em;height:.8em;margin-right:.5em}
h2{font-size:1.1rem;margin:1.2rem 0 0}
"""


def page(run: Run) -> Iterator[str]:
    """The text of the page, in pieces."""
    title = f"executorlib: {headline(run)}"
    yield (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head><body>\n'
    )
    yield f"<p>{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(run.began))}</p>\n"
    yield '<div class="wide">'
    yield from picture(run)
    yield "</div>\n<h2>Functions</h2>\n"
    yield _functions(run)
    yield "<h2>Time of the cores</h2>\n"
    yield _cores(run)
    yield "</body></html>\n"


def _functions(run: Run) -> str:
    head = (
        "function",
        "calls",
        "failed",
        "restarts",
        "run time, sum",
        "median",
        "longest",
        "median wait for cores",
    )
    known = colours(run)
    rows = [
        (
            _mark(known[each.name], each.name),
            str(each.calls),
            str(each.failed),
            str(each.restarts),
            *(duration(seconds) for seconds in (each.total, each.median, each.longest, max(0.0, each.queued))),
        )
        for each in functions(run)
    ]
    return _table(head, rows)


def _cores(run: Run) -> str:
    found = shares(run)
    whole = sum(found.values()) or 1.0
    rows = [
        (_mark(KIND_COLOURS[kind], KINDS[kind]), duration(seconds), f"{seconds / whole:.1%}")
        for kind, seconds in found.items()
    ]
    return _table(("cores", "core-seconds", "share"), rows)


def _mark(colour: str, words: str) -> str:
    return f'<i style="background:{colour}"></i>{html.escape(words)}'


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = ["".join(f"<td>{cell}</td>" for cell in row) for row in rows]
    body = "".join(f"<tr>{line}</tr>\n" for line in lines)
    titles = "".join(f"<th>{title}</th>" for title in head)
    return f'<div class="wide"><table><thead><tr>{titles}</tr></thead><tbody>\n{body}</tbody></table></div>\n'
