"""Images that a search reads in an order of its own."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from niwaki.data import Data, batches, in_memory
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
    device : torch.device
        Where batches go.

    Attributes
    ----------
    labels : Tensor
        Shape (N,), on the device.

    Raises
    ------
    DataError
        For a loader whose inputs do not fit.
    """

    def __init__(self, data: Data, memory: int, device: torch.device) -> None:
        self._device = device
        self._inputs: Tensor | None = None
        self._dataset: Dataset[Any] | None = None
        if isinstance(data, DataLoader):
            data = _read(data, memory)
        elif isinstance(data, Dataset) and isinstance(data, Sized):
            data = in_memory(data, limit=memory)
        if isinstance(data, Dataset):
            self._dataset = data
            self.labels = torch.cat([labels for _, labels in batches(data, 64)]).to(device)
        else:
            parts = list(batches(data, len(data[0]) or 1))  # checked
            self._inputs, self.labels = parts[0][0], parts[0][1].to(device)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, images: Tensor) -> Tensor:
        """Return some inputs; shape (len(images), ...)."""
        if self._inputs is not None:
            return self._inputs[images.to(self._inputs.device)].to(self._device)
        assert self._dataset is not None
        chosen = Subset(self._dataset, images.tolist())
        return next(iter(batches(chosen, len(images), self._device)))[0]


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
