"""The colour maps of heatmaps on a page: filters that give grey levels their colours.

A heatmap is kept as grey levels, so that the reader chooses the colours. All maps can be told apart
by people who are colour-blind, and the middle of the diverging ones is no relevance.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Colormap, LinearSegmentedColormap

from niwaki.report._pictures import data_uri, encoded

__all__ = ["MAPS", "filters", "ramp"]

#: Name of each map on a page, and what its ends mean.
MAPS = {
    "red-blue": "red speaks for the class, blue against it, white neither",
    "orange-purple": "orange speaks for the class, purple against it, white neither",
    "on-black": "orange speaks for the class, blue against it, black neither",
    "only-for": "the brighter, the more it speaks for the class; what speaks against it is dark",
}
_STOPS = 33


def _map(name: str) -> Colormap:
    if name == "red-blue":
        return colormaps["RdBu_r"]
    if name == "orange-purple":
        return colormaps["PuOr_r"]
    if name == "on-black":
        ends = ["#bfe6ff", "#3f9fd8", "#000000", "#e08a00", "#fff0c0"]
        return LinearSegmentedColormap.from_list(name, ends)
    return colormaps["cividis"]


@cache
def filters() -> list[dict[str, Any]]:
    """Return for each map the tables of an SVG filter: red, green, blue, and how dense it covers.

    As an overlay, a map is the denser the stronger the relevance is.
    """
    place = np.linspace(0, 1, _STOPS)
    found = []
    for name in MAPS:
        sequential = name == "only-for"
        where = (2 * place - 1).clip(0) if sequential else place
        colours = _map(name)(where)[:, :3]
        cover = where if sequential else np.abs(2 * place - 1)
        tables = {
            channel: " ".join(f"{value:.3f}" for value in values)
            for channel, values in zip("RGB", colours.T, strict=True)
        }
        found.append({"name": name, **tables, "A": " ".join(f"{value:.3f}" for value in cover)})
    return found


@cache
def ramp() -> str:
    """Return all grey levels from left to right, as a picture for a colour bar."""
    line = np.arange(1, 256, dtype=np.uint8)[None].repeat(2, 0)
    return data_uri(encoded(line, exact=True), "webp")
