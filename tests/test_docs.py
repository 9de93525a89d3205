"""The Python of the documents runs as it stands, page by page, with what they take for granted."""

import re
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

import niwaki

ROOT = Path(__file__).parents[1]

# What a block begins with, and why it does not run here.
SKIPPED = {"explain_func =": "Quantus is no dependency of the tests"}
PAGES = ["docs/judge.md"]


def blocks(page: str) -> list[str]:
    """Return the Python blocks of a page, in order."""
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(), re.M | re.S)


def small() -> nn.Module:
    """A network with the layer names that the pages use."""
    parts = {
        "conv1": nn.Conv2d(3, 6, 3, padding=1),
        "relu1": nn.ReLU(),
        "conv2": nn.Conv2d(6, 4, 3, padding=1),
        "relu2": nn.ReLU(),
        "pool": nn.AdaptiveAvgPool2d(1),
        "flat": nn.Flatten(),
        "fc": nn.Linear(4, 10),
    }
    return nn.Sequential(OrderedDict(parts)).eval()


def given() -> dict[str, object]:
    """Return what a page takes for granted: a network and random images with labels."""
    images, labels = torch.rand(10, 3, 32, 32), torch.arange(10)
    data = torch.utils.data.TensorDataset(images, labels)
    return {"niwaki": niwaki, "model": small(), "data": data}


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_python_of_a_page_runs(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = given()
    run = [one for one in blocks(page) if not one.startswith(tuple(SKIPPED))]
    assert run, f"{page} has no Python that runs"
    for block in run:
        exec(compile(block, page, "exec"), names)


def test_every_block_that_is_skipped_is_there() -> None:
    every = [block for page in PAGES for block in blocks(page)]
    for beginning in SKIPPED:
        assert any(block.startswith(beginning) for block in every), beginning
