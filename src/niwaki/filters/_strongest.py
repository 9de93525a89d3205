"""The strongest positions of each unit over a data set, and a second look at their images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, SequentialSampler, Subset

from niwaki.data import Data, Images, Preprocessing
from niwaki.errors import DataError


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

    def tensors(self) -> dict[str, Tensor]:
        """Return it as plain tensors, by the names of the attributes."""
        return {"values": self.values, "images": self.images, "positions": self.positions}

    def first(self, count: int) -> Strongest:
        """Return the strongest few alone."""
        return Strongest(self.values[:, :count], self.images[:, :count], self.positions[:, :count])

    def numbers(self) -> list[int]:
        """List the images that occur, in order."""
        return sorted({number for number in self.images.flatten().tolist() if number >= 0})


def images_at(data: Data, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Read images by their number.

    Parameters
    ----------
    data : DataLoader, Dataset or pair of tensors
        As for `niwaki.data.batches`.
    numbers : sequence of int
        In the order in which `batches` goes through the data.

    Returns
    -------
    inputs, labels : Tensor
        Shapes (N, ...) and (N,).

    Raises
    ------
    DataError
        For a loader that does not go through its data set in order.
    """
    source: Any = data
    if isinstance(data, DataLoader):
        if not isinstance(data.sampler, SequentialSampler):
            raise DataError(
                "this loader draws its images in an order of its own, in which none can be found "
                "again; pass its data set, or a loader without shuffling"
            )
        source = data.dataset
    if isinstance(source, (tuple, list)):
        chosen = torch.tensor(list(numbers))
        return source[0][chosen], source[1][chosen]
    pairs = [source[number] for number in numbers]
    inputs = torch.stack([pair[0] for pair in pairs])
    return inputs, torch.tensor([int(pair[1]) for pair in pairs])


def known_preprocessing(data: Data) -> Preprocessing | None:
    """Return how the inputs were made from images, where the data tell."""
    source: Any = data.dataset if isinstance(data, DataLoader) else data
    while isinstance(source, Subset):
        source = source.dataset
    return source.preprocessing if isinstance(source, Images) else None


def to_inputs(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Turn pixels in [0, 1] of shape (N, C, H, W) into inputs; undoes `denormalise`."""
    mean, std = (
        pixels.new_tensor(values)[:, None, None]
        for values in (preprocessing.mean, preprocessing.std)
    )
    return (pixels - mean) / std
