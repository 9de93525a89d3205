"""A large array on disk, in square blocks: what is not written takes no space and reads as NaN."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["BLOCK", "Store"]

Array = NDArray[np.float32]

BLOCK = 512  # pixels of a side, which are the tiles of an OME-TIFF
_HELD = 16  # blocks in memory, 1 MB each


class Store:
    """An array of float32 that may be far larger than the memory.

    Parameters
    ----------
    path : Path
        The file, which is made anew.
    height, width : int
        Height and width of the array.

    Attributes
    ----------
    shape : pair of int
        Height and width.
    rows, columns : int
        How many blocks there are.
    """

    def __init__(self, path: Path, height: int, width: int) -> None:
        self.path = path
        self.shape = height, width
        self.rows, self.columns = -(-height // BLOCK), -(-width // BLOCK)
        self._file = path.open("w+b")
        self._written: set[tuple[int, int]] = set()
        self._held: OrderedDict[tuple[int, int], Array] = OrderedDict()
        self._changed: set[tuple[int, int]] = set()

    def block(self, row: int, column: int) -> Array | None:
        """Return a block, filled up with NaN behind the array's end; None if it was not written.

        It must not be changed.
        """
        key = row, column
        return self._get(key) if key in self._written else None

    def has(self, row: int, column: int) -> bool:
        """Return whether anything was written into a block."""
        return (row, column) in self._written

    def blocks(self) -> Iterator[tuple[int, int, Array | None]]:
        """Yield row, column and content of all blocks, row by row."""
        for row in range(self.rows):
            for column in range(self.columns):
                yield row, column, self.block(row, column)
        while self._held:  # nothing of it stays in memory while others are read
            self._let_go()

    def read(self, x: int, y: int, width: int, height: int) -> Array:
        """Return a part; NaN where nothing was written, or outside."""
        found = np.full((height, width), np.nan, np.float32)
        for key, inside, part in self._parts(x, y, width, height):
            if key in self._written:
                found[inside] = self._get(key)[part]
        return found

    def put(self, x: int, y: int, values: Array) -> None:
        """Write a part; what lies outside is left out."""
        for key, inside, part in self._parts(x, y, values.shape[1], values.shape[0]):
            self._get(key)[part] = values[inside]
            self._changed.add(key)

    def add(self, x: int, y: int, values: Array) -> None:
        """Add to a part, in which what was not written counts as 0."""
        for key, inside, part in self._parts(x, y, values.shape[1], values.shape[0]):
            there = self._get(key)[part]
            np.copyto(there, np.where(np.isnan(there), 0, there) + values[inside])
            self._changed.add(key)

    def put_block(self, row: int, column: int, values: Array) -> None:
        """Write a whole block."""
        block = self._get((row, column))
        block[:] = values
        self._changed.add((row, column))

    def close(self) -> None:
        """Delete the file."""
        self._held.clear()
        self._changed.clear()
        self._file.close()
        self.path.unlink(missing_ok=True)

    def _parts(
        self, x: int, y: int, width: int, height: int
    ) -> Iterator[tuple[tuple[int, int], tuple[slice, slice], tuple[slice, slice]]]:
        """Yield each block that a part touches: its key, and the slices in the part and in it."""
        left, top = max(0, x), max(0, y)
        right, bottom = min(self.shape[1], x + width), min(self.shape[0], y + height)
        for row in range(top // BLOCK, -(-bottom // BLOCK) if bottom > top else 0):
            for column in range(left // BLOCK, -(-right // BLOCK) if right > left else 0):
                y0, y1 = max(top, row * BLOCK), min(bottom, (row + 1) * BLOCK)
                x0, x1 = max(left, column * BLOCK), min(right, (column + 1) * BLOCK)
                inside = slice(y0 - y, y1 - y), slice(x0 - x, x1 - x)
                part = (
                    slice(y0 - row * BLOCK, y1 - row * BLOCK),
                    slice(x0 - column * BLOCK, x1 - column * BLOCK),
                )
                yield (row, column), inside, part

    def _get(self, key: tuple[int, int]) -> Array:
        block = self._held.get(key)
        if block is not None:
            self._held.move_to_end(key)
            return block
        if key in self._written:
            self._file.seek(self._offset(key))
            raw = self._file.read(4 * BLOCK * BLOCK)
            block = np.frombuffer(raw, np.float32).reshape(BLOCK, BLOCK).copy()
        else:
            block = np.full((BLOCK, BLOCK), np.nan, np.float32)
            self._written.add(key)
            self._changed.add(key)
        self._held[key] = block
        if len(self._held) > _HELD:
            self._let_go()
        return block

    def _let_go(self) -> None:
        key, block = self._held.popitem(last=False)
        if key in self._changed:
            self._file.seek(self._offset(key))
            self._file.write(block.data)
            self._file.flush()
            self._changed.discard(key)

    def _offset(self, key: tuple[int, int]) -> int:
        return 4 * BLOCK * BLOCK * (key[0] * self.columns + key[1])

    def __enter__(self) -> Store:
        """Use it in a with statement, at whose end the file is deleted."""
        return self

    def __exit__(self, *_: Any) -> None:
        """Delete the file."""
        self.close()
