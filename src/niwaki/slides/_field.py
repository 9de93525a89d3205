"""How far a network with a map of outputs looks, which decides where its tiles can be joined."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["Reach", "reach_of"]

_AT_ONCE = 8  # probes in a batch


@dataclass(frozen=True)
class Reach:
    """What one output of a map sees.

    Attributes
    ----------
    field : int
        Side of its receptive field in pixels.
    stride : int
        Pixels between neighbouring outputs.
    """

    field: int
    stride: int

    @property
    def margin(self) -> int:
        """Pixels at the border of a tile whose relevance is not complete, in whole strides.

        A pixel's relevance comes from all outputs that see it, and what these are depends on
        all that they see: together, one pixel less than the field on each side.
        """
        return -(-(self.field - 1) // self.stride) * self.stride


def reach_of(model: nn.Module, channels: int, side: int) -> Reach | None:
    """Measure receptive field and stride of a network that returns a map of outputs.

    A line of pixels is NaN, and the outputs that become NaN see it: whatever the weights are.

    Parameters
    ----------
    model : nn.Module
        Returns (N, classes, height, width); a copy on the CPU is probed.
    channels, side : int
        Channels and side of the square inputs that are tried.

    Returns
    -------
    Reach or None
        None where each output sees the whole tile, as with an operation over all positions.
    """
    # In double precision: fast convolutions in single precision mix neighbouring positions.
    probed = copy.deepcopy(model).cpu().double()
    found = [_along(probed, channels, side, axis) for axis in (2, 3)]
    if None in found:
        return None
    known = [one for one in found if one is not None]
    return Reach(max(field for field, _ in known), max(stride for _, stride in known))


def _along(model: nn.Module, channels: int, side: int, axis: int) -> tuple[int, int] | None:
    seen = torch.cat(
        [
            _seen(model, channels, side, axis, range(first, min(first + _AT_ONCE, side)))
            for first in range(0, side, _AT_ONCE)
        ]
    )  # (pixels, positions)
    positions = seen.shape[1]
    if positions < 2 or (side % positions and (side // positions) < 1):
        return None
    starts = seen.int().argmax(0)
    stops = side - seen.flip(0).int().argmax(0)
    whole = (starts > 0) & (stops < side)  # not cut off by a border
    if not bool(seen.any(0).all()) or not bool(whole.any()):
        return None
    field = int((stops - starts)[whole].max())
    steps = starts[whole].diff()
    stride = int(steps.max()) if len(steps) else side // positions
    return field, max(1, stride)


def _seen(model: nn.Module, channels: int, side: int, axis: int, lines: range) -> Tensor:
    inputs = torch.zeros(len(lines), channels, side, side, dtype=torch.float64)
    for image, line in zip(inputs, lines, strict=True):
        image.select(axis - 1, line).fill_(torch.nan)
    with torch.no_grad():
        unknown: Tensor = model(inputs).isnan()
    return unknown.any(5 - axis).any(1)
