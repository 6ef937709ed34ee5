"""The figures as a picture: how many times better this library is than each peer, on a logarithmic axis."""

# The sign of multiplication is meant.
# ruff: noqa: RUF001
from __future__ import annotations

import math
from html import escape

from report import Line, Table, number
from rows import NAMES, OURS, PEERS

_WIDTH, _LEFT, _RIGHT, _TOP, _PITCH = 960, 410, 40, 104, 30
_FONT = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"
_INK, _FAINT, _GRID = "#1f2328", "#656d76", "#d8dee4"
_COLOURS = {
    "futures": "#0072b2",
    "multiprocessing": "#d55e00",
    "loky": "#009e73",
    "dask": "#cc79a7",
    "parsl": "#8a6d00",
    "published": "#7a7f87",
}


def as_svg(table: Table) -> str:
    """One line per row that others can do too, one mark per peer."""
    lines = [line for line in table.lines if any(line.advantage(peer) for peer in PEERS)]
    advantages = [value for line in lines for peer in PEERS if (value := line.advantage(peer))]
    low, high = _decades([*advantages, 1.0])
    axis = _Axis(low, high)
    bottom = _TOP + _PITCH * len(lines)
    height = bottom + 54
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        f'font-family="{_FONT}" font-size="13" role="img">',
        "<title>How many times better this library is than others</title>",
        f'<rect width="{_WIDTH}" height="{height}" rx="8" fill="#ffffff"/>',
        _text(24, 32, "How many times better than …", size=17, weight="600"),
        *_legend(),
        *_grid(axis, bottom),
        *(part for place, line in enumerate(lines) for part in _line(axis, line, _TOP + _PITCH * (place + 0.5))),
        _text(_LEFT, bottom + 42, "← the other is better", colour=_FAINT, size=12),
        _text(_WIDTH - _RIGHT, bottom + 42, "this library is better →", colour=_FAINT, size=12, anchor="end"),
        _text(24, bottom + 42, _origin(table), colour=_FAINT, size=12),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


class _Axis:
    """Places on a logarithmic axis from 10**low to 10**high."""

    def __init__(self, low: int, high: int) -> None:
        self.low, self.high = low, high

    def place(self, value: float) -> float:
        share = (math.log10(value) - self.low) / (self.high - self.low)
        return _LEFT + share * (_WIDTH - _RIGHT - _LEFT)


def _decades(values: list[float]) -> tuple[int, int]:
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)


def _legend() -> list[str]:
    parts, x = [], 24.0
    for peer in PEERS:
        parts.append(_mark(peer, x + 6, 60))
        parts.append(_text(x + 18, 64.5, NAMES[peer]))
        x += 40 + 7.1 * len(NAMES[peer])
    return parts


def _grid(axis: _Axis, bottom: float) -> list[str]:
    parts = []
    for power in range(axis.low, axis.high + 1):
        x, label = axis.place(10.0**power), f"{10.0**power:,g} ×"
        colour, width = (_INK, 1.5) if power == 0 else (_GRID, 1)
        parts.append(f'<path d="M{x:.1f} {_TOP}V{bottom}" stroke="{colour}" stroke-width="{width}"/>')
        parts.append(_text(x, bottom + 20, label, colour=_FAINT, size=12, anchor="middle"))
    return parts


def _line(axis: _Axis, line: Line, y: float) -> list[str]:
    """The title of a row, a thin line from the worst to the best, and the marks of the peers."""
    title = line.row.title.replace("`", "")
    ours = f"{number(line.ours)} {line.row.unit}" if line.ours is not None else ""
    places = {peer: axis.place(value) for peer in PEERS if (value := line.advantage(peer))}
    start, end = min(places.values()), max(places.values())
    tip = f"<title>{escape(f'{NAMES[OURS]}: {ours}')}</title>"
    return [
        f'<text x="24" y="{y + 4.5}" fill="{_INK}">{tip}{escape(title)}</text>',
        f'<path d="M{_LEFT} {y}H{_WIDTH - _RIGHT}" stroke="{_GRID}" stroke-width="0.6" stroke-dasharray="2 4"/>',
        f'<path d="M{start:.1f} {y}H{end:.1f}" stroke="{_GRID}" stroke-width="3"/>',
        *(_mark(peer, x, y) for peer, x in places.items()),
    ]


def _mark(peer: str, x: float, y: float) -> str:
    """A shape and a colour for each peer, so that neither is needed to tell them apart."""
    r = 5.5
    shapes = {
        "futures": f"M{x - r} {y}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0z",
        "multiprocessing": f"M{x - r + 0.7:.1f} {y - r + 0.7:.1f}h{2 * r - 1.4}v{2 * r - 1.4}h{1.4 - 2 * r}z",
        "loky": f"M{x} {y - r - 0.8}L{x + r + 0.8} {y}L{x} {y + r + 0.8}L{x - r - 0.8} {y}z",
        "dask": f"M{x} {y - r - 0.3}L{x + r + 0.5} {y + r - 0.8}H{x - r - 0.5}z",
        "parsl": f"M{x} {y + r + 0.3}L{x + r + 0.5} {y - r + 0.8}H{x - r - 0.5}z",
        "published": f"M{x - 2} {y - r}h4v{r - 2}h{r - 2}v4h{2 - r}v{r - 2}h-4v{2 - r}h{2 - r}v-4h{r - 2}z",
    }
    return f'<path d="{shapes[peer]}" fill="{_COLOURS[peer]}" stroke="#ffffff" stroke-width="1"/>'


def _text(
    x: float, y: float, text: str, *, colour: str = _INK, size: int = 13, weight: str = "400", anchor: str = "start"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" font-size="{size}" font-weight="{weight}" '
        f'text-anchor="{anchor}">{escape(text)}</text>'
    )


def _origin(table: Table) -> str:
    cpu, cores = table.machine["CPU"], table.machine["cores"]
    return f"{cpu}, {cores} cores, Python {table.machine['Python']}, median of {table.repeat}"
