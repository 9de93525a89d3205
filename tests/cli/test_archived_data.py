"""Every command says the same of images in tar files, in Arrow files and in a folder."""

import io
import json
import tarfile

import datasets
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from niwaki.cli import app
from niwaki.errors import NiwakiError

NETWORK = """
import torch
from torch import nn
from niwaki.data import Preprocessing
def build():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, 3))
build.preprocessing = Preprocessing(8, mean=(0.5,) * 3, std=(0.25,) * 3)
build.class_names = ["ant", "bee", "fly"]
"""
COMMANDS = {
    "explain": ["--method", "lrp.epsilon_plus", "--limit", "9"],
    "evaluate": ["--method", "gradient", "--layers", "1", "--limit", "6"],
    "audit": ["--questions", "colour"],
    "car": [],
    "prune": ["--keep", "0.5", "--references", "2"],
    "filters": ["--no-car", "--steps", "2"],
}
PLACES = (
    "folder",
    "out",
    "line",
    "data",
    "command",
    "seconds",
    "seconds_per_batch",
    "ms",
    "names",
    "name",
    "image",
)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """The same 30 photographs three times, and what they are called."""
    place = tmp_path_factory.mktemp("work")
    (place / "net.py").write_text(NETWORK)
    rng = np.random.default_rng(3)
    files = [
        place / "photos" / kind / f"{number}.png"
        for kind in ("ant", "bee", "fly")
        for number in range(10)
    ]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(file)
    for number, part in enumerate((files[:7], files[7:8], files[8:])):
        with tarfile.open(place / f"{number}.tar", "w") as tar:
            for file in part:
                tar.add(file, f"{file.parent.name}/{file.name}")
                label = tarfile.TarInfo(f"{file.parent.name}/{file.stem}.cls")
                label.size = 3
                tar.addfile(label, io.BytesIO(file.parent.name.encode()))
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee", "fly"])}
    rows = {"image": list(map(str, files)), "label": [file.parent.name for file in files]}
    table = datasets.Dataset.from_dict(rows, features=datasets.Features(kinds))
    table.save_to_disk(str(place / "saved"))
    return place


SPECS = {"folder": "photos", "tar": "webdataset:{0..2}.tar", "arrow": "hf:saved"}


def plain(value):
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items() if key not in PLACES}
    return [plain(entry) for entry in value] if isinstance(value, list) else value


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_says_the_same(command, work, tmp_path, monkeypatch):
    monkeypatch.chdir(work)
    said = {}
    for kind, spec in SPECS.items():
        words = [command, "net.py:build", spec, *COMMANDS[command], "--json"]
        run = CliRunner().invoke(
            app, [*words, "--out", str(tmp_path / kind)], catch_exceptions=False
        )
        assert run.exit_code in (0, 1), run.output
        said[kind] = plain(json.loads(run.stdout))
    assert said["tar"] == said["folder"]
    assert said["arrow"] == said["folder"]


def test_what_is_read_is_not_replaced(work, tmp_path, monkeypatch):
    monkeypatch.chdir(work)
    for spec, out in ((SPECS["tar"], "1.tar"), (SPECS["arrow"], "saved/out")):
        words = ["car", "net.py:build", spec, "--force", "--out", out]
        with pytest.raises(NiwakiError, match="which is read"):
            CliRunner().invoke(app, words, catch_exceptions=False)
