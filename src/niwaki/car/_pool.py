"""Images that a search reads in an order of its own."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from niwaki.data import Data, Place, batches, in_memory
from niwaki.errors import DataError

__all__ = ["Pool"]


class Pool:
    """Inputs by number: kept in memory where they fit, read again from the data set otherwise.

    Parameters
    ----------
    data : DataLoader, Dataset or pair of tensors
        A loader is read once, as its order may be random.
    memory : int
        Bytes that the inputs may take.
    place : torch.device or Tensor, optional
        Where batches go, see `niwaki.data.batches`.

    Attributes
    ----------
    labels : Tensor
        Shape (N,), on the device.

    Raises
    ------
    DataError
        For a loader whose inputs do not fit.
    """

    def __init__(self, data: Data, memory: int, place: Place = None) -> None:
        self._place = place
        device = place.device if isinstance(place, Tensor) else place
        self._inputs: Tensor | None = None
        self._dataset: Dataset[Any] | None = None
        if isinstance(data, DataLoader):
            data = _read(data, memory)
        elif isinstance(data, Dataset) and isinstance(data, Sized):
            data = in_memory(data, limit=memory)
        if isinstance(data, Dataset):
            self._dataset = data
            self.labels = torch.cat([labels for _, labels in batches(data, 64, device)])
        else:
            self._inputs, self.labels = next(iter(batches(data, len(data[0]) or 1)))  # checked
            self.labels = self.labels.to(device)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, images: Tensor) -> Tensor:
        """Return some inputs; shape (len(images), ...)."""
        if self._inputs is not None:
            some = self._inputs[images.to(self._inputs.device)]
            return some if self._place is None else some.to(self._place)
        assert self._dataset is not None
        chosen = Subset(self._dataset, images.tolist())
        return next(iter(batches(chosen, len(images), self._place)))[0]


def _read(loader: DataLoader[Any], memory: int) -> tuple[Tensor, Tensor]:
    inputs, labels, size = [], [], 0
    for x, y in batches(loader):
        size += x.numel() * x.element_size()
        if size > memory:
            raise DataError(
                "the search reads images in an order of its own, and this loader's do not fit into "
                "max_memory; pass the Dataset instead of the DataLoader, or allow more"
            )
        inputs.append(x)
        labels.append(y)
    return torch.cat(inputs), torch.cat(labels)
