"""Runs with hostile names, made by the commands, and a browser that looks at their pages."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from page_runs import COMMANDS
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from niwaki.auditing import audit, before_and_after, watch
from niwaki.cli import app
from niwaki.datasets import draw_tissue, plant
from niwaki.report import write_audit, write_watch

# What a page must show as words. A slash cannot be in the name of a folder.
CLASSES = (
    "<script>alert(1)<\\script>",
    "\"'><img src=x onerror=alert(2)>",
    "two\nlines & {{ 7*7 }}",
)
LAYERS = ("<b onclick='alert(3)'>", "\"'><svg onload=alert(4)>")
INPUTS = ["--size", "12", "--mean", "0.5,0.5,0.5", "--std", "0.25,0.25,0.25", "--threads", "1"]

NETWORK = f"""
from collections import OrderedDict

import torch
from torch import nn

FIRST, SECOND = {LAYERS!r}


def network():
    torch.manual_seed(1)
    layers = OrderedDict()
    layers[FIRST] = nn.Conv2d(3, 8, 3, padding=1)
    layers["relu"] = nn.ReLU()
    layers[SECOND] = nn.Conv2d(8, 6, 3, padding=1)
    layers["relu2"] = nn.ReLU()
    layers["pool"] = nn.AdaptiveAvgPool2d(3)
    layers["flat"] = nn.Flatten()
    layers["last"] = nn.Linear(54, 3)
    return nn.Sequential(layers).eval()
"""


class Coloured(nn.Module):
    """It calls tiles with much yellow tumours, and goes by dark nuclei a little."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 2, 1), nn.Linear(2 * 64 * 64, 2)
        with torch.no_grad():
            self.conv.weight[0, :, 0, 0] = torch.tensor([0.0, 0.0, -1.0])
            self.conv.weight[1] = -1 / 3
            self.conv.bias.copy_(torch.tensor([-5.0, -1.0]))  # blue far below what tissue has
            weights = self.fc.weight.view(2, 2, -1)
            weights[1, 0], weights[1, 1] = 0.05, 0.002
            weights[0] = -weights[1]
            self.fc.bias.copy_(torch.tensor([2.0, -2.0]))
        self.eval()

    def forward(self, x):
        return self.fc(self.conv(x).relu().flatten(1))


@pytest.fixture(scope="session")
def hostile(tmp_path_factory):
    """Return a folder with images of classes and files with hostile names, and a network."""
    home = tmp_path_factory.mktemp("hostile")
    (home / "nets.py").write_text(NETWORK)
    chance = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 5)):
        for label, name in enumerate(CLASSES):
            folder = home / "photos" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = chance.integers(0, 256, (12, 12, 3), dtype=np.uint8)
                pixels[..., label] = 250
                Image.fromarray(pixels).save(folder / f"<i>{number}'\"&\n.png")
    return home


class Runs(dict):
    """The folder of a run of each name in `PAGES`; made when it is first asked for."""

    def __init__(self, home, out):
        self.home, self.out = home, out

    def __missing__(self, name):
        folder = self.out / name
        if name in MADE:
            MADE[name](folder)
        else:
            command, *options = COMMANDS[name].split()
            arguments = [command, "nets.py:network", "photos", "--weights", "random", *INPUTS]
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(self.home)
                done = CliRunner().invoke(app, [*arguments, *options, "--out", str(folder)])
            assert done.exit_code == 0, (name, done.output, done.exception)
        self[name] = folder
        return folder


@pytest.fixture(scope="session")
def runs(hostile, tmp_path_factory):
    return Runs(hostile, tmp_path_factory.mktemp("runs"))


def tissue(count: int, seed: int):
    """Draw tiles of tissue whose classes have names as they should not be."""
    tiles = draw_tissue(count, seed=seed)
    marked = plant(tiles.pixels, tiles.labels, "square", on=1, share=0.6, seed=1)
    images = tiles.images(pixels=marked.pixels)
    images.classes = list(CLASSES[:2])
    return images


def audited(folder: Path) -> None:
    """Audit a biased network, before and after."""
    asked = ["colour", "position"]
    found = audit(Coloured(), tissue(80, 5), method="lrp.epsilon", tissue=True, questions=asked)
    assert found.distinct
    folder.mkdir()
    audits = {CLASSES[0]: found, CLASSES[1]: found}
    write_audit(folder, audits, heading=CLASSES[0], remarks=[CLASSES[1]], made=ABOUT,
                table=before_and_after(audits))  # fmt: skip


def watched(folder: Path) -> None:
    """Watch the same network."""
    known, new = tissue(240, 5), tissue(20, 6)
    found = watch(Coloured(), known, new, seed=0)
    folder.mkdir()
    write_watch(folder, found, new, heading=CLASSES[0], remarks=[CLASSES[1]], made=ABOUT)


ABOUT = {"line": CLASSES[0], "model": CLASSES[1]}
MADE = {"audit": audited, "watch": watched}


class Watched:
    """A page in the browser, with all that it complained of or asked for."""

    def __init__(self, page):
        self.page, self.said, self.asked = page, [], []
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("dialog", lambda dialog: (self.said.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: self.asked.append(request.url))

    def open(self, file):
        self.page.goto(file.as_uri())
        return self.page

    def check(self):
        """Nothing was complained of, and nothing but the page itself was asked for."""
        assert self.said == []
        assert [url for url in self.asked if not url.startswith(("file:", "data:"))] == []
        assert len([url for url in self.asked if url.startswith("file:")]) == 1


@pytest.fixture
def look(chromium, request):
    """Return a function that opens a file; what it complained of is checked in the end."""
    opened = []

    def open_page(file, **options):
        context = chromium.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        context.set_default_timeout(300_000)  # a busy machine is slow, not wrong
        watched = Watched(context.new_page())
        opened.append((watched, context))
        return watched.open(file)

    yield open_page
    for watched, context in opened:
        watched.check()
        context.close()


@pytest.fixture
def copied(runs, tmp_path):
    """Return a function that copies a run, to be damaged."""
    return lambda name: Path(shutil.copytree(runs[name], tmp_path / name))
