"""A slide at any resolution: one grid of pixels for each number of micrometres per pixel."""

from __future__ import annotations

from functools import lru_cache
from glob import escape
from hashlib import sha256
from math import ceil, floor
from pathlib import Path
from typing import Any

import numpy as np

from niwaki.errors import DataError
from niwaki.hashing import sha256_of
from niwaki.ranges import Range, checked
from niwaki.slides._sources import Pixels, Source, open_source

__all__ = ["MPP", "Slide", "open_slide", "resampled", "span"]

MPP = Range(0.05, 50, why="micrometres per pixel: 0.25 is a scan at 40x, 0.5 one at 20x")
_FINEST = 0.75  # of the slide's own resolution: a finer one would be invented
_EXACT = 1e-6
_BLOCK = 2048  # pixels of a side that are read at once


class Slide:
    """A slide, or an image, that is read piece by piece at a resolution.

    Use `open_slide` to get one. It may be sent to other processes, which open the file anew.

    Attributes
    ----------
    path : Path
        The file.
    size : pair of int
        Width and height in full resolution.
    mpp : pair of float
        Micrometres per pixel in full resolution, across and down.
    """

    def __init__(self, path: Path, stated: float | None) -> None:
        self.path = path
        self._source: Source | None = open_source(path)
        own = self._source.mpp if stated is None else (stated, stated)
        if own is None:
            raise DataError(
                f"{path} does not say how large its pixels are; state it: --slide-mpp 0.25 "
                "(micrometres per pixel in full resolution; a scan at 40x has about 0.25, one at "
                "20x about 0.5)"
            )
        self.mpp = own
        self.size = self._source.sizes[0]

    @property
    def name(self) -> str:
        """Name of the file without its suffix."""
        return self.path.stem

    def scale(self, mpp: float) -> tuple[float, float]:
        """Return how many pixels of full resolution one at `mpp` is wide and high."""
        return mpp / self.mpp[0], mpp / self.mpp[1]

    def canvas(self, mpp: float) -> tuple[int, int]:
        """Return width and height of the whole slide at a resolution."""
        across, down = self.scale(mpp)
        width, height = self.size
        return max(1, ceil(width / across - _EXACT)), max(1, ceil(height / down - _EXACT))

    def check(self, mpp: float) -> None:
        """Refuse a resolution that the slide does not have.

        Raises
        ------
        DataError
            For one that is finer than the slide's own, or so coarse that nothing is left.
        """
        if min(self.scale(mpp)) < _FINEST:
            raise DataError(
                f"{self.path} has {max(self.mpp):g} um per pixel and cannot be read at {mpp:g}: "
                f"finer detail was never scanned. Give --mpp {max(self.mpp):g} or more, the "
                "resolution that the network was trained at"
            )
        if max(self.canvas(mpp)) < 16:
            raise DataError(
                f"at {mpp:g} um per pixel, nothing is left of {self.path}: it is only "
                f"{self.canvas(mpp)[0]} x {self.canvas(mpp)[1]} pixels then"
            )

    def read(self, x: int, y: int, width: int, height: int, mpp: float) -> Pixels:
        """Read a part of the slide at a resolution.

        Parameters
        ----------
        x, y, width, height : int
            In pixels of that resolution; what lies outside of the slide is white.
        mpp : float
            Micrometres per pixel.

        Returns
        -------
        ndarray
            Shape (height, width, 3), uint8. A pixel has the same value whatever part it is read
            with.

        Raises
        ------
        DataError
            If the file is damaged there.
        """
        source = self._opened()
        across, down = self.scale(mpp)
        level = _level(source, min(across, down))
        finest = source.scales[level]
        step = max(16, floor(_BLOCK * min(finest) / max(across, down)))
        if max(width, height) > step:  # a level that is much finer is read block by block
            return self._read_in_blocks(x, y, width, height, mpp, step)
        across, down = across / finest[0], down / finest[1]
        if abs(across - 1) < _EXACT and abs(down - 1) < _EXACT:
            return source.region(level, x, y, width, height)
        left, right = span(x, width, across)
        top, bottom = span(y, height, down)
        part = source.region(level, left, top, right - left, bottom - top)
        return resampled(part, (x, y), (width, height), (across, down))

    def _read_in_blocks(
        self, x: int, y: int, width: int, height: int, mpp: float, step: int
    ) -> Pixels:
        found = np.empty((height, width, 3), np.uint8)
        for top in range(0, height, step):
            for left in range(0, width, step):
                part = found[top : top + step, left : left + step]
                part[:] = self.read(x + left, y + top, part.shape[1], part.shape[0], mpp)
        return found

    def overview(self, mpp: float) -> Pixels:
        """Read the whole slide at a coarse resolution."""
        return self.read(0, 0, *self.canvas(mpp), mpp)

    def digest(self) -> str:
        """Return a checksum of all that the slide is made of: its file, and those that go with it.

        A slide of Mirax has a folder of its name, one of DICOM the files of its folder, and one of
        Hamamatsu (VMS) those whose names begin as its own does.
        """
        home, kind = self.path.parent, self.path.suffix.lower()
        files = {self.path, *(home / self.path.stem).glob("*")}
        if kind in (".vms", ".vmu", ".dcm"):
            beside = f"*{self.path.suffix}" if kind == ".dcm" else f"{escape(self.path.stem)}*"
            files |= set(home.glob(beside))
        known = [f"{file.name} {sha256_of(file)}" for file in sorted(files) if file.is_file()]
        return sha256("\n".join(known).encode()).hexdigest()[:16]

    def _opened(self) -> Source:
        if self._source is None:  # in another process
            self._source = open_source(self.path)
        return self._source

    def __getstate__(self) -> dict[str, Any]:
        """Leave the open file behind, which another process cannot use."""
        return {**self.__dict__, "_source": None}

    def __repr__(self) -> str:
        width, height = self.size
        return f"Slide({self.path.name}, {width} x {height} pixels of {self.mpp[0]:g} um)"


@checked(mpp=MPP.but(low=0.01))
def open_slide(path: str | Path, mpp: float | None = None) -> Slide:
    """Open a slide, or an image as a slide of one level.

    Parameters
    ----------
    path : str or Path
        What OpenSlide reads (Aperio, Hamamatsu, Mirax, DICOM, Leica, tiled TIFF and others), or
        an image file.
    mpp : float, optional
        Micrometres per pixel in full resolution, where the file does not say it or is wrong.

    Raises
    ------
    DataError
        For a file that cannot be read, or one that does not know its resolution.

    Examples
    --------
    >>> slide = niwaki.slides.open_slide("case7.svs")
    >>> slide.read(0, 0, 256, 256, mpp=0.5)
    """
    return Slide(Path(path).expanduser(), mpp)


def _level(source: Source, scale: float) -> int:
    """Return the coarsest level that is no coarser than a scale."""
    fine = [level for level, found in enumerate(source.scales) if max(found) <= scale * 1.001]
    return max(fine, default=0)


def span(start: int, length: int, scale: float) -> tuple[int, int]:
    """Return the first and behind the last pixel that a line of pixels is made of.

    Parameters
    ----------
    start, length : int
        Where the line starts and how long it is, in its own pixels.
    scale : float
        How many pixels there are for one of the line's.
    """
    around = max(1.0, scale)
    return floor((start + 0.5) * scale - around), ceil((start + length - 0.5) * scale + around) + 1


def resampled(
    part: Pixels, corner: tuple[int, int], size: tuple[int, int], scales: tuple[float, float]
) -> Pixels:
    """Resample the pixels of `span`, along both axes, by a triangle of the width of two pixels.

    Libraries of images place the filter relative to the part that is read, in single precision:
    tiles that overlap would differ where they should be equal.

    Parameters
    ----------
    part : ndarray
        Shape (rows, columns, channels), uint8: the spans of both axes.
    corner, size : pair of int
        Left and top, width and height of what is wanted, in its own pixels.
    scales : pair of float
        Across and down.
    """
    across = _weights(corner[0], size[0], scales[0])
    down = _weights(corner[1], size[1], scales[1])
    rows, columns, channels = part.shape
    lines = down @ part.reshape(rows, -1).astype(np.float64)
    turned = lines.reshape(size[1], columns, channels).swapaxes(0, 1).reshape(columns, -1)
    found = (across @ turned).reshape(size[0], size[1], channels).swapaxes(0, 1)
    return np.ascontiguousarray(np.rint(found).clip(0, 255).astype(np.uint8))


@lru_cache(maxsize=512)
def _weights(start: int, length: int, scale: float) -> Any:
    """Return a sparse matrix from the pixels of the span to those of the line."""
    from scipy.sparse import csr_array

    first, last = span(start, length, scale)
    width = max(1.0, scale)
    centres = (np.arange(start, start + length) + 0.5) * scale
    taps = np.floor(centres - width).astype(int)[:, None] + np.arange(2 * ceil(width) + 2)
    weights = np.clip(1 - np.abs(taps + 0.5 - centres[:, None]) / width, 0, None)
    weights /= weights.sum(1, keepdims=True)
    inside = (weights > 0) & (taps >= first) & (taps < last)
    rows = np.broadcast_to(np.arange(length)[:, None], taps.shape)
    return csr_array(
        (weights[inside], (rows[inside], taps[inside] - first)), shape=(length, last - first)
    )
