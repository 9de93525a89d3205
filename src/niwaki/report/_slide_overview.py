"""One picture of a slide: where tissue was found, and each of its maps."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from niwaki.report._figures import save_figure
from niwaki.slides import Layer, Pyramid, SlideMaps, limits

__all__ = ["slide_overview"]

_SIDE = 1200  # pixels that a map is shown with at the most
_PANELS = 9
_WIDTH = 5.0  # inches of a panel


def slide_overview(path: str | Path, found: SlideMaps, made: Mapping[Layer, Pyramid]) -> None:
    """Draw the slide with the outline of its tissue, and up to eight maps with their scales.

    Parameters
    ----------
    path : str or Path
        Path of the PNG file.
    found : SlideMaps
        See `niwaki.slides.explain_slide`.
    made : mapping of Layer to Pyramid
        See `niwaki.slides.pyramids`.
    """
    layers = list(made)[: _PANELS - 1]
    columns = min(3, ceil((len(layers) + 1) ** 0.5))
    rows = -(-(len(layers) + 1) // columns)
    width, height = found.grid.canvas
    tall = 0.8 * _WIDTH * min(2.0, max(0.5, height / width)) + 0.6
    figure = Figure(figsize=(_WIDTH * columns, tall * rows), layout="constrained")
    panels = list(np.atleast_1d(figure.subplots(rows, columns)).ravel())
    for panel in panels:
        panel.set_axis_off()
    whole = (0.0, float(width), float(height), 0.0)
    panels[0].imshow(found.tissue.overview, extent=whole)
    if not found.tissue.mask.all():
        rows_of, columns_of = found.tissue.mask.shape
        x = (np.arange(columns_of) + 0.5) * found.tissue.mpp / found.grid.mpp
        y = (np.arange(rows_of) + 0.5) * found.tissue.mpp / found.grid.mpp
        panels[0].contour(x, y, found.tissue.mask, levels=[0.5], colors=["#006d4f"], linewidths=1)
    panels[0].set_title(f"{found.slide.path.name}: tissue ({found.tissue.share:.0%})")
    full = limits(made)
    for panel, layer in zip(panels[1:], layers, strict=False):
        _draw(figure, panel, layer, made[layer], full[layer], found)
    save_figure(path, figure)


def _draw(
    figure: Figure, panel: Any, layer: Layer, pyramid: Pyramid, limit: float, found: SlideMaps
) -> None:
    number = next(
        n for n, one in enumerate(pyramid.levels)
        if max(one.shape) <= _SIDE or one is pyramid.levels[-1]
    )  # fmt: skip
    level = pyramid.levels[number]
    values = level.read(0, 0, level.shape[1], level.shape[0])
    width, height = found.grid.canvas
    grey = np.repeat(found.tissue.overview.mean(2, keepdims=True), 3, 2).astype(np.uint8)
    panel.imshow(255 - (255 - grey) // 3, extent=(0, width, height, 0))
    scale = 2**number
    shown = panel.imshow(
        values,
        extent=(0, level.shape[1] * scale, level.shape[0] * scale, 0),
        cmap="RdBu_r" if layer.signed else "viridis",
        vmin=-limit if layer.signed else 0,
        vmax=limit,
        interpolation="nearest",
    )
    panel.set_xlim(0, width)
    panel.set_ylim(height, 0)
    panel.set_title(layer.title)
    figure.colorbar(shown, ax=panel, shrink=0.7)
