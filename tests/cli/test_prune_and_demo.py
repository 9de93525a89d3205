"""`niwaki prune`, `demo` and `methods`, and what a wrong input says."""

import json
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import niwaki
from niwaki.cli import app, main
from niwaki.models import zoo

MODEL = "niwaki.models.zoo:vgg_digits"
QUIET = ["--threads", "1"]


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "out"
    done = run("demo", "--out", out, "--json", *QUIET)
    assert done.exit_code == 0
    assert done.stderr == ""
    return out, json.loads(done.stdout)


def test_the_demo_leaves_pictures_a_table_and_a_network(demo):
    out, said = demo
    names = {path.name for path in out.iterdir()}
    assert {"heatmaps.png", "curves.png", "table.md", "table.json", "pruned"} <= names
    with Image.open(out / "heatmaps.png") as picture:
        assert picture.width > 1000
    assert {row["criterion"] for row in said["accuracy"]} == set(niwaki.criteria.names())
    assert all(row["100%"] > 0.95 for row in said["accuracy"])
    again = niwaki.load(out / "pruned", model=zoo.vgg_digits())
    test = niwaki.data.open_data("digits")
    whole = sum(p.numel() for p in zoo.vgg_digits().parameters())
    assert sum(p.numel() for p in again.parameters()) < 0.8 * whole
    assert niwaki.evaluation.accuracy(again, test) > 0.5


def test_a_pruned_folder_is_a_model_again_and_again(demo, tmp_path):
    out, _ = demo
    smaller = tmp_path / "smaller"
    done = run("prune", out / "pruned", "digits", "--keep", 0.8, "--steps", 1, "--json",
               "--out", smaller, *QUIET)  # fmt: skip
    said = json.loads(done.stdout)
    assert said["trajectory"][-1]["macs"] <= 0.8 * said["trajectory"][0]["macs"]
    twice = niwaki.load(smaller, model=zoo.vgg_digits())  # one plan from the whole network
    saved = load_file(smaller / "weights.safetensors")
    assert all(torch.equal(saved[name], value) for name, value in twice.state_dict().items())
    assert run("explain", smaller, "digits", "--out", tmp_path / "maps", *QUIET).exit_code == 0


def test_a_foreign_folder_is_no_demo(tmp_path, monkeypatch, capsys):
    (tmp_path / "thesis.tex").write_text("years of work")
    assert failing(monkeypatch, capsys, "demo", "--out", tmp_path).startswith("error:")
    assert (tmp_path / "thesis.tex").exists()


def test_methods_lists_both_catalogues():
    said = json.loads(run("methods", "--json").stdout)
    assert set(said["methods"]) == set(niwaki.attribution.names())
    assert set(said["criteria"]) == set(niwaki.criteria.names())


def failing(monkeypatch, capsys, *arguments):
    """Run the program as a person would, expecting exit code 2; return what it says."""
    monkeypatch.setattr(sys, "argv", ["niwaki", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


def images(folder, *, broken=False):
    for name in "ab":
        (folder / name).mkdir(parents=True)
        Image.new("L", (8, 8), 99).save(folder / name / "1.png")
    if broken:
        (folder / "b" / "1.png").write_bytes(b"\x89PNG no")
    return folder


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([MODEL, "digits", "--keep", "1.5"], "between 0 and 1"),
        ([MODEL, "digits", "--keep", "0.0001"], "cannot be reached"),
        ([MODEL, "digits", "--criterion", "lpr"], "did you mean lrp"),
        ([MODEL, "{folder}/nothing"], "no data set and no file or folder"),
        ([MODEL, "{folder}/empty"], "empty"),
        ([MODEL, "{folder}/images", "--outputs", "0,10", "--references", "1"], "label 10"),
        ([MODEL, "{folder}/broken", "--references", "1"], "1.png"),
        (["no.such.module:net", "digits"], "no.such"),
        (["niwaki.models.zoo:nothing", "digits"], "nothing"),
        ([MODEL, "digits", "--weights", "{folder}/lenet.safetensors"], "does not fit"),
        ([MODEL, "digits", "--weights", "{folder}/nan.safetensors"], "NaN"),
        ([MODEL, "digits", "--weights", "{folder}/torn.safetensors"], "torn.safetensors"),
        ([MODEL, "digits", "--device", "cuda:99"], "cuda:99"),
        (["{folder}/training.py:training", "digits"], "training mode"),
        (["{folder}/training.py:single", "digits"], "nothing"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_wrong_input_is_one_message(arguments, says, tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    images(tmp_path / "images")
    images(tmp_path / "broken", broken=True)
    save_file(zoo.lenet().state_dict(), tmp_path / "lenet.safetensors")
    weights = zoo.vgg_digits().state_dict()
    save_file(weights, tmp_path / "nan.safetensors")
    (tmp_path / "torn.safetensors").write_bytes((tmp_path / "nan.safetensors").read_bytes()[:999])
    weights["fc.bias"][0] = float("nan")
    save_file(weights, tmp_path / "nan.safetensors")
    (tmp_path / "training.py").write_text(
        "from torch import nn\n"
        "class Stubborn(nn.Flatten):\n"
        "    def train(self, mode=True):\n"
        "        return super().train(True)\n"
        "def training():\n"
        "    return nn.Sequential(Stubborn(), nn.Linear(64, 9), nn.ReLU(), nn.Linear(9, 10))\n"
        "def single():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    given = [a.format(folder=tmp_path) for a in arguments]
    out = tmp_path / "out"
    said = failing(monkeypatch, capsys, "prune", *given, "--out", out, *QUIET)
    assert says in said
    assert not out.exists()
    assert not [path.name for path in tmp_path.iterdir() if "out" in path.name]
