"""Class-balanced random samples, on which criteria are computed."""

from typing import Any

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
    """Return the label of each sample, by its `targets` where it has them."""
    if isinstance(dataset, Subset):
        targets = labels_of(dataset.dataset)
        return [targets[index] for index in dataset.indices]
    if isinstance(dataset, TensorDataset):
        return [int(label) for label in dataset.tensors[1]]
    if hasattr(dataset, "targets"):
        return [int(label) for label in dataset.targets]
    return [int(dataset[index][1]) for index in range(len(dataset))]


def _name(dataset: Dataset[Any], label: int) -> str:
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return repr(dataset.class_name(label)) if isinstance(dataset, Images) else str(label)
