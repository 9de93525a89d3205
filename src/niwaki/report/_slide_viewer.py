"""What a person sees of a slide: an overview, and a page to look around that needs no server."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from matplotlib import colormaps
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from niwaki.files import write_atomically
from niwaki.ownership import SIGNATURE
from niwaki.report._figures import save_figure
from niwaki.report._page import content_policy
from niwaki.slides import Layer, Pyramid, SlideMaps, SlideObject, file_names, limits

__all__ = ["cut_layer", "cut_slide", "slide_overview", "write_slide_viewer"]

_STOPS = 33
# What OpenSeadragon adds to the page's style.
_ADDED = (
    "@media (hover: none) {    .openseadragon-canvas:focus {        outline: none !important;    }}"
)
# All can be told apart by people who are colour-blind.
_SIGNED = {"red and blue": "RdBu_r", "orange and purple": "PuOr_r"}
_PLAIN = {"viridis": "viridis", "cividis": "cividis", "magma": "magma"}


def write_slide_viewer(
    folder: Path,
    found: SlideMaps,
    made: Mapping[Layer, Pyramid],
    regions: Sequence[SlideObject],
    about: Mapping[str, str],
) -> None:
    """Write ``viewer.html``, and the tiles that it shows into the folder ``viewer``.

    Parameters
    ----------
    folder : Path
        Where both go.
    found : SlideMaps
        See `niwaki.slides.explain_slide`.
    made : mapping of Layer to Pyramid
        See `niwaki.slides.pyramids`.
    regions : sequence of SlideObject
        That the page leads to.
    about : mapping of str to str
        How it was made.
    """
    place = folder / "viewer"
    names, full = file_names(made), limits(made)
    layers = [
        {
            "title": layer.title,
            "kind": layer.kind,
            "signed": layer.signed,
            "limit": full[layer],
            "source": cut_layer(place / names[layer], pyramid, full[layer], layer.signed),
        }
        for layer, pyramid in made.items()
    ]
    data = {
        "name": found.slide.path.name,
        "mpp": found.grid.mpp,
        "scale": list(found.slide.scale(found.grid.mpp)),
        "slide": cut_slide(place / "slide", found, made),
        "layers": layers,
        "columns": list(found.rows[0]),
        "tiles": [list(row.values()) for row in found.rows],
        "regions": [
            {
                "name": one.name,
                "layer": one.name.rpartition(",")[0],
                "rings": one.polygons[0],
                "measurements": dict(one.measurements),
            }
            for one in regions
        ],
        "maps": {
            "signed": {name: _tables(known) for name, known in _SIGNED.items()},
            "plain": {name: _tables(known) for name, known in _PLAIN.items()},
        },
    }
    _write(folder / "viewer.html", data, about)


def _tables(name: str) -> list[str]:
    """Return red, green and blue of a colour map as tables of an SVG filter."""
    colours = colormaps[name](np.linspace(0, 1, _STOPS))[:, :3]
    return [" ".join(f"{value:.3f}" for value in channel) for channel in colours.T]


def _write(path: Path, data: Mapping[str, Any], about: Mapping[str, str]) -> None:
    environment = Environment(loader=PackageLoader("niwaki.report"), autoescape=True)
    style = _source("templates/viewer.css")
    scripts = [
        _source("vendor/openseadragon/openseadragon.min.js").partition("//# sourceMapping")[0],
        _source("templates/viewer.js"),
    ]
    # In a script, no text may end it; as JSON, the sign reads the same written out.
    text = json.dumps(data, ensure_ascii=True, allow_nan=False).replace("<", "\\u003c")
    page = environment.get_template("viewer.html.j2").render(
        signature=SIGNATURE,
        policy=content_policy((style, _ADDED), scripts, "'self' file: data:"),
        style=Markup(style),
        scripts=[Markup(script) for script in scripts],
        data=Markup(text),
        heading=data["name"],
        layers=data["layers"],
        about=about,
    )
    content = page.encode("utf-8", "backslashreplace")
    write_atomically(path, lambda file: file.write_bytes(content))


def _source(name: str) -> str:
    return (files("niwaki.report") / name).read_text(encoding="utf-8")


_SIDE = 1200  # pixels that a map is shown with at the most
_PANELS = 9
_ROWS = 4  # of two networks that are compared
_WIDTH = 5.0  # inches of a panel
_TEXT, _LETTERS = 13, 36  # points, and letters on a line above a panel


def slide_overview(path: str | Path, found: SlideMaps, made: Mapping[Layer, Pyramid]) -> None:
    """Draw the slide with the outline of its tissue, and up to eight maps with their scales.

    Maps of two networks and their difference lie side by side, in a row for each class and method.

    Parameters
    ----------
    path : str or Path
        Path of the PNG file.
    found : SlideMaps
        See `niwaki.slides.explain_slide`.
    made : mapping of Layer to Pyramid
        See `niwaki.slides.pyramids`.
    """
    places = _places(list(made))
    rows, columns = (max(place) + 1 for place in zip((0, 0), *places.values(), strict=True))
    width, height = found.grid.canvas
    tall = 0.8 * _WIDTH * min(2.0, max(0.5, height / width)) + 0.6
    figure = Figure(figsize=(_WIDTH * columns, tall * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for panel in panels.ravel():
        panel.set_axis_off()
    slide = panels[0, 0]
    whole = (0.0, float(width), float(height), 0.0)
    slide.imshow(found.tissue.overview, extent=whole)
    if not found.tissue.mask.all():
        rows_of, columns_of = found.tissue.mask.shape
        x = (np.arange(columns_of) + 0.5) * found.tissue.mpp / found.grid.mpp
        y = (np.arange(rows_of) + 0.5) * found.tissue.mpp / found.grid.mpp
        slide.contour(x, y, found.tissue.mask, levels=[0.5], colors=["#006d4f"], linewidths=1)
    _name(slide, f"{found.slide.path.name}: tissue ({found.tissue.share:.0%})")
    full = limits(made)
    for layer, (row, column) in places.items():
        _draw(figure, panels[row, column], layer, made[layer], full[layer], found)
    save_figure(path, figure)


def _places(layers: Sequence[Layer]) -> dict[Layer, tuple[int, int]]:
    """Return row and column of the panel of each layer that is drawn; the slide is at 0, 0."""
    if any(layer.network for layer in layers):
        groups: dict[tuple[str, str, str], list[Layer]] = {}
        for layer in layers:
            groups.setdefault((layer.kind, layer.class_name, layer.method), []).append(layer)
        shown = list(groups.values())[:_ROWS]
        return {
            layer: (row, column)
            for row, group in enumerate(shown)
            for column, layer in enumerate(group, 1)
        }
    few = layers[: _PANELS - 1]
    columns = 2 if len(few) + 1 in (2, 4) else 3
    return {layer: divmod(number, columns) for number, layer in enumerate(few, 1)}


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
    _name(panel, layer.title)
    figure.colorbar(shown, ax=panel, shrink=0.7).ax.tick_params(labelsize=_TEXT - 1)


def _name(panel: Any, title: str) -> None:
    """Put a name above a panel, on as many lines as it needs."""
    panel.set_title("\n".join(wrap(title, _LETTERS)), fontsize=_TEXT)


_TILE = 512  # of a tile, which is a block of a map
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
            height = min(_TILE, level.shape[0] - row * _TILE)
            width = min(_TILE, level.shape[1] - column * _TILE)
            picture = _grey(block[:height, :width], limit, signed)
            picture.save(place / f"{column}_{row}.png", compress_level=1)
            written.append(f"{column}_{row}")
        there.append(written)
    return _tile_source(folder, "png", pyramid, there)


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
                height = min(_TILE, level.shape[0] - row * _TILE)
                width = min(_TILE, level.shape[1] - column * _TILE)
                pixels = found.slide.read(column * _TILE, row * _TILE, width, height, mpp)
                Image.fromarray(pixels).save(place / f"{column}_{row}.jpg", quality=_QUALITY)
                written.append(f"{column}_{row}")
        there.append(written)
    return _tile_source(folder, "jpg", pyramid, there)


def _tile_source(
    folder: Path, suffix: str, pyramid: Pyramid, there: list[list[str]]
) -> dict[str, Any]:
    height, width = pyramid.levels[0].shape
    return {
        "folder": f"viewer/{folder.name}",
        "suffix": suffix,
        "width": width,
        "height": height,
        "side": _TILE,
        "tiles": there,
    }


def _grey(values: NDArray[np.float32], limit: float, signed: bool) -> Image.Image:
    known = ~np.isnan(values)
    share = np.where(known, values, 0) / limit
    share = (share + 1) / 2 if signed else share
    levels = np.stack([(share.clip(0, 1) * 255).round(), known * 255.0], 2)
    return Image.fromarray(levels.astype(np.uint8))
