"""Patches of filters side by side, with what lies outside of the image left open."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from niwaki.report._colours import picture
from niwaki.report._pictures import encoded, levels

__all__ = ["heat_strip_of", "strip_of", "weights_picture"]

_SHARP = 16  # up to this side pictures are kept exactly, larger ones as a photograph is


def strip_of(patches: Tensor) -> bytes | None:
    """Lay patches of shape (N, C, H, W) in a row; NaN is transparent. None without patches."""
    if not len(patches):
        return None
    parts = [(picture(patch.nan_to_num(0)) * 255).round().astype(np.uint8) for patch in patches]
    holes = [patch.isnan().any(0) for patch in patches]
    return _row(parts, holes, exact=max(patches.shape[-2:]) <= _SHARP)


def heat_strip_of(heatmaps: Tensor) -> bytes | None:
    """Lay heatmaps of shape (N, H, W) in a row of grey levels, on one scale. None without any."""
    if not len(heatmaps) or bool(heatmaps.isnan().all()):
        return None
    limit = float(heatmaps.nan_to_num(0).abs().max()) or 1.0
    parts = [levels(heat.nan_to_num(0), limit)[..., None].repeat(3, 2) for heat in heatmaps]
    return _row(parts, [heat.isnan() for heat in heatmaps], exact=True)


def weights_picture(weights: Tensor | None) -> bytes | None:
    """Show the weights of a filter that reads 1 or 3 channels; grey is 0."""
    if weights is None or len(weights) not in (1, 3):
        return None
    return strip_of((0.5 + weights / (2 * float(weights.abs().max()) or 1.0))[None])


def _row(parts: list[NDArray[np.uint8]], holes: list[Tensor], *, exact: bool) -> bytes:
    alpha = [255 * (~hole).cpu().numpy().astype(np.uint8)[..., None] for hole in holes]
    if any(bool(hole.any()) for hole in holes):
        parts = [np.concatenate(pair, 2) for pair in zip(parts, alpha, strict=True)]
    return encoded(np.concatenate(parts, 1), exact=exact)
