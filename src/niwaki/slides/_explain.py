"""A slide explained: tile by tile, in parts that survive a kill, joined to maps on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from niwaki.arrays import Array
from niwaki.attribution import told_apart
from niwaki.contexts import undisturbed
from niwaki.data import Preprocessing
from niwaki.errors import DataError
from niwaki.processes import is_first, rank, size
from niwaki.progress import bar
from niwaki.ranges import BATCH, THREADS, checked
from niwaki.runs import Folder, Run, each_once, identified, open_run
from niwaki.slides._grid import Grid, Tile, Tiling, centre_grid, overlapping_grid
from niwaki.slides._maps import Layer, Stitched, stitching
from niwaki.slides._network import Network, upsampled
from niwaki.slides._reading import TileReader
from niwaki.slides._slide import Slide
from niwaki.slides._store import Store
from niwaki.slides._tissue import Tissue, everywhere, find_tissue
from niwaki.stages import allowed, stage

__all__ = ["SlideMaps", "explain_slide"]


_PARTS = 500  # of a run at about the most: its record is written with each


@dataclass(frozen=True, eq=False)
class SlideMaps:
    """What networks predict on a slide, and which of its pixels are the reason.

    Attributes
    ----------
    slide : Slide
        The slide.
    tissue : Tissue
        Where its tissue is.
    grid : Grid
        The tiles.
    class_names : tuple of str
        Names of all outputs.
    maps : dict of Layer to Store
        Probability and relevance of each pixel at the grid's resolution; NaN where no tile lies.
        They are deleted at the end of the block that made them. Where several processes work
        together, only the first has them.
    rows : list of dict
        For each tile its position, the prediction, and how much relevance it holds.
    """

    slide: Slide
    tissue: Tissue
    grid: Grid
    class_names: tuple[str, ...]
    maps: dict[Layer, Store] = field(repr=False)
    rows: list[dict[str, Any]] = field(repr=False)

    @property
    def lost(self) -> dict[str, tuple[int, float]]:
        """For each method that loses relevance: in how many tiles, and the largest share.

        Only what is more than the method may lose, see `niwaki.attribution.Propagating`.
        """
        found = {}
        for column in self.rows[0] if self.rows else ():
            if column.startswith(_LOST):
                shares = [float(row[column]) for row in self.rows]
                if max(shares):
                    found[column[len(_LOST) :]] = sum(s > 0 for s in shares), max(shares)
        return found


@contextmanager
@checked(batch_size=BATCH, workers=THREADS.but(low=0))
def explain_slide(
    model: nn.Module,
    slide: Slide,
    preprocessing: Preprocessing,
    *,
    classes: Mapping[int, str],
    methods: Sequence[str] = ("lrp.epsilon_plus",),
    tiling: Tiling = Tiling(),
    beside: Mapping[str, nn.Module] | None = None,
    class_names: Sequence[str] | None = None,
    batch_size: int = 8,
    workers: int = 0,
    folder: Folder = None,
    scratch: str | Path | None = None,
) -> Iterator[SlideMaps]:
    """Run a network on all tissue of a slide, and explain its predictions.

    A network that returns a map, (N, classes, height, width), is explained as on one large image:
    its tiles are made so large that their centres see all that they depend on, and the centres
    fit together. The tiles of one that returns (N, classes) overlap, and are averaged with a
    squared sine as window.

    Where several processes work together, they take turns with the tiles, and the first puts the
    maps together.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode.
    slide : Slide
        See `open_slide`.
    preprocessing : Preprocessing
        Its size is that of a tile, unless `tiling` says otherwise. Tiles are not resized.
    classes : mapping of int to str
        The outputs that are mapped, with their names.
    methods : sequence of str
        Each one of `niwaki.attribution.names`.
    tiling : Tiling
        The resolution, and how the slide is cut into tiles.
    beside : mapping of str to nn.Module, optional
        Another network by its name, such as a pruned one: its maps, and the differences.
    class_names : sequence of str, optional
        Names of all outputs.
    batch_size, workers : int
        Tiles in a batch, and processes that read them.
    folder : str, Path or Workplace, optional
        Keeps what is finished, so that a run that was killed can be resumed.
    scratch : str or Path, optional
        A folder on a disk with room for the maps; default: the system's for temporary files.

    Yields
    ------
    SlideMaps

    Raises
    ------
    DataError
        For a slide without tissue, a resolution that it does not have, a part that cannot be read,
        or a class that does not exist.
    """
    slide.check(max(slide.mpp) if tiling.mpp is None else tiling.mpp)
    if not classes or not methods:
        raise DataError("nothing to map: name at least one class and one method")
    given = {"": model, **(beside or {})}
    networks = {
        name: Network(one, preprocessing, list(classes), methods) for name, one in given.items()
    }
    tissue = everywhere(slide) if tiling.whole else find_tissue(slide)
    grid = _grid(slide, tissue, tiling, preprocessing.size, networks)
    some = allowed("tiles", len(grid.tiles), batch_size)
    grid = replace(grid, tiles=grid.tiles[:some])
    names = tuple(class_names or ())
    names += tuple(map(str, range(len(names), networks[""].outputs)))
    work = _Work(slide, grid, networks, dict(classes), names, preprocessing.channels)

    def identity() -> dict[str, Any]:
        return {
            "explained": [told_apart(method) for method in methods],
            "model": {name: identified(one) for name, one in given.items()},
            "data": [slide.path.name, *slide.size, *slide.mpp, slide.digest(), _hash(tissue)],
            "classes": {str(number): name for number, name in classes.items()},
            "preprocessing": preprocessing.to_json(),
            "grid": [grid.side, grid.margin, grid.step, grid.mpp],
            "tiles": [len(grid.tiles), tiling.least_tissue],
            "batch_size": batch_size,
        }

    def run(stitched: Stitched | None) -> list[dict[str, Any]]:
        with open_run(folder, identity) as kept:
            return work.run(stitched, kept, batch_size, workers)

    if not is_first():
        yield SlideMaps(slide, tissue, grid, names, {}, run(None))
        return
    home = Path(mkdtemp(prefix=".niwaki-maps-", dir=scratch))
    try:
        with stitching(home / "maps", grid) as stitched:
            rows = run(stitched)
            stitched.finish()
            stitched.subtract(work.differences(beside or {}))
            yield SlideMaps(slide, tissue, grid, names, stitched.stores, rows)
    finally:
        home.rmdir()


def _grid(
    slide: Slide,
    tissue: Tissue,
    tiling: Tiling,
    usual: int,
    networks: Mapping[str, Network],
) -> Grid:
    mpp = max(slide.mpp) if tiling.mpp is None else tiling.mpp
    side = tiling.side or usual
    reaches = [network.reach() for network in networks.values()]
    known = [reach for reach in reaches if reach is not None]
    if len(known) == len(reaches):
        widest = max(known, key=lambda reach: reach.margin)
        return centre_grid(slide, tissue, mpp, side, widest)
    least = 0 if tiling.whole else tiling.least_tissue
    return overlapping_grid(slide, tissue, mpp, side, round(tiling.overlap * side), least)


def _hash(tissue: Tissue) -> str:
    return hashlib.sha256(tissue.mask.tobytes()).hexdigest()[:16]


_LOST = "share lost, "


@dataclass(frozen=True)
class _Work:
    slide: Slide
    grid: Grid
    networks: dict[str, Network]
    classes: dict[int, str]
    names: tuple[str, ...]
    channels: int

    @undisturbed
    @stage("looking at tiles")
    def run(
        self, stitched: Stitched | None, kept: Run, batch_size: int, workers: int
    ) -> list[dict[str, Any]]:
        """Look at all tiles, chunk by chunk, put their maps together, and return a row for each."""
        reader = TileReader(self.slide, self.grid, self.channels)
        chunks = self._chunks(batch_size)
        names = [_part(number) for number in range(len(chunks))]
        finished = set(kept.parts)
        mine = [n for n in range(rank(), len(chunks), size()) if names[n] not in finished]
        ahead = reader.batches([batch for n in mine for batch in chunks[n]], workers)

        def look(number: int) -> dict[str, Tensor]:
            chunk = chunks[number]  # one that is damaged was not read ahead
            return self._look(chunk, ahead if number in mine else reader.batches(chunk, 0))

        rows: list[dict[str, Any]] = []
        with bar("looking at tiles", len(self.grid.tiles)) as advance:
            for chunk, found in zip(chunks, each_once(kept, names, look), strict=True):
                tiles = [self.grid.tiles[index] for batch in chunk for index in batch]
                for place, tile in enumerate(tiles):
                    maps = self._maps(found, place)
                    if stitched is not None:
                        stitched.add(tile, maps)
                    rows.append(self._row(tile, found, place, maps))
                advance(len(tiles))
        return rows

    def differences(self, beside: Mapping[str, Any]) -> list[tuple[Layer, Layer, Layer]]:
        """Name what is compared: the network's own layers and those of the one beside it."""
        layers = [layer for layer, *_ in self._layers("")]
        return [
            (own, Layer(own.kind, own.class_name, own.method, name),
             Layer(own.kind, own.class_name, own.method, "difference"))
            for name in beside for own in layers
        ]  # fmt: skip

    def _chunks(self, batch_size: int) -> list[list[list[int]]]:
        total = len(self.grid.tiles)
        batches = [list(range(n, min(n + batch_size, total))) for n in range(0, total, batch_size)]
        many = -(-len(batches) // _PARTS)
        return [batches[n : n + many] for n in range(0, len(batches), many)]

    def _look(self, chunk: list[list[int]], batches: Iterator[Tensor]) -> dict[str, Tensor]:
        parts: dict[str, list[Tensor]] = {}
        for _ in chunk:
            pixels = next(batches)
            for name, network in self.networks.items():
                for key, values in network.look(pixels, self.grid).items():
                    parts.setdefault(f"{name}/{key}", []).append(values)
        return {key: torch.cat(values) for key, values in parts.items()}

    def _layers(self, network: str) -> Iterator[tuple[Layer, int, int]]:
        """Yield each layer of a network with its place among the classes and among all outputs."""
        for place, (output, name) in enumerate(self.classes.items()):
            yield Layer("probability", name, "", network), place, output
            for method in self.networks[network].methods:
                yield Layer("relevance", name, method, network), place, output

    def _maps(self, found: Mapping[str, Tensor], tile: int) -> dict[Layer, Array | float]:
        maps: dict[Layer, Array | float] = {}
        for network in self.networks:
            for layer, place, output in self._layers(network):
                if layer.kind == "relevance":
                    values = found[f"{network}/relevance {layer.method}"]
                    maps[layer] = values[tile, place].numpy()
                elif f"{network}/map" in found:
                    maps[layer] = upsampled(found[f"{network}/map"][tile, place], self.grid)
                else:
                    maps[layer] = float(found[f"{network}/probabilities"][tile, output])
        return maps

    def _row(
        self, tile: Tile, found: Mapping[str, Tensor], place: int, maps: Mapping[Layer, Any]
    ) -> dict[str, Any]:
        across, down = self.slide.scale(self.grid.mpp)
        margin, core = self.grid.margin, self.grid.core
        chances = found["/probabilities"][place]
        row: dict[str, Any] = {
            "row": tile.row,
            "column": tile.column,
            "x": round((tile.x + margin) * across, 2),
            "y": round((tile.y + margin) * down, 2),
            "width": round(core * across, 2),
            "height": round(core * down, 2),
            "tissue": round(tile.tissue, 4),
            "prediction": _said(chances, self.names),
        }
        for network in self.networks:
            values = found[f"{network}/probabilities"][place]
            for layer, _, output in self._layers(network):
                if layer.kind == "probability":
                    row[layer.title] = _rounded(float(values[output]))
                else:
                    relevance = np.asarray(maps[layer], np.float64)
                    row[layer.title] = _rounded(relevance.sum())
                    total = np.abs(relevance).sum()
                    share = relevance.clip(0).sum() / total if total else 0.0
                    row[f"positive share, {layer.title}"] = _rounded(share)
            for method in self.networks[network].methods:
                if f"{network}/lost {method}" in found:
                    share = float(found[f"{network}/lost {method}"][place])
                    row[f"{_LOST}{method}{f' ({network})' if network else ''}"] = _rounded(share)
        return row


def _part(number: int) -> str:
    return f"tiles-{number:05}"


def _said(chances: Tensor, names: Sequence[str]) -> str:
    if len(chances) == 1:  # a map with one channel says how likely it is
        return names[1 if float(chances[0]) > 0.5 else 0]
    return names[int(chances.argmax())]


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
