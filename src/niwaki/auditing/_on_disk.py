"""Images and heatmaps of a whole data set on disk, of which a few are in memory at a time."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from niwaki.arrays import Array

_IN_MEMORY = 8 * 2**20  # bytes up to which nothing is written to disk
_AT_ONCE = 128


class Rows:
    """Arrays of one shape, appended one batch after the other and read back by position.

    They lie in a temporary file without a name, which is gone with this object or the process.
    """

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._dtype = np.dtype(np.float32)
        self._row: tuple[int, ...] = ()
        self._count = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of rows, and the shape of one."""
        return (self._count, *self._row)

    def __len__(self) -> int:
        return self._count

    def append(self, rows: Array) -> None:
        """Add rows, shape (B, ...)."""
        if self._count == 0:
            self._dtype, self._row = rows.dtype, rows.shape[1:]
        self._file.seek(0, 2)
        self._file.write(np.ascontiguousarray(rows, self._dtype).tobytes())
        self._count += len(rows)

    def read(self, positions: Any) -> Array:
        """Return the rows of these positions, or the one of an integer."""
        key = positions if isinstance(positions, slice) else np.asarray(positions)
        wanted = np.asarray(np.arange(self._count)[key])
        flat = np.atleast_1d(wanted)
        found = np.empty((len(flat), *self._row), self._dtype)
        size = found[:1].nbytes
        # Neighbours are read together.
        breaks = np.flatnonzero(np.diff(flat) != 1) + 1
        for run in np.split(np.arange(len(flat)), breaks):
            if len(run):
                self._file.seek(int(flat[run[0]]) * size)
                content = self._file.read(len(run) * size)
                found[run] = np.frombuffer(content, self._dtype).reshape(len(run), *self._row)
        return found if wanted.ndim else found[0]


class Tensors(Rows):
    """Rows that are read as tensors."""

    def __getitem__(self, positions: Any) -> Tensor:
        return torch.from_numpy(self.read(positions))


class Maps(Rows):
    """Rows that are read as float64."""

    def __getitem__(self, positions: Any) -> Array:
        return self.read(positions).astype(np.float64)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return self[:] if dtype is None else self[:].astype(dtype)


def blocks(positions: Array | int, size: int = _AT_ONCE) -> Iterator[Array]:
    """Go through positions, or as many from 0 on, a few at a time."""
    every = np.arange(positions) if isinstance(positions, int) else positions
    for start in range(0, len(every), size):
        yield every[start : start + size]
