"""Layers as matrix products: rows of what they read, beside what they give at the same places."""

from __future__ import annotations

from itertools import product
from math import prod
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Linear", "Places", "inputs_at", "is_linear", "matrix_of", "outputs_at", "set_matrix"]

#: Convolutions and linear layers: one matrix per group, applied at every place.
Linear: TypeAlias = Any
_Transposed = nn.modules.conv._ConvTransposeNd
_KINDS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
)


def is_linear(module: nn.Module | None) -> bool:
    """Whether a module is a convolution or linear layer that computes as torch's own do."""
    plain = {(kind.forward, kind._conv_forward) for kind in _KINDS[:3]}
    if isinstance(module, _KINDS[:3]):
        return (type(module).forward, type(module)._conv_forward) in plain
    return isinstance(module, _KINDS) and type(module).forward in [k.forward for k in _KINDS]


def matrix_of(layer: Linear) -> Tensor:
    """Return a layer's weight as a matrix per group, shape (groups, outputs, features).

    Features are ordered as `inputs_at` has them: by place in the kernel, then by channel.
    """
    weight = layer.weight.detach()
    if isinstance(layer, nn.Linear):
        return weight[None]
    groups = layer.groups
    if isinstance(layer, _Transposed):  # (inputs, outputs per group, *kernel), read backwards
        weight = weight.flatten(2).flip(2).unflatten(0, (groups, -1))
        return weight.permute(0, 2, 3, 1).flatten(2)
    return weight.flatten(2).unflatten(0, (groups, -1)).transpose(2, 3).flatten(2)


def set_matrix(layer: Linear, matrix: Tensor) -> None:
    """Write a matrix per group, as `matrix_of` returns it, into a layer's weight."""
    shape, weight = layer.weight.shape, matrix
    if isinstance(layer, nn.Linear):
        weight = matrix[0]
    elif isinstance(layer, _Transposed):
        kernel = prod(shape[2:])
        weight = matrix.unflatten(2, (kernel, -1)).permute(0, 3, 1, 2).flip(3)
    else:
        weight = matrix.unflatten(2, (prod(shape[2:]), -1)).transpose(2, 3)
    with torch.no_grad():
        layer.weight.copy_(weight.reshape(shape))


class Places:
    """Which places of a layer's output are looked at, image by image.

    Parameters
    ----------
    count : int
        How many an output has.
    most : int
        How many are looked at in each image; all if there are no more. Otherwise images take turns
        through one random order, so that together they cover the whole output.
    """

    def __init__(self, count: int, most: int) -> None:
        self.count, self.each = count, min(count, max(1, most))
        generator = torch.Generator().manual_seed(count)
        self._order = (
            torch.randperm(count, generator=generator) if self.each < count else torch.arange(count)
        )

    def of(self, first: int, images: int) -> Tensor:
        """Return the places of some images, the first of which has a number; shape (N, places)."""
        turns = torch.arange(first, first + images)[:, None] * self.each
        return self._order[(turns + torch.arange(self.each)) % self.count]


def inputs_at(layer: Linear, inputs: Tensor, shape: torch.Size, places: Tensor) -> Tensor:
    """Gather what a layer reads at places of its output.

    Parameters
    ----------
    layer : nn.Module
        A convolution or linear layer.
    inputs : Tensor
        Shape (N, channels, ...), for linear layers (N, ..., features).
    shape : torch.Size
        Of its output.
    places : Tensor
        Shape (N, places).

    Returns
    -------
    Tensor
        Shape (groups, N * places, features).
    """
    if isinstance(layer, nn.Linear):
        return _rows(inputs.reshape(len(inputs), -1, inputs.shape[-1]), places)[None]
    padded, stride = _padded(layer, inputs, shape)
    steps = _strides(padded.shape[2:])
    starts = _unravelled(places, shape[2:])
    base = sum(c * s * step for c, s, step in zip(starts, stride, steps, strict=True))
    offsets = [
        sum(k * d * step for k, d, step in zip(at, layer.dilation, steps, strict=True))
        for at in product(*map(range, layer.kernel_size))
    ]
    index = base[:, :, None] + torch.tensor(offsets)
    rows = _rows(padded.flatten(2).transpose(1, 2), index.flatten(1))
    rows = rows.reshape(-1, len(offsets), layer.groups, padded.shape[1] // layer.groups)
    return rows.permute(2, 0, 1, 3).flatten(2)


def outputs_at(layer: Linear, outputs: Tensor, places: Tensor) -> Tensor:
    """Gather what a layer gives at places of its output; shape (groups, N * places, outputs)."""
    if isinstance(layer, nn.Linear):
        return _rows(outputs.reshape(len(outputs), -1, outputs.shape[-1]), places)[None]
    rows = _rows(outputs.flatten(2).transpose(1, 2), places)
    return rows.unflatten(1, (layer.groups, -1)).transpose(0, 1)


def _rows(values: Tensor, index: Tensor) -> Tensor:
    """Pick rows of each image: (N, all, channels) and (N, some) to (N * some, channels)."""
    if index.shape[1] == values.shape[1] and bool((index[0, 1:] > index[0, :-1]).all()):
        return values.flatten(0, 1)  # all of them, in order
    index = index.to(values.device)
    return values[torch.arange(len(values), device=values.device)[:, None], index].flatten(0, 1)


def _padded(layer: Linear, inputs: Tensor, shape: torch.Size) -> tuple[Tensor, tuple[int, ...]]:
    """Make the input of a convolution without padding, and say with which stride it is read."""
    if not isinstance(layer, _Transposed):
        padding = layer._reversed_padding_repeated_twice
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        return (F.pad(inputs, padding, mode=mode) if any(padding) else inputs), layer.stride
    # A transposed convolution reads its input with zeros in between, step by step.
    spread = [(n - 1) * s + 1 for n, s in zip(inputs.shape[2:], layer.stride, strict=True)]
    apart = inputs.new_zeros(*inputs.shape[:2], *spread)
    apart[(..., *(slice(None, None, s) for s in layer.stride))] = inputs
    reach = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    before = [r - p for r, p in zip(reach, layer.padding, strict=True)]
    sizes = zip(shape[2:], reach, spread, before, strict=True)
    after = [out + r - size - b for out, r, size, b in sizes]
    pads = [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair]
    return F.pad(apart, pads), (1,) * len(spread)


def _strides(shape: torch.Size) -> list[int]:
    return [prod(shape[i + 1 :]) for i in range(len(shape))]


def _unravelled(places: Tensor, shape: torch.Size) -> list[Tensor]:
    """Return the coordinates of places along each dimension."""
    steps = _strides(shape)
    return [places // step % size for step, size in zip(steps, shape, strict=True)]
