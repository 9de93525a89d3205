"""Charts of a page: lines as SVG, with what each point says, and the same values as a table.

They are drawn here and not by a library in the browser: a page stays small and shows its charts
without scripts and on paper. A few lines of script tell what a pointer or a key points at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import floor, log10
from typing import Any

__all__ = ["Axis", "Chart", "Line", "Point"]

WIDTH, HEIGHT = 560, 350
RIGHT, TOP, BOTTOM = 26, 14, 54
LETTER = 10.5  # width of a letter on a phone, where letters are largest
_KINDS = 8  # of colours, and of marks


@dataclass(frozen=True)
class Point:
    """A point of a line.

    Attributes
    ----------
    x, y : float
        Where it lies.
    words : str
        What it says when it is pointed at.
    low, high : float or None
        Ends of its spread, where there is one.
    """

    x: float
    y: float
    words: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Line:
    """Points that belong together, in order."""

    name: str
    points: tuple[Point, ...]
    dashed: bool = False


@dataclass(frozen=True)
class Axis:
    """What is measured along an edge.

    Attributes
    ----------
    label : str
        In words, with the unit.
    percent : bool
        Whether values are shares.
    reverse : bool
        Whether large values come first.
    """

    label: str
    percent: bool = False
    reverse: bool = False

    def shown(self, value: float) -> str:
        """Write a value of a tick."""
        return f"{100 * value:g} %" if self.percent else f"{value:g}"


@dataclass(frozen=True)
class Chart:
    """Lines over an axis.

    Attributes
    ----------
    title : str
        What the chart shows, in a sentence; it is the text alternative.
    x, y : Axis
        The axes.
    lines : tuple of Line
        Without a point, a line is left out.
    columns : tuple of str
        Heads of the table of values.
    rows : tuple of tuple of str
        The table.
    note : str
        What the axes leave open, in a sentence below the chart.
    """

    title: str
    x: Axis
    y: Axis
    lines: tuple[Line, ...]
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    name: str = ""
    note: str = ""
    scale: tuple[float, float] | None = field(default=None)

    def drawn(self) -> dict[str, Any]:
        """Return what the template draws: ticks, and each line with its places."""
        lines = [line for line in self.lines if line.points]
        xs = [point.x for line in lines for point in line.points]
        ys = [
            v for line in lines for p in line.points for v in (p.y, p.low, p.high) if v is not None
        ]
        counted = not self.x.percent and all(float(x).is_integer() for x in xs)
        x_ticks = _ticks(xs, least=1.0 if counted else 0.0)
        y_ticks = _ticks(ys if self.scale is None else [*ys, *self.scale])
        ends = _ends(xs, x_ticks)
        left = round(max(40, 14 + LETTER * max(len(self.y.shown(value)) for value in y_ticks)))
        across = _Scale(ends, left, WIDTH - RIGHT, self.x.reverse)
        up = _Scale((y_ticks[0], y_ticks[-1]), HEIGHT - BOTTOM, TOP, False)
        return {
            "width": WIDTH,
            "height": HEIGHT,
            "inner": (left, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM),
            "x_ticks": [
                (across(value), self.x.shown(value))
                for value in x_ticks
                if ends[0] <= value <= ends[1]
            ],
            "y_ticks": [(up(value), self.y.shown(value)) for value in y_ticks],
            "lines": [_line(line, number, across, up) for number, line in enumerate(lines)],
        }


class _Scale:
    """From values to places."""

    def __init__(self, ends: tuple[float, float], start: float, end: float, reverse: bool) -> None:
        self._low, self._wide = ends[0], ends[1] - ends[0]
        self._start, self._end = (end, start) if reverse else (start, end)

    def __call__(self, value: float) -> float:
        share = (value - self._low) / self._wide
        return round(self._start + share * (self._end - self._start), 1)


def _line(line: Line, number: int, across: _Scale, up: _Scale) -> dict[str, Any]:
    places = [(across(point.x), up(point.y)) for point in line.points]
    spread = [p for p in line.points if p.low is not None and p.high is not None]
    edges = [(across(p.x), up(p.high)) for p in spread if p.high is not None]
    edges += [(across(p.x), up(p.low)) for p in reversed(spread) if p.low is not None]
    return {
        "name": line.name,
        "kind": number % _KINDS,
        "dashed": line.dashed or number >= _KINDS,
        "path": _path(places),
        "band": f"{_path(edges)}Z" if len(spread) > 1 else "",
        "mark": _mark(number),
        "points": [(x, y, point.words) for (x, y), point in zip(places, line.points, strict=True)],
    }


def _path(places: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in places)


def _mark(number: int) -> str:
    """Return the outline of a mark around 0: lines differ in more than their colours."""
    marks = (
        "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0Z",
        "M-3.6 -3.6H3.6V3.6H-3.6Z",
        "M0 -5L5 0L0 5L-5 0Z",
        "M0 -4.6L4.6 3.8H-4.6Z",
        "M0 4.6L4.6 -3.8H-4.6Z",
        "M-4.4 -1.4H-1.4V-4.4H1.4V-1.4H4.4V1.4H1.4V4.4H-1.4V1.4H-4.4Z",
        "M-4.6 0L3.8 -4.6V4.6Z",
        "M4.6 0L-3.8 -4.6V4.6Z",
    )
    return marks[number % len(marks)]


def _ends(values: Sequence[float], ticks: Sequence[float]) -> tuple[float, float]:
    """Return where an axis ends: with its lines, as nothing would stand beyond them."""
    low, high = min(values, default=0.0), max(values, default=0.0)
    inside = sum(low <= tick <= high for tick in ticks)
    return (low, high) if inside > 1 else (ticks[0], ticks[-1])


def _ticks(values: Sequence[float], wanted: int = 5, least: float = 0.0) -> list[float]:
    """Return round numbers that reach around values, at least so far apart."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    size = max(abs(low), abs(high))
    if high - low < 1e-9 * max(size, 1e-3):  # equal, but for rounding
        room = 0.5 * size if size > 1e-9 else 0.5
        low, high = low - room, high + room
    rough = max((high - low) / wanted, least)
    unit = 10.0 ** floor(log10(rough))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= rough * 0.999)
    first = floor(low / step + 1e-9)
    last = -floor(-high / step + 1e-9)
    digits = 3 - floor(log10(step))
    return [round(number * step, digits) for number in range(first, last + 1)]
