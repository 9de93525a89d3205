"""How alike two sets of heatmaps are, image by image."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

__all__ = ["rank_correlation", "structural_similarity"]

_WINDOW = 7  # of scikit-image


def rank_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Spearman's rank correlation of each pair of maps, shape (N,); 0 where a map is constant.

    Parameters
    ----------
    first, second : Tensor
        Shape (N, ...).
    """
    a, b = (_mean_ranks(maps.flatten(1)) for maps in (first, second))
    a, b = (ranks - ranks.mean(1, keepdim=True) for ranks in (a, b))
    product = a.norm(dim=1) * b.norm(dim=1)
    return torch.where(product > 0, (a * b).sum(1) / product.clamp_min(1e-12), 0.0)


def structural_similarity(first: Tensor, second: Tensor) -> Tensor | None:
    """SSIM of each pair of maps, shape (N,), or None without scikit-image.

    Each map is divided by its largest absolute value (Adebayo et al. 2018).

    Parameters
    ----------
    first, second : Tensor
        Shape (N, H, W); None is returned also for maps of less than 3 pixels.
    """
    side = min(_WINDOW, *first.shape[1:])
    window = side - (side + 1) % 2  # odd
    if window < 3 or find_spec("skimage") is None:
        return None
    from skimage import metrics

    a, b = (_to_unit(maps).permute(1, 2, 0).double().cpu().numpy() for maps in (first, second))
    ssim: Any = metrics.structural_similarity
    _, local = ssim(a, b, win_size=window, channel_axis=-1, data_range=2, full=True)
    edge = window // 2
    return torch.from_numpy(local[edge:-edge, edge:-edge].mean((0, 1)))


def _mean_ranks(values: Tensor) -> Tensor:
    """Rank each row from 0; ties share their mean rank."""
    values = values.contiguous()
    ordered = values.sort(1).values
    below = torch.searchsorted(ordered, values)
    up_to = torch.searchsorted(ordered, values, right=True)
    return (below + up_to - 1).double() / 2


def _to_unit(maps: Tensor) -> Tensor:
    largest = maps.abs().amax((1, 2), keepdim=True)
    return maps / torch.where(largest > 0, largest, 1.0)
