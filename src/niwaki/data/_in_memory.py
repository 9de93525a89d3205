"""Small data sets, decoded once."""

from collections.abc import Sized
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from niwaki.data._batches import batches
from niwaki.ranges import NATURAL, checked

__all__ = ["in_memory"]


@checked(limit=NATURAL)
def in_memory(
    data: Dataset[Any], *, limit: int = 2**30, description: str | None = None
) -> Dataset[Any] | tuple[Tensor, Tensor]:
    """Decode a data set once, if it is small enough, for jobs that read it many times.

    Parameters
    ----------
    data
        A data set of pairs (input, label).
    limit
        Largest size of all inputs together, in bytes.
    description
        Title of a progress bar; None shows none.

    Returns
    -------
    Dataset or pair of Tensor
        The inputs and labels, or the data set itself where it is larger or its size unknown.
    """
    if not isinstance(data, Sized) or len(data) == 0:
        return data
    first, _ = next(iter(batches(data, 1)))
    if len(data) * prod(first.shape) * first.element_size() > limit:
        return data
    parts = list(batches(data, 64, description=description))
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])
