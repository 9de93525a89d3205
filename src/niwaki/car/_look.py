"""A pass of the whole network, kept for the evaluations that begin in the middle of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

__all__ = ["Look", "gather"]


@dataclass(frozen=True)
class Look:
    """A pass of the whole network over some images.

    Attributes
    ----------
    inputs : Tensor
        Shape (N, ...).
    logits : Tensor
        Shape (N, classes).
    values : dict
        What the evaluations need of the pass.
    reach : list of dict
        For each group and each value in which its channels are read: which units are not zero
        everywhere; bool of shape (units, N). Empty where that is not known.
    sizes : sequence of int
        Units of each group.
    """

    inputs: Tensor
    logits: Tensor
    values: dict[fx.Node, Any]
    reach: list[dict[fx.Node, Tensor]]
    sizes: Sequence[int]

    def active(self, group: int) -> Tensor:
        """Tell which units of a group can change which images; bool of shape (units, N)."""
        found = list(self.reach[group].values())
        if not found:
            everywhere = (self.sizes[group], len(self.inputs))
            return torch.ones(everywhere, dtype=torch.bool, device=self.inputs.device)
        return found[0] if len(found) == 1 else torch.stack(found).any(0)


def gather(
    count: int, size: int, read: Callable[[Tensor], Tensor], look: Callable[[Tensor], Look]
) -> Look:
    """Look at many images, a batch at a time, and keep all as one.

    Parameters
    ----------
    count : int
        Images, numbered from 0.
    size : int
        Images of a batch.
    read : callable
        Returns the inputs of numbered images.
    look : callable
        Returns the look at some inputs.
    """
    whole: Look | None = None
    for start in range(0, count, size):
        part = look(read(torch.arange(start, min(start + size, count))))
        if whole is None:
            whole = _room_for(count, part)
        rows = slice(start, start + size)
        whole.inputs[rows] = part.inputs
        whole.logits[rows] = part.logits
        for node, value in part.values.items():
            whole.values[node][rows] = value
        for mine, theirs in zip(whole.reach, part.reach, strict=True):
            for node, active in theirs.items():
                mine[node][:, rows] = active
    assert whole is not None
    return whole


def _room_for(count: int, part: Look) -> Look:
    return Look(
        _rows_like(part.inputs, count),
        _rows_like(part.logits, count),
        {node: _rows_like(value, count) for node, value in part.values.items()},
        [{n: a.new_empty(len(a), count) for n, a in found.items()} for found in part.reach],
        part.sizes,
    )


def _rows_like(value: Tensor, count: int) -> Tensor:
    """Make room for more rows, laid out alike."""
    layout = torch.contiguous_format
    if value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last):
        layout = torch.channels_last
    shape = (count, *value.shape[1:])
    return torch.empty(shape, dtype=value.dtype, device=value.device, memory_format=layout)
