"""`niwaki prune-weights` and `choose-rules`: folders that are models, rules that can be used."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

import niwaki
from niwaki.cli import app
from niwaki.errors import NiwakiError
from niwaki.propagation import load_composite
from niwaki.pruning import Choice, load_masks

NETWORK = (
    "nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), "
    "nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))"
)


def build():
    return eval(NETWORK, {"nn": nn})


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    folder = tmp_path_factory.mktemp("network")
    torch.manual_seed(0)
    save_file(build().state_dict(), folder / "weights.safetensors")
    text = f"from torch import nn\ndef build():\n    return {NETWORK}\n"
    (folder / "tiny.py").write_text(text)
    return [f"{folder / 'tiny.py'}:build", "digits", "--weights", folder / "weights.safetensors"]


def run(command, *arguments):
    whole = [command, *arguments, "--references", 1, "--threads", 1]
    done = CliRunner().invoke(app, [str(a) for a in whole], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_weights_go_and_the_folder_is_a_model(network, tmp_path):
    out = tmp_path / "sparse"
    said = json.loads(run("prune-weights", *network, "--keep", 0.5, "--steps", 2, "--out", out,
                          "--json"))  # fmt: skip
    assert said["sparsity"] == pytest.approx(0.5, abs=0.01)
    assert len(said["trajectory"]) == 3
    assert all(0 <= step["accuracy"] <= 1 for step in said["trajectory"])
    weights, masks = load_file(out / "weights.safetensors"), load_masks(out)
    assert all((weights[f"{name}.weight"][~mask] == 0).all() for name, mask in masks.items())
    again = run("prune-weights", out, "digits", "--keep", 0.9, "--out", tmp_path / "sparser")
    assert "gone" in again
    with pytest.raises(NiwakiError, match="exists"):
        run("prune-weights", *network, "--out", out)


def test_weights_of_a_pruned_network(network, tmp_path):
    run("prune", *network, "--keep", 0.6, "--steps", 1, "--out", tmp_path / "smaller")
    run("prune-weights", tmp_path / "smaller", "digits", "--out", tmp_path / "both")
    again = niwaki.load(tmp_path / "both", model=build())
    assert again[0].out_channels + again[2].out_channels < 14
    assert (again[2].weight == 0).any()
    both = niwaki.pruning.Plan.from_json(json.loads((tmp_path / "both/plan.json").read_text()))
    assert both.steps


def test_rules_are_chosen_and_used(network, tmp_path):
    out = tmp_path / "rules"
    asked = ["choose-rules", *network, "--validation", 2, "--steps", 2, "--keep", 0.5,
             "--per-cost", "0,1", "--out", out]  # fmt: skip
    run(*asked, "--trials", 2)
    said = json.loads(run(*asked, "--trials", 3, "--json"))  # goes on
    found = Choice.load(out)
    assert [trial["area"] for trial in said["trials"]] == [trial.area for trial in found.trials]
    assert len(found.trials) == 3
    assert load_composite(out / "composite.json") == found.composite
    run("prune", *network, "--criterion", said["criterion"], "--per-cost", found.per_cost,
        "--keep", 0.7, "--steps", 1, "--out", tmp_path / "pruned")  # fmt: skip
    about = json.loads((tmp_path / "pruned" / "niwaki.json").read_text())
    assert about["settings"]["criterion"] == repr(found.criterion)


@pytest.mark.parametrize("text", ["a", "0,1,2", ""])
def test_an_exponent_is_a_number_or_two(network, tmp_path, text):
    with pytest.raises(NiwakiError, match="--per-cost"):
        run("choose-rules", *network, "--per-cost", text, "--out", tmp_path / "none")
