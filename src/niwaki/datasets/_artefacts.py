"""Artefacts put on images of one class on purpose, to see whether an audit finds them."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from niwaki.arrays import LABELS, Array, Shaped, shaped
from niwaki.errors import DataError
from niwaki.ranges import FRACTION, INDEX, SEED, checked

__all__ = ["ARTEFACTS", "Planted", "plant"]

Change = Callable[[Array, np.random.Generator], tuple[Array, Array]]


@dataclass(frozen=True, eq=False)
class Planted:
    """Images, some of which have an artefact.

    Attributes
    ----------
    pixels : ndarray
        Shape (N, H, W, 3), uint8.
    chosen : ndarray
        Shape (N,), bool: which images have it.
    mask : ndarray
        Shape (N, H, W), bool: where it is; the whole image for blur, JPEG and stain shift.
    """

    pixels: Array
    chosen: Array
    mask: Array


@checked(on=INDEX, share=FRACTION, elsewhere=FRACTION, seed=SEED)
@shaped(pixels=Shaped("N H W 3"), labels=LABELS)
def plant(
    pixels: Array,
    labels: Array,
    artefact: str,
    *,
    on: int,
    share: float,
    elsewhere: float = 0.0,
    seed: int = 0,
) -> Planted:
    """Put an artefact on a share of the images of one class.

    Parameters
    ----------
    pixels : ndarray
        Shape (N, H, W, 3), uint8; stays as it is.
    labels : ndarray
        Shape (N,).
    artefact : str
        One of `ARTEFACTS`: "square" (a small yellow square in the upper left corner), "pen" (a
        stroke of green ink), "blur", "jpeg" (the grid of strong compression), "stain" (another
        scanner's colours).
    on : int
        The class that gets it.
    share : float
        Share of that class's images that get it, from 0 to 1.
    elsewhere : float
        Share of the other classes; 1 with `share=1` puts it on all images.
    seed : int
        Seed of which images get it, and of what varies between artefacts.

    Raises
    ------
    DataError
        An unknown artefact, or images of another type.
    """
    if artefact not in ARTEFACTS:
        raise DataError(f"there is no artefact {artefact!r}; artefacts: {', '.join(ARTEFACTS)}")
    if pixels.ndim != 4 or pixels.shape[3] != 3 or pixels.dtype != np.uint8:
        raise DataError(
            f"images are {pixels.dtype} of shape {pixels.shape}; they must be uint8, (N, H, W, 3)"
        )
    if share and not (labels == on).any():
        known = ", ".join(map(str, sorted(set(labels.tolist()))))
        raise DataError(f"on = {on}: no image has that label; labels are {known}")
    rng = np.random.default_rng(seed)
    chosen = np.zeros(len(pixels), bool)
    for members, part in ((labels == on, share), (labels != on, elsewhere)):
        indices = rng.permutation(np.flatnonzero(members))
        chosen[indices[: round(part * len(indices))]] = True
    changed, mask = pixels.copy(), np.zeros(pixels.shape[:3], bool)
    for index in np.flatnonzero(chosen):
        changed[index], mask[index] = _CHANGES[artefact](pixels[index], rng)
    return Planted(changed, chosen, mask)


def _square(image: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Put a yellow square, a tenth of the side, near the upper left corner."""
    side = max(3, image.shape[0] // 10)
    top, left = rng.integers(1, 4, 2)
    mask = np.zeros(image.shape[:2], bool)
    mask[top : top + side, left : left + side] = True
    return _paint(image, mask.astype(float), np.array([235, 205, 60])), mask


def _pen(image: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Draw a stroke of green ink that crosses a part of the image, anywhere."""
    height, width = image.shape[:2]
    rows, columns = np.mgrid[:height, :width]
    start = rng.uniform(0.1, 0.9, 2) * (height, width)
    angle, length = rng.uniform(0, np.pi), rng.uniform(0.25, 0.5) * height
    dy, dx = rows - start[0], columns - start[1]
    along = np.cos(angle) * dy + np.sin(angle) * dx
    across = np.cos(angle) * dx - np.sin(angle) * dy + along**2 * rng.uniform(-0.01, 0.01)
    thick = height / 40 * (1 + 0.2 * np.sin(along / 3))
    cover = np.clip(thick - np.abs(across) + 0.5, 0, 1) * (np.abs(along) < length / 2)
    return _paint(image, 0.85 * cover, np.array([25, 110, 70])), cover > 0.5


def _blur(image: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Take the image slightly out of focus."""
    sigma = rng.uniform(0.8, 1.1)
    soft = gaussian_filter(image.astype(float), (sigma, sigma, 0), mode="nearest")
    return soft.round().astype(np.uint8), _everywhere(image)


def _jpeg(image: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Compress strongly."""
    buffer = io.BytesIO()
    quality = int(rng.integers(15, 25))
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling=2)
    return np.asarray(Image.open(buffer).convert("RGB")), _everywhere(image)


def _stain(image: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Change the optical density of each channel, as another scanner or dye lot does."""
    factors = np.array([1.18, 1.0, 0.80]) * np.exp(rng.normal(0, 0.02, 3))
    density = -np.log(np.maximum(image, 1) / 245.0)
    shifted = 245 * np.exp(-density * factors)
    return shifted.clip(0, 255).round().astype(np.uint8), _everywhere(image)


def _paint(image: Array, cover: Array, colour: Array) -> Array:
    mixed = image * (1 - cover[..., None]) + colour * cover[..., None]
    painted: Array = mixed.round().astype(np.uint8)
    return painted


def _everywhere(image: Array) -> Array:
    return np.ones(image.shape[:2], bool)


_CHANGES: dict[str, Change] = {
    "square": _square,
    "pen": _pen,
    "blur": _blur,
    "jpeg": _jpeg,
    "stain": _stain,
}
ARTEFACTS = tuple(_CHANGES)
