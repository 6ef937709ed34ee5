"""A run as an SVG picture.

what is to be known at once
cores over time, by what they do
a row for each worker: its process (grey) and its calls (coloured by function)
"""

from __future__ import annotations

import html
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from executorlib.standalone.timeline.account import KINDS, functions, moments, shares
from executorlib.standalone.timeline.record import DONE, TRIED_AGAIN, Attempt, Run
from executorlib.standalone.timeline.trace import thinned

WIDTH = 1180
_LEFT, _RIGHT = 92, 16
_PLOT = WIDTH - _LEFT - _RIGHT
_AREA_HEIGHT = 110
_MOST_ROWS = 200
_COLOURS = (
    "#3572b0",
    "#e08a1e",
    "#3f9b5b",
    "#8a63b8",
    "#4fb3bf",
    "#b9722d",
    "#c26aa0",
    "#7a8b28",
    "#5b7083",
    "#9a8f5a",
)
_OTHER = "#8c8c8c"
_BAD = "#d0312d"
TIMES = "\N{MULTIPLICATION SIGN}"
KIND_COLOURS = {
    "running": "#47586b",
    "process": "#a9bfd6",
    "waiting": "#e8a0a0",
    "inputs": "#f2d28b",
    "empty": "#eeeeee",
}
_STYLE = (
    "text{font:12px system-ui,'Segoe UI',Helvetica,Arial,sans-serif;fill:#333}"
    ".t{font-size:17px;font-weight:600}.s{fill:#666;font-size:11px}.e{text-anchor:end}.m{text-anchor:middle}"
    ".g{stroke:#e3e3e3;stroke-width:1}.p{fill:#e4e7ea}"
)


def picture(run: Run) -> Iterator[str]:
    """The text of the picture, in pieces."""
    return _Picture(run).draw()


def colours(run: Run) -> dict[str, str]:
    """A colour for each function; the ten that took most time have one of their own."""
    names = [summary.name for summary in functions(run)]
    return {name: _COLOURS[at] if at < len(_COLOURS) else _OTHER for at, name in enumerate(names)}


@dataclass(slots=True)
class _Bar:
    """Calls that are drawn as one, because each is too narrow to be seen."""

    name: str
    outcome: str
    start: float
    end: float
    count: int
    busy: float


class _Picture:
    def __init__(self, run: Run) -> None:
        self._run = run
        self._scale = _PLOT / max(run.seconds, 1e-9)
        self._colours = colours(run)
        self._y = 0.0

    def draw(self) -> Iterator[str]:
        parts = [*self._head(), *self._cores(), *self._rows(), *self._legend()]
        height = self._y + 10
        yield (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" '
            f'height="{height:g}" role="img" aria-label="timeline of a run">\n<style>{_STYLE}</style>\n'
            f'<rect width="{WIDTH}" height="{height:g}" fill="white"/>\n'
        )
        yield from parts
        yield "</svg>\n"

    def _x(self, time: float) -> float:
        return _LEFT + time * self._scale

    def _head(self) -> Iterator[str]:
        yield _text(16, 28, headline(self._run), "t")
        yield _text(16, 48, "; ".join(findings(self._run)))
        self._y = 64

    def _cores(self) -> Iterator[str]:
        """What the cores do, as areas on top of each other."""
        top, height = self._y + 8, _AREA_HEIGHT
        found = list(thinned(moments(self._run), self._run.seconds, _PLOT))
        most = max((sum(moment.cores) for moment in found), default=1) or 1
        times = [moment.time for moment in found] + [self._run.seconds]
        below = [0.0] * len(found)
        for at, kind in enumerate(KINDS):
            above = [low + moment.cores[at] for low, moment in zip(below, found, strict=True)]
            if above != below:
                yield self._area(times, below, above, height / most, top + height, kind)
            below = above
        for cores in sorted({0, most}):
            y = top + height - cores * height / most
            yield _text(_LEFT - 8, y + 4, f"{cores} core{'' if cores == 1 else 's'}" if cores else "0", "e s")
        self._y = top + height + 6
        x = float(_LEFT)
        for kind, share in percentages(self._run).items():
            words = f"{KINDS[kind]} {share}"
            yield f'<rect x="{x:g}" y="{self._y + 5:g}" width="10" height="10" fill="{KIND_COLOURS[kind]}"/>'
            yield _text(x + 14, self._y + 14, words, "s")
            x += 30 + 5.7 * len(words)
        self._y += 30

    def _area(
        self, times: list[float], below: list[float], above: list[float], scale: float, base: float, kind: str
    ) -> str:
        points = [*self._steps(times, above, scale, base), *reversed(list(self._steps(times, below, scale, base)))]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        return f'<polygon points="{line}" fill="{KIND_COLOURS[kind]}"><title>{KINDS[kind]}</title></polygon>\n'

    def _steps(
        self, times: list[float], values: list[float], scale: float, base: float
    ) -> Iterator[tuple[float, float]]:
        for start, end, value in zip(times, times[1:], values, strict=False):
            yield self._x(start), base - value * scale
            yield self._x(end), base - value * scale

    def _rows(self) -> Iterator[str]:
        places = sorted({attempt.place for attempt in self._run.attempts} | {life.place for life in self._run.lives})
        shown = places[:_MOST_ROWS]
        row = max(4.0, min(20.0, 900.0 / max(1, len(shown))))
        top = self._y + 6
        tops = {place: top + row * at for at, place in enumerate(shown)}
        yield from self._axis(top, row * len(shown))
        every = max(1, -(-12 // int(row)))
        for at, place in enumerate(shown):
            if at % every == 0:
                yield _text(_LEFT - 8, tops[place] + row / 2 + 4, f"worker {place}", "e s")
        for life in self._run.lives:
            if life.place in tops:
                title = f"process {life.pid} {life.host}, {duration(life.end - life.start)}"
                yield self._rect(life.start, life.end, tops[life.place], row, 'class="p"', title)
        rows: dict[int, list[Attempt]] = defaultdict(list)
        for attempt in self._run.attempts:
            rows[attempt.place].append(attempt)
        for place in shown:
            for bar in self._bars(sorted(rows[place], key=lambda attempt: attempt.start)):
                yield self._bar(bar, tops[place], row)
        self._y = top + row * len(shown) + 22
        if len(places) > len(shown):
            yield _text(_LEFT, self._y + 8, f"… and {len(places) - len(shown)} more workers", "s")
            self._y += 16

    def _bars(self, attempts: Iterable[Attempt]) -> Iterator[_Bar]:
        bar: _Bar | None = None
        for each in attempts:
            small = each.seconds * self._scale < 1.5
            near = bar is not None and (each.start - bar.end) * self._scale < 0.5
            if bar is not None and small and near and bar.name == each.name and bar.outcome == each.outcome:
                bar.end, bar.count, bar.busy = max(bar.end, each.end), bar.count + 1, bar.busy + each.seconds
                continue
            if bar is not None:
                yield bar
            bar = _Bar(each.name, each.outcome, each.start, each.end, 1, each.seconds)
        if bar is not None:
            yield bar

    def _bar(self, bar: _Bar, top: float, row: float) -> str:
        times = f"{bar.count} {TIMES} " if bar.count > 1 else ""
        each = ", " + duration(bar.busy / bar.count) + (" each" if bar.count > 1 else "")
        title = f"{times}{bar.name}{each}, from {duration(bar.start)}: {bar.outcome}"
        good = bar.outcome == DONE
        fill = self._colours[bar.name] if good else _BAD
        density = min(1.0, bar.busy / max(bar.end - bar.start, 1e-9))
        opacity = "" if density > 0.9 else f' fill-opacity="{max(0.25, density):.2f}"'
        return self._rect(bar.start, bar.end, top, row, f'fill="{fill}"{opacity}', title)

    def _rect(self, start: float, end: float, top: float, row: float, look: str, title: str) -> str:
        width = max(0.6, (end - start) * self._scale - (0.4 if (end - start) * self._scale > 3 else 0.0))
        gap = 1.0 if row >= 8 else 0.3
        return (
            f'<rect x="{self._x(start):.1f}" y="{top + gap:.1f}" width="{width:.1f}" height="{row - 2 * gap:.1f}" '
            f"{look}><title>{html.escape(title)}</title></rect>\n"
        )

    def _axis(self, top: float, height: float) -> Iterator[str]:
        step = _step(self._run.seconds)
        for number in range(int(self._run.seconds / step + 1e-9) + 1):
            x = self._x(number * step)
            yield f'<line class="g" x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{top + height:.1f}"/>'
            yield _text(x, top + height + 14, duration(number * step) if number else "0", "m s")

    def _legend(self) -> Iterator[str]:
        x, y = float(_LEFT), self._y
        entries = [(colour, name) for name, colour in self._colours.items() if colour != _OTHER]
        if len(self._colours) > len(entries):
            entries.append((_OTHER, f"{len(self._colours) - len(entries)} other functions"))
        if any(attempt.outcome != DONE for attempt in self._run.attempts):
            entries.append((_BAD, "failed, or its worker died"))
        entries.append(("#e4e7ea", "a process that runs nothing"))
        for colour, name in entries:
            words = name if len(name) <= 60 else f"{name[:59]}…"
            width = 34 + 6.2 * len(words)
            if x + width > WIDTH and x > _LEFT:
                x, y = float(_LEFT), y + 18
            yield f'<rect x="{x:g}" y="{y + 3:g}" width="10" height="10" fill="{colour}"/>'
            yield _text(x + 14, y + 12, words)
            x += width
        self._y = y + 18


def headline(run: Run) -> str:
    """The run in one line."""
    ended = [attempt for attempt in run.attempts if attempt.outcome != TRIED_AGAIN]
    failed = sum(attempt.outcome != DONE for attempt in ended)
    restarts = len(run.attempts) - len(ended)
    parts = [f"{len(ended)} calls in {duration(run.seconds)}", f"{len(run.lives)} processes"]
    parts += [f"{failed} failed"] if failed else []
    parts += [f"{restarts} restart{'' if restarts == 1 else 's'}"] if restarts else []
    parts += [f"{len(run.dropped)} not run"] if run.dropped else []
    return ", ".join(parts)


def findings(run: Run) -> list[str]:
    """What has kept the run from being faster, in words."""
    core_seconds = shares(run)
    whole = sum(core_seconds.values()) or 1.0
    part = {kind: seconds / whole for kind, seconds in core_seconds.items()}
    told = [f"cores busy {part['running']:.0%}"]
    reasons = {
        "process": "much time goes into starting processes"
        + ("" if run.keep else ": block_allocation=True keeps them"),
        "waiting": "cores were free although calls waited: they need many cores each, or are too short to be sent one "
        "by one",
        "inputs": "calls wait for the results of others",
        "empty": "not enough is submitted to keep all cores busy",
    }
    worst = max(reasons, key=lambda kind: part[kind])
    if part[worst] > 0.1:
        told.append(reasons[worst])
    longest = max(run.attempts, key=lambda attempt: attempt.seconds, default=None)
    if longest is not None and longest.seconds > 0.5 * run.seconds:
        share = longest.seconds / run.seconds
        told.append(f"one call of {longest.name} took {duration(longest.seconds)}, {share:.0%} of the run")
    return told


def percentages(run: Run) -> dict[str, str]:
    """The share of each kind of core time, where there is any."""
    core_seconds = shares(run)
    whole = sum(core_seconds.values()) or 1.0
    return {kind: f"{seconds / whole:.0%}" for kind, seconds in core_seconds.items() if seconds / whole >= 0.005}


def duration(seconds: float) -> str:
    """Seconds as one would say them."""
    if seconds < 1e-6:
        return "under 1 µs"
    if seconds < 1e-3:
        return f"{1e6 * seconds:.0f} µs"
    if seconds < 1.0:
        return f"{1e3 * seconds:.3g} ms"
    if seconds < 120.0:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _step(seconds: float) -> float:
    """A round number of seconds between the marks of the time axis."""
    step = 1e-6
    while True:
        for factor in (1.0, 2.0, 5.0):
            if seconds / (step * factor) <= 10.0:
                return step * factor
        step *= 10.0


def _text(x: float, y: float, words: str, kind: str = "") -> str:
    look = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{look}>{html.escape(words)}</text>\n'
