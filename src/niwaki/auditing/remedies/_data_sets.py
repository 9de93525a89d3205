"""Removing a bias from the data: data sets around a data set, for training again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset, WeightedRandomSampler

from niwaki.arrays import Array
from niwaki.auditing._interventions import filled
from niwaki.data import known_of, labels_of
from niwaki.errors import DataError
from niwaki.ranges import FRACTION, SEED, SIDE, SOME, checked

Pair = tuple[Tensor, int]


class _Around(Dataset[Pair]):
    """A data set around another one, with its length and what is known of it."""

    def __init__(self, data: Dataset[Any]) -> None:
        self.data = data
        for name in ("classes", "preprocessing", "groups", "centres", "regions"):
            if (known := known_of(data, name)) is not None:
                setattr(self, name, known)
        if hasattr(data, "targets"):
            self.targets = labels_of(data)

    def __len__(self) -> int:
        return len(self.data)  # type: ignore[arg-type]


@checked(most=SIDE.but(low=0), seed=SEED)
class Shifted(_Around):
    """Each image shifted at random, against labels that belong to the centre.

    The image is moved by up to `most` pixels in both directions, anew each time it is read; what
    comes in at the border is the image's mirror image.

    Parameters
    ----------
    data : Dataset
        A data set of pairs (input of shape (C, H, W), label).
    most : int
        Largest shift in pixels; less than the image's side.
    seed : int
        Seed of the shifts; they go on from one reading to the next.
    """

    def __init__(self, data: Dataset[Any], most: int, seed: int = 0) -> None:
        super().__init__(data)
        self.most = most
        self.generator = torch.Generator().manual_seed(seed)

    def __getitem__(self, index: int) -> Pair:
        """Return the shifted input and its label."""
        image, label = self.data[index]
        height, width = image.shape[-2:]
        if not 0 < self.most < min(height, width):
            raise DataError(f"most={self.most}: shifts lie between 1 and {min(height, width) - 1}")
        wide = F.pad(image[None], [self.most] * 4, mode="reflect")[0]
        top, left = torch.randint(0, 2 * self.most + 1, (2,), generator=self.generator).tolist()
        return wide[:, top : top + height, left : left + width], label


class Inpainted(_Around):
    """Regions painted over from their surroundings.

    Parameters
    ----------
    data : Dataset
        A data set of pairs (input of shape (C, H, W), label).
    masks : ndarray
        Shape (N, H, W), bool, in the data set's order; images with an empty mask stay as they are.
    """

    def __init__(self, data: Dataset[Any], masks: Array) -> None:
        super().__init__(data)
        if len(masks) != len(self):
            raise DataError(f"{len(masks)} masks for {len(self)} images; give one for each")
        self.masks = masks

    def __getitem__(self, index: int) -> Pair:
        """Return the input without what was in its mask, and its label."""
        image, label = self.data[index]
        mask = self.masks[index]
        return (filled(image[None], mask[None])[0] if mask.any() else image), label


@checked(share=FRACTION, seed=SEED)
class Spread(_Around):
    """An artefact put on images of all classes alike, so that it says nothing about the class.

    Parameters
    ----------
    data : Dataset
        A data set of pairs (input of shape (C, H, W), label).
    donors : Tensor
        Inputs that have the artefact, shape (M, C, H, W).
    masks : ndarray
        Where it is on them, shape (M, H, W), bool.
    share : float
        Share of the images read that get it.
    seed : int
        Seed of which image gets which; they go on from one reading to the next.
    """

    def __init__(
        self, data: Dataset[Any], donors: Tensor, masks: Array, share: float = 0.5, seed: int = 0
    ) -> None:
        super().__init__(data)
        if len(donors) != len(masks) or len(donors) == 0:
            raise DataError(f"{len(donors)} donors and {len(masks)} masks; give one for each")
        self.donors, self.masks, self.share = donors, torch.tensor(masks), share
        self.generator = torch.Generator().manual_seed(seed)

    def __getitem__(self, index: int) -> Pair:
        """Return the input, with the artefact of a random donor or as it is, and its label."""
        image, label = self.data[index]
        if torch.rand(1, generator=self.generator, dtype=torch.float32).item() < self.share:
            donor = int(torch.randint(len(self.donors), (1,), generator=self.generator))
            image = torch.where(self.masks[donor], self.donors[donor], image)
        return image, label


class Relabelled(_Around):
    """Other labels, such as those of what an image shows anywhere instead of at its centre.

    Parameters
    ----------
    data : Dataset
        A data set of pairs (input, label).
    labels : sequence of int
        One for each image.
    """

    def __init__(self, data: Dataset[Any], labels: Sequence[int]) -> None:
        super().__init__(data)
        if len(labels) != len(self):
            raise DataError(f"{len(labels)} labels for {len(self)} images; give one for each")
        self.targets = [int(label) for label in labels]

    def __getitem__(self, index: int) -> Pair:
        """Return the input and its new label."""
        return self.data[index][0], self.targets[index]


@checked(seed=SEED, count=SOME)
def balanced(
    labels: Sequence[int], groups: Sequence[int], seed: int = 0, count: int | None = None
) -> WeightedRandomSampler:
    """Return a sampler that draws each group of each class equally often, rare ones repeatedly.

    Parameters
    ----------
    labels : sequence of int
        Class of each image.
    groups : sequence of int
        Group of each image: with and without an artefact or a kind of tissue, clusters of
        heatmaps, scanners.
    seed : int
        Seed of the drawing.
    count : int, optional
        Images in an epoch; default: as many as there are.

    Raises
    ------
    DataError
        For labels and groups of different number.
    """
    if len(labels) != len(groups) or len(labels) == 0:
        raise DataError(f"{len(labels)} labels and {len(groups)} groups; give one for each image")
    pairs = np.stack([np.asarray(labels), np.asarray(groups)], 1)
    _, cell, sizes = np.unique(pairs, axis=0, return_inverse=True, return_counts=True)
    in_class = {
        label: len(np.unique(pairs[pairs[:, 0] == label, 1])) for label in np.unique(pairs[:, 0])
    }
    weights = [
        1 / (sizes[place] * in_class[label])
        for place, label in zip(cell.ravel(), pairs[:, 0], strict=True)
    ]
    return WeightedRandomSampler(
        weights,
        count or len(labels),
        replacement=True,
        generator=torch.Generator().manual_seed(seed),
    )
