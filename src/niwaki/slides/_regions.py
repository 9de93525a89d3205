"""The most relevant regions of a slide, as polygons (outlines of masks) with what they hold."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from niwaki.arrays import Array
from niwaki.ranges import POSITIVE, SHARE, checked
from niwaki.slides._pyramid import Pyramid

__all__ = ["Polygon", "Region", "find_regions", "outlines"]

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


_LARGEST = 2560  # pixels of a side of the level in which regions are looked for
_SMOOTH = 4.0  # um, half a nucleus
_SMALLEST = 100.0  # um2, two nuclei
_MOST = 200  # regions
_PEAK = 99.9  # percentile of what counts as the highest


@dataclass(frozen=True)
class Region:
    """A region of a map.

    Attributes
    ----------
    polygon : list of list of pair of float
        The outline and its holes, in pixels of full resolution.
    area : float
        In square micrometres.
    mean, highest : float
        Mean and highest value of the map in it.
    total : float
        Share of the map's sum, as far as it is positive, that lies in it.
    """

    polygon: list[list[tuple[float, float]]]
    area: float
    mean: float
    highest: float
    total: float


@checked(mpp=POSITIVE, scale=POSITIVE, level=SHARE)
def find_regions(
    pyramid: Pyramid, mpp: float, scale: tuple[float, float], level: float = 0.5
) -> list[Region]:
    """Find where a map is high: at least so high a share of its peak, smoothed by half a nucleus.

    Parameters
    ----------
    pyramid : Pyramid
        The map. Maps of more than 2560 pixels of a side are looked at in a coarser level.
    mpp : float
        Micrometres per pixel of the finest level.
    scale : pair of float
        Pixels of full resolution in one of the finest level, across and down.
    level : float
        Share of the peak, which is the 99.9th percentile of what is positive.

    Returns
    -------
    list of Region
        The one with the largest share of the map's positive sum first, 200 at the most; none is
        smaller than 100 square micrometres.
    """
    from scipy import ndimage

    number = next(
        n for n, one in enumerate(pyramid.levels) if max(one.shape) <= _LARGEST or one is
        pyramid.levels[-1]
    )  # fmt: skip
    store = pyramid.levels[number]
    pixel = mpp * 2**number
    values = store.read(0, 0, store.shape[1], store.shape[0])
    known = ~np.isnan(values)
    plain = np.where(known, values, 0)
    sigma = _SMOOTH / pixel
    smooth = ndimage.gaussian_filter(plain, sigma) if sigma > 0.3 else plain
    positive = smooth[known & (smooth > 0)]
    if not positive.size:
        return []
    high = known & (smooth >= level * np.percentile(positive, _PEAK))
    labels, count = ndimage.label(high)
    whole = float(plain.clip(0).sum()) or 1.0
    least = max(1.0, _SMALLEST / pixel**2)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sums = np.bincount(labels.ravel(), plain.clip(0).ravel(), count + 1)
    order = [n for n in np.argsort(-sums[1:], kind="stable") + 1 if sizes[n] >= least][:_MOST]
    places = ndimage.find_objects(labels)
    across, down = (2**number * side for side in scale)
    found = []
    for one in order:
        rows, columns = places[one - 1]
        mask = labels[rows, columns] == one
        inside = plain[rows, columns][mask]
        rings = _moved(outlines(mask), columns.start, rows.start, across, down)
        area = float(sizes[one] * pixel**2)
        share = float(sums[one]) / whole
        found.append(Region(rings, area, float(inside.mean()), float(inside.max()), share))
    return found


def _moved(
    polygon: Polygon, left: int, top: int, across: float, down: float
) -> list[list[tuple[float, float]]]:
    return [
        [(round((x + left) * across, 2), round((y + top) * down, 2)) for x, y in ring]
        for ring in polygon
    ]
