"""What is known of a data set's images, seen through subsets of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import Subset

__all__ = ["known_of"]

#: Attributes that have an entry for each image; the others are about all of them.
_OF_EACH = ("centres", "groups", "paths")


def known_of(data: Any, name: str) -> Any:
    """Return an attribute of a data set, or what is left of it in a subset; None if unknown.

    Parameters
    ----------
    data : Dataset
        A `torch.utils.data.Subset` knows nothing itself: its images are those of another data set.
    name : str
        ``"preprocessing"``, ``"classes"``, or, with an entry for each image, ``"centres"``,
        ``"groups"``, ``"paths"`` or ``"regions"`` (a mapping of name to entries).
    """
    found = getattr(data, name, None)
    if found is not None or not isinstance(data, Subset):
        return found
    found = known_of(data.dataset, name)
    if found is None:
        return None
    if name == "regions":
        return {region: _picked(entries, data.indices) for region, entries in found.items()}
    return _picked(found, data.indices) if name in _OF_EACH else found


def _picked(entries: Any, indices: Sequence[int]) -> Any:
    if isinstance(entries, np.ndarray):
        return entries[list(indices)]
    return _Picked(entries, indices)


@dataclass(frozen=True)
class _Picked(Sequence[Any]):
    """Entries in another order, read when they are asked for."""

    entries: Sequence[Any]
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self.entries[index] for index in self.indices[number]]
        return self.entries[self.indices[number]]
