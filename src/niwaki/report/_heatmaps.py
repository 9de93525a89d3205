"""Heatmaps as pictures: a diverging colour for what speaks for and against, white for neither."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from niwaki.files import write_atomically

__all__ = ["colour", "contact_sheet"]


def colour(
    heatmap: Tensor, *, percentile: float = 99.5, colours: str = "bwr"
) -> NDArray[np.float64]:
    """Turn one heatmap into an RGB picture.

    Channels are summed; the scale is symmetric around zero, so that white means no relevance.

    Parameters
    ----------
    heatmap : Tensor
        Shape (C, H, W) or (H, W).
    percentile : float
        Of the absolute values that gets the full colour; a few outliers would pale all the rest.
    colours : str
        A diverging colour map of matplotlib; the default is blue (against), white, red (for).

    Returns
    -------
    ndarray
        Shape (H, W, 3), from 0 to 1.

    Raises
    ------
    ValueError
        For a heatmap of another shape, or one that is not finite.
    """
    if heatmap.dim() not in (2, 3):
        raise ValueError(f"a heatmap has the shape (C, H, W) or (H, W), not {tuple(heatmap.shape)}")
    if not torch.isfinite(heatmap).all():
        raise ValueError("the heatmap holds NaN or infinite values")
    flat = heatmap.detach().double().cpu()
    flat = flat.sum(0) if flat.dim() == 3 else flat
    values = flat.numpy()
    size = float(np.percentile(np.abs(values), percentile)) or float(np.abs(values).max()) or 1.0
    scaled = (np.clip(values / size, -1, 1) + 1) / 2
    picture: NDArray[np.float64] = colormaps[colours](scaled)[..., :3]
    return picture


def contact_sheet(
    path: str | Path,
    images: Tensor,
    rows: Mapping[str, Tensor],
    *,
    titles: Sequence[str] = (),
    heading: str = "",
) -> None:
    """Draw images and their heatmaps: one column per image, one row per method.

    Parameters
    ----------
    path : str or Path
        Where the PNG goes.
    images : Tensor
        Shape (N, C, H, W), from 0 to 1, one or three channels.
    rows : mapping of str to Tensor
        Title of the row to heatmaps of shape (N, C, H, W).
    titles : sequence of str
        One per image.
    heading : str
        Of the whole sheet.
    """
    count = len(images)
    size = 1.55
    figure = Figure(
        figsize=(size * count + 1.3, size * (1 + len(rows)) + 0.75), layout="constrained", dpi=130
    )
    axes = figure.subplots(1 + len(rows), count, squeeze=False)
    for column in range(count):
        _show(axes[0, column], _picture(images[column]))
        if titles:
            axes[0, column].set_title(titles[column], fontsize=8)
        for row, heatmaps in enumerate(rows.values(), 1):
            _show(axes[row, column], colour(heatmaps[column]))
    for row, title in enumerate(("input", *rows)):
        axes[row, 0].set_ylabel(title, fontsize=8)
    note = "red: speaks for the class, blue: against, white: neither; scaled per picture"
    figure.suptitle(heading, fontsize=10)
    figure.supxlabel(note, fontsize=7, color="0.4")
    write_atomically(path, lambda aside: figure.savefig(aside, format="png"))


def _picture(image: Tensor) -> NDArray[Any]:
    pixels: NDArray[Any] = image.detach().cpu().clamp(0, 1).permute(1, 2, 0).numpy()
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


def _show(axis: Any, picture: NDArray[Any]) -> None:
    axis.imshow(picture, interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([])
    for side in axis.spines.values():
        side.set_color("0.7")
