"""Layers as matrix products: rows of what they read, and what they give at the same positions."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappush, heappushpop
from itertools import product
from math import prod
from operator import itemgetter
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from niwaki.data import Data, batches

__all__ = [
    "FEWEST_ROWS",
    "ROWS",
    "Linear",
    "Places",
    "by_group",
    "drawn",
    "inputs_at",
    "is_linear",
    "matrix_of",
    "mirrored",
    "outputs_at",
    "places_of",
    "set_matrix",
    "weight_of",
]
ROWS = 20  # for each feature of a regression: beyond that, places are left out
FEWEST_ROWS = 5_000
_FEWEST_IN_GROUPS = 1_000  # the groups of a depthwise convolution are as many regressions
_MOST = 1_000  # samples; beyond these, places would be left out anyway

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


def matrix_of(layer: Linear, weight: Tensor | None = None) -> Tensor:
    """Return a layer's weight as a matrix per group, shape (groups, outputs, features).

    Features are ordered as `inputs_at` has them: by place in the kernel, then by channel. Another
    tensor in the shape of the weight may take its place.
    """
    if weight is None:
        weight = layer.weight.detach()
    if isinstance(layer, nn.Linear):
        return weight[None]
    groups = int(layer.groups)
    weight = weight.flatten(2)
    weight = weight.reshape(groups, -1, *weight.shape[1:])
    if isinstance(layer, _Transposed):  # (groups, inputs, outputs, kernel), read backwards
        return weight.flip(3).permute(0, 2, 3, 1).flatten(2)
    return weight.transpose(2, 3).flatten(2)


def weight_of(layer: Linear, matrix: Tensor) -> Tensor:
    """Return a matrix per group, as `matrix_of` returns it, in the shape of a layer's weight."""
    shape = layer.weight.shape
    weight = matrix
    if not isinstance(layer, nn.Linear):
        weight = matrix.reshape(*matrix.shape[:2], prod(shape[2:]), -1)
        if isinstance(layer, _Transposed):
            weight = weight.permute(0, 3, 1, 2).flip(3)
        else:
            weight = weight.transpose(2, 3)
    return weight.reshape(shape)


def set_matrix(layer: Linear, matrix: Tensor) -> None:
    """Write a matrix per group, as `matrix_of` returns it, into a layer's weight."""
    with torch.no_grad():
        layer.weight.copy_(weight_of(layer, matrix))


class Places:
    """Which positions of a layer's output are used, image by image.

    Parameters
    ----------
    count : int
        How many an output has.
    most : int
        How many are used in each image; all if there are no more. Otherwise images take turns
        through one random order, so that together they cover the whole output.
    """

    def __init__(self, count: int, most: int) -> None:
        self.count, self.each = count, min(count, max(1, most))
        generator = torch.Generator().manual_seed(count)
        self._order = (
            torch.randperm(count, generator=generator) if self.each < count else torch.arange(count)
        )

    def of(self, first: int, images: int) -> Tensor:
        """Return the positions for some images, from the number of the first; shape (N, places)."""
        turns = torch.arange(first, first + images)[:, None] * self.each
        return self._order[(turns + torch.arange(self.each)) % self.count]


def places_of(layer: Linear, shape: torch.Size, samples: int) -> Places:
    """Say which positions a layer's regressions take, where its output has this shape."""
    count = prod(shape[1:-1] if isinstance(layer, nn.Linear) else shape[2:])
    groups, _, features = matrix_of(layer).shape
    fewest = FEWEST_ROWS if groups == 1 else _FEWEST_IN_GROUPS
    return Places(count, -(-max(fewest, ROWS * features) // samples))


def inputs_at(layer: Linear, inputs: Tensor, shape: torch.Size, places: Tensor) -> Tensor:
    """Gather what a layer reads for positions of its output.

    Parameters
    ----------
    layer : nn.Module
        A convolution or linear layer.
    inputs : Tensor
        Shape (N, channels, ...), for linear layers (N, ..., features).
    shape : torch.Size
        Shape of its output; the number of channels does not matter.
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
    base = torch.zeros_like(places)
    for coordinates, each, step in zip(starts, stride, steps, strict=True):
        base = base + coordinates * each * step
    offsets = [
        sum(k * d * step for k, d, step in zip(at, layer.dilation, steps, strict=True))
        for at in product(*map(range, layer.kernel_size))
    ]
    index = base[:, :, None] + torch.tensor(offsets)
    rows = _rows(padded.flatten(2).transpose(1, 2), index.flatten(1))
    rows = rows.reshape(-1, len(offsets), layer.groups, padded.shape[1] // layer.groups)
    return rows.permute(2, 0, 1, 3).flatten(2)


def outputs_at(layer: Linear, outputs: Tensor, places: Tensor) -> Tensor:
    """Gather what a layer gives at positions of its output; shape (N * places, outputs)."""
    if isinstance(layer, nn.Linear):
        return _rows(outputs.reshape(len(outputs), -1, outputs.shape[-1]), places)
    return _rows(outputs.flatten(2).transpose(1, 2), places)


def by_group(layer: Linear, outputs: Tensor) -> Tensor:
    """Sort outputs by the groups of a layer; shape (groups, N * places, outputs of a group)."""
    groups = 1 if isinstance(layer, nn.Linear) else int(layer.groups)
    return outputs.reshape(len(outputs), groups, -1).transpose(0, 1)


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
        if not isinstance(layer.padding, str):  # which may have been set anew
            padding = [n for n in reversed(layer.padding) for _ in range(2)]
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        return (F.pad(inputs, padding, mode=mode) if any(padding) else inputs), layer.stride
    # A transposed convolution reads its input with zeros in between, step by step.
    apart = inputs.new_zeros(*inputs.shape[:2], *_spread(inputs, layer.stride))
    taken = (slice(None), slice(None), *(slice(None, None, int(n)) for n in layer.stride))
    apart[taken] = inputs
    pads: list[int] = []
    for dim in reversed(range(len(layer.stride))):
        reach = int(layer.dilation[dim] * (layer.kernel_size[dim] - 1))
        before = reach - int(layer.padding[dim])
        pads += [before, shape[2 + dim] + reach - apart.shape[2 + dim] - before]
    return F.pad(apart, pads), (1,) * len(layer.stride)


def _spread(inputs: Tensor, stride: Sequence[int]) -> list[int]:
    return [(n - 1) * s + 1 for n, s in zip(inputs.shape[2:], stride, strict=True)]


def _strides(shape: torch.Size) -> list[int]:
    return [prod(shape[i + 1 :]) for i in range(len(shape))]


def _unravelled(places: Tensor, shape: torch.Size) -> list[Tensor]:
    """Return the coordinates of places along each dimension."""
    steps = _strides(shape)
    return [places // step % size for step, size in zip(steps, shape, strict=True)]


def drawn(data: Data, place: Tensor | None) -> Tensor:
    """Read the reference samples in order; of very many, always the same random part."""
    generator = torch.Generator().manual_seed(0)
    drawn: list[tuple[float, int, Tensor]] = []
    number = 0
    for some, _ in batches(data, 64, place):
        for sample in some:
            place_in_line = float(torch.rand((), generator=generator, dtype=torch.float32))
            entry = (place_in_line, number, sample.clone())
            if len(drawn) < _MOST:
                heappush(drawn, entry)
            else:
                heappushpop(drawn, entry)
            number += 1
    return torch.stack([sample for _, _, sample in sorted(drawn, key=itemgetter(1))])


def mirrored(samples: Tensor) -> Tensor:
    """Put the mirror image behind each image, unless there are very many.

    Samples that are no images stay as they are.
    """
    if samples.dim() < 4 or 2 * len(samples) > _MOST:
        return samples
    return torch.stack([samples, samples.flip(-1)], 1).flatten(0, 1)
