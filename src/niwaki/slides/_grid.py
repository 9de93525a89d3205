"""Which tiles a slide is looked at in, and which of their pixels are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from niwaki.errors import DataError
from niwaki.slides._field import Reach
from niwaki.slides._slide import Slide
from niwaki.slides._tissue import Tissue

__all__ = ["Grid", "Tile", "centre_grid", "overlapping_grid"]

Array = NDArray[Any]


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


def centre_grid(
    slide: Slide, tissue: Tissue, mpp: float, side: int, reach: Reach, least: float
) -> Grid:
    """Lay tiles over a slide whose centres, where the relevance is complete, lie side by side.

    A tile that is too small for that is made as large as it takes.
    """
    margin, stride = reach.margin, reach.stride
    wanted = max(side, 4 * margin)
    side = -(-wanted // stride) * stride
    core = side - 2 * margin
    canvas = slide.canvas(mpp)
    columns, rows = (list(range(-margin, length - margin, core)) for length in canvas)
    tiles = _with_tissue(slide, tissue, mpp, columns, rows, (margin, core), least)
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
