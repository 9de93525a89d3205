"""The maps of a slide: what each of them shows, and how they are put together from tiles."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from niwaki.arrays import Array
from niwaki.slides._grid import Grid, Tile
from niwaki.slides._store import Store

__all__ = ["Layer", "Stitched", "safe_names", "stitching"]

Kind = Literal["probability", "relevance"]


@dataclass(frozen=True)
class Layer:
    """A map of a slide.

    Attributes
    ----------
    kind : {"probability", "relevance"}
        What the layer shows of a class.
    class_name : str
        Which class.
    method : str
        The method that explained it; empty for probabilities.
    network : str
        Empty for the network itself, the name of the one beside it, or "difference".
    """

    kind: Kind
    class_name: str
    method: str = ""
    network: str = ""

    @property
    def title(self) -> str:
        """What it shows, in words."""
        words = f"{self.kind} of {self.class_name}"
        if self.kind == "relevance":
            words = f"relevance for {self.class_name} by {self.method}"
        return f"{words} ({self.network})" if self.network else words

    @property
    def signed(self) -> bool:
        """Whether its values lie on both sides of zero."""
        return self.kind == "relevance" or self.network == "difference"


def safe_names(names: Iterable[str]) -> dict[str, str]:
    """Return a name of a file or folder for each name: plain letters, none of them twice."""
    found: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        if name in found:
            continue
        plain = re.sub(r"[^A-Za-z0-9_.-]+", "_", name).strip("._-")[:80]
        if not plain or plain.lower() in taken:
            digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
            plain = f"{plain}-{digest}" if plain else digest
        found[name] = plain
        taken.add(plain.lower())
    return found


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
    """Put maps together in a temporary folder, which is deleted at the end."""
    folder.mkdir(parents=True)
    try:
        with ExitStack() as stack:
            yield Stitched(folder, grid, stack)
    finally:
        folder.rmdir()
