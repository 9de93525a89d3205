"""Labelled tiles for training and for the audit, cut out of slides where these are annotated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from niwaki.arrays import Array
from niwaki.data import read_image
from niwaki.errors import DataError
from niwaki.ranges import SEED, SHARE, SIDE, SOME, checked
from niwaki.slides._geojson import SlideObject
from niwaki.slides._nuclei import RADIUS, disc
from niwaki.slides._slide import MPP, Slide
from niwaki.slides._tissue import find_tissue

__all__ = ["Labelled", "cut", "labelled_places", "read_mask", "region_masks"]


_WHITE = 255  # of a mask of two values
_CELLS = 8  # of a tile's side, in which annotations are drawn


@dataclass(frozen=True)
class Labelled:
    """A tile with a label, by its upper left corner in pixels of the tiles' resolution."""

    class_name: str
    x: int
    y: int


@checked(size=SIDE, mpp=MPP, cover=SHARE, most=SOME, seed=SEED)
def labelled_places(
    slide: Slide,
    objects: Sequence[SlideObject],
    *,
    size: int,
    mpp: float,
    cover: float = 0.75,
    rest: str | None = None,
    most: int | None = None,
    seed: int = 0,
) -> list[Labelled]:
    """Find the tiles that annotations give a label.

    Annotated areas are covered by tiles side by side; where areas overlap, the smaller one counts,
    as one that is drawn into another. A tile lies around each point, each nucleus, and each tile
    that was exported.

    Parameters
    ----------
    slide : Slide
        That was annotated.
    objects : sequence of SlideObject
        See `read_geojson`; those without a class are left out.
    size : int
        Side of a tile in pixels.
    mpp : float
        Micrometres per pixel.
    cover : float
        Share of a tile that must be of one class.
    rest : str, optional
        The class of tissue that is not annotated; default: it is left out.
    most : int, optional
        Largest number of tiles of a class, drawn at random.
    seed : int
        The same seed draws the same ones.

    Raises
    ------
    DataError
        If nothing has a class, or no tile is of one.
    """
    slide.check(mpp)
    known = [one for one in objects if one.class_name]
    areas = [one for one in known if one.kind == "annotation" and one.polygons]
    centred = [one for one in known if one.kind != "annotation" or one.points]
    if not known:
        raise DataError(
            f"none of {len(objects)} annotations of {slide.path.name} has a class; give them one "
            "in QuPath (Set class) and export them again"
        )
    found = list(_around(slide, centred, size, mpp))
    if areas or rest is not None:
        names = list(dict.fromkeys(one.class_name or "" for one in areas))
        drawn = _drawn(slide, areas, names, size, mpp)
        found += _covered(slide, drawn, names, size, mpp, cover, rest)
    if not found:
        raise DataError(
            f"no tile of {size} pixels of {mpp:g} um on {slide.path.name} is covered by one class "
            f"to {cover:.0%}: the annotations are smaller, or lie elsewhere; try smaller tiles, a "
            "finer resolution or less cover"
        )
    return found if most is None else _some(found, most, seed)


def read_mask(path: Path, slide: Slide, names: Sequence[str] = ()) -> list[SlideObject]:
    """Read a mask as annotations: an image of the whole slide whose values are classes.

    Parameters
    ----------
    path : Path
        An image in grey or with a palette; 0 is not annotated.
    slide : Slide
        Which the mask covers, at whatever resolution.
    names : sequence of str
        Names of all values from 1 on, or that of 255 where it is the only value; default: the
        values themselves.

    Raises
    ------
    DataError
        For colours, for a mask of another shape than the slide, and for values without a name.
    """
    from scipy import ndimage

    from niwaki.slides._regions import outlines

    with Image.open(path) as file:
        indexed = file.mode == "P"
        image = file.copy() if indexed else read_image(path)
    if image.mode not in ("L", "P", "1", "I;16"):
        raise DataError(f"{path} is in colour; a mask has the number of a class in each pixel")
    values = np.asarray(image).astype(int)
    across, down = slide.size[0] / values.shape[1], slide.size[1] / values.shape[0]
    if abs(across / down - 1) > 0.02 + 1 / min(values.shape):
        raise DataError(
            f"{path} has {values.shape[1]} x {values.shape[0]} pixels, which is not the shape of "
            f"{slide.path.name} ({slide.size[0]} x {slide.size[1]}): a mask covers the whole slide"
        )
    there = np.unique(values[values > 0]).tolist()
    binary = there == [_WHITE] and len(names) == 1
    if names and there and there[-1] > len(names) and not binary:
        raise DataError(
            f"{path} has the value {there[-1]}, and there are names for {len(names)}: the first is "
            "that of the value 1, the second that of 2. One name also goes with a mask of 0 and 255"
        )
    found = []
    for value in there:
        name = names[0 if binary else value - 1] if names else str(value)
        labels, _ = ndimage.label(values == value)
        for number, place in enumerate(ndimage.find_objects(labels), 1):
            top, left = place[0].start, place[1].start
            rings = [
                [((x + left) * across, (y + top) * down) for x, y in ring]
                for ring in outlines(labels[place] == number)
            ]
            found.append(SlideObject("annotation", [rings], class_name=name))
    return found


@checked(size=SIDE, mpp=MPP)
def cut(slide: Slide, places: Sequence[Labelled], size: int, mpp: float) -> Iterator[Image.Image]:
    """Yield the picture of each tile."""
    for one in places:
        yield Image.fromarray(slide.read(one.x, one.y, size, size, mpp))


@checked(size=SIDE, mpp=MPP, radius=RADIUS)
def region_masks(
    slide: Slide,
    objects: Sequence[SlideObject],
    places: Sequence[Labelled],
    size: int,
    mpp: float,
    *,
    radius: float = 4.0,
) -> Iterator[Array]:
    """Yield a mask for each tile: the pixels whose centres lie in any of the objects.

    Parameters
    ----------
    slide : Slide
        The slide that was annotated.
    objects : sequence of SlideObject
        Areas, whose holes are left out, nuclei and points.
    places : sequence of Labelled
        The tiles.
    size : int
        Side of a tile in pixels.
    mpp : float
        Micrometres per pixel of the tiles.
    radius : float
        Radius of the disc that stands for a point, in micrometres.

    Yields
    ------
    ndarray
        Shape (size, size), bool.
    """
    from skimage.draw import polygon

    draw: Any = polygon
    discs = ([disc(x, y, radius, slide.mpp)] for one in objects for x, y in one.points)
    outlined = [*(rings for one in objects for rings in one.polygons), *discs]
    areas = [[np.array(ring) / slide.scale(mpp) for ring in rings] for rings in outlined]
    low = np.array([rings[0].min(0) for rings in areas]).reshape(-1, 2)
    high = np.array([rings[0].max(0) for rings in areas]).reshape(-1, 2)
    for one in places:
        corner = np.array([one.x, one.y])
        found = np.zeros((size, size), bool)
        for near in np.flatnonzero((low < corner + size).all(1) & (high > corner).all(1)):
            inside = np.zeros_like(found)
            for number, ring in enumerate(areas[near]):
                columns, rows = (ring - corner - 0.5).T
                inside[draw(rows, columns, inside.shape)] = number == 0
            found |= inside
        yield found


def _around(
    slide: Slide, objects: Sequence[SlideObject], size: int, mpp: float
) -> Iterator[Labelled]:
    width, height = slide.canvas(mpp)
    across, down = slide.scale(mpp)
    for one in objects:
        centres = one.points or [one.centre]
        for x, y in centres:
            left, top = round(x / across - size / 2), round(y / down - size / 2)
            if 0 <= left <= width - size and 0 <= top <= height - size:
                yield Labelled(one.class_name or "", left, top)


def _drawn(
    slide: Slide, areas: Sequence[SlideObject], names: Sequence[str], size: int, mpp: float
) -> Array:
    """Draw areas into cells: 0 for none, k + 1 for the k-th class; the smaller ones last."""
    width, height = slide.canvas(mpp)
    across, down = (side * size / _CELLS for side in slide.scale(mpp))
    cells = np.zeros((-(-height // size) * _CELLS, -(-width // size) * _CELLS), np.int16)
    parts = [(rings, one.class_name or "") for one in areas for rings in one.polygons]
    for rings, name in sorted(parts, key=lambda part: -_area(part[0][0])):
        corner, mask = _inside(rings, (across, down), cells.shape)
        part = cells[corner[1] : corner[1] + mask.shape[0], corner[0] : corner[0] + mask.shape[1]]
        part[mask] = names.index(name) + 1
    return cells


def _inside(
    rings: Sequence[Sequence[tuple[float, float]]],
    scale: tuple[float, float],
    shape: tuple[int, ...],
) -> tuple[tuple[int, int], Array]:
    """Return the corner and a mask of the cells whose middle lies in a polygon, holes left out."""
    from skimage.draw import polygon

    draw: Any = polygon
    points = np.array(rings[0]) / scale
    low = np.clip(np.floor(points.min(0)).astype(int), 0, (shape[1], shape[0]))
    high = np.clip(np.ceil(points.max(0)).astype(int), low, (shape[1], shape[0]))
    mask = np.zeros((high[1] - low[1], high[0] - low[0]), bool)
    for number, ring in enumerate(rings):
        columns, rows = (np.array(ring) / scale - low - 0.5).T
        mask[draw(rows, columns, mask.shape)] = number == 0
    return (int(low[0]), int(low[1])), mask


def _covered(
    slide: Slide,
    cells: Array,
    names: Sequence[str],
    size: int,
    mpp: float,
    cover: float,
    rest: str | None,
) -> Iterator[Labelled]:
    width, height = slide.canvas(mpp)
    rows, columns = (side // _CELLS for side in cells.shape)
    tiles = cells.reshape(rows, _CELLS, columns, _CELLS).swapaxes(1, 2).reshape(rows, columns, -1)
    whole = np.zeros((rows, columns), bool)
    whole[: height // size, : width // size] = True
    for number, name in enumerate(names):
        share = (tiles == number + 1).mean(2)
        for row, column in np.argwhere(whole & (share >= cover) & (share > 0)).tolist():
            yield Labelled(name, column * size, row * size)
    if rest is None:
        return
    free = np.argwhere(whole & ((tiles == 0).mean(2) == 1))
    boxes = np.concatenate([free[:, ::-1] * size, np.full_like(free, size)], 1)
    shares = find_tissue(slide).shares(boxes, mpp)
    for (row, column), share in zip(free.tolist(), shares.tolist(), strict=True):
        if share >= cover:
            yield Labelled(rest, column * size, row * size)


def _some(found: Sequence[Labelled], most: int, seed: int) -> list[Labelled]:
    rng = np.random.default_rng(seed)
    kept: set[int] = set()
    for name in dict.fromkeys(one.class_name for one in found):
        members = [n for n, one in enumerate(found) if one.class_name == name]
        kept |= set(rng.permutation(members)[:most].tolist())
    return [found[n] for n in sorted(kept)]


def _area(ring: Sequence[tuple[float, float]]) -> float:
    x, y = np.array(ring).T
    return float(abs((x * np.roll(y, -1) - np.roll(x, -1) * y).sum()) / 2)
