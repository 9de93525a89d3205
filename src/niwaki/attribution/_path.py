"""The integral of the gradient along a straight path, with more points where the slope jumps."""

from __future__ import annotations

import functools
import math
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field, replace
from itertools import chain, islice, pairwise

import numpy as np
import torch
from torch import Tensor

__all__ = ["Ends", "Looks", "Point", "gauss", "integrate"]

#: By how many units of rounding an output, or a gradient, may be wrong.
ROUNDING = 32
#: Gauss-Legendre counts as converged if it misses this share of what straight lines miss.
CONVERGED = 1e-3
#: A shorter piece of the path is not divided any further.
SHORTEST = 1e-6
#: A round divides every piece that is at least this share as uncertain as the worst.
WORTH = 0.125


@functools.cache
def gauss(steps: int) -> tuple[list[float], list[float]]:
    """Return the nodes and weights of Gauss-Legendre quadrature from 0 to 1."""
    places, weights = np.polynomial.legendre.leggauss(steps)
    return ((places + 1) / 2).tolist(), (weights / 2).tolist()


@dataclass(frozen=True)
class Point:
    """What is known of one place on the path.

    Attributes
    ----------
    place : float
        From 0 at the baseline to 1 at the input.
    output : float
        The output there.
    heatmap : Tensor
        The gradient there times the length of the path.
    slope : float
        Sum of the heatmap: the output's derivative along the path.
    size : float
        Sum of the heatmap's absolute values.
    """

    place: float
    output: float
    heatmap: Tensor = field(repr=False)
    slope: float
    size: float

    def distance(self, other: Point) -> float:
        """Sum of the absolute differences of two heatmaps."""
        return float((self.heatmap - other.heatmap).abs().sum(dtype=torch.float64))


@dataclass(frozen=True)
class Ends:
    """What is known of the outputs before any gradient.

    Attributes
    ----------
    start, end : float
        The output at the baseline and at the input.
    size : float
        Size of the numbers that these were computed from.
    precision : float
        Relative error of one rounding.
    """

    start: float
    end: float
    size: float
    precision: float

    @property
    def change(self) -> float:
        """What the heatmap shall sum to."""
        return self.end - self.start

    @property
    def rounding(self) -> float:
        """By how much the difference of two outputs may be wrong."""
        return ROUNDING * self.precision * self.size

    def same(self, distance: float, *points: Point) -> bool:
        """Whether such a distance between the heatmaps of points may come from rounding."""
        return distance <= ROUNDING * self.precision * sum(point.size for point in points)


def missed(start: Point, end: Point) -> float:
    """Return the change of the output that the mean of two slopes does not account for."""
    change = end.output - start.output
    return change - (end.place - start.place) * (start.slope + end.slope) / 2


class Piece:
    """The path between two neighbouring points.

    Attributes
    ----------
    uncertainty : float
        By how much the heatmap or its sum may be wrong if the mean of both ends is taken.
    straight : bool
        Whether the gradient is the same at both ends, and the output runs along it.
    alone : bool
        Whether a neighbour is straight, so that there are few kinks here, perhaps just one.
    """

    def __init__(self, start: Point, end: Point, ends: Ends) -> None:
        self.start = start
        self.end = end
        self.ends = ends
        self.length = end.place - start.place
        self.missed = missed(start, end)
        self.distance = start.distance(end)
        self.uncertainty = max(abs(self.missed), self.length * self.distance / 2)
        same = ends.same(self.distance, start, end)
        self.straight = same and abs(self.missed) <= ends.rounding
        self.alone = False

    @property
    def done(self) -> bool:
        """Whether nothing more is to be learned of it."""
        return self.straight or self.length <= SHORTEST

    def kink(self) -> float | None:
        """Return for what share of it the slope is that of the start, if there is one kink."""
        jump = self.length * (self.start.slope - self.end.slope)
        if not self.alone or not jump:
            return None
        share = 0.5 + self.missed / jump  # where the tangents meet
        tolerance = self.ends.rounding / abs(jump)
        return min(max(share, 0.0), 1.0) if -tolerance <= share <= 1 + tolerance else None

    def cuts(self) -> list[float]:
        """Return where to look next: closely around where a single kink must be, or half way."""
        half = (self.start.place + self.end.place) / 2
        kink = self.kink()
        if kink is None:
            return [half]
        place = self.start.place + kink * self.length
        around = (place - 0.45 * SHORTEST, place + 0.45 * SHORTEST)
        inside = [p for p in around if self.start.place < p < self.end.place]
        return inside or [half]

    def parts(self, points: list[Point]) -> list[Piece]:
        """Divide it at points."""
        pieces = [Piece(*both, self.ends) for both in pairwise([self.start, *points, self.end])]
        _tell_neighbours(pieces)
        return pieces

    def integral(self) -> Tensor:
        """Integrate the heatmap: as if there were one kink, if that is so, else by the mean."""
        kink = self.kink() if self.done else None
        first = self.length * (0.5 if kink is None else kink)
        return self.start.heatmap * first + self.end.heatmap * (self.length - first)


Looks = Generator[list[float], list[Point], Tensor]


def integrate(steps: int, refinements: int, ends: Ends) -> Looks:
    """Integrate the gradient along a straight path, times the length of the path.

    First come the points of Gauss-Legendre quadrature: few of them are enough where the output is
    smooth. Whether they are shows, as the integral of the slopes is known: it is the change of the
    output. Where they are not, the slope jumps, as in networks of ReLUs, and the path is divided.

    A piece is done if it is straight. If it is not, but its neighbour is, there may be one kink in
    it: that is where the tangents of its ends meet, and two points closely around prove it. Between
    kinks the integral is exact. What is not straight when all points are spent gets the mean of its
    ends. So every weight is a share of the path, and none is bent to make the sum right.

    Parameters
    ----------
    steps : int
        Points of Gauss-Legendre quadrature.
    refinements : int
        Largest number of points after that.
    ends : Ends
        What is known of the outputs.

    Yields
    ------
    list of float
        Places to look at next; the points there are to be sent.

    Returns
    -------
    Tensor
        The integral, of a heatmap's shape.
    """
    places, weights = gauss(steps)
    points = yield places
    total = _sum(point.heatmap * weight for point, weight in zip(points, weights, strict=True))
    ends = replace(ends, size=max(ends.size, *(float(point.heatmap.norm()) for point in points)))
    if refinements < 3 or _converged(points, weights, ends):
        return total
    first, last = yield [0.0, 1.0]
    left = refinements - 2
    total, unsettled = torch.zeros_like(total), list[Piece]()
    pieces = [Piece(*both, ends) for both in pairwise([first, *points, last])]
    _tell_neighbours(pieces)
    while True:
        for piece in pieces:
            if piece.done:
                total += piece.integral()
            else:
                unsettled.append(piece)
        worst, cuts = _worst(unsettled, left)
        if not worst:
            return _sum([total, *(piece.integral() for piece in unsettled)])
        points = yield list(chain(*cuts))
        left -= len(points)
        found = iter(points)
        pieces = [
            part
            for piece, places in zip(worst, cuts, strict=True)
            for part in piece.parts(list(islice(found, len(places))))
        ]
        unsettled = [piece for piece in unsettled if piece not in worst]


def _worst(pieces: list[Piece], most: int) -> tuple[list[Piece], list[list[float]]]:
    """Choose the most uncertain pieces, and where to cut them, in so many places at most."""
    pieces = sorted(pieces, key=lambda piece: piece.uncertainty, reverse=True)
    worst: list[Piece] = []
    cuts: list[list[float]] = []
    for piece in pieces:
        places = piece.cuts()
        most -= len(places)
        if most < 0 or piece.uncertainty < WORTH * pieces[0].uncertainty:
            break
        worst.append(piece)
        cuts.append(places)
    return worst, cuts


def _tell_neighbours(pieces: list[Piece]) -> None:
    for piece, neighbour in pairwise(pieces):
        piece.alone |= neighbour.straight
        neighbour.alone |= piece.straight


def _converged(points: list[Point], weights: list[float], ends: Ends) -> bool:
    """Whether Gauss-Legendre quadrature accounts for the change of the output."""
    slope = sum(point.slope * weight for point, weight in zip(points, weights, strict=True))
    lines = math.hypot(*(missed(*both) for both in pairwise(points)))
    return abs(slope - ends.change) <= max(ends.rounding, CONVERGED * lines)


def _sum(heatmaps: Iterable[Tensor]) -> Tensor:
    first, *rest = heatmaps
    for heatmap in rest:
        first = first + heatmap
    return first
