"""Class-balanced random samples, on which criteria are computed."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from niwaki.data._batches import as_dataset
from niwaki.data._images import Images
from niwaki.errors import DataError
from niwaki.ranges import SEED, SOME, checked

__all__ = ["labels_of", "references"]


@checked(per_class=SOME, seed=SEED)
def references(
    data: Dataset[Any] | tuple[Tensor, Tensor], per_class: int, seed: int
) -> Subset[Any]:
    """Draw the same number of samples from each class.

    Parameters
    ----------
    data
        A Dataset of pairs (input, label), or a pair of tensors. Its `targets` are used where it
        has them; otherwise every sample is read once to learn its label.
    per_class
        Samples of each class.
    seed
        The same seed draws the same samples.

    Returns
    -------
    Subset
        Sorted by class, and within a class in the order of `data`.

    Raises
    ------
    DataError
        A class with too few samples, or data without labels.
    """
    dataset = as_dataset(data)
    labels = torch.tensor(labels_of(dataset), dtype=torch.int64)
    if len(labels) == 0 or int(labels.min()) < 0:
        raise DataError("reference samples are drawn by class, but these data have no labels")
    generator = torch.Generator().manual_seed(seed)
    chosen: list[int] = []
    for label in sorted(set(labels.tolist())):
        members = (labels == label).nonzero().flatten()
        if len(members) < per_class:
            raise DataError(
                f"class {_name(dataset, label)} has {len(members)} samples, fewer than the "
                f"{per_class} reference samples per class; ask for fewer"
            )
        drawn = torch.randperm(len(members), generator=generator)[:per_class]
        chosen += sorted(members[drawn].tolist())
    return Subset(dataset, chosen)


def labels_of(dataset: Any) -> list[int]:
    """Return the label of each sample, by its `targets` where it has them.

    What is done to a target when a sample is read (torchvision's ``target_transform``) is done
    here, too. Where that is done to inputs and targets together, or `targets` are no numbers of
    classes, every sample is read.
    """
    if isinstance(dataset, Subset):
        targets = labels_of(dataset.dataset)
        return [targets[index] for index in dataset.indices]
    if isinstance(dataset, TensorDataset):
        return [int(label) for label in dataset.tensors[1]]
    told = getattr(dataset, "targets", None)
    if told is not None and _told_by_targets(dataset, told):
        change = getattr(dataset, "target_transform", None)
        return [int(target if change is None else change(target)) for target in told]
    return [int(dataset[index][1]) for index in range(len(dataset))]


def _told_by_targets(dataset: Any, targets: Any) -> bool:
    together = getattr(dataset, "transforms", None)  # of torchvision: of both, or of each alone
    if together is not None and not hasattr(together, "target_transform"):
        return False
    if len(targets) != len(dataset):
        return False
    first = targets[0] if len(targets) else 0
    return isinstance(first, (int, np.integer)) or (
        isinstance(first, Tensor) and first.numel() == 1
    )


def _name(dataset: Dataset[Any], label: int) -> str:
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return repr(dataset.class_name(label)) if isinstance(dataset, Images) else str(label)
