"""Images decoded once and kept on disk, so that memory does not grow with their number."""

from __future__ import annotations

import errno
import tempfile
import weakref
from collections.abc import Sequence, Sized
from math import prod
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from niwaki.arrays import Array
from niwaki.data._batches import batches, in_memory
from niwaki.ranges import NATURAL, checked
from niwaki.stages import stage

__all__ = ["OnDisk", "Rows", "decoded"]

_IN_MEMORY = 8 * 2**20  # bytes of images that are not written to disk
_BUFFERED = 2**20  # bytes of a file that are kept in memory until there are more


class Rows:
    """Arrays of one shape, appended one batch after the other and read back by position.

    They lie in a temporary file without a name, which is gone with this object or the process.
    Several threads may read at once.
    """

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=_BUFFERED)  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._lock = Lock()
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
        """Add rows, shape (B, ...), all of one shape."""
        if self._count == 0:
            self._dtype, self._row = rows.dtype, rows.shape[1:]
        if rows.shape[1:] != self._row:
            raise ValueError(f"rows of shape {rows.shape[1:]} follow on others of {self._row}")
        with self._lock:
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
                with self._lock:
                    self._file.seek(int(flat[run[0]]) * size)
                    content = self._file.read(len(run) * size)
                found[run] = np.frombuffer(content, self._dtype).reshape(len(run), *self._row)
        return found if wanted.ndim else found[0]


class OnDisk:
    """Tensors of any shapes and types, appended one after the other and read back by place.

    They lie in a temporary file like `Rows`, a few megabytes in memory.
    """

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=_BUFFERED)  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._lock = Lock()
        # Where, how many bytes, and of which shape and type. No tensors: small ones that are kept
        # between large ones leave holes in the memory that nothing fits into.
        self._known: list[tuple[int, int, tuple[int, ...], torch.dtype]] = []

    def __len__(self) -> int:
        return len(self._known)

    def append(self, tensor: Tensor) -> None:
        """Add a tensor, from wherever it is."""
        whole = tensor.detach().cpu().contiguous()
        content = whole.flatten().view(torch.uint8).numpy().tobytes()
        with self._lock:
            start = self._file.seek(0, 2)
            self._file.write(content)
        self._known.append((start, len(content), tuple(whole.shape), whole.dtype))

    def __getitem__(self, place: int) -> Tensor:
        """Return a tensor, on the CPU."""
        start, size, shape, dtype = self._known[place]
        if not size:
            return torch.empty(shape, dtype=dtype)
        with self._lock:
            self._file.seek(start)
            content = bytearray(self._file.read(size))
        return torch.frombuffer(content, dtype=dtype).view(shape)


class _Decoded(Dataset[tuple[Tensor, int]]):
    """Inputs that lie on disk, and their labels."""

    def __init__(self, inputs: Rows, labels: Tensor) -> None:
        self._inputs, self._labels = inputs, labels

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.from_numpy(self._inputs.read(index)), int(self._labels[index])

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, int]]:
        """Read a batch at once, as a loader does where a data set can."""
        inputs = torch.from_numpy(self._inputs.read(indices))
        return list(zip(inputs, self._labels[list(indices)].tolist(), strict=True))


@stage("reading images")
@checked(limit=NATURAL)
def decoded(
    data: Dataset[Any], *, limit: int = 2**30, description: str | None = None
) -> Dataset[Any] | tuple[Tensor, Tensor]:
    """Decode a data set once, for jobs that go through it many times.

    Unlike `in_memory`, it keeps more than a few megabytes in a temporary file.

    Parameters
    ----------
    data
        A data set of pairs (input, label).
    limit
        Largest size of all inputs together, in bytes.
    description
        Title of a progress bar; None shows none.

    Returns
    -------
    Dataset or pair of Tensor
        The same inputs and labels; or the data set itself, where it is larger, its size is unknown
        or the disk is full.
    """
    if isinstance(data, _Decoded) or not isinstance(data, Sized) or len(data) == 0:
        return data
    first, _ = next(iter(batches(data, 1)))
    size = len(data) * prod(first.shape) * first.element_size()
    if size > limit:
        return data
    if size <= _IN_MEMORY:
        return in_memory(data, description=description)
    inputs, labels = Rows(), torch.empty(len(data), dtype=torch.int64)
    try:
        for some, of_some in batches(data, 64, description=description):
            labels[len(inputs) :][: len(some)] = of_some
            inputs.append(some.numpy())
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return data
    return _Decoded(inputs, labels)
