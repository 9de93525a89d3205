"""Killed at random, a slide run goes on and ends with the same bytes."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest
from synthetic import picture, write_slide

from conftest import NETS, NUMBERS

pytest.importorskip("openslide", reason="the extra slides is not installed")

KILLS = 10
# Without what is loaded, which takes longest, a run can be killed at any moment of its work.
START = """
import os, sys
import torch
torch.set_num_threads(1)
import matplotlib.pyplot, tifffile, openslide, skimage.draw, scipy.ndimage, niwaki.report
import niwaki.slides
from niwaki.cli import main
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        sys.argv = ["niwaki", *line.strip().split("|")]
        try:
            main()
            os._exit(0)
        except SystemExit as end:
            sys.stderr.flush()
            os._exit(end.code or 0)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""
WORDS = (
    "slide|a.tif|nets.py:whole|--mpp|0.5|--method|gradient|--method|lrp.epsilon_plus|--batch-size|4"
)


@pytest.mark.long
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_killed_again_and_again_it_ends_with_the_same_bytes(tmp_path):
    (tmp_path / "nets.py").write_text(NETS)
    write_slide(tmp_path / "a.tif", picture(1200, 1400, (500, 500, 700, 700)), mpp=0.5)
    (tmp_path / "cells.csv").write_text("x,y,type\n600,600,a\n300,300,b\n")
    words = "|".join([WORDS, *NUMBERS, "--nuclei", "cells.csv", "--out"])
    nursery = subprocess.Popen(
        [sys.executable, "-c", START], cwd=tmp_path, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip

    def begin(out):
        nursery.stdin.write(f"{words}|{out}\n")
        nursery.stdin.flush()
        return int(readline())

    def readline():
        while True:  # what the command prints is no number
            line = nursery.stdout.readline()
            if line.strip().isdecimal():
                return line

    for _ in range(2):  # the first one reads what the second has in memory
        shutil.rmtree(tmp_path / "plain", ignore_errors=True)
        began = time.monotonic()
        begin("plain")
        assert int(readline()) == 0
    seconds = time.monotonic() - began
    expected = tables(tmp_path / "plain")
    assert len(expected) == 5
    chance = random.Random(0)
    kills = starts = 0
    while True:
        starts += 1
        assert starts < 5 * KILLS
        child = begin("out")
        if kills < KILLS:
            time.sleep(chance.uniform(0.02, 0.8) * seconds)
            with suppress(ProcessLookupError):  # it has ended
                os.kill(child, signal.SIGKILL)
        status = int(readline())
        if status == signal.SIGKILL:
            kills += 1
            if (tmp_path / "out").exists():  # all was done but for the last words
                assert tables(tmp_path / "out") == expected
                shutil.rmtree(tmp_path / "out")
            continue
        assert status == 0
        assert tables(tmp_path / "out") == expected
        if kills >= KILLS:
            break
        shutil.rmtree(tmp_path / "out")
    left = {path.name for path in tmp_path.iterdir()}
    assert left - {"__pycache__"} == {"a.tif", "cells.csv", "nets.py", "out", "plain"}
    nursery.stdin.close()
    nursery.wait(20)
    nursery.stdout.close()
    print(f"{kills} kills in {starts} starts, {seconds:.1f} s unharmed")


def tables(folder):
    kinds = (".csv", ".geojson", ".json")
    found = {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.suffix in kinds}
    assert found.pop("run.json")  # it names the folder of the run
    return found
