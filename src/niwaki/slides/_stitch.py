"""From tiles to maps: the parts that are kept, laid side by side or blended by a window."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from niwaki.slides._grid import Grid, Tile
from niwaki.slides._layers import Layer
from niwaki.slides._store import Store

__all__ = ["Stitched", "stitching"]

Array = NDArray[Any]


class Stitched:
    """Maps that are put together tile by tile.

    Attributes
    ----------
    stores : dict of Layer to Store
        The maps; they are complete when `finish` was called.
    """

    def __init__(self, folder: Path, grid: Grid, stack: ExitStack) -> None:
        self._folder = folder
        self._grid = grid
        self._stack = stack
        self._window = grid.window()
        self._blended = not grid.stride and grid.step < grid.side
        self._weights = self._store("weights") if self._blended else None
        self.stores: dict[Layer, Store] = {}

    def add(self, tile: Tile, maps: Mapping[Layer, Array | float]) -> None:
        """Add what was found on a tile: for each layer its core's pixels, or one value for all."""
        x, y = tile.x + self._grid.margin, tile.y + self._grid.margin
        for layer, values in maps.items():
            if layer not in self.stores:
                self.stores[layer] = self._store(str(len(self.stores)))
            if self._blended:
                weighted = np.asarray(self._window * values, np.float32)
                self.stores[layer].add(x, y, weighted)
            else:
                self.stores[layer].put(x, y, np.asarray(self._window * values, np.float32))
        if self._weights is not None:
            self._weights.add(x, y, self._window)

    def finish(self) -> None:
        """Divide by the weights of all tiles that have added to a pixel."""
        if self._weights is None:
            return
        for row, column, weights in self._weights.blocks():
            for store in self.stores.values() if weights is not None else ():
                block = store.block(row, column)
                if block is not None and weights is not None:
                    store.put_block(row, column, block / weights)

    def subtract(self, pairs: Iterable[tuple[Layer, Layer, Layer]]) -> None:
        """For each (one, other, difference) make the map of what the other has more."""
        for one, other, difference in pairs:
            made = self.stores[difference] = self._store(str(len(self.stores)))
            for row, column, block in self.stores[one].blocks():
                there = self.stores[other].block(row, column)
                if block is not None and there is not None:
                    made.put_block(row, column, there - block)

    def _store(self, name: str) -> Store:
        width, height = self._grid.canvas
        return self._stack.enter_context(Store(self._folder / name, height, width))


@contextmanager
def stitching(folder: Path, grid: Grid) -> Iterator[Stitched]:
    """Put maps together in a folder, which is made for it and gone in the end."""
    folder.mkdir(parents=True)
    try:
        with ExitStack() as stack:
            yield Stitched(folder, grid, stack)
    finally:
        folder.rmdir()
