"""The outlines of regions: polygons along the edges of pixels, with their holes."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["Polygon", "outlines"]

Array = NDArray[Any]
Point: TypeAlias = tuple[int, int]

#: The outer ring of a region, then its holes; each a closed list of (x, y).
Polygon: TypeAlias = "list[list[Point]]"


def outlines(mask: Array) -> Polygon:
    """Return the polygon of one connected region of pixels.

    Parameters
    ----------
    mask : ndarray
        Shape (height, width), bool; its pixels touch by their sides.

    Returns
    -------
    list of list of pair of int
        Corners of pixels: pixel (column, row) goes from (column, row) to (column + 1, row + 1).
        The outer ring first; each ring ends where it begins.
    """
    rings = _rings(mask)
    return sorted(rings, key=lambda ring: -abs(_area(ring)))


def _rings(mask: Array) -> list[list[Point]]:
    """Follow the edges between inside and outside, with the inside on the right hand."""
    padded = np.pad(mask, 1)
    edges: dict[Point, list[Point]] = defaultdict(list)
    for (down, right), start, end in (
        ((-1, 0), (0, 0), (1, 0)),  # nothing above: the upper edge, to the right
        ((0, 1), (1, 0), (1, 1)),
        ((1, 0), (1, 1), (0, 1)),
        ((0, -1), (0, 1), (0, 0)),
    ):
        other = np.roll(padded, (-down, -right), (0, 1))
        rows, columns = np.nonzero((padded & ~other)[1:-1, 1:-1])
        for x, y in zip(columns.tolist(), rows.tolist(), strict=True):
            edges[x + start[0], y + start[1]].append((x + end[0], y + end[1]))
    rings = []
    while edges:
        first = min(edges)
        ring, before = [first], (0, 0)
        while True:
            here = ring[-1]
            there = _turn(before, here, edges[here])
            edges[here].remove(there)
            if not edges[here]:
                del edges[here]
            before = there[0] - here[0], there[1] - here[1]
            ring.append(there)
            if there == first:
                break
        rings.append(_corners(ring))
    return rings


def _turn(before: Point, here: Point, ways: list[Point]) -> Point:
    """Where pixels touch by a corner alone, keep to the pixel that is followed: turn right."""
    if len(ways) == 1 or before == (0, 0):
        return ways[0]
    right = here[0] - before[1], here[1] + before[0]
    return right if right in ways else ways[0]


def _corners(ring: list[Point]) -> list[Point]:
    """Leave out points on straight lines."""
    points = ring[:-1]
    kept = []
    for place, (x, y) in enumerate(points):
        (x0, y0), (x1, y1) = points[place - 1], points[(place + 1) % len(points)]
        if (x - x0) * (y1 - y) != (y - y0) * (x1 - x):
            kept.append((x, y))
    return [*kept, kept[0]]


def _area(ring: list[Point]) -> float:
    x, y = np.array(ring).T.astype(float)
    return float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2)
