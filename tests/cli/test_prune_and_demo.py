"""`niwaki prune`, `demo` and `methods`, and what a wrong input says."""

import json
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import niwaki
from niwaki.cli import _demo, app, main
from niwaki.models import zoo

MODEL = "niwaki.models.zoo:vgg_digits"
QUIET = ["--threads", "1"]


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


def demonstrated(out):
    done = run("demo", "--out", out, "--json", *QUIET)
    assert done.exit_code == 0
    assert done.stderr == ""
    return out, json.loads(done.stdout)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A demo in few steps, of the criteria that it needs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_demo, "CRITERIA", ("lrp", "weight"))
        patch.setattr(_demo, "PER_STEP", 0.4)
        return demonstrated(tmp_path_factory.mktemp("demo") / "out")


def check_demo(out, said, criteria):
    names = {path.name for path in out.iterdir()}
    assert {"heatmaps.png", "curves.png", "table.md", "table.json", "pruned"} <= names
    with Image.open(out / "heatmaps.png") as picture:
        assert picture.width > 1000
    assert {row["criterion"] for row in said["accuracy"]} == {*criteria, "lrp, not rebuilt"}
    assert all(row["100%"] > 0.95 for row in said["accuracy"])
    again = niwaki.load(out / "pruned", model=zoo.vgg_digits())
    test = niwaki.data.open_data("digits")
    whole = sum(p.numel() for p in zoo.vgg_digits().parameters())
    assert sum(p.numel() for p in again.parameters()) < 0.8 * whole
    assert niwaki.evaluation.accuracy(again, test) > 0.95
    left = {row["criterion"]: row["20%"] for row in said["accuracy"]}
    assert left["lrp"] > left["lrp, not rebuilt"] + 0.3


@pytest.mark.slow
def test_the_demo_leaves_pictures_a_table_and_a_network(demo):
    check_demo(*demo, ["lrp", "weight"])


@pytest.mark.long
def test_the_demo_as_it_is(tmp_path):
    criteria = ["activation", "gradient", "lrp", "lrp.rebuilt", "random", "taylor", "weight"]
    check_demo(*demonstrated(tmp_path / "out"), criteria)


@pytest.mark.slow
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


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    torch.manual_seed(0)
    save_file(zoo.vgg_digits().state_dict(), path)
    return path


@pytest.mark.slow
def test_every_option_reaches_the_loop(weights, tmp_path):
    out = tmp_path / "smaller"
    done = run("prune", MODEL, "digits", "--weights", weights, "--criterion", "weight",
               "--keep", 0.5, "--of", "units", "--steps", 2, "--schedule", "geometric",
               "--no-recompute",
               "--references", 2, "--validation", 3, "--ignore", "*1_1", "--round-to", 2,
               "--ceiling", 0.9, "--ceiling", "conv2_1=0.25", "--repair", "compensate",
               "--epochs", 1, "--tune", "end", "--lr", 0.02, "--distil", 0.5, "--tune-batch", 128,
               "--floor", 0.001, "--per-cost", 0.5, "--json", "--out", out, *QUIET)  # fmt: skip
    assert done.exit_code == 0
    said = json.loads(done.stdout)
    about = json.loads((out / "niwaki.json").read_text())["settings"]
    assert said["settings"] == about
    assert about["tune"]["lr"] == 0.02
    assert about["tune"]["batch_size"] == 128
    assert (about["schedule"], about["recompute"], about["floor"]) == ("geometric", False, 0.001)
    assert about["repair"] == "compensate"
    assert said["trajectory"][-1]["accuracy_tuned"] is not None
    assert said["trajectory"][-1]["validation"] is not None
    kept = said["trajectory"][-1]["kept"]
    assert (kept["epochs"], kept["samples"]) == (1, 30)
    assert kept["accuracy"] == said["trajectory"][-1]["validation"]
    fresh, smaller = zoo.vgg_digits(), niwaki.load(out, model=zoo.vgg_digits())
    widths = {
        name: (module.out_channels, smaller.get_submodule(name).out_channels)
        for name, module in fresh.named_modules()
        if isinstance(module, torch.nn.Conv2d)
    }
    assert all(after in (before, after // 2 * 2) for before, after in widths.values())
    assert widths["conv1_1"][0] == widths["conv1_1"][1]
    assert widths["conv2_1"][1] >= 0.75 * widths["conv2_1"][0]


@pytest.mark.slow
def test_a_stopped_command_goes_on(weights, tmp_path, monkeypatch):
    from niwaki.pruning import _loop

    def prune(out, *more, expected=0):
        done = run("prune", MODEL, "digits", "--weights", weights, "--keep", 0.5, "--steps", 4,
                   "--references", 2, "--json", "--out", out, *more, *QUIET)  # fmt: skip
        assert done.exit_code == expected, done.stderr
        return done

    score, calls = _loop.score, []

    def stopped(*args, **options):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return score(*args, **options)

    whole, out, kept = tmp_path / "whole", tmp_path / "out", tmp_path / "out.run"
    prune(whole)
    assert not (tmp_path / "whole.run").exists()
    monkeypatch.setattr(_loop, "score", stopped)
    assert f"resumes from {kept}" in prune(out, expected=130).stderr
    assert kept.exists()
    assert not out.exists()
    with pytest.raises(ValueError, match="nope"):  # refused before any work
        prune(out, "--criterion", "lrp:normalise=nope")
    assert kept.exists()
    prune(out)
    assert len(calls) == 5  # the third once more, and the fourth; nothing of what was refused
    assert not kept.exists()
    for name in ("plan.json", "weights.safetensors"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.slow
def test_a_stopped_command_goes_on_with_the_seconds_it_had_measured(weights, tmp_path, monkeypatch):
    from niwaki.cli import _prune

    def prune(expected=0):
        done = run("prune", MODEL, "digits", "--weights", weights, "--of", "seconds",
                   "--keep", 0.7, "--steps", 2, "--criterion", "weight", "--json",
                   "--out", tmp_path / "out", *QUIET)  # fmt: skip
        assert done.exit_code == expected, done.stderr
        return done.stdout

    row = _prune._row

    def stopped(step):
        if step.step == 1:
            raise KeyboardInterrupt
        return row(step)

    measure, told = niwaki.evaluation.seconds_per_mac, []

    def listened(*arguments):
        told.append(measure(*arguments))
        return told[-1]

    monkeypatch.setattr(niwaki.evaluation, "seconds_per_mac", listened)
    monkeypatch.setattr(_prune, "_row", stopped)
    prune(expected=130)
    [prices] = told
    assert min(prices.values()) > 0
    monkeypatch.setattr(_prune, "_row", row)
    monkeypatch.setattr(niwaki.evaluation, "seconds_per_mac", None)  # not to be called again
    said = json.loads(prune())
    assert said["settings"]["of"] == "macs"
    scale = {said["settings"]["prices"][name] / price for name, price in prices.items()}
    assert max(scale) == pytest.approx(min(scale))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_foreign_folder_is_no_demo(tmp_path, monkeypatch, capsys):
    (tmp_path / "thesis.tex").write_text("years of work")
    assert failing(monkeypatch, capsys, "demo", "--out", tmp_path).startswith("error:")
    assert (tmp_path / "thesis.tex").exists()


def test_methods_lists_all_catalogues():
    said = json.loads(run("methods", "--json").stdout)
    assert set(said["methods"]) == set(niwaki.attribution.names())
    assert set(said["criteria"]) == set(niwaki.criteria.names())
    assert set(said["criteria of weights"]) == set(niwaki.criteria.names("weight"))
    assert set(said["questions"]) == set(niwaki.auditing.question_names())
    catalogues = [one for one in said.values() if isinstance(one, dict)]
    assert all(line for catalogue in catalogues for line in catalogue.values())


@pytest.mark.parametrize(
    "wrong", [["--ignore", "nope"], ["--ceiling", "nope=0.5"]], ids=["ignore", "ceiling"]
)
def test_layers_that_are_not_there_leave_nothing_measured(wrong, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(niwaki.evaluation, "seconds_per_mac", None)  # not to be called
    options = ["--weights", "random", "--of", "seconds", "--references", 1, "--out"]
    arguments = ["prune", MODEL, "digits", *options, tmp_path / "out", *wrong, *QUIET]
    assert "'nope'" in failing(monkeypatch, capsys, *arguments)
    assert list(tmp_path.iterdir()) == []


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
        ([MODEL, "digits", "--ceiling", "conv1=half"], "expected 0.5 or LAYER=0.5"),
        ([MODEL, "digits", "--ignore", "conv77"], "ignore: there is no"),
        ([MODEL, "digits", "--epochs", "1", "--lr", "-1"], "--lr -1.0"),
        ([MODEL, "digits", "--floor", "0.99"], "below the floor"),
        ([MODEL, "{folder}/nothing"], "no data set and no file or folder"),
        ([MODEL, "{folder}/empty"], "empty"),
        (
            [MODEL, "{folder}/images", "--outputs", "0,10", "--references", "1"],
            "0,10: the network has 10 outputs",
        ),
        ([MODEL, "{folder}/broken", "--outputs", "0,1", "--references", "1"], "1.png"),
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
