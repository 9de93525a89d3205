"""Indices of what a filter is selective for: classes, colour, orientation."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from niwaki.arrays import Shaped, shaped

_LUMA = (0.299, 0.587, 0.114)
_GRID = 32  # frequencies per axis, at the least


@shaped(means=Shaped("units classes", low=0))
def class_selectivity(means: Tensor) -> Tensor:
    """Class selectivity of units (Morcos et al. 2018).

    Parameters
    ----------
    means : Tensor
        Mean activation on each class, 0 or more, shape (units, classes).

    Returns
    -------
    Tensor
        ``(highest - mean of the others) / (highest + mean of the others)``: 0 for equal means, 1
        for a single class; NaN for a unit that is never active, or fewer than two classes.
    """
    if means.shape[1] < 2:
        return means.new_full((len(means),), torch.nan)
    highest = means.amax(1)
    others = (means.sum(1) - highest) / (means.shape[1] - 1)
    return (highest - others) / (highest + others)


def grey(pixels: Tensor) -> Tensor:
    """Take the colour out of pixels of shape (N, 3, H, W), in [0, 1], and keep the luma."""
    weights = pixels.new_tensor(_LUMA)[:, None, None]
    return (pixels * weights).sum(1, keepdim=True).expand_as(pixels)


@shaped(weights=Shaped("units channels height width"))
def orientation(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Orientation selectivity of first-layer filters, from the spectrum of their weights.

    The power at the frequency f with the angle a, summed over the input channels, adds up as
    ``power * exp(2i a)``: power that lies along one axis adds up, power in all directions cancels.
    The constant part and frequencies above half a cycle per pixel, which only the corners of the
    spectrum hold, are left out.

    Parameters
    ----------
    weights : Tensor
        Shape (units, channels, height, width).

    Returns
    -------
    selectivity : Tensor
        From 0 (none) to 1 (a grating); NaN for filters of a single pixel. Shape (units,).
    angle : Tensor
        Angle of the bars that the filter prefers, in degrees counter-clockwise from the horizontal,
        0 to 180; shape (units,).
    """
    if max(weights.shape[2:]) == 1:
        nothing = torch.full((len(weights),), torch.nan, dtype=torch.float64)
        return nothing, nothing
    sides = [max(_GRID, side) for side in weights.shape[2:]]  # a smaller grid would cut them off
    power = torch.fft.fft2(weights.double(), s=sides).abs().square().sum(1)
    vertical, horizontal = (
        axis.to(power.device)
        for axis in torch.meshgrid(*map(torch.fft.fftfreq, sides), indexing="ij")
    )
    radius = (vertical.square() + horizontal.square()).sqrt()
    power = power * ((radius > 0) & (radius < 0.5))
    twice = 2 * torch.atan2(-vertical, horizontal)  # rows count downwards
    across = (power * twice.cos()).sum((1, 2))
    along = (power * twice.sin()).sum((1, 2))
    total = power.sum((1, 2))
    # Bars stand at a right angle to the direction in which they change.
    angle = torch.atan2(along, across) / 2 * (180 / math.pi) + 90
    return torch.hypot(across, along) / total, angle.remainder(180)
