"""`niwaki car`: what is written can be read, and what is pruned is a model."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

import niwaki
from niwaki.car import CarIndex
from niwaki.cli import app
from niwaki.errors import NiwakiError

NETWORK = (
    "nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU(), "
    "nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 10))"
)


def build():
    return eval(NETWORK, {"nn": nn})


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    folder = tmp_path_factory.mktemp("network")
    torch.manual_seed(0)
    model = build()
    save_file(model.state_dict(), folder / "weights.safetensors")
    text = f"from torch import nn\ndef build():\n    return {NETWORK}\n"
    (folder / "tiny.py").write_text(text)
    return model, [
        f"{folder / 'tiny.py'}:build",
        "digits",
        "--weights",
        folder / "weights.safetensors",
    ]


def run(*arguments):
    whole = ["car", *arguments, "--per-class", 2, "--threads", 1]
    done = CliRunner().invoke(app, [str(a) for a in whole], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_index_is_written(network, tmp_path):
    model, asked = network
    told = json.loads(run(*asked, "--out", tmp_path / "index", "--json"))
    assert told["samples"] == 20
    assert len(told["units"]) == 9
    index = CarIndex.load(tmp_path / "index" / "index.safetensors")
    for row, (layer, unit) in zip(told["units"], index.ranking(), strict=True):
        assert (row["layer"], row["channels"]) == (layer, [unit])
        assert row["car"] == pytest.approx(float(index[layer].car[unit]))
    assert index.fingerprint == niwaki.models.fingerprint(model.eval())
    with pytest.raises(NiwakiError, match="exists"):
        run(*asked, "--out", tmp_path / "index")
    assert "needed least first" in run(*asked, "--out", tmp_path / "more", "--layer", "0")


def test_what_greedy_leaves_is_a_model(network, tmp_path):
    model, asked = network
    out = tmp_path / "smaller"
    said = json.loads(run(*asked, "--greedy", 2, "--out", out, "--json"))
    assert len(said["trajectory"]) == 3
    assert (said["settings"]["search_images"], said["settings"]["test_images"]) == (20, 597)
    assert said["accuracy_on"] == "the 597 test images"
    smaller = niwaki.load(out, model)
    assert smaller[0].out_channels + smaller[2].out_channels == 7
    assert "needed least first" in run(out, "digits", "--out", tmp_path / "again")
    with pytest.raises(NiwakiError, match="--floor"):
        run(*asked, "--floor", 0.5, "--out", tmp_path / "floor")


def right(model, folder, names):
    """Count right images by hand, as the network gets them."""
    images = torch.stack([read(folder / name) for name in names])
    labels = torch.tensor([int(name.split("/")[0]) for name in names])
    with torch.no_grad():
        return int((model(images).argmax(1) == labels).sum())


def read(path):
    grey = np.array(Image.open(path).convert("L"))
    return torch.from_numpy(grey).float().view(1, 8, 8) / 255


def photos(folder, parts, each):
    generator = torch.Generator().manual_seed(0)
    for part in parts:
        for label in range(3):
            below = folder / part / str(label)
            below.mkdir(parents=True)
            for i in range(each):
                values = torch.randint(0, 80, (8, 8), generator=generator) + 80 * label
                Image.fromarray(values.byte().numpy()).save(below / f"{i}.png")


SIZES = ["--size", 8, "--mean", 0, "--std", 1, "--threads", 1, "--outputs", "0,1,2"]


@pytest.mark.parametrize("parts", [("train", "test"), ("",), ("val",)], ids=str)
def test_accuracy_is_that_on_images_the_search_has_not_seen(network, tmp_path, parts):
    model, asked = network
    photos(tmp_path / "photos", parts, 9)
    command = ["car", asked[0], tmp_path / "photos", *asked[2:], "--greedy", 2, *SIZES]
    command += ["--out", tmp_path / "smaller"]
    done = CliRunner().invoke(app, [str(a) for a in command])
    assert done.exit_code == 0, done.output
    smaller = niwaki.load(tmp_path / "smaller", model)
    told = json.loads((tmp_path / "smaller" / "niwaki.json").read_text())["settings"]
    if parts == ("train", "test"):
        assert (told["search_images"], told["test_images"]) == (27, 27)
        names = [f"{label}/{i}.png" for label in range(3) for i in range(9)]
        by_hand = right(smaller, tmp_path / "photos" / "test", names) / 27
        assert f"-> {by_hand:.2%} on the 27 test images" in done.output
    else:
        assert (told["search_images"], told["test_images"]) == (21, 6)
        assert "on 6 images held out of the search, as many of each class" in done.output
    assert "on those of the search" in done.output


def test_nothing_to_hold_out(network, tmp_path):
    _, asked = network
    photos(tmp_path / "photos", ("",), 1)
    command = ["car", asked[0], tmp_path / "photos", *asked[2:], "--greedy", 2, *SIZES]
    with pytest.raises(NiwakiError, match="none can be held out"):
        CliRunner().invoke(app, [str(a) for a in command], catch_exceptions=False)
