"""Patches of images whose nuclei are annotated as points: ``NAME.png`` beside ``NAME.csv``."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from niwaki.arrays import Array
from niwaki.data._images import Images
from niwaki.data._preprocessing import Preprocessing
from niwaki.data._read import in_mode, read_image
from niwaki.errors import DataError
from niwaki.ranges import NATURAL, SEED, SIDE, SOME, checked

__all__ = ["Patches", "cut_patches", "read_points"]


@dataclass(frozen=True, eq=False)
class Patches:
    """Labelled patches with the cells in them.

    Attributes
    ----------
    pixels : ndarray
        Shape (N, size, size, 3), uint8.
    labels : ndarray
        Shape (N,): 1 for positive.
    sources : ndarray
        Shape (N,): the image each patch is from, as index of `files`.
    points : list of ndarray
        For each patch rows and columns of its cells, shape (cells, 2).
    types : list of list of str
        For each patch the types of its cells.
    files : tuple of Path
        The images.
    """

    pixels: Array
    labels: Array
    sources: Array
    points: list[Array]
    types: list[list[str]]
    files: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return (
            f"Patches({len(self)} of {len(self.files)} images, {self.labels.mean():.0%} positive)"
        )

    def positive(self, kind: str) -> Array:
        """Say of each patch's cells whether they are of a type: (N, most cells), bool."""
        most = max((len(types) for types in self.types), default=0)
        found = np.zeros((len(self), most), bool)
        for row, types in zip(found, self.types, strict=True):
            row[: len(types)] = [name == kind for name in types]
        return found

    def images(
        self,
        preprocessing: Preprocessing,
        classes: tuple[str, str] = ("normal", "tumour"),
        pixels: Array | None = None,
    ) -> Images:
        """Return the patches as a data set; `pixels`, of the same shape, in place of its own."""
        shown = self.pixels if pixels is None else pixels
        return Images.of_pixels(shown, self.labels.tolist(), classes, preprocessing)


def read_points(path: str | Path) -> tuple[Array, list[str]]:
    """Read a CSV file of cells with the columns x, y and type.

    Returns
    -------
    points : ndarray
        Rows and columns, shape (cells, 2).
    types : list of str
        One per cell.

    Raises
    ------
    DataError
        A missing file, column or number.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        points = np.array([[float(row["y"]), float(row["x"])] for row in rows]).reshape(-1, 2)
        types = [row["type"] for row in rows]
        if not np.isfinite(points).all() or not all(isinstance(name, str) for name in types):
            raise ValueError("a cell without a place or a type")
        return points, types
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise DataError(f"{path} is no list of cells with x, y and type: {error!r}") from error


@checked(size=SIDE, least=NATURAL, per_image=SOME, seed=SEED)
def cut_patches(
    folder: str | Path,
    *,
    size: int = 64,
    kind: str = "epithelial",
    least: int = 3,
    per_image: int = 20,
    label: Literal["content", "centre"] = "content",
    seed: int = 0,
) -> Patches:
    """Cut patches at random positions from all annotated images of a folder.

    Parameters
    ----------
    folder : str or Path
        Folder of ``NAME.png`` with ``NAME.csv`` beside it; split patches by image, that is by
        folder.
    size : int
        Side of a patch in pixels.
    kind : str
        The type of cell that makes a patch positive.
    least : int
        A patch is positive with so many of them, negative with none of them and so many other
        cells (not glass and fat alone); what is between is left out.
    per_image : int
        Largest number of patches of each class from one image.
    label : {"content", "centre"}
        What gives the label. "centre" is the *label bias*: a patch lies around a random cell and is
        positive if that cell is, whatever else is in it.
    seed : int
        The same seed cuts the same patches.

    Raises
    ------
    DataError
        A folder without annotated images, images that are too small, or no patch of a class.
    """
    home = Path(folder).expanduser()
    files = sorted(file for file in home.glob("*.png") if file.with_suffix(".csv").exists())
    if not files:
        raise DataError(f"{home} has no NAME.png with a NAME.csv beside it")
    rng = np.random.default_rng(seed)
    found: list[tuple[Array, int, int, Array, list[str]]] = []
    for source, file in enumerate(files):
        image = np.asarray(in_mode(read_image(file), "RGB"))
        if min(image.shape[:2]) <= size:
            raise DataError(f"{file} is {image.shape[1]} x {image.shape[0]}, no room for {size} px")
        points, types = read_points(file.with_suffix(".csv"))
        is_kind = np.array([name == kind for name in types], dtype=bool)
        corners = _corners(rng, image.shape, points, size, label)
        taken = {0: 0, 1: 0}
        for corner, centre in corners:
            inside = np.logical_and(points >= corner, points < corner + size).all(axis=1)
            value = _label(is_kind, np.asarray(inside), least, centre)
            if value is None or taken[value] >= per_image:
                continue
            taken[value] += 1
            top, left = corner
            chosen = np.flatnonzero(inside)
            found.append(
                (
                    image[top : top + size, left : left + size],
                    value,
                    source,
                    points[chosen] - corner,
                    [types[i] for i in chosen],
                )
            )
    if len({row[1] for row in found}) < 2:
        raise DataError(
            f"{home} gives patches of one class only, with {kind!r} as what is looked for"
        )
    pixels, labels, sources, places, kinds = zip(*found, strict=True)
    return Patches(
        np.stack(pixels),
        np.array(labels),
        np.array(sources),
        list(places),
        list(kinds),
        tuple(files),
    )


def _corners(
    rng: np.random.Generator, shape: tuple[int, ...], points: Array, size: int, label: str
) -> list[tuple[Array, int | None]]:
    """List random upper left corners, each with the cell at the centre if that one counts."""
    room = np.array(shape[:2]) - size
    if label == "content":
        return [(corner, None) for corner in rng.integers(0, room + 1, (400, 2))]
    corners = np.round(points - size / 2).astype(int)
    fits = ((corners >= 0) & (corners <= room)).all(1)
    return [(corners[cell], int(cell)) for cell in rng.permutation(np.flatnonzero(fits))]


def _label(is_kind: Array, inside: Array, least: int, centre: int | None) -> int | None:
    if centre is not None:
        return int(is_kind[centre])
    count = int((is_kind & inside).sum())
    if count >= least:
        return 1
    return 0 if count == 0 and int(inside.sum()) >= least else None
