"""Objects of QuPath as GeoJSON, written and read: in pixels of full resolution."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias
from uuid import UUID, uuid5

from niwaki.errors import DataError
from niwaki.files import write_text
from niwaki.schema import Anything, Either, ListOf, Record, Text, parse_json

__all__ = ["Kind", "SlideObject", "read_geojson", "write_geojson"]

Kind: TypeAlias = Literal["annotation", "tile", "detection", "cell"]
Ring: TypeAlias = "list[tuple[float, float]]"

_SPACE = UUID("6f0ad5b1-6d0c-5b8e-9a76-6e6977616b69")  # in which our names are unique
_LARGEST = 2**31  # bytes of a file
_KINDS = ("annotation", "tile", "detection", "cell")


@dataclass(frozen=True)
class SlideObject:
    """Something on a slide.

    Attributes
    ----------
    kind : {"annotation", "tile", "detection", "cell"}
        As QuPath calls it.
    polygons : list of list of list of pair of float
        Each an outer ring and its holes; empty for points.
    nucleus : list of list of list of pair of float
        Of a cell, the polygons of its nucleus, if they are known.
    points : list of pair of float
        Where there are no polygons.
    class_name : str or None
        What it is classified as.
    name : str
        May be empty.
    colour : tuple of int
        Red, green and blue, of its class.
    measurements : dict of str to float
        By name.
    """

    kind: Kind
    polygons: list[list[Ring]] = field(default_factory=list)
    points: list[tuple[float, float]] = field(default_factory=list)
    nucleus: list[list[Ring]] = field(default_factory=list)
    class_name: str | None = None
    name: str = ""
    colour: tuple[int, int, int] = (200, 0, 0)
    measurements: Mapping[str, float] = field(default_factory=dict)

    @property
    def centre(self) -> tuple[float, float]:
        """The middle of the box around its nucleus or itself, or its first point."""
        outlined = self.nucleus or self.polygons
        corners = [point for rings in outlined for point in rings[0]] or self.points[:1]
        x, y = zip(*corners, strict=True)
        return (min(x) + max(x)) / 2, (min(y) + max(y)) / 2


def write_geojson(path: str | Path, objects: Iterable[SlideObject]) -> None:
    """Write objects as QuPath exports them, atomically; equal objects give equal files.

    Parameters
    ----------
    path : str or Path
        Path of the file.
    objects : iterable of SlideObject
        Numbers that are not finite are left out of their measurements. Line breaks in
        names of classes become spaces: QuPath opens no file with a class whose name has them.
    """
    lines = [
        json.dumps(_feature(one, number), ensure_ascii=True, allow_nan=False)
        for number, one in enumerate(objects)
    ]
    text = ",\n".join(lines)
    write_text(path, f'{{"type": "FeatureCollection", "features": [\n{text}\n]}}\n')


def _feature(one: SlideObject, number: int) -> dict[str, Any]:
    geometry = _geometry(one.polygons, one.points)
    told = f"{number}/{one.kind}/{one.class_name}/{one.name}/{json.dumps(geometry)}"
    properties: dict[str, Any] = {"objectType": one.kind}
    if one.name:
        properties["name"] = one.name
    properties["color"] = list(one.colour)
    if one.class_name is not None:
        plain = " ".join(one.class_name.splitlines())
        properties["classification"] = {"name": plain, "color": list(one.colour)}
    if one.kind == "annotation":
        properties["isLocked"] = True
    known = {k: v for k, v in one.measurements.items() if abs(v) < float("inf")}
    if known:
        properties["measurements"] = known
    return {
        "type": "Feature",
        "id": str(uuid5(_SPACE, told)),
        "geometry": geometry,
        **({"nucleusGeometry": _geometry(one.nucleus, [])} if one.nucleus else {}),
        "properties": properties,
    }


def _geometry(
    polygons: Sequence[list[Ring]], points: Sequence[tuple[float, float]]
) -> dict[str, Any]:
    if len(polygons) == 1:
        return {"type": "Polygon", "coordinates": _listed(polygons[0])}
    if polygons:
        return {"type": "MultiPolygon", "coordinates": [_listed(rings) for rings in polygons]}
    if len(points) == 1:
        return {"type": "Point", "coordinates": list(points[0])}
    return {"type": "MultiPoint", "coordinates": [list(point) for point in points]}


def _listed(rings: Sequence[Ring]) -> list[list[list[float]]]:
    return [[[x, y] for x, y in ring] for ring in rings]


def read_geojson(path: str | Path) -> list[SlideObject]:
    """Read what QuPath exports: a collection of features, a list of them, or a single one.

    Lines are left out, as nothing lies in them. So are measurements that are NaN or infinite, which
    QuPath writes for what it could not measure.

    Parameters
    ----------
    path : str or Path
        Path of the file.

    Raises
    ------
    DataError
        If the file cannot be read or holds something else.
    """
    file = Path(path)
    try:
        if file.stat().st_size > _LARGEST:
            raise DataError(f"{file} has more than {_LARGEST // 2**30} GB; export fewer objects")
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read as GeoJSON: {error}") from error
    complaint = f"{file} is no GeoJSON of QuPath"
    form = Either(_FEATURES, Either(ListOf(_FEATURE), _FEATURE))
    found = parse_json(text, form, complaint, constant=lambda _: None)
    features = found if isinstance(found, list) else found.get("features", [found])
    objects = []
    for number, feature in enumerate(features):
        try:
            made = _object(feature)
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            raise DataError(f"{complaint}: feature {number} is odd ({error!r})") from error
        if made is not None:
            objects.append(made)
    return objects


_FEATURE = Record({"type": Text(("Feature",)), "geometry": Anything()}, open=True)
_FEATURES = Record({"type": Text(("FeatureCollection",)), "features": ListOf(_FEATURE)}, open=True)


def _object(feature: Mapping[str, Any]) -> SlideObject | None:
    properties = feature.get("properties") or {}
    kind = properties.get("objectType", properties.get("object_type", "annotation"))
    classified = properties.get("classification") or {}
    name = classified.get("name", ": ".join(classified.get("names", [])) or None)
    shape = _shape(feature["geometry"])
    if shape is None:
        return None
    polygons, points = shape
    inner = _shape(feature.get("nucleusGeometry") or {"type": "none"})
    return SlideObject(
        kind if kind in _KINDS else "annotation",
        polygons,
        points,
        [] if inner is None else inner[0],
        None if name is None else str(name),
        str(properties.get("name") or ""),
        measurements=_measurements(properties.get("measurements") or {}),
    )


def _shape(
    geometry: Mapping[str, Any],
) -> tuple[list[list[Ring]], list[tuple[float, float]]] | None:
    """Read polygons and points; None for other geometries."""
    numbers: Any = geometry.get("coordinates")
    match geometry["type"]:
        case "Polygon":
            return [_rings(numbers)], []
        case "MultiPolygon":
            return [_rings(rings) for rings in numbers], []
        case "Point":
            return [], _ring([numbers])
        case "MultiPoint":
            return [], _ring(numbers)
    return None


def _rings(found: Any) -> list[Ring]:
    rings = [_ring(ring) for ring in found]
    if not rings:
        raise ValueError("a polygon without a ring")
    return rings


def _ring(points: Sequence[Sequence[float]]) -> Ring:
    found = [(float(point[0]), float(point[1])) for point in points]
    if not found:
        raise ValueError("a ring without points")
    return found


def _measurements(found: Any) -> dict[str, float]:
    """Read measurements; before version 0.4, QuPath wrote a list of names and values."""
    pairs = (
        found.items() if isinstance(found, Mapping) else ((m["name"], m["value"]) for m in found)
    )
    return {str(name): float(value) for name, value in pairs if isinstance(value, (int, float))}
