"""Images and heatmaps of a whole data set on disk, of which a few are in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from niwaki.arrays import Array
from niwaki.data import Rows

_AT_ONCE = 128


class Tensors(Rows):
    """Rows that are read as tensors."""

    def __getitem__(self, positions: Any) -> Tensor:
        return torch.from_numpy(self.read(positions))


class Maps(Rows):
    """Rows that are read as float64."""

    def __getitem__(self, positions: Any) -> Array:
        return self.read(positions).astype(np.float64)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return self[:] if dtype is None else self[:].astype(dtype)


def blocks(positions: Array | int, size: int = _AT_ONCE) -> Iterator[Array]:
    """Go through positions, or as many from 0 on, a few at a time."""
    every = np.arange(positions) if isinstance(positions, int) else positions
    for start in range(0, len(every), size):
        yield every[start : start + size]
