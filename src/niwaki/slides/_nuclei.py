"""Nuclei on a slide: read from GeoJSON or CSV, with the relevance that lies on each."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import cos, pi, sin
from pathlib import Path
from typing import Any

import numpy as np

from niwaki.errors import DataError
from niwaki.ranges import POSITIVE, Range, checked
from niwaki.slides._geojson import SlideObject, read_geojson
from niwaki.slides._maps import Layer
from niwaki.slides._slide import Slide
from niwaki.slides._store import BLOCK, Store

__all__ = ["RADIUS", "disc", "measured_nuclei", "read_nuclei"]

RADIUS = Range(0.5, 100, why="it is that of a nucleus, in micrometres")
_SIDES = 16  # of the polygon that stands for a disc


def read_nuclei(path: str | Path) -> list[SlideObject]:
    """Read nuclei from a CSV file with the columns x, y and, if known, type, or from GeoJSON.

    Parameters
    ----------
    path : str or Path
        Path of the file. Positions are in pixels of full resolution. From GeoJSON, detections and
        cells are read, and annotated points.

    Raises
    ------
    DataError
        If it holds none, or something else.
    """
    file = Path(path)
    found = _from_csv(file) if file.suffix.lower() in (".csv", ".tsv") else _from_geojson(file)
    if not found:
        raise DataError(f"there are no nuclei in {file}: no detections, cells or points")
    return found


def _from_csv(file: Path) -> list[SlideObject]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:
            between = "\t" if file.suffix.lower() == ".tsv" else ","
            rows = list(csv.DictReader(opened, delimiter=between))
        places = [(float(row["x"]), float(row["y"])) for row in rows]
        if not np.isfinite(np.array(places)).all():
            raise ValueError("a position that is not finite")
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise DataError(
            f"{file} is no list of nuclei with the columns x, y and, if known, type: {error!r}"
        ) from error
    kinds = [(row.get("type") or "").strip() or None for row in rows]
    return [
        SlideObject("detection", points=[place], class_name=kind)
        for place, kind in zip(places, kinds, strict=True)
    ]


def _from_geojson(file: Path) -> list[SlideObject]:
    found: list[SlideObject] = []
    for one in read_geojson(file):
        if one.kind in ("detection", "cell"):
            found.append(one)
        elif one.kind == "annotation" and one.points:
            found += [replace(one, kind="detection", points=[point]) for point in one.points]
    return found


@checked(radius=RADIUS, mpp=POSITIVE)
def measured_nuclei(
    nuclei: Sequence[SlideObject],
    maps: Mapping[Layer, Store],
    slide: Slide,
    mpp: float,
    *,
    radius: float = 4.0,
) -> list[SlideObject]:
    """Measure each map on each nucleus: the mean over its pixels, and for relevance the sum.

    Parameters
    ----------
    nuclei : sequence of SlideObject
        A nucleus with an outline has its pixels, and so has that of a cell; of a cell without one,
        all pixels count, and of a point those within the radius.
    maps : mapping of Layer to Store
        At `mpp` micrometres per pixel.
    slide : Slide
        Which they lie on.
    mpp : float
        Micrometres per pixel of the maps.
    radius : float
        Radius of a nucleus without an outline, in micrometres.

    Returns
    -------
    list of SlideObject
        In the same order, with polygons and measurements; those outside of all tiles have none.
    """
    scale = slide.scale(mpp)
    found: list[SlideObject] = [*nuclei]
    # Neighbours one after the other, so that each block of a map is read from the disk once.
    order = sorted(range(len(nuclei)), key=lambda n: _block(nuclei[n], scale))
    for number in order:
        one = nuclei[number]
        if not one.polygons:
            one = replace(one, polygons=[[disc(*one.points[0], radius, slide.mpp)]])
        left, top, inside = _pixels(one, scale)
        numbers = dict(one.measurements)
        for layer, store in maps.items():
            values = store.read(left, top, inside.shape[1], inside.shape[0])[inside]
            values = values[~np.isnan(values)].astype(np.float64)
            if values.size:
                numbers[f"{layer.title}, mean"] = _rounded(values.mean())
                if layer.kind == "relevance":
                    numbers[f"{layer.title}, sum"] = _rounded(values.sum())
        found[number] = replace(one, points=[], measurements=numbers)
    return found


def _block(one: SlideObject, scale: tuple[float, float]) -> tuple[int, int]:
    x, y = one.centre
    return int(y / scale[1]) // BLOCK, int(x / scale[0]) // BLOCK


def disc(x: float, y: float, radius: float, mpp: tuple[float, float]) -> list[tuple[float, float]]:
    """Return the closed polygon that stands for a disc, in pixels; the radius in micrometres."""
    angles = [2 * pi * side / _SIDES for side in range(_SIDES)]
    ring = [
        (round(x + radius / mpp[0] * cos(a), 2), round(y + radius / mpp[1] * sin(a), 2))
        for a in angles
    ]
    return [*ring, ring[0]]


def _pixels(one: SlideObject, scale: tuple[float, float]) -> tuple[int, int, Any]:
    """Return left, top and a mask of the pixels whose middle lies in the outline."""
    from skimage.draw import polygon

    rings = [np.array(rings[0]) / scale for rings in one.nucleus or one.polygons]
    low = np.floor(np.min([ring.min(0) for ring in rings], 0)).astype(int)
    high = np.ceil(np.max([ring.max(0) for ring in rings], 0)).astype(int)
    width, height = np.minimum(np.maximum(high - low, 1), 4096).tolist()
    mask = np.zeros((height, width), bool)
    draw: Any = polygon
    for ring in rings:
        columns, rows = (ring - low - 0.5).T
        mask[draw(rows, columns, mask.shape)] = True
    if not mask.any():  # smaller than a pixel
        middle = np.array(one.centre) / scale
        column, row = np.clip(np.floor(middle).astype(int) - low, 0, (width - 1, height - 1))
        mask[row, column] = True
    return int(low[0]), int(low[1]), mask


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
