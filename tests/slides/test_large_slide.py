"""A slide of 20,000 x 20,000 pixels is mapped in less than 2 GB of memory."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from synthetic import PINK, PURPLE, WHITE

from conftest import NETS, NUMBERS

pytest.importorskip("openslide", reason="the extra slides is not installed")
tifffile = pytest.importorskip("tifffile", reason="the extra slides is not installed")

SIDE = 20_000
NEST = (9_000, 11_000, 9_800, 12_000)
TISSUE = (3_000, 3_000, 17_000, 17_000)

MEASURED = """
import resource, sys
from niwaki.cli import main
try:
    main()
finally:
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
"""


def blocks(factor, side=512):
    """Yield the tiles of a level, each computed from its place alone."""

    def inside(box, x, y):
        x0, y0, x1, y1 = (edge / factor for edge in box)
        columns, rows = np.arange(x, x + side) + 0.5, np.arange(y, y + side) + 0.5
        return np.outer((rows > y0) & (rows < y1), (columns > x0) & (columns < x1))

    length = SIDE // factor
    rng = np.random.default_rng(0)
    noise = rng.integers(-12, 13, (side, side, 1))
    for y in range(0, length, side):
        for x in range(0, length, side):
            tile = np.empty((side, side, 3), np.uint8)
            tile[:] = WHITE
            tile[inside(TISSUE, x, y)] = ((np.array(PINK) + noise).clip(0, 255))[
                inside(TISSUE, x, y)
            ]
            tile[inside(NEST, x, y)] = PURPLE
            yield tile


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    file = tmp_path_factory.mktemp("large") / "large.tif"
    with tifffile.TiffWriter(file, bigtiff=True) as writer:
        for level, factor in enumerate((1, 4, 16)):
            unit = 1e4 / (0.25 * factor)
            writer.write(
                blocks(factor), shape=(SIDE // factor, SIDE // factor, 3), dtype=np.uint8,
                tile=(512, 512), photometric="rgb", compression="zlib",
                compressionargs={"level": 1}, resolution=(unit, unit),
                resolutionunit="CENTIMETER", subfiletype=int(level > 0), metadata=None,
            )  # fmt: skip
    return file


@pytest.mark.long
def test_a_large_slide_takes_little_memory(slide, tmp_path):
    (tmp_path / "nets.py").write_text(NETS)
    words = ["slide", str(slide), "nets.py:mapped", "--mpp", "0.25", "--tile", "512"]
    words += ["--method", "input_t_gradient", "--out", "out", "--batch-size", "4"]
    words += NUMBERS
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *words], cwd=tmp_path, text=True, capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    peak = int(done.stderr.rpartition("peak ")[2]) * 1024
    print(f"peak {peak / 2**30:.2f} GiB")
    assert peak < 2e9
    found = json.loads((tmp_path / "out" / "objects.geojson").read_text())["features"]
    ring = np.array(found[0]["geometry"]["coordinates"][0])
    assert found[0]["properties"]["objectType"] == "annotation"
    # Regions of so large a slide are looked for in a level whose pixels are eight of the slide's.
    np.testing.assert_allclose([*ring.min(0), *ring.max(0)], NEST, atol=8)
    with tifffile.TiffFile(tmp_path / "out" / "maps" / "probability-of-tumour.ome.tif") as opened:
        (series,) = opened.series
        assert series.levels[0].shape == (SIDE, SIDE)
        assert series.levels[-1].shape == (313, 313)
