"""`niwaki car`: what is written can be read, and what is pruned is a model."""

import json

import pytest
import torch
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
    smaller = niwaki.load(out, model)
    assert smaller[0].out_channels + smaller[2].out_channels == 7
    assert "needed least first" in run(out, "digits", "--out", tmp_path / "again")
    with pytest.raises(NiwakiError, match="--floor"):
        run(*asked, "--floor", 0.5, "--out", tmp_path / "floor")
