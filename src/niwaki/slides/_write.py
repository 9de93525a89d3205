"""What a slide's maps are handed on as: OME-TIFF and GeoJSON for QuPath, and tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from niwaki.files import write_csv
from niwaki.slides._explain import SlideMaps
from niwaki.slides._geojson import SlideObject, write_geojson
from niwaki.slides._maps import Layer, safe_names
from niwaki.slides._nuclei import measured_nuclei
from niwaki.slides._pyramid import Pyramid, colour_limit, coloured, write_ome_tiff
from niwaki.slides._regions import find_regions

__all__ = ["file_names", "limits", "pyramids", "write_maps", "write_nuclei", "write_objects"]

# The palette of Okabe and Ito, which eyes that tell few colours apart tell apart.
_COLOURS = (
    *((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167)),
    *((230, 159, 0), (86, 180, 233), (240, 228, 66), (90, 90, 90)),
)
_PLACE = ("row", "column", "x", "y", "width", "height")


@contextmanager
def pyramids(found: SlideMaps) -> Iterator[dict[Layer, Pyramid]]:
    """Give each map with its coarser levels, which lie on disk until the block ends."""
    with ExitStack() as stack:
        yield {
            layer: Pyramid(store, store.path.parent, stack) for layer, store in found.maps.items()
        }


def limits(made: Mapping[Layer, Pyramid]) -> dict[Layer, float]:
    """Return the value of each map that gets the full colour: 1 for probabilities.

    Maps that are compared share it: those of a network, of the one beside it and the difference.
    """
    shared: dict[tuple[str, str, str], float] = {}
    for layer, pyramid in made.items():
        key = layer.kind, layer.class_name, layer.method
        limit = 1.0 if layer.kind == "probability" else colour_limit(pyramid.levels[0])
        shared[key] = max(limit, shared.get(key, 0.0))
    return {layer: shared[layer.kind, layer.class_name, layer.method] for layer in made}


def file_names(layers: Iterable[Layer]) -> dict[Layer, str]:
    """Return a name of a file for each layer, without a suffix."""
    known = {layer: f"{layer.title}" for layer in layers}
    plain = safe_names(known.values())
    return {layer: plain[title].replace("_", "-") for layer, title in known.items()}


def write_maps(folder: Path, found: SlideMaps, made: Mapping[Layer, Pyramid]) -> list[str]:
    """Write each map as OME-TIFF, of numbers and in colours.

    Parameters
    ----------
    folder : Path
        Where the files go.
    found : SlideMaps
        What was found.
    made : mapping of Layer to Pyramid
        See `pyramids`.

    Returns
    -------
    list of str
        The files' names.
    """
    names, full, written = file_names(made), limits(made), []
    folder.mkdir(parents=True, exist_ok=True)
    for layer, pyramid in made.items():
        colours = partial(coloured, limit=full[layer], signed=layer.signed)
        for suffix, render in (("", None), ("-colours", colours)):
            written.append(f"{names[layer]}{suffix}.ome.tif")
            write_ome_tiff(folder / written[-1], pyramid, found.grid.mpp, layer.title, render)
    return written


def write_objects(
    folder: Path, found: SlideMaps, made: Mapping[Layer, Pyramid]
) -> list[SlideObject]:
    """Write the tiles as ``tiles.csv``, and tiles and regions as ``objects.geojson``.

    Parameters
    ----------
    folder, found, made
        As for `write_maps`.

    Returns
    -------
    list of SlideObject
        The regions.
    """
    write_csv(folder / "tiles.csv", found.rows)
    colours = {
        name: _COLOURS[number % len(_COLOURS)] for number, name in enumerate(found.class_names)
    }
    regions = _regions(found, made, colours)
    write_geojson(folder / "objects.geojson", [*regions, *_tiles(found, colours)])
    return regions


def write_nuclei(folder: Path, found: SlideMaps, nuclei: Sequence[SlideObject]) -> int:
    """Write nuclei with the relevance on them, as ``nuclei.geojson`` and ``nuclei.csv``.

    Parameters
    ----------
    folder, found
        As for `write_maps`.
    nuclei : sequence of SlideObject
        See `read_nuclei`.

    Returns
    -------
    int
        How many of them lie in tiles.
    """
    measured = measured_nuclei(nuclei, found.maps, found.slide, found.grid.mpp)
    kinds = sorted({one.class_name for one in measured if one.class_name is not None})
    colours = {kind: _COLOURS[number % len(_COLOURS)] for number, kind in enumerate(kinds)}
    write_geojson(folder / "nuclei.geojson", [_tinted(one, colours) for one in measured])
    rows = [
        {
            "x": round(one.centre[0], 2),
            "y": round(one.centre[1], 2),
            "type": one.class_name or "",
            **one.measurements,
        }
        for one in measured
    ]
    columns = dict.fromkeys(name for row in rows for name in row)
    write_csv(folder / "nuclei.csv", rows, columns)
    return sum(len(now.measurements) > len(then.measurements)
               for now, then in zip(measured, nuclei, strict=True))  # fmt: skip


def _regions(
    found: SlideMaps, made: Mapping[Layer, Pyramid], colours: Mapping[str, tuple[int, int, int]]
) -> list[SlideObject]:
    objects = []
    scale = found.slide.scale(found.grid.mpp)
    for layer, pyramid in made.items():
        if layer.kind != "relevance" or layer.network:
            continue
        for number, region in enumerate(find_regions(pyramid, found.grid.mpp, scale)):
            objects.append(
                SlideObject(
                    "annotation",
                    [region.polygon],
                    class_name=layer.class_name,
                    name=f"{layer.title}, region {number + 1}",
                    colour=colours.get(layer.class_name, _COLOURS[1]),
                    measurements={
                        "area in um2": round(region.area, 2),
                        "mean relevance": float(f"{region.mean:.6g}"),
                        "highest relevance": float(f"{region.highest:.6g}"),
                        "share of the positive relevance": round(region.total, 6),
                    },
                )
            )
    return objects


def _tiles(found: SlideMaps, colours: Mapping[str, tuple[int, int, int]]) -> Iterator[SlideObject]:
    for row in found.rows:
        x, y, right, bottom = row["x"], row["y"], row["x"] + row["width"], row["y"] + row["height"]
        corners = [(x, y), (right, y), (right, bottom), (x, bottom), (x, y)]
        yield SlideObject(
            "tile",
            [[[(round(a, 2), round(b, 2)) for a, b in corners]]],
            class_name=row["prediction"],
            name=f"tile {row['row']}, {row['column']}",
            colour=colours[row["prediction"]],
            measurements=_numbers(row),
        )


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: value
        for name, value in row.items()
        if name not in _PLACE and isinstance(value, (int, float))
    }


def _tinted(one: SlideObject, colours: Mapping[str, tuple[int, int, int]]) -> SlideObject:
    return replace(one, colour=colours.get(one.class_name or "", (120, 120, 120)))
