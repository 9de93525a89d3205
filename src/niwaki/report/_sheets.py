"""Contact sheets: images and their heatmaps side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from niwaki.ranges import FRACTION, PERCENT, checked
from niwaki.report._colours import colour, colour_range, is_diverging, overlay, picture
from niwaki.report._figures import save_figure

__all__ = ["contact_sheet"]

_CELL = 1.55  # inches
_GAP = 0.05


@checked(percentile=PERCENT, opacity=FRACTION)
def contact_sheet(
    path: str | Path,
    images: Tensor,
    rows: Mapping[str, Tensor],
    *,
    titles: Sequence[str] = (),
    heading: str = "",
    across: Literal["images", "methods"] = "images",
    colours: str = "bwr",
    percentile: float = 99.5,
    shared: bool = False,
    absolute: bool = False,
    opacity: float | None = None,
) -> None:
    """Draw images and their heatmaps: one column per image, one row per method, or turned.

    Parameters
    ----------
    path : str or Path
        Where the PNG goes.
    images : Tensor
        Shape (N, C, H, W), from 0 to 1, one or three channels.
    rows : mapping of str to Tensor
        Title of a method to heatmaps of shape (N, C, H, W).
    titles : sequence of str
        One per image.
    heading : str
        Title of the whole sheet.
    across : {"images", "methods"}
        What the columns are; "methods" gives each image a row.
    colours, percentile, absolute
        As for `colour`.
    shared : bool
        One colour scale for all images of a method, so that strengths can be compared, instead of
        one for each picture.
    opacity : float, optional
        Lay the heatmaps over the images, this dense; by default they stand alone.

    Raises
    ------
    ValueError
        For titles or heatmaps that are not as many as the images, and as `colour` does.
    """
    _check(images, rows, titles)
    look = {"colours": colours, "percentile": percentile, "absolute": absolute}
    cells = [[picture(image) for image in images]]
    for heatmaps in rows.values():
        limit = None
        if shared:
            limit = colour_range(heatmaps, percentile=percentile, absolute=absolute)
        pairs = zip(images, heatmaps, strict=True)
        cells.append([_cell(*pair, opacity, limit, look) for pair in pairs])
    names, said = ["input", *rows], list(titles) or [""] * len(images)
    if across == "methods":
        figure = _draw([list(column) for column in zip(*cells, strict=True)], said, names, heading)
    else:
        figure = _draw(cells, names, said, heading)
    note = _note(colours, absolute, shared, opacity is None)
    figure.text(0.5, 0.06 / figure.get_figheight(), note, fontsize=7, color="0.4", ha="center")
    save_figure(path, figure)


def _cell(
    image: Tensor, heatmap: Tensor, opacity: float | None, limit: float | None, look: dict[str, Any]
) -> NDArray[np.float64]:
    if opacity is None:
        return colour(heatmap, limit=limit, **look)
    return overlay(image, heatmap, opacity, limit=limit, **look)


def _draw(
    cells: list[list[NDArray[np.float64]]],
    beside: Sequence[str],
    above: Sequence[str],
    heading: str,
) -> Figure:
    """Place the pictures in a grid; all lengths in inches, so that text always has its room."""
    down, across = len(cells), len(cells[0])
    left = 0.15 + 0.066 * max(len(line) for text in beside for line in (text.split("\n") or [""]))
    top = 0.12 + (0.3 if heading else 0) + 0.15 * max(text.count("\n") + 1 for text in above)
    pitch, bottom, right = _CELL + _GAP, 0.3, 0.1
    width = max(left + pitch * across + right, 0.085 * len(heading) + 0.4, 5.0)
    height = top + pitch * down + bottom
    figure = Figure(figsize=(width, height), dpi=130)
    for row, line in enumerate(cells):
        for column, pixels in enumerate(line):
            x, y = left + pitch * column, height - top - pitch * row - _CELL
            axis = figure.add_axes((x / width, y / height, _CELL / width, _CELL / height))
            axis.imshow(pixels, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            for side in axis.spines.values():
                side.set_color("0.7")
            if row == 0 and above[column]:
                axis.set_title(above[column], fontsize=8, pad=3)
            if column == 0:
                axis.set_ylabel(
                    beside[row], fontsize=8, rotation=0, ha="right", va="center", labelpad=4
                )
    figure.text(0.5, 1 - 0.1 / height, heading, fontsize=10, ha="center", va="top")
    return figure


def _note(colours: str, absolute: bool, shared: bool, bare: bool) -> str:
    said = "scaled per method" if shared else "scaled per picture"
    if not is_diverging(colours):
        what = "how much it matters" if absolute else "how much it speaks for the class"
        return f"colour: {what}; {said}"
    if colours in ("bwr", "seismic", "coolwarm", "RdBu_r"):
        neither = ", white: neither" if bare else ""
        return f"red: speaks for the class, blue: against{neither}; {said}"
    return f"upper end of the colours: for the class, lower: against, middle: neither; {said}"


def _check(images: Tensor, rows: Mapping[str, Tensor], titles: Sequence[str]) -> None:
    if images.dim() != 4 or len(images) == 0:
        raise ValueError(f"images have the shape (N, C, H, W), not {tuple(images.shape)}")
    if titles and len(titles) != len(images):
        raise ValueError(f"{len(titles)} titles for {len(images)} images")
    for name, heatmaps in rows.items():
        if len(heatmaps) != len(images):
            raise ValueError(f"{name}: {len(heatmaps)} heatmaps for {len(images)} images")
