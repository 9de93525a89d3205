"""Peak memory stays nearly flat, however many images there are; each run is its own process."""

import os
import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.long

PRELUDE = """
import resource, sys
import numpy as np
import torch
from PIL import Image
from torch import nn
from niwaki.data import Images, Preprocessing

torch.set_num_threads(1)
SIDE, CLASSES = 32, 10


def read(number):
    rng = np.random.default_rng(number)
    pixels = rng.normal(90 + 8 * (number % CLASSES), 20, (SIDE, SIDE, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def images(count):
    labels = [number % CLASSES for number in range(count)]
    look = Preprocessing(SIDE, mean=(0.5,) * 3, std=(0.25,) * 3)
    return Images(read, labels, [str(c) for c in range(CLASSES)], look)


network = nn.Sequential(
    nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    nn.Linear(8, CLASSES),
).eval()


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
"""


def growth(script, count, folder):
    """MB that a run takes beyond one of 60 images, which has loaded all that is needed."""
    body = PRELUDE + textwrap.dedent(script)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", body, str(count), str(folder)],
        capture_output=True,
        text=True,
        check=True,
        # Scikit-learn's threads, of which torch knows nothing, wait for each other for minutes.
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
    )
    return float(done.stdout.split()[-1])


def test_audit(tmp_path):
    """All 2000 images with heatmaps in memory, and their distances, took 458 MB."""
    script = """
    from niwaki import audit
    audit(network, images(60), limit=None)
    before = peak()
    audit(network, images(int(sys.argv[1])), limit=None)
    print(peak() - before)
    """
    few, many = (growth(script, count, tmp_path) for count in (200, 2000))
    assert many < few + 200


def test_explain(tmp_path):
    """Heatmaps of 4000 images are 50 MB, a sheet of all of them far more."""
    script = """
    from pathlib import Path
    from types import SimpleNamespace
    from niwaki.cli._heatmaps import SHOWN, explain_images, pick
    from niwaki.report import HeatmapFiles, contact_sheet


    def explain(count, folder):
        folder.mkdir()
        data = images(count)
        loaded = SimpleNamespace(model=network, class_name=str)
        picked = pick(data, count, 0, "x")
        with HeatmapFiles(folder, sys.argv[3] if len(sys.argv) > 3 else "npy", count) as files:
            found = explain_images(loaded, picked, ["gradient"], None, 8, keep=files.write)
        assert len(found.rows) == count and len(found.images) == SHOWN
        contact_sheet(folder / "x.png", found.images, found.heatmaps, titles=found.titles())


    home = Path(sys.argv[2])
    explain(100, home / f"first{sys.argv[1]}")
    before = peak()
    explain(int(sys.argv[1]), home / f"then{sys.argv[1]}")
    print(peak() - before)
    """
    few, many = (growth(script, count, tmp_path) for count in (200, 4000))
    assert many < few + 40
