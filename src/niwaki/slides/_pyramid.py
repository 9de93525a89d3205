"""Maps as pyramidal OME-TIFF, which QuPath lays over the slide: of numbers, and in colours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from niwaki.arrays import Array
from niwaki.errors import NiwakiError
from niwaki.files import write_atomically
from niwaki.ranges import POSITIVE, checked
from niwaki.slides._store import BLOCK, Store

__all__ = ["Pyramid", "colour_limit", "coloured", "write_ome_tiff"]


_SAMPLES = 2**20  # values that a percentile is taken of
_COLOUR_MAPS = {False: "viridis", True: "RdBu_r"}  # safe for eyes that tell few colours apart


class Pyramid:
    """A map and its halves, down to a single block.

    Parameters
    ----------
    store : Store
        The finest level.
    scratch : Path
        A folder for the others.
    stack : ExitStack
        Closes them.

    Attributes
    ----------
    levels : list of Store
        The finest first; each half as wide and high as the one before, rounded up.
    """

    def __init__(self, store: Store, scratch: Path, stack: ExitStack) -> None:
        self.levels = [store]
        while max(self.levels[-1].shape) > BLOCK:
            finer = self.levels[-1]
            height, width = (-(-side // 2) for side in finer.shape)
            path = scratch / f"{store.path.name}.{len(self.levels)}"
            coarser = stack.enter_context(Store(path, height, width))
            for row, column, block in finer.blocks():
                if block is not None:
                    half = BLOCK // 2
                    coarser.put(column * half, row * half, _halved(block))
            self.levels.append(coarser)


def _halved(block: Array) -> Array:
    """Return the mean of each two by two values that are numbers."""
    parts = np.stack([block[y::2, x::2] for y in (0, 1) for x in (0, 1)])
    known = ~np.isnan(parts)
    count = known.sum(0)
    sums = np.where(known, parts, 0).sum(0)
    return np.where(count > 0, sums / np.maximum(count, 1), np.nan).astype(np.float32)


@checked(mpp=POSITIVE)
def write_ome_tiff(
    path: Path,
    pyramid: Pyramid,
    mpp: float,
    name: str,
    render: Callable[[Array], Array] | None = None,
) -> None:
    """Write a pyramid as BigTIFF with OME's metadata, tile by tile.

    Parameters
    ----------
    path : Path
        Path of the file, NAME.ome.tif; it is written atomically.
    pyramid : Pyramid
        What is written.
    mpp : float
        Micrometres per pixel.
    name : str
        Name of the image.
    render : callable, optional
        Turns a block of numbers into one of colours, (512, 512, 3), uint8; by default the numbers
        are written, as float32.
    """
    tifffile = _tifffile()
    samples = (3,) if render else ()

    def tiles(level: Store) -> Iterator[Array]:
        empty = np.full((BLOCK, BLOCK), np.nan, np.float32)
        for _, _, block in level.blocks():
            found = empty if block is None else block
            yield found if render is None else render(found)

    def write(file: Path) -> None:
        with tifffile.TiffWriter(file, bigtiff=True, ome=True) as writer:
            for number, level in enumerate(pyramid.levels):
                unit = 1e4 / (mpp * 2**number)
                writer.write(
                    tiles(level),
                    shape=(*level.shape, *samples),
                    dtype=np.uint8 if render else np.float32,
                    tile=(BLOCK, BLOCK),
                    photometric="rgb" if render else "minisblack",
                    compression="zlib",
                    compressionargs={"level": 1},
                    maxworkers=1,  # several would hold hundreds of tiles in memory
                    resolution=(unit, unit),
                    resolutionunit="CENTIMETER",
                    subifds=None if number else len(pyramid.levels) - 1,
                    subfiletype=int(number > 0),
                    metadata=None if number else _metadata(mpp, name, render is not None),
                )

    write_atomically(path, write)


def _metadata(mpp: float, name: str, colours: bool) -> dict[str, Any]:
    return {
        "axes": "YXS" if colours else "YX",
        # What XML cannot hold would make the file unreadable.
        "Name": "".join(c if c.isprintable() else "_" for c in name),
        "PhysicalSizeX": mpp,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": mpp,
        "PhysicalSizeYUnit": "µm",
    }


def _tifffile() -> Any:
    try:
        import tifffile
    except ImportError as error:
        raise NiwakiError(
            "maps are written by tifffile, which is not there: pip install 'niwaki[slides]'"
        ) from error
    return tifffile


def colour_limit(store: Store, percentile: float = 99.5) -> float:
    """Return the value that gets the full colour: a percentile of the absolute values."""
    blocks = store.rows * store.columns
    step = max(1, int((blocks * BLOCK * BLOCK / _SAMPLES) ** 0.5))
    found = []
    for _, _, block in store.blocks():
        if block is not None:
            values = block[step // 2 :: step, step // 2 :: step]
            found.append(np.abs(values[~np.isnan(values)]))
    sizes = np.concatenate(found) if found else np.zeros(0)
    if not sizes.size:
        return 1.0
    return float(np.percentile(sizes, percentile)) or float(sizes.max()) or 1.0


@checked(limit=POSITIVE)
def coloured(values: Array, limit: float, signed: bool) -> Array:
    """Return values as colours, uint8; what is no number is white.

    Parameters
    ----------
    values : ndarray
        Shape (height, width).
    limit : float
        The value of the full colour.
    signed : bool
        Blue, white and red around zero; otherwise violet to yellow from zero on.
    """
    from matplotlib import colormaps

    place = values / limit
    place = (place + 1) / 2 if signed else place
    unknown = np.isnan(values)
    table = (colormaps[_COLOUR_MAPS[signed]](np.arange(256))[:, :3] * 255).round().astype(np.uint8)
    found = table[(np.where(unknown, 0, place).clip(0, 1) * 255).round().astype(np.uint8)]
    found[unknown] = 255
    return np.asarray(found)
