"""A second look at single images of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, SequentialSampler, Subset

from niwaki.data import Data, Images, Preprocessing
from niwaki.errors import DataError

__all__ = ["images_at", "known_preprocessing", "to_inputs"]


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
