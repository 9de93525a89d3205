"""The strongest places of each unit over a data set: one per image, the best few of all."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Strongest"]


@dataclass(frozen=True, eq=False)
class Strongest:
    """For each unit the images on which it is strongest, the strongest first.

    Places without a positive value are left empty.

    Attributes
    ----------
    values : Tensor
        Shape (units, count), 0 for an empty place.
    images : Tensor
        Number of the image in the data, -1 for an empty place.
    positions : Tensor
        Where in the layer's output, counted row by row.
    """

    values: Tensor
    images: Tensor
    positions: Tensor

    @classmethod
    def empty(cls, units: int, count: int) -> Strongest:
        """Return one that has seen nothing yet."""
        return cls(
            torch.zeros(units, count),
            torch.full((units, count), -1),
            torch.full((units, count), -1),
        )

    @classmethod
    def of(cls, maps: Tensor, first: int, places: Tensor) -> Strongest:
        """Take the strongest position of each image of a batch.

        Parameters
        ----------
        maps : Tensor
            Shape (N, units, positions).
        first : int
            Number of the batch's first image.
        places : Tensor
            Which positions count; bool, shape (positions,).
        """
        best = maps.masked_fill(~places.to(maps.device), -torch.inf).max(2)
        values, positions = best.values.T.cpu().float(), best.indices.T.cpu()
        images = torch.arange(first, first + len(maps)).expand_as(positions)
        some = values > 0
        return cls(
            values.where(some, torch.zeros(())),
            images.where(some, torch.tensor(-1)),
            positions.where(some, torch.tensor(-1)),
        )

    def merge(self, other: Strongest) -> Strongest:
        """Return the strongest of both, as many as there are places here.

        Equal values go by the number of the image, so that the order of merging does not matter.
        """
        values = torch.cat([self.values, other.values], 1)
        images = torch.cat([self.images, other.images], 1)
        positions = torch.cat([self.positions, other.positions], 1)
        by_image = images.argsort(dim=1, stable=True)
        order = values.gather(1, by_image).argsort(dim=1, descending=True, stable=True)
        order = by_image.gather(1, order)[:, : self.values.shape[1]]
        return Strongest(
            values.gather(1, order), images.gather(1, order), positions.gather(1, order)
        )

    def first(self, count: int) -> Strongest:
        """Return the strongest few alone."""
        return Strongest(self.values[:, :count], self.images[:, :count], self.positions[:, :count])

    def numbers(self) -> list[int]:
        """List the images that occur, in order."""
        return sorted({number for number in self.images.flatten().tolist() if number >= 0})
