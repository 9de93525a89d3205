"""The tiles of a slide: where they lie, and which of their pixels are complete and kept."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from niwaki.arrays import Array
from niwaki.errors import DataError
from niwaki.models import deep_copy
from niwaki.ranges import FRACTION, SIDE, checked
from niwaki.slides._slide import MPP, Slide
from niwaki.slides._tissue import Tissue

__all__ = ["Grid", "Reach", "Tile", "Tiling", "centre_grid", "overlapping_grid", "reach_of"]

_AT_ONCE = 8  # probes in a batch


@checked(mpp=MPP, side=SIDE, overlap=FRACTION, least_tissue=FRACTION)
@dataclass(frozen=True)
class Tiling:
    """How a slide is cut into tiles.

    Attributes
    ----------
    mpp : float or None
        Micrometres per pixel that the network was trained at; None: the slide's own.
    side : int or None
        Side of a tile in pixels; None: that of the network's inputs.
    overlap : float
        Overlap of neighbouring tiles that are blended, as a share of their side.
    least_tissue : float
        Share of a tile that must be tissue.
    whole : bool
        Look at all of the slide, not only at tissue.
    """

    mpp: float | None = None
    side: int | None = None
    overlap: float = 0.25
    least_tissue: float = 0.1
    whole: bool = False


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
    probed = deep_copy(model).cpu().double()
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


@dataclass(frozen=True)
class Tile:
    """A tile, by its upper left corner in pixels of the grid's resolution."""

    row: int
    column: int
    x: int
    y: int
    tissue: float


@dataclass(frozen=True)
class Grid:
    """Square tiles over a slide.

    Attributes
    ----------
    side : int
        Side of a tile in pixels.
    margin : int
        Pixels at each border that are read and not kept: tiles are cut there and fit together. 0
        where tiles overlap and are blended.
    step : int
        Pixels from one tile to the next.
    mpp : float
        Micrometres per pixel.
    canvas : pair of int
        Width and height of the slide at this resolution.
    tiles : tuple of Tile
        Those with tissue, row by row.
    stride : int
        Pixels between the positions of a network that returns a map, where tiles are cut;
        0 where they overlap and are blended.
    """

    side: int
    margin: int
    step: int
    mpp: float
    canvas: tuple[int, int]
    tiles: tuple[Tile, ...]
    stride: int = 0

    @property
    def core(self) -> int:
        """Side of what is kept of a tile."""
        return self.side - 2 * self.margin

    @property
    def joined(self) -> str:
        """How the tiles become one map, in words."""
        if self.stride:
            return (
                f"of each tile of {self.side} pixels the inner {self.core} are kept, whose "
                "receptive fields are complete"
            )
        if self.step == self.side:
            return f"tiles of {self.side} pixels lie side by side"
        return (
            f"tiles of {self.side} pixels overlap by {self.side - self.step} and are averaged "
            "with a squared sine as window"
        )

    def window(self) -> Array:
        """Return the weight of each kept pixel of a tile; shape (core, core), float32."""
        if self.stride or self.step == self.side:
            return np.ones((self.core, self.core), np.float32)
        line = np.sin(np.pi * (np.arange(self.side) + 0.5) / self.side) ** 2
        return np.outer(line, line).astype(np.float32)

    def __repr__(self) -> str:
        return f"Grid({len(self.tiles)} tiles of {self.side} pixels of {self.mpp:g} um)"


def overlapping_grid(
    slide: Slide, tissue: Tissue, mpp: float, side: int, overlap: int, least: float
) -> Grid:
    """Lay overlapping tiles over a slide; the last of a row or column ends with the slide."""
    if not 0 <= overlap < side:
        raise DataError(f"tiles of {side} pixels cannot overlap by {overlap}")
    canvas = slide.canvas(mpp)
    step = side - overlap
    columns, rows = (_places(length, side, step) for length in canvas)
    tiles = _with_tissue(slide, tissue, mpp, columns, rows, (0, side), least)
    return Grid(side, 0, step, mpp, canvas, tiles)


def centre_grid(slide: Slide, tissue: Tissue, mpp: float, side: int, reach: Reach) -> Grid:
    """Lay tiles over a slide whose centres, where the relevance is complete, lie side by side.

    A tile that is too small for that is made as large as it takes. Each pixel with tissue is kept:
    where tiles are cut says nothing of the tissue.
    """
    margin, stride = reach.margin, reach.stride
    wanted = max(side, 4 * margin)
    side = -(-wanted // stride) * stride
    core = side - 2 * margin
    canvas = slide.canvas(mpp)
    columns, rows = (list(range(-margin, length - margin, core)) for length in canvas)
    tiles = _with_tissue(slide, tissue, mpp, columns, rows, (margin, core), 0)
    return Grid(side, margin, core, mpp, canvas, tiles, stride)


def _places(length: int, side: int, step: int) -> list[int]:
    if length <= side:
        return [0]
    return [*range(0, length - side, step), length - side]


def _with_tissue(
    slide: Slide,
    tissue: Tissue,
    mpp: float,
    columns: list[int],
    rows: list[int],
    kept: tuple[int, int],
    least: float,
) -> tuple[Tile, ...]:
    margin, core = kept
    x, y = (part.ravel() for part in np.meshgrid(columns, rows))
    sides = np.full(len(x), core)
    shares = tissue.shares(np.stack([x + margin, y + margin, sides, sides], 1), mpp)
    tiles = tuple(
        Tile(place // len(columns), place % len(columns), int(x[place]), int(y[place]), share)
        for place, share in enumerate(shares.tolist())
        if share > 0 and share >= least
    )
    if not tiles:
        raise DataError(
            f"no tile of {slide.path} holds {least:.0%} of tissue; ask for less (--least-tissue)"
        )
    return tiles
