"""Receptive fields: which pixels a unit at a position can see at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from niwaki.errors import DataError, PropagationError
from niwaki.filters._partial_pass import reach
from niwaki.models import deep_copy
from niwaki.propagation import Operation
from niwaki.ranges import SIDE, checked

_ENOUGH = 0.75
_AT_ONCE = 16  # probes in a batch


@dataclass(frozen=True)
class Field:
    """The receptive fields of a layer's units, at each position of its output.

    A position sees the pixels ``start`` to ``stop`` (exclusive) of each axis. A field that one
    border of the image cuts off is given in full, so that it may start below 0 or stop beyond the
    image; of one that both borders cut off, only the part inside the image is known.

    Attributes
    ----------
    rows, columns : tuple of pair of int
        Start and stop for each row and each column of positions. A layer without positions, such as
        a linear one, has a single one.
    """

    rows: tuple[tuple[int, int], ...]
    columns: tuple[tuple[int, int], ...]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the largest field, in pixels."""
        return _largest(self.rows), _largest(self.columns)

    @property
    def stride(self) -> tuple[int, int]:
        """Pixels between the fields of neighbouring positions; 0 for a single position."""
        return _stride(self.rows), _stride(self.columns)

    def at(self, position: int) -> tuple[int, int, int, int]:
        """Return top, bottom, left and right of a position, counted row by row."""
        row, column = divmod(position, len(self.columns))
        return *self.rows[row], *self.columns[column]

    def inside(self, height: int, width: int) -> Tensor:
        """Tell the positions that see enough of an image of this size; bool, shape (positions,).

        Those that see less than three quarters of the pixels that the best placed ones see, because
        the rest of their field lies outside, are left out: there a filter responds to the padding.
        """
        seen = [
            torch.tensor([min(stop, length) - max(start, 0) for start, stop in spans])
            for spans, length in ((self.rows, height), (self.columns, width))
        ]
        pixels = seen[0].outer(seen[1]).flatten()
        return pixels >= _ENOUGH * pixels.max()

    def __repr__(self) -> str:
        height, width = self.size
        positions = f"{len(self.rows)} x {len(self.columns)} positions"
        return f"Field({height} x {width} pixels, every {self.stride[0]}, {positions})"


@checked(shape=SIDE)
def receptive_fields(
    model: nn.Module, shape: Sequence[int], layers: Sequence[str]
) -> dict[str, Field]:
    """Find the theoretical receptive fields by sending NaN through the network.

    A row of pixels is NaN, and what a unit can see of it makes the unit NaN: whatever the weights,
    zeros among them, and whatever operations lie between. So it is for every row and every column.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode; a copy on the CPU is probed.
    shape : sequence of int
        Shape of one input, (channels, height, width).
    layers : sequence of str
        Names of convolutions or linear layers.

    Returns
    -------
    dict of str to Field
        By layer.

    Raises
    ------
    DataError
        For inputs that are no images, or a layer that does not exist.
    PropagationError
        For a layer that sees nothing of the image.
    """
    if len(shape) != 3:
        raise DataError(f"one input has the shape {tuple(shape)}; an image has (C, H, W)")
    # In double precision, because fast convolutions in single precision mix neighbouring positions
    # within a tile, where NaN would spread.
    probed = deep_copy(model).cpu().double()
    seen = [_probe(probed, shape, layers, axis) for axis in (1, 2)]
    return {
        name: Field(*(_spans(seen[axis][name], name, shape[axis + 1]) for axis in (0, 1)))
        for name in layers
    }


class _Unknown:
    """Observer of which positions of each layer are NaN, along one axis."""

    def __init__(self, layers: Sequence[str], axis: int) -> None:
        self._layers = layers
        self._axis = axis
        self.seen: dict[str, Tensor] = {}

    def output(self, operation: Operation, output: Tensor) -> None:
        """Note these positions; a norm that follows passes them on."""
        if operation.layer in self._layers:
            unknown = output.detach().isnan()
            if unknown.dim() != 4:
                unknown = unknown.flatten(1)[..., None, None]
            others = [d for d in range(1, 4) if d != self._axis + 1]
            self.seen[operation.layer] = (
                unknown.any(others[0], keepdim=True).any(others[1], keepdim=True).flatten(1)
            )

    def activation(self, operation: Operation, output: Tensor) -> None:
        """An activation sees what is before it."""

    def relevance(self, operation: Operation, relevance: Tensor) -> None:
        """There is none."""


def _probe(
    model: nn.Module, shape: Sequence[int], layers: Sequence[str], axis: int
) -> dict[str, Tensor]:
    """For each layer which positions along an axis see each line of pixels; (pixels, positions)."""
    parts: dict[str, list[Tensor]] = {name: [] for name in layers}
    for first in range(0, shape[axis], _AT_ONCE):
        lines = range(first, min(first + _AT_ONCE, shape[axis]))
        inputs = torch.zeros(len(lines), *shape, dtype=torch.float64)
        for image, line in zip(inputs, lines, strict=True):
            image.select(axis, line).fill_(torch.nan)
        observer = _Unknown(layers, axis)
        reach(model, inputs.requires_grad_(), layers, [observer])
        if missing := set(layers) - set(observer.seen):
            raise DataError(f"the signal meets no layer {sorted(missing)[0]!r}")
        for name in layers:
            parts[name].append(observer.seen[name])
    return {name: torch.cat(found) for name, found in parts.items()}


def _spans(seen: Tensor, name: str, length: int) -> tuple[tuple[int, int], ...]:
    """Turn what each position sees into starts and stops, and undo the cut at a border."""
    if not seen.any(0).all():
        raise PropagationError(f"{name}: a position of its output sees nothing of the image")
    starts = seen.int().argmax(0)
    stops = length - seen.flip(0).int().argmax(0)
    size = int((stops - starts).max())
    spans = []
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
        if start == 0 and stop < length:
            spans.append((stop - size, stop))
        elif stop == length and start > 0:
            spans.append((start, start + size))
        else:
            spans.append((start, stop))
    return tuple(spans)


def _largest(spans: tuple[tuple[int, int], ...]) -> int:
    return max(stop - start for start, stop in spans)


def _stride(spans: tuple[tuple[int, int], ...]) -> int:
    steps = [after[0] - before[0] for before, after in pairwise(spans)]
    return max(steps, default=0)
