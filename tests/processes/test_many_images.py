"""Twenty times as many images in a folder take hardly more memory, by one process or two."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from PIL import Image

pytestmark = pytest.mark.long

SCRIPT = """
import os, resource, sys
import torch
from torch import distributed, nn
import niwaki
from niwaki.data import Preprocessing, open_data

torch.set_num_threads(1)
folder, job, rank, size, store = *sys.argv[1:3], *map(int, sys.argv[3:5]), sys.argv[5]
if size > 1:
    distributed.init_process_group(
        "gloo", store=distributed.FileStore(store, size), rank=rank, world_size=size)
model = nn.Sequential(
    nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    nn.Linear(8, 2)).eval()
data = open_data(folder, Preprocessing(16, mean=(0.5,) * 3, std=(0.25,) * 3), split="test")
if job == "score":
    niwaki.score(model, data, "taylor")
elif job == "accuracy":
    niwaki.evaluation.accuracy(model, data)
else:
    niwaki.car.index(model, data, folder=store + "-run")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
if size > 1:
    distributed.destroy_process_group()
"""


def peak(folder, job, size, store):
    started = [
        subprocess.Popen(
            [
                sys.executable,
                "-W",
                "ignore",
                "-c",
                SCRIPT,
                *map(str, (folder, job, r, size, store)),
            ],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        )
        for r in range(size)
    ]
    told = [process.communicate(timeout=580)[0] for process in started]
    assert [process.returncode for process in started] == [0] * size
    return max(float(text.split()[-1]) for text in told)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of two classes, of links to few files."""
    found = {}
    generator = torch.Generator().manual_seed(0)
    for count in (1_000, 20_000):
        found[count] = top = tmp_path_factory.mktemp(f"images-{count}")
        for label in ("one", "two"):
            (top / label).mkdir()
            first = top / label / "0.png"
            pixels = torch.randint(0, 256, (16, 16, 3), dtype=torch.uint8, generator=generator)
            Image.fromarray(pixels.numpy()).save(first)
            for number in range(1, count // 2):
                os.link(first, top / label / f"{number}.png")
    return found


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("job", ["score", "accuracy", "index"])
def test_memory_is_flat(folders, job, size, tmp_path):
    few, many = (peak(folder, job, size, tmp_path / f"{n}") for n, folder in folders.items())
    print(f"{job}, {size} process(es): {few:.0f} MB for 1,000 images, {many:.0f} MB for 20,000")
    assert many < 1.05 * few
