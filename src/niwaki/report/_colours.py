"""A heatmap as a picture: colours for what speaks for and against, and how strong they get."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib import colormaps
from numpy.typing import NDArray
from torch import Tensor

from niwaki.ranges import FRACTION, PERCENT, POSITIVE, checked

__all__ = ["colour", "colour_range", "is_diverging", "overlay", "picture"]

_DIVERGING = (
    "PiYG PRGn BrBG PuOr RdGy RdBu RdYlBu RdYlGn Spectral coolwarm bwr seismic berlin managua "
    "vanimo"
)
_LUMA = np.array([0.299, 0.587, 0.114])


@checked(percentile=PERCENT, limit=POSITIVE)
def colour(
    heatmap: Tensor,
    *,
    percentile: float = 99.5,
    colours: str = "bwr",
    limit: float | None = None,
    absolute: bool = False,
) -> NDArray[np.float64]:
    """Turn one heatmap into an RGB picture.

    Channels are summed. A diverging colour map is laid symmetrically around zero, so that its
    middle means no relevance; a sequential one goes from zero to the largest value, and what
    speaks against the class looks like zero.

    Parameters
    ----------
    heatmap : Tensor
        Shape (C, H, W) or (H, W).
    percentile : float
        Percentile of the absolute values that gets the full colour; a few outliers would pale the
        rest.
    colours : str
        A colour map of matplotlib; the default is blue (against), white, red (for). "inferno" and
        "Reds" are sequential ones.
    limit : float, optional
        The value that gets the full colour, for a scale shared by several heatmaps (see
        `colour_range`); overrules `percentile`.
    absolute : bool
        Take absolute values after summing the channels.

    Returns
    -------
    ndarray
        Shape (H, W, 3), from 0 to 1.

    Raises
    ------
    ValueError
        For a heatmap of another shape, one that is not finite, a colour map that does not exist,
        or a percentile or limit out of range.
    """
    strength = _strength(heatmap, percentile, limit, absolute)
    place = (strength + 1) / 2 if is_diverging(colours) else strength.clip(0)
    pixels: NDArray[np.float64] = colormaps[colours](place)[..., :3]
    return pixels


@checked(percentile=PERCENT)
def colour_range(heatmaps: Tensor, *, percentile: float = 99.5, absolute: bool = False) -> float:
    """Return the value that gets the full colour when several heatmaps share a scale.

    Parameters
    ----------
    heatmaps : Tensor
        Shape (N, C, H, W).
    percentile, absolute
        As for `colour`.
    """
    return _largest(np.stack([_flat(heatmap, absolute) for heatmap in heatmaps]), percentile)


@checked(opacity=FRACTION, percentile=PERCENT, limit=POSITIVE)
def overlay(
    image: Tensor,
    heatmap: Tensor,
    opacity: float = 0.8,
    *,
    percentile: float = 99.5,
    colours: str = "bwr",
    limit: float | None = None,
    absolute: bool = False,
) -> NDArray[np.float64]:
    """Lay a heatmap over its image, which becomes grey; the stronger the relevance, the denser.

    Parameters
    ----------
    image : Tensor
        Shape (C, H, W), from 0 to 1, one or three channels.
    heatmap : Tensor
        Shape (C, H, W) or (H, W), of the image's height and width.
    opacity : float
        Opacity of the full colour, from 0 to 1.
    percentile, colours, limit, absolute
        As for `colour`.

    Returns
    -------
    ndarray
        Shape (H, W, 3), from 0 to 1.

    Raises
    ------
    ValueError
        As `colour` does, and for an opacity out of range or sizes that differ.
    """
    if image.shape[-2:] != heatmap.shape[-2:]:
        raise ValueError(
            f"image {tuple(image.shape)} and heatmap {tuple(heatmap.shape)} differ in size"
        )
    strength = _strength(heatmap, percentile, limit, absolute)
    if is_diverging(colours):
        place, cover = (np.sign(strength) + 1) / 2, np.abs(strength)
    else:
        place = cover = strength.clip(0)
    tint = colormaps[colours](place)[..., :3]
    cover = opacity * cover[..., None]
    grey = (picture(image) @ _LUMA)[..., None]
    blend: NDArray[np.float64] = cover * tint + (1 - cover) * grey
    return blend


def picture(image: Tensor) -> NDArray[np.float64]:
    """Return an image of shape (C, H, W), from 0 to 1, as an RGB picture of shape (H, W, 3)."""
    pixels: NDArray[np.float64] = image.detach().double().cpu().clamp(0, 1).permute(1, 2, 0).numpy()
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


def is_diverging(colours: str) -> bool:
    """Return whether a colour map of matplotlib has a neutral middle.

    Raises
    ------
    ValueError
        If there is no such colour map.
    """
    if colours not in colormaps:
        raise ValueError(
            f"there is no colour map {colours!r}; try bwr, seismic, RdBu_r or coolwarm "
            "(diverging), Reds, hot, inferno or viridis (sequential)"
        )
    return colours.removesuffix("_r") in _DIVERGING.split()


def _strength(
    heatmap: Tensor, percentile: float, limit: float | None, absolute: bool
) -> NDArray[np.float64]:
    """Relevance of each pixel in units of the full colour, from -1 to 1."""
    values = _flat(heatmap, absolute)
    largest = _largest(values, percentile) if limit is None else limit
    scaled: NDArray[np.float64] = np.clip(values / largest, -1, 1)
    return scaled


def _largest(values: NDArray[np.float64], percentile: float) -> float:
    sizes = np.abs(values)
    return float(np.percentile(sizes, percentile)) or float(sizes.max()) or 1.0


def _flat(heatmap: Tensor, absolute: bool) -> NDArray[np.float64]:
    if heatmap.dim() not in (2, 3):
        raise ValueError(f"a heatmap has the shape (C, H, W) or (H, W), not {tuple(heatmap.shape)}")
    if not torch.isfinite(heatmap).all():
        raise ValueError("the heatmap holds NaN or infinite values")
    flat = heatmap.detach().double().cpu()
    flat = flat.sum(0) if flat.dim() == 3 else flat
    values: NDArray[np.float64] = (flat.abs() if absolute else flat).numpy()
    return values
