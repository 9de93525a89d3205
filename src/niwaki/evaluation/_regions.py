"""Images cut into regions: their relevance, their order, and what replaces them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Grid", "Pooling", "Replacement", "ranks", "replaced"]

Replacement = Literal["zero", "gaussian", "mean", "invert"]
Pooling = Literal["sum", "mean_absolute"]
NOISE = 0.3


@dataclass(frozen=True)
class Grid:
    """A grid of regions over images of one size.

    Where the size is no multiple of the region, the grid is centred, and the regions at the border
    are what the image has of them: nothing is made up and no pixel is left out.

    Parameters
    ----------
    height, width : int
        Height and width of the images.
    region : tuple of int
        Height and width of a region.
    """

    height: int
    width: int
    region: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int]:
        """Number of regions, down and across."""
        return -(-self.height // self.region[0]), -(-self.width // self.region[1])

    @property
    def count(self) -> int:
        """Number of regions."""
        return self.shape[0] * self.shape[1]

    def index(self, device: torch.device | None = None) -> Tensor:
        """Return the number of the region that each pixel lies in, shape (height, width)."""
        (top, left), (height, width) = self._margin(), self.region
        rows = (torch.arange(self.height, device=device) + top) // height
        columns = (torch.arange(self.width, device=device) + left) // width
        return rows[:, None] * self.shape[1] + columns

    def sums(self, maps: Tensor) -> Tensor:
        """Sum maps of shape (..., height, width) over each region: (..., count), in doubles."""
        (top, left), (height, width), (down, across) = self._margin(), self.region, self.shape
        bottom = down * height - self.height - top
        right = across * width - self.width - left
        padded = F.pad(maps.double(), (left, right, top, bottom))
        cut = padded.reshape(*maps.shape[:-2], down, height, across, width)
        return cut.sum((-1, -3)).flatten(-2)

    def means(self, maps: Tensor) -> Tensor:
        """Average maps of shape (..., height, width) over each region's own pixels."""
        return self.sums(maps) / self.sums(maps.new_ones(self.height, self.width))

    def relevance(self, heatmaps: Tensor, pooling: Pooling) -> Tensor:
        """Relevance of each region, shape (N, count), of heatmaps of shape (N, C, height, width).

        Parameters
        ----------
        heatmaps : Tensor
            Shape (N, C, height, width).
        pooling : {"sum", "mean_absolute"}
            The sum over pixels and channels, or the mean of the absolute values.

        Raises
        ------
        ValueError
            For heatmaps with NaN or infinite values, or another pooling.
        """
        if pooling not in get_args(Pooling):
            raise ValueError(f"pooling {pooling!r} is none of {', '.join(get_args(Pooling))}")
        if not heatmaps.isfinite().all():
            raise ValueError("the heatmaps hold NaN or infinite values and cannot be ranked")
        if pooling == "sum":
            return self.sums(heatmaps.double().sum(1))
        return self.means(heatmaps.double().abs().mean(1))

    def _margin(self) -> tuple[int, int]:
        return -self.height % self.region[0] // 2, -self.width % self.region[1] // 2


def ranks(relevance: Tensor, chance: Tensor, *, descending: bool) -> Tensor:
    """Place of each region in the order, from 0; equal relevances are ordered at random.

    Parameters
    ----------
    relevance : Tensor
        Shape (N, regions).
    chance : Tensor
        Random numbers of the same shape. Without them, equal regions (a black background, say)
        would always fall from the top left on.
    descending : bool
        The largest first.
    """
    shuffled = chance.argsort(1)
    order = relevance.gather(1, shuffled).argsort(dim=1, descending=descending, stable=True)
    return shuffled.gather(1, order).argsort(1)


def replaced(inputs: Tensor, grid: Grid, how: Replacement, generator: torch.Generator) -> Tensor:
    """Return what stands in the place of each value once its region is perturbed.

    Parameters
    ----------
    inputs : Tensor
        Shape (N, C, height, width).
    grid : Grid
        The grid of regions.
    how : {"zero", "gaussian", "mean", "invert"}
        0; noise of mean 0 and standard deviation 0.3; the region's mean per channel; the negative.
    generator : torch.Generator
        On the CPU, so that all devices see the same noise.

    Raises
    ------
    ValueError
        For another replacement.
    """
    if how == "zero":
        return torch.zeros_like(inputs)
    if how == "invert":
        return -inputs
    if how == "mean":
        return grid.means(inputs)[:, :, grid.index(inputs.device)].to(inputs.dtype)
    if how == "gaussian":
        # By the inverse of the distribution function: torch's own normal numbers depend on how
        # many are drawn at once, and results must not depend on the batch size.
        uniform = torch.rand(inputs.shape, generator=generator, dtype=torch.float64)
        normal: Tensor = torch.special.ndtri(uniform.clamp_min(torch.finfo(torch.float64).eps))
        return (NOISE * normal).to(inputs)
    raise ValueError(f"replacement {how!r} is none of {', '.join(get_args(Replacement))}")
