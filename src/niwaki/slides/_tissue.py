"""Where on a slide tissue is: Otsu's threshold on the saturation, without holes and dust."""

from __future__ import annotations

from dataclasses import dataclass
from math import pi
from typing import Any

import numpy as np

from niwaki.arrays import Array
from niwaki.errors import DataError
from niwaki.ranges import FRACTION, Range, checked
from niwaki.slides._slide import Slide

__all__ = ["Tissue", "find_tissue"]


_MPP = 8.0  # of the overview in which tissue is looked for
_LARGEST = 4096  # pixels of its longer side
# Glass has a saturation below the first, stained tissue one above the second: what Otsu's method
# finds in a slide of nothing but glass, or nothing but tissue, lies elsewhere.
_PALEST, _PALE = 0.05, 0.15
_DARK = 0.1  # brightness below which there is no light, and hence no colour
_LENGTH = Range(0, 10_000, why="it is a length in micrometres")


@dataclass(frozen=True, eq=False)
class Tissue:
    """A mask of a slide's tissue.

    Attributes
    ----------
    mask : ndarray
        Shape (height, width), bool, of the whole slide.
    mpp : float
        Micrometres per pixel of the mask.
    overview : ndarray
        Shape (height, width, 3), uint8: the slide as the mask was found on it.
    threshold : float
        The saturation, from 0 to 1, above which there is tissue.
    """

    mask: Array
    mpp: float
    overview: Array
    threshold: float

    @property
    def share(self) -> float:
        """Share of the slide that is tissue."""
        return float(self.mask.mean())

    def shares(self, boxes: Array, mpp: float) -> Array:
        """Return the share of tissue in each of some boxes.

        Parameters
        ----------
        boxes : ndarray
            Shape (N, 4): x, y, width and height in pixels at `mpp`; parts outside of the slide
            hold no tissue.
        mpp : float
            Micrometres per pixel.
        """
        height, width = self.mask.shape
        sums = np.zeros((height + 1, width + 1))
        sums[1:, 1:] = self.mask.cumsum(0).cumsum(1)
        scaled = boxes * (mpp / self.mpp)
        left, top = np.floor(scaled[:, 0] + 1e-6), np.floor(scaled[:, 1] + 1e-6)
        right = np.ceil(scaled[:, 0] + scaled[:, 2] - 1e-6)
        bottom = np.ceil(scaled[:, 1] + scaled[:, 3] - 1e-6)
        area = np.maximum(1, (right - left) * (bottom - top))
        x0, x1 = (np.clip(side, 0, width).astype(int) for side in (left, right))
        y0, y1 = (np.clip(side, 0, height).astype(int) for side in (top, bottom))
        found = sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0]
        return np.asarray(found / area)

    def __repr__(self) -> str:
        return f"Tissue({self.share:.1%} of the slide, saturation above {self.threshold:.2f})"


@checked(dust=_LENGTH, holes=_LENGTH, least=FRACTION)
def find_tissue(slide: Slide, *, dust: float = 60, holes: float = 100, least: float = 0) -> Tissue:
    """Find the tissue on a slide.

    Parameters
    ----------
    slide : Slide
        Looked at in an overview of 8 um per pixel, or coarser for the largest ones.
    dust : float
        Pieces that are smaller than a disc of this diameter, in micrometres, are no tissue.
    holes : float
        Holes that are smaller than a disc of this diameter are tissue.
    least : float
        Share of the slide that must be tissue.

    Raises
    ------
    DataError
        If there is none.
    """
    from skimage import filters
    from skimage.morphology import label

    overview, mpp = _overview(slide)
    known: Any = filters
    smooth = known.gaussian(_saturation(overview), 1, mode="nearest")
    threshold = float(np.clip(known.threshold_otsu(smooth), _PALEST, _PALE))
    mask = (smooth > threshold) & (overview.max(2) > _DARK * 255)
    mask = _without(mask, _pixels(dust, mpp), label)
    mask = ~_without(~mask, _pixels(holes, mpp), label)
    if not mask.any() or mask.mean() < least:
        raise DataError(
            f"no tissue was found on {slide.path}: nothing on it is more saturated than "
            f"{threshold:.2f} over {dust:g} um. If there is some all the same, look at the whole "
            "slide: --everywhere"
        )
    return Tissue(mask, mpp, overview, threshold)


def everywhere(slide: Slide) -> Tissue:
    """Return a mask that counts all of a slide as tissue."""
    overview, mpp = _overview(slide)
    return Tissue(np.ones(overview.shape[:2], bool), mpp, overview, 0.0)


def _overview(slide: Slide) -> tuple[Array, float]:
    """Read the whole slide coarsely, and a patch as it is."""
    mpp = max(_MPP, *slide.mpp, max(slide.canvas(_MPP)) * _MPP / _LARGEST)
    if max(slide.canvas(mpp)) < 64:
        mpp = max(slide.mpp)
    return slide.overview(mpp), mpp


def _saturation(pixels: Array) -> Array:
    high = pixels.max(2).astype(np.float32)
    low = pixels.min(2).astype(np.float32)
    return np.asarray((high - low) / np.maximum(high, 1))


def _pixels(diameter: float, mpp: float) -> float:
    return pi / 4 * (diameter / mpp) ** 2


def _without(mask: Array, smallest: float, label: Any) -> Array:
    """Return a mask without pieces of fewer pixels."""
    pieces = label(mask, connectivity=1)
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    return np.asarray(sizes[pieces] >= max(1, smallest))
