"""Pixels at another resolution: each has the same value, whatever part of the slide is read."""

from __future__ import annotations

from functools import lru_cache
from math import ceil, floor
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["resampled", "span"]

Pixels = NDArray[np.uint8]


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
