"""Twenty times as many images in a folder take hardly more memory, by one process or two.

An audit is left out: it keeps features of all its images.
"""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
from PIL import Image

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system"),
]
SIDE = 16
NETWORK = """
from torch import nn
def build():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
"""
INPUTS = f"--weights random --size {SIDE} --mean 0.5,0.5,0.5 --std 0.25,0.25,0.25"
ALL = "--limit 1000000"
COMMANDS = {
    "prune": "--keep 0.7 --steps 2",
    "prune --tune": "--keep 0.7 --steps 1 --tune each --epochs 1",
    "prune-weights": "--keep 0.5 --steps 2",
    "car": "",
    "filters": f"{ALL} --steps 2",
    "evaluate": f"{ALL} --method gradient --steps 2 --layers 1",
    "explain": f"{ALL} --method gradient",
    "compare": f"{ALL} --method gradient",
}
ALONE = ("explain", "compare")
FEW, MANY = 1_000, 20_000


@pytest.fixture(scope="module")
def folders(launcher):
    """Folders of two classes, of links to few files."""
    (launcher.place / "coloured.py").write_text(NETWORK)
    chance, made = np.random.default_rng(0), {}
    for count in (FEW, MANY):
        made[count] = launcher.place / f"images-{count}"
        for label in ("one", "two"):
            home = made[count] / label
            home.mkdir(parents=True)
            for number in range(count // 2):
                file = home / f"{number:05}.png"
                if number < 20:
                    pixels = chance.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(file)
                else:
                    os.link(home / f"{number % 20:05}.png", file)
    yield made
    for folder in made.values():
        shutil.rmtree(folder)


def peak(launcher, name, folder, processes):
    """Run a command, and return the megabytes of the process that takes most."""
    words = ["coloured.py:build", str(folder), *INPUTS.split(), *COMMANDS[name].split()]
    codes = launcher.run([name.split()[0], *words, "--out", "out"], processes)
    assert codes == [0] * processes, launcher.said()
    shutil.rmtree(launcher.place / "out")
    return max(launcher.peaks) / 1024


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("name", COMMANDS)
def test_memory_is_flat(launcher, folders, name, processes):
    if processes > 1 and name in ALONE:
        pytest.skip("several processes do not share this command")
    few, many = (peak(launcher, name, folder, processes) for folder in folders.values())
    print(f"{name}, {processes} process(es): {few:.0f} MB for {FEW:,} images, {many:.0f} MB for "
          f"{MANY:,}: {many / few - 1:+.1%}")  # fmt: skip
    assert many < 1.05 * few
