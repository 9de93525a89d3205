"""Pyramids cut into a folder of small pictures, as a viewer in a browser reads them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from niwaki.slides import Layer, Pyramid, SlideMaps

__all__ = ["cut_layer", "cut_slide"]

_SIDE = 512  # of a tile, which is a block of a map
_FEW = 64  # tiles: a level that has no more is shown whole
_QUALITY = 82


def cut_layer(folder: Path, pyramid: Pyramid, limit: float, signed: bool) -> dict[str, Any]:
    """Cut a map into grey pictures, to which the page gives their colours.

    Parameters
    ----------
    folder : Path
        Gets a folder for each level.
    pyramid : Pyramid
        The map.
    limit : float
        The value that is white; where values are signed, the negative one is black.
    signed : bool
        Whether zero is the middle grey, or black.

    Returns
    -------
    dict
        What the page needs to find the tiles.
    """
    there: list[list[str]] = []
    for number, level in enumerate(reversed(pyramid.levels)):
        place = folder / str(number)
        place.mkdir(parents=True)
        written = []
        for row, column, block in level.blocks():
            if block is None:
                continue
            height = min(_SIDE, level.shape[0] - row * _SIDE)
            width = min(_SIDE, level.shape[1] - column * _SIDE)
            picture = _grey(block[:height, :width], limit, signed)
            picture.save(place / f"{column}_{row}.png", compress_level=1)
            written.append(f"{column}_{row}")
        there.append(written)
    return _source(folder, "png", pyramid, there)


def cut_slide(folder: Path, found: SlideMaps, made: Mapping[Layer, Pyramid]) -> dict[str, Any]:
    """Cut the slide itself, at the resolution of the maps: around what was looked at, and whole.

    Parameters
    ----------
    folder : Path
        Gets a folder for each level.
    found : SlideMaps
        The slide and its grid.
    made : mapping of Layer to Pyramid
        Its maps: where these have no block, the finer levels of the slide are left out too.

    Returns
    -------
    dict
        What the page needs to find the tiles.
    """
    pyramid = next(iter(made.values()))
    there: list[list[str]] = []
    for number, level in enumerate(reversed(pyramid.levels)):
        place = folder / str(number)
        place.mkdir(parents=True)
        mpp = found.grid.mpp * 2 ** (len(pyramid.levels) - 1 - number)
        written = []
        for row in range(level.rows):
            for column in range(level.columns):
                if level.rows * level.columns > _FEW and not level.has(row, column):
                    continue
                height = min(_SIDE, level.shape[0] - row * _SIDE)
                width = min(_SIDE, level.shape[1] - column * _SIDE)
                pixels = found.slide.read(column * _SIDE, row * _SIDE, width, height, mpp)
                Image.fromarray(pixels).save(place / f"{column}_{row}.jpg", quality=_QUALITY)
                written.append(f"{column}_{row}")
        there.append(written)
    return _source(folder, "jpg", pyramid, there)


def _source(folder: Path, suffix: str, pyramid: Pyramid, there: list[list[str]]) -> dict[str, Any]:
    height, width = pyramid.levels[0].shape
    return {
        "folder": f"viewer/{folder.name}",
        "suffix": suffix,
        "width": width,
        "height": height,
        "side": _SIDE,
        "tiles": there,
    }


def _grey(values: NDArray[np.float32], limit: float, signed: bool) -> Image.Image:
    known = ~np.isnan(values)
    share = np.where(known, values, 0) / limit
    share = (share + 1) / 2 if signed else share
    levels = np.stack([(share.clip(0, 1) * 255).round(), known * 255.0], 2)
    return Image.fromarray(levels.astype(np.uint8))
