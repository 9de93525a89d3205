"""Tiles as they are read, by several processes, in the order in which they are looked at."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from niwaki.data import in_mode
from niwaki.errors import DataError, NiwakiError
from niwaki.slides._grid import Grid
from niwaki.slides._slide import Slide

__all__ = ["TileReader"]

# What went wrong travels as text: an error from another process would come with its traceback.
_Read: TypeAlias = "np.ndarray[tuple[int, ...], np.dtype[np.uint8]] | str"


class TileReader(Dataset[_Read]):
    """The tiles of a grid.

    Parameters
    ----------
    slide : Slide
        Where they lie.
    grid : Grid
        Which there are.
    channels : int
        3 for colour, 1 for grey.
    """

    def __init__(self, slide: Slide, grid: Grid, channels: int) -> None:
        self._slide = slide
        self._grid = grid
        self._channels = channels

    def __len__(self) -> int:
        """Return the number of tiles."""
        return len(self._grid.tiles)

    def __getitem__(self, index: int) -> _Read:
        """Return a tile of shape (side, side, channels), or what went wrong."""
        grid, tile = self._grid, self._grid.tiles[index]
        try:
            pixels = self._slide.read(tile.x, tile.y, grid.side, grid.side, grid.mpp)
        except NiwakiError as error:
            return str(error)
        if self._channels == 1:
            return np.asarray(in_mode(Image.fromarray(pixels), "L"))[..., None]
        return pixels

    def batches(self, chosen: Sequence[Sequence[int]], workers: int) -> Iterator[Tensor]:
        """Yield batches of tiles, shape (N, side, side, channels), uint8.

        Parameters
        ----------
        chosen : sequence of sequence of int
            The numbers of each batch's tiles.
        workers : int
            How many processes read ahead; 0 reads as it goes.

        Raises
        ------
        DataError
            If a tile cannot be read.
        """
        loader = DataLoader(
            self,
            batch_sampler=list(map(list, chosen)),
            num_workers=min(workers, len(chosen)),
            collate_fn=_together,
            worker_init_fn=_ends_quietly,
        )
        for batch in loader:
            if isinstance(batch, str):
                raise DataError(batch)
            yield batch


def _ends_quietly(_: int) -> None:
    """Let a worker not tell that the process for which it reads ended while it took a batch."""
    tell = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not issubclass(kind, ConnectionError | EOFError):
            tell(kind, error, trace)

    sys.excepthook = hook


def _together(tiles: list[_Read]) -> Tensor | str:
    for tile in tiles:
        if isinstance(tile, str):
            return tile
    return torch.from_numpy(np.stack([np.asarray(tile) for tile in tiles]))
