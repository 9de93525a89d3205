"""`niwaki explain`, `compare` and `evaluate`, as a person and as a machine call them."""

import json
import sys

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

from niwaki import attribution
from niwaki.cli import app, main

MODEL = ["niwaki.models.zoo:vgg_digits", "digits", "--weights", "random", "--threads", "1"]
METHODS = ["--method", "gradient", "--method", "lrp.epsilon_plus"]


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


def listed(out):
    return sorted(path.name for path in out.iterdir() if not path.name.startswith("."))


def test_explain_writes_pictures_and_arrays(tmp_path):
    out = tmp_path / "out"
    done = run("explain", *MODEL, *METHODS, "--limit", 5, "--overlay", "--out", out)
    assert done.exit_code == 0
    assert "sheet.png" in done.stdout
    assert done.stderr == ""
    assert listed(out) == ["gradient.npy", "images.json", "lrp.epsilon_plus.npy", "sheet.png"]
    assert np.load(out / "gradient.npy").shape == (5, 1, 8, 8)
    rows = json.loads((out / "images.json").read_text())
    assert len({row["class"] for row in rows}) == 5  # as many classes as possible


def test_explain_writes_hdf5_and_json(tmp_path):
    out = tmp_path / "out"
    options = ["--format", "hdf5", "--colours", "inferno", "--shared-scale", "--json"]
    done = run("explain", *MODEL, *METHODS, *options, "--limit", 3, "--out", out)
    assert json.loads(done.stdout)["methods"] == ["gradient", "lrp.epsilon_plus"]
    with h5py.File(out / "heatmaps.hdf5") as file:
        assert sorted(file) == ["gradient", "label", "lrp.epsilon_plus", "prediction"]
        assert file["gradient/attribution"].shape == (3, 1, 8, 8)
        assert file["gradient/prediction"].shape == (3, 10)


@pytest.mark.parametrize("rows", ["images", "methods"])
def test_compare_writes_one_picture(tmp_path, rows):
    out = tmp_path / "deep" / "sheet.png"
    arguments = ["compare", *MODEL, "--rows", rows, "--limit", 2, "--out", out, "--json"]
    done = run(*arguments)
    said = json.loads(done.stdout)
    assert len(said["images"]) == 2
    assert {"gradient", "lrp.epsilon_plus"} <= set(said["methods"]) <= set(attribution.names())
    assert listed(out.parent) == ["sheet.png"]
    with pytest.raises(ValueError, match="--force"):
        run(*arguments)
    assert run(*arguments, "--force").exit_code == 0


def test_evaluate_judges_methods(tmp_path):
    out = tmp_path / "out"
    options = ["--limit", 6, "--steps", 4, "--layers", 2, "--out", out, "--target", "label"]
    # Alpha-beta loses relevance in this network, which is judged and not refused.
    done = run("evaluate", *MODEL, *METHODS, "--method", "lrp.alpha_2_beta_1", *options)
    assert done.exit_code == 0
    assert "(random order)" in done.stdout
    assert listed(out) == [
        "perturbation.json",
        "perturbation.png",
        "randomisation.json",
        "randomisation.png",
        "table.json",
        "table.md",
    ]
    rows = json.loads((out / "table.json").read_text())
    methods = {"gradient", "lrp.epsilon_plus", "lrp.alpha_2_beta_1", "(random order)"}
    assert {row["method"] for row in rows} == methods
    gaps = [row["gap"]["mean"] for row in rows[:-1]]
    assert gaps == sorted(gaps, reverse=True)
    curves = json.loads((out / "perturbation.json").read_text())
    assert len(curves[0]["scores"]["most"]) == 6
    assert curves[0]["settings"]["target"] == "label"
    again = run("evaluate", *MODEL, *METHODS, *options[:-4], "--layers", 0, "--force", "--json",
                "--out", out)  # fmt: skip
    assert json.loads(again.stdout)["methods"][0]["randomised"] is None
    assert "randomisation.png" not in listed(out)


@pytest.mark.parametrize("command", ["explain", "compare", "evaluate"])
def test_every_shared_option_is_in_the_help(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    shown = run(command, "--help").stdout
    network = ["weights", "classes", "outputs", "size", "resize", "mean", "std", "device"]
    others = ["batch-size", "threads", "seed", "force", "json", "method", "out", "limit", "target"]
    for option in [*network, *others]:
        assert f"--{option} " in shown, option


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["explain", *MODEL, "--method", "lrp.epsilom"], "did you mean lrp.epsilon"),
        (["explain", *MODEL, "--target", "12"], "label 12"),
        (["explain", *MODEL, "--colours", "rainbows"], "no colour map 'rainbows'"),
        (["explain", *MODEL, "--device", "toaster"], "'toaster' cannot be used"),
        (["compare", *MODEL, "--out", "sheet.jpg"], "ends in .png"),
        (["evaluate", *MODEL, "--share", "2"], "--share 2.0"),
        (["evaluate", "niwaki.models.zoo:nothing", "digits"], "nothing"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["niwaki", *arguments])
    monkeypatch.setattr("warnings.showwarning", None)  # main sets it; it is put back after this
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert message in said.err
    assert said.out == ""
    assert not list(tmp_path.iterdir())  # nothing half-written
