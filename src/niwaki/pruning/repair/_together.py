"""Fine-tuning in several processes: each takes its share of every batch, gradients add up.

`DistributedDataParallel` does the same for larger jobs, but gives each process's mean the same
weight, however many samples it has, and has to be unwrapped before the network is cut again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Sampler

from niwaki.errors import DataError
from niwaki.processes import add_up, rank, size

__all__ = ["average_buffers", "average_gradients", "share_of"]


def share_of(loader: DataLoader[Any]) -> DataLoader[Any]:
    """Return a loader of this process's share of each batch; with one process, the loader itself.

    Raises
    ------
    DataError
        For a loader whose order is not the same in each process, or batches with fewer samples
        than there are processes.
    """
    if size() == 1:
        return loader
    sampler = loader.batch_sampler
    if not isinstance(sampler, BatchSampler) or loader.generator is None:
        raise DataError(
            "several processes fine-tune on a DataLoader of which nothing says that its order is "
            "the same in each: pass the data set itself, or a loader with a generator of its own"
        )
    if sampler.batch_size < size():
        raise DataError(
            f"{size()} processes share batches of {sampler.batch_size}: larger ones are needed"
        )
    return DataLoader(
        loader.dataset,
        batch_sampler=_Shares(sampler),
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        generator=loader.generator,  # which the order is drawn from: it is that of one process
    )


class _Shares(Sampler[list[int]]):
    """The share of this process of each batch; a last one that is too small is left out."""

    def __init__(self, every: Iterable[list[int]]) -> None:
        self._every = every

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self._every:
            if len(batch) >= size():
                yield batch[rank() :: size()]

    def __len__(self) -> int:
        return len(self._every)  # type: ignore[arg-type]


def average_gradients(parameters: Sequence[nn.Parameter], samples: int) -> None:
    """Give every process the gradient over the samples of all of them."""
    if size() == 1:
        return
    trained = [p for p in parameters if p.requires_grad]
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
    count = grads[0].new_tensor([float(samples)])
    flat = torch.cat([count, *(grad.flatten() * samples for grad in grads)])
    add_up(flat)
    _fill(grads, flat[1:] / flat[0])
    for parameter, grad in zip(trained, grads, strict=True):
        parameter.grad = grad


def average_buffers(model: nn.Module) -> None:
    """Give every process the mean of the statistics of batch norms over all of them."""
    buffers = [b for b in model.buffers() if b.is_floating_point()]
    if size() == 1 or not buffers:
        return
    flat = torch.cat([buffer.flatten() for buffer in buffers])
    add_up(flat)
    _fill(buffers, flat / size())


def _fill(tensors: Sequence[Tensor], flat: Tensor) -> None:
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    with torch.no_grad():
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))
