"""Pairs of a unit and an image: what is evaluated when a unit is taken from a network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Pairs", "Segment"]


@dataclass(frozen=True)
class Segment:
    """Neighbouring pairs of one unit: rows `start` to `stop`."""

    unit: int
    start: int
    stop: int


@dataclass(frozen=True)
class Pairs:
    """Units of one group and images of one batch, sorted by unit.

    Attributes
    ----------
    units, images : Tensor
        Indices of shape (P,).
    """

    units: Tensor
    images: Tensor

    @classmethod
    def where(cls, wanted: Tensor) -> Pairs:
        """Take all pairs that are True in a tensor of shape (units, N)."""
        units, images = wanted.nonzero(as_tuple=True)
        return cls(units, images)

    def __len__(self) -> int:
        return len(self.units)

    def split(self, rows: int) -> Iterator[Pairs]:
        """Cut into pieces of at most so many pairs."""
        for start in range(0, len(self), rows):
            part = slice(start, start + rows)
            yield Pairs(self.units[part], self.images[part])

    def by_unit(self, rows: int) -> Iterator[Pairs]:
        """Cut into pieces of one unit each, and of at most so many pairs."""
        for segment in self.segments():
            part = slice(segment.start, segment.stop)
            yield from Pairs(self.units[part], self.images[part]).split(rows)

    def segments(self) -> list[Segment]:
        """List the runs of pairs with the same unit."""
        units, counts = torch.unique_consecutive(self.units, return_counts=True)
        stops = counts.cumsum(0).tolist()
        starts = [0, *stops[:-1]]
        return [Segment(*row) for row in zip(units.tolist(), starts, stops, strict=True)]
