"""A binary classifier with one output column on the command line: two classes, told apart by 0."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from niwaki.cli import app

NETWORK = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1),
    )
    with torch.no_grad():  # the first unit passes red on, and the logit is red less a half
        model[0].weight.zero_(); model[0].bias.zero_()
        model[0].weight[0, 0, 1, 1] = 1
        model[0].weight[1, 1, 1, 1] = 1
        model[2].weight.zero_(); model[2].bias.zero_()
        model[2].weight[0, 0, 1, 1] = 1
        model[2].weight[1, 1, 1, 1] = 1
        model[6].weight.copy_(torch.tensor([[8.0, -8.0, 0.0, 0.0]]))
        model[6].bias.zero_()
    return model
"""


@pytest.fixture
def call(tmp_path: Path) -> list[str]:
    """Green images in the first class and red ones in the second, and one on the wrong side."""
    (tmp_path / "net.py").write_text(NETWORK)
    rng = np.random.default_rng(0)
    for name, strong in (("green", 1), ("red", 0)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(4):
            pixels = rng.integers(0, 60, (12, 12, 3), dtype=np.uint8)
            pixels[..., strong if number else 1 - strong] += 120
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{number}.png")
    options = ["--size", "12", "--mean", "0,0,0", "--std", "1,1,1", "--threads", "1"]
    return [f"{tmp_path / 'net.py'}:build", str(tmp_path / "data"), *options]


def run(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_explain_says_either_class_with_the_probability_of_the_sigmoid(
    call: list[str], tmp_path: Path
) -> None:
    run("explain", *call, "--out", tmp_path / "out")
    rows = json.loads((tmp_path / "out" / "images.json").read_text())
    assert len(rows) == 8
    said = [row["prediction"] for row in rows]
    assert len(set(said)) == 2
    assert said.count(said[0]) == 4  # one image of each class is on the other side
    for row in rows:
        file = next((tmp_path / "data").rglob(row["image"]))
        assert file.is_file()
        assert 0.5 < row["probability"] < 1
    arrays = np.load(tmp_path / "out" / "lrp.epsilon_plus.npy")
    sums = arrays.sum((1, 2, 3))
    assert (sums > 0).all()  # evidence for the class that is said, whichever it is
    logits = np.log([row["probability"] / (1 - row["probability"]) for row in rows])
    np.testing.assert_allclose(sums, logits / 2, rtol=2e-3)


@pytest.mark.slow
def test_prune_and_evaluate_measure_both_classes(call: list[str], tmp_path: Path) -> None:
    out = tmp_path / "pruned"
    run("prune", *call, "--references", 4, "--keep", 0.9, "--out", out)
    steps = json.loads((out / "trajectory.json").read_text())
    rows = steps["steps"] if isinstance(steps, dict) else steps
    assert rows[0]["accuracy"] == 0.75  # six of eight, before anything is removed
    judged = tmp_path / "judged"
    run("evaluate", *call, "--limit", 8, "--out", judged, "--region", 4, "--layers", 0)
    curves = json.loads((judged / "perturbation.json").read_text())
    scores = np.array(curves[0]["scores"]["most"])
    assert scores.std(1).min() > 0  # the class's probability falls, and is not 1 throughout
