"""A page to look around on a slide, which opens from the disk: tiles in a folder, no server."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from matplotlib import colormaps

from niwaki.files import write_atomically
from niwaki.ownership import SIGNATURE
from niwaki.report._page import content_policy
from niwaki.report._slide_tiles import cut_layer, cut_slide
from niwaki.slides import Layer, Pyramid, SlideMaps, SlideObject, file_names, limits

__all__ = ["write_slide_viewer"]

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
