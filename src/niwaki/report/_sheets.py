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
_SMALLEST, _LARGEST = 8.0, 24.0  # points of the text
_EM = 0.62 / 72  # inches that a letter is wide, for each point of its size
_LINE = 1.3 / 72  # and a line high


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
    note = _note(colours, absolute, shared, opacity is None)
    if across == "methods":
        turned = [list(column) for column in zip(*cells, strict=True)]
        figure = _draw(turned, said, names, heading, note)
    else:
        figure = _draw(cells, names, said, heading, note)
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
    note: str,
) -> Figure:
    """Place the pictures in a grid; all lengths in inches, so that text always has its room."""
    down, across = len(cells), len(cells[0])
    size = _text_size(across)
    over = max(_SMALLEST, min(size, (_CELL - _GAP) / (_EM * max(1, _longest(above)))))
    left = 0.15 + _EM * size * _longest(beside)
    titles = max(text.count("\n") + 1 for text in above)
    top = 0.12 + (1.5 * _LINE * size if heading else 0) + _LINE * over * titles
    pitch, bottom, right = _CELL + _GAP, 0.1 + 1.3 * _LINE * size, 0.1
    texts = max(1.25 * len(heading), 0.9 * len(note))
    width = max(left + pitch * across + right, _EM * size * texts + 0.4, 5.0)
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
                axis.set_title(above[column], fontsize=over, pad=3)
            if column == 0:
                axis.set_ylabel(
                    beside[row], fontsize=size, rotation=0, ha="right", va="center", labelpad=4
                )
    figure.text(0.5, 1 - 0.1 / height, heading, fontsize=1.25 * size, ha="center", va="top")
    figure.text(0.5, 0.08 / height, note, fontsize=0.9 * size, color="0.3", ha="center")
    return figure


def _text_size(across: int) -> float:
    """Return the size of the text: a wide sheet is shown smaller, and must still be read."""
    return min(_LARGEST, max(_SMALLEST, 72 * across * (_CELL + _GAP) / 55))


def _longest(texts: Sequence[str]) -> int:
    return max(len(line) for text in texts for line in (text.split("\n") or [""]))


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
        if heatmaps.shape[-2:] != images.shape[-2:]:
            raise ValueError(
                f"{name}: heatmaps of {tuple(heatmaps.shape[-2:])} pixels for images of "
                f"{tuple(images.shape[-2:])}; bring them to one size first"
            )
