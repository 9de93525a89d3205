"""What a slide run costs beside plain batched inference and attribution of the same tiles.

Run it from a checkout with the extra `slides` installed::

    python benchmarks/slide_throughput.py
    python benchmarks/slide_throughput.py --slide case7.svs --network resnet50 --json cost.json

The slide is a given one, or a synthetic pyramid whose tissue is noise, so that nothing compresses
well. *Plain*: the tiles are in memory, and for each batch the network says what it sees and the
method explains it. *Slide*: tissue, reading, the same for each batch, parts that survive a kill,
stitching, pyramids, tables and objects, as `niwaki slide` does it without its page; with the page,
the pictures for the browser too. Processor time is the process's own, with its readers in the same
process (``workers=0``), which other work on the machine does not lengthen as it lengthens the wall
clock. The two take turns, after a warm-up.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tifffile
import torch
import torchvision

from niwaki import attribution, models
from niwaki.data import Preprocessing
from niwaki.report import slide_overview, write_slide_viewer
from niwaki.slides import (
    Grid,
    Slide,
    explain_slide,
    open_slide,
    pyramids,
    write_maps,
    write_objects,
)

SIZE = 224
PREPROCESSING = Preprocessing(SIZE, mean=(0.5,) * 3, std=(0.25,) * 3)


def synthetic(path: Path, side: int) -> Path:
    """Write a pyramid of two levels whose tissue is noise around pink."""
    rng = np.random.default_rng(0)
    pixels = np.full((side, side, 3), 244, np.uint8)
    inner = slice(side // 16, side - side // 16)
    noise = rng.integers(-40, 41, (side, side, 3))[inner, inner]
    pixels[inner, inner] = (np.array((200, 120, 170)) + noise).clip(0, 255)
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for level, image in enumerate((pixels, pixels[::4, ::4])):
            unit = 1e4 / (0.5 * 4**level)
            file.write(
                np.ascontiguousarray(image), tile=(256, 256), photometric="rgb",
                compression="zlib", resolution=(unit, unit), resolutionunit="CENTIMETER",
                subfiletype=int(level > 0), metadata=None,
            )  # fmt: skip
    return path


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Return seconds on the wall clock and of the processor."""
    wall, own = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - own


def run_slide(model: torch.nn.Module, slide: Slide, method: str, batch: int, page: bool) -> Grid:
    """Do what the command does."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        out.mkdir()
        with explain_slide(
            model, slide, PREPROCESSING, classes={1: "tumour"}, methods=[method],
            batch_size=batch, folder=Path(folder) / "run", scratch=folder,
        ) as found:  # fmt: skip
            with pyramids(found) as made:
                write_maps(out / "maps", found, made)
                regions = write_objects(out, found, made)
                slide_overview(out / "overview.png", found, made)
                if page:
                    write_slide_viewer(out, found, made, regions, {})
            return found.grid


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slide", type=Path)
    parser.add_argument("--network", default="resnet18")
    parser.add_argument("--method", default="lrp.epsilon_plus")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--side", type=int, default=1500)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    model = torchvision.models.get_model(given.network, weights=None, num_classes=2).eval()
    with tempfile.TemporaryDirectory() as folder:
        file = given.slide or synthetic(Path(folder) / "slide.tif", given.side)
        slide = open_slide(file)
        grid = run_slide(model, slide, given.method, given.batch, page=False)  # the warm-up
        tiles = [slide.read(t.x, t.y, grid.side, grid.side, grid.mpp) for t in grid.tiles]
        inputs = torch.from_numpy(np.stack(tiles)).permute(0, 3, 1, 2).float() / 255
        inputs = (inputs - 0.5) / 0.25
        explain = attribution.create(given.method, model, max_loss=None)

        def plain() -> None:
            for batch in inputs.split(given.batch):
                models.respond(model, batch)
                explain.attribute(batch, 1)

        found: dict[str, list[tuple[float, float]]] = {"plain": [], "slide": [], "with page": []}
        for _ in range(given.repeats):
            found["plain"].append(timed(plain))
            for name, page in (("slide", False), ("with page", True)):
                found[name].append(
                    timed(lambda p=page: run_slide(model, slide, given.method, given.batch, p))
                )
    report(found, len(tiles), given)


def report(
    found: dict[str, list[tuple[float, float]]], tiles: int, given: argparse.Namespace
) -> None:
    """Print milliseconds per tile, and what a slide run costs more."""
    print(f"{given.network}, {given.method}, {tiles} tiles of {SIZE} pixels")
    print(f"{'':12}{'wall ms/tile':>16}{'processor ms/tile':>20}{'overhead':>12}")
    least = {name: [min(run[k] for run in runs) for k in (0, 1)] for name, runs in found.items()}
    for name, (wall, own) in least.items():
        more = own / least["plain"][1] - 1
        print(f"{name:12}{1e3 * wall / tiles:16.1f}{1e3 * own / tiles:20.1f}{more:12.1%}")
    spread = statistics.pstdev(run[1] for run in found["plain"]) / least["plain"][1]
    print(f"spread of the plain runs: {spread:.1%}")
    if given.json:
        given.json.write_text(json.dumps({"tiles": tiles, "seconds": found}, indent=1))


if __name__ == "__main__":
    main()
