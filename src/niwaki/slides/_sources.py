"""Where the pixels of a slide come from: OpenSlide, or an image file as a slide of one level."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from niwaki.data import in_mode, is_slide, read_image
from niwaki.errors import DataError, NiwakiError

__all__ = ["Pixels", "Source", "open_source"]

Pixels = NDArray[np.uint8]

_WHITE = 255


class Source(Protocol):
    """Pixels by level, the finest first.

    Attributes
    ----------
    sizes : list of pair of int
        Width and height of each level.
    scales : list of pair of float
        How many of the finest pixels one of the level is wide and high.
    mpp : pair of float or None
        Micrometres per pixel of the finest level, where the file knows.
    """

    sizes: list[tuple[int, int]]
    scales: list[tuple[float, float]]
    mpp: tuple[float, float] | None

    def region(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        """Return the pixels of a level, white where the slide has none; (height, width, 3)."""
        ...


def open_source(path: Path) -> Source:
    """Open a file by what is in it.

    Raises
    ------
    DataError
        For a file that is missing, damaged, or neither a slide nor an image.
    NiwakiError
        If OpenSlide is not installed.
    """
    openslide = _openslide()
    if not path.is_file():
        raise DataError(f"there is no slide {path}; give the file of a slide or of an image")
    try:
        known = openslide.OpenSlide.detect_format(path)
    except openslide.OpenSlideError as error:
        raise _damaged(path, "it", error) from error
    if known is not None:
        return _Slide(path, openslide)
    if is_slide(path):
        raise DataError(
            f"{path} is a slide by its name, and OpenSlide does not know what is in it: it is "
            "damaged, incomplete, or of a kind that OpenSlide does not read"
        )
    return _Image(path)


def _openslide() -> Any:
    try:
        import openslide
    except ImportError as error:  # also where the library behind it is missing
        raise NiwakiError(
            f"slides are read by OpenSlide, which is not there ({error}): "
            "pip install 'niwaki[slides]'"
        ) from error
    return openslide


def _damaged(path: Path, what: str, error: Exception) -> DataError:
    return DataError(
        f"{path} is damaged or incomplete: {what} cannot be read ({error}); copy it again from "
        "where it was scanned, with all files that belong to it"
    )


class _Slide:
    def __init__(self, path: Path, openslide: Any) -> None:
        self._path = path
        self._error = openslide.OpenSlideError
        try:
            self._file = openslide.OpenSlide(path)
            self.sizes = list(self._file.level_dimensions)
        except self._error as error:
            raise _damaged(path, "it", error) from error
        width, height = self.sizes[0]
        self.scales = [(width / w, height / h) for w, h in self.sizes]
        found = self._file.properties
        self.mpp = _resolution(found.get("openslide.mpp-x"), found.get("openslide.mpp-y"))

    def region(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        across, down = self.scales[level]
        corner = round(x * across), round(y * down)
        try:
            image = self._file.read_region(corner, level, (width, height))
        except self._error as error:
            raise _damaged(self._path, f"the part at {corner}", error) from error
        pixels = np.asarray(image)
        if pixels[..., 3].min() == _WHITE:
            return np.ascontiguousarray(pixels[..., :3])
        return np.asarray(in_mode(image, "RGB"))


class _Image:
    scales: list[tuple[float, float]]
    mpp: tuple[float, float] | None

    def __init__(self, path: Path) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "(Corrupt|Possibly corrupt) EXIF")  # an error says it
            image: Image.Image = in_mode(read_image(path), "RGB")
        self._pixels = np.asarray(image)
        self.sizes = [image.size]
        self.scales = [(1.0, 1.0)]
        self.mpp = None  # what photographs say of their resolution is for printers

    def region(self, level: int, x: int, y: int, width: int, height: int) -> Pixels:
        found = np.full((height, width, 3), _WHITE, np.uint8)
        left, top = max(0, x), max(0, y)
        part = self._pixels[top : max(top, y + height), left : max(left, x + width)]
        found[top - y : top - y + part.shape[0], left - x : left - x + part.shape[1]] = part
        return found


def _resolution(x: str | None, y: str | None) -> tuple[float, float] | None:
    """Read what a file says; a scanner's pixel has neither 1 nm nor 1 mm, as defaults would say."""
    try:
        found = float(x or y or ""), float(y or x or "")
    except ValueError:
        return None
    return found if all(0.01 < value < 100 for value in found) else None
