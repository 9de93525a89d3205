"""`niwaki explain`, `compare` and `evaluate`, as a person and as a machine call them."""

import json
import re
import sys
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from torch import nn
from typer.testing import CliRunner

from niwaki import attribution
from niwaki.cli import _evaluate, app, main
from niwaki.cli._loading import Loaded
from niwaki.data import open_data
from niwaki.errors import LostRelevanceError, ModelError, NiwakiError
from niwaki.report import HeatmapFiles

MODEL = ["niwaki.models.zoo:vgg_digits", "digits", "--weights", "random", "--threads", "1"]
METHODS = ["--method", "gradient", "--method", "lrp.epsilon_plus"]


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


PAGE = ("index.html", "run.json")


def listed(out):
    return sorted(path.name for path in out.iterdir() if not path.name.startswith("."))


def test_explain_writes_pictures_and_arrays(tmp_path):
    out = tmp_path / "out"
    done = run("explain", *MODEL, *METHODS, "--limit", 5, "--overlay", "--out", out)
    assert done.exit_code == 0
    assert "sheet.png" in done.stdout
    assert done.stderr == ""
    arrays = ["gradient.npy", "lrp.epsilon_plus.npy", "images.json", "heatmaps.json"]
    assert listed(out) == sorted([*PAGE, *arrays, "pictures.zip", "sheet.png"])
    assert np.load(out / "gradient.npy").shape == (5, 1, 8, 8)
    rows = json.loads((out / "images.json").read_text())
    assert len({row["class"] for row in rows}) == 5  # as many classes as possible


@pytest.mark.parametrize(("command", "limit", "more"), [("explain", 70, 6), ("compare", 64, 0)])
def test_a_terminal_shows_as_many_rows_as_a_sheet(tmp_path, command, limit, more):
    out = tmp_path / "out"
    done = run(command, *MODEL, "--method", "gradient", "--limit", limit, "--out", out)
    rows = json.loads((out / "images.json").read_text())
    assert len(rows) == limit
    assert [row["image"] in done.stdout for row in rows] == [True] * 64 + [False] * more
    assert (f"and {more} more" in done.stdout) == (more > 0)


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


def test_compare_writes_a_page(tmp_path):
    out = tmp_path / "compared"
    done = run("compare", *MODEL, *METHODS, "--limit", 2, "--out", out)
    assert f"open {out / 'index.html'}" in done.stdout.replace("\n", "")
    assert listed(out) == sorted([*PAGE, "heatmaps.json", "images.json", "pictures.zip",
                                  "sheet.png"])  # fmt: skip
    told = json.loads((out / "heatmaps.json").read_text())
    assert told["methods"] == ["gradient", "lrp.epsilon_plus"]
    page = (out / "index.html").read_text()
    assert page.count('class="heat"') == 4
    made = json.loads((out / "run.json").read_text())
    assert made["command"] == "compare"
    assert made["line"].endswith("lrp.epsilon_plus --limit 2 --weights random")
    for told in (made["fingerprint"], made["versions"]["torch"], made["machine"]):
        assert told in page


@pytest.mark.slow
def test_evaluate_judges_methods(tmp_path):
    out = tmp_path / "out"
    options = ["--limit", 6, "--steps", 4, "--layers", 2, "--out", out, "--target", "true"]
    # Alpha-beta loses relevance in this network, which is judged and not refused.
    done = run("evaluate", *MODEL, *METHODS, "--method", "lrp.alpha_2_beta_1", *options)
    assert done.exit_code == 0
    assert "(random order)" in done.stdout
    assert re.search(r"perturbing \d+ of \d+ regions in 4 steps\n", done.stdout)
    drawn = [f"{name}.{kind}" for name in ("perturbation", "randomisation")
             for kind in ("json", "pdf", "png", "svg")]  # fmt: skip
    assert listed(out) == sorted([*PAGE, *drawn, "table.json", "table.md"])
    rows = json.loads((out / "table.json").read_text())
    methods = {"gradient", "lrp.epsilon_plus", "lrp.alpha_2_beta_1", "(random order)"}
    assert {row["method"] for row in rows} == methods
    gaps = [row["gap"]["mean"] for row in rows[:-1]]
    assert gaps == sorted(gaps, reverse=True)
    curves = json.loads((out / "perturbation.json").read_text())
    assert len(curves[0]["scores"]["most"]) == 6
    assert curves[0]["settings"]["target"] == "true"
    again = run("evaluate", *MODEL, *METHODS, *options[:-4], "--layers", 0, "--force", "--json",
                "--out", out)  # fmt: skip
    assert json.loads(again.stdout)["methods"][0]["randomised"] is None
    assert "randomisation.png" not in listed(out)


@pytest.mark.parametrize(
    ("regions", "share", "asked", "said"),
    [
        (64, 0.3, 100, "19 of 64 regions in 19 steps, not 100: a step takes whole regions"),
        (64, 0.1, 4, "6 of 64 regions in 3 steps, not 4: a step takes whole regions"),
        (4, 1.0, 10, "4 of 4 regions in 4 steps, not 10: a step takes whole regions"),
        (100, 0.3, 10, "30 of 100 regions in 10 steps"),
    ],
)
def test_evaluate_says_in_how_many_steps_it_perturbs(regions, share, asked, said):
    per_step, steps = _evaluate._schedule(regions, share, asked)
    assert _evaluate._told(regions, per_step, steps, asked) == f"perturbing {said}"


DENSE = """
from torch import nn

def dense():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 10, 1)).eval()

class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = dense()

    def forward(self, x):
        return {"out": self.inner(x), "aux": x}

def named():
    return Named().eval()
"""


@pytest.mark.parametrize("command", ["explain", "compare", "evaluate", "car", "prune"])
@pytest.mark.parametrize(
    ("network", "way_out"), [("dense", "AdaptiveAvgPool2d"), ("named", r"Part\(model, 'out'\)")]
)
def test_networks_with_an_output_per_pixel_are_refused(tmp_path, command, network, way_out):
    (tmp_path / "net.py").write_text(DENSE)
    out = tmp_path / "out.png"
    arguments = [f"{tmp_path / 'net.py'}:{network}", "digits", "--out", out, "--threads", 1]
    with pytest.raises(ModelError, match=way_out):
        run(command, *arguments)
    assert not out.exists()


DEAD_ENDS = """
import torch
from torch import nn

class DeadEnds(nn.Module):
    # The second unit says minus the mean: nothing above zero contributes to it, as z-plus has it.
    def __init__(self, share, ending=None):
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 2, 1, bias=False), nn.Linear(2, 10, bias=False)
        self.ending = ending
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1))
            self.last.weight.copy_(torch.tensor([[1.0 - share, -share]] * 10))
            self.last.weight[3] *= 2

    def forward(self, x):
        out = self.last(self.first(x.relu()).mean((2, 3)))
        return out if self.ending is None else self.ending(out)

def quarter():
    return DeadEnds(0.25).eval()

def none():
    return DeadEnds(0.0).eval()

def softmax():
    return DeadEnds(0.25, nn.Softmax(1)).eval()
"""


@pytest.mark.slow
@pytest.mark.parametrize("network", ["quarter", "none"])
def test_lost_relevance_is_said_with_the_share(tmp_path, network):
    """A unit that nothing speaks for takes its quarter of the output, which no pixel gets."""
    lost = 0.25 if network == "quarter" else None
    (tmp_path / "net.py").write_text(DEAD_ENDS)
    arguments = [f"{tmp_path / 'net.py'}:{network}", "digits", "--limit", 2, "--threads", 1]
    sheet = tmp_path / "sheet.png"
    said = json.loads(run("compare", *arguments, "--out", sheet, "--json").stdout)
    known = said["lost"].get("lrp.epsilon_plus")
    assert known == (None if lost is None else pytest.approx(lost, abs=1e-4))
    assert "gradient" not in said["lost"]
    assert said["left_out"] == {}
    told = run("compare", *arguments, "--out", sheet, "--force").stdout
    spoken = f"{lost:.1%}" if lost else "% of the relevance"
    assert (f"lrp.epsilon_plus: up to {spoken}" in told) == bool(lost)
    options = [*arguments, *METHODS, "--steps", 2, "--layers", 1, "--out", tmp_path / "judged"]
    rows = json.loads(run("evaluate", *options, "--json").stdout)["methods"]
    shares = {row["method"]: row["lost"] for row in rows}
    assert shares["lrp.epsilon_plus"] == pytest.approx(lost or 0, abs=1e-4)
    assert shares["gradient"] == 0
    table = (tmp_path / "judged" / "table.md").read_text()
    assert (spoken in table) == bool(lost)


def test_explain_shows_what_the_usual_method_loses_also_when_it_goes_on(tmp_path, monkeypatch):
    """A method that nobody has chosen is shown with the share, of images before a stop too."""
    (tmp_path / "net.py").write_text(DEAD_ENDS)
    arguments = [f"{tmp_path / 'net.py'}:quarter", "digits", "--limit", 4, "--batch-size", 2]
    arguments += ["--out", tmp_path / "maps", "--json"]
    whole = HeatmapFiles.write
    calls = []

    def stopped(self, *given):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(self, *given)

    monkeypatch.setattr(HeatmapFiles, "write", stopped)
    assert run("explain", *arguments).exit_code != 0
    assert len(calls) == 2
    monkeypatch.setattr(HeatmapFiles, "write", whole)
    monkeypatch.setattr("niwaki.cli._heatmaps.attribute_with_loss", None)  # all is kept already
    said = json.loads(run("explain", *arguments).stdout)
    assert said["lost"] == {"lrp.epsilon_plus": pytest.approx(0.25, abs=1e-4)}
    page = (tmp_path / "maps" / "index.html").read_text()
    assert "up to 25.0% of the relevance is lost" in page


def test_compare_refuses_what_explain_refuses_of_methods_that_are_asked_for(tmp_path):
    (tmp_path / "net.py").write_text(DEAD_ENDS)
    arguments = [f"{tmp_path / 'net.py'}:quarter", "digits", *METHODS, "--limit", 1]
    for command, out in (("explain", "maps"), ("compare", "sheet.png")):
        with pytest.raises(LostRelevanceError, match="% of the relevance is lost"):
            run(command, *arguments, "--out", tmp_path / out)


@pytest.mark.filterwarnings("ignore::niwaki.errors.SoftmaxOutputWarning")
def test_usual_methods_that_cannot_be_made_are_left_out_with_the_reason(tmp_path):
    (tmp_path / "net.py").write_text(DEAD_ENDS)
    arguments = [f"{tmp_path / 'net.py'}:softmax", "digits", "--limit", 1]
    said = json.loads(run("compare", *arguments, "--out", tmp_path / "s.png", "--json").stdout)
    assert "gradient" in said["methods"]
    assert "lrp.epsilon_plus" not in said["methods"]
    assert "ends in a softmax" in said["left_out"]["lrp.epsilon_plus"]


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
        (["explain", *MODEL, "--target", "12"], "--target 12: the network has 10 outputs"),
        (["explain", *MODEL, "--colours", "rainbows"], "no colour map 'rainbows'"),
        (["explain", *MODEL, "--device", "toaster"], "toaster: cannot be used"),
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


@pytest.mark.slow
def test_target_by_name_number_and_label(tmp_path):
    """The digits' classes are named by their numbers, those of shapes by words."""
    network = (
        "from torch import nn\n"
        "def shapes():\n"
        "    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),"
        " nn.Flatten(), nn.Linear(8, 6)).eval()\n"
    )
    (tmp_path / "net.py").write_text(network)
    common = [f"{tmp_path / 'net.py'}:shapes", "shapes", "--limit", 6]

    def heatmaps(target):
        out = tmp_path / target
        run("explain", *common, "--method", "gradient", "--target", target, "--out", out)
        return np.load(out / "gradient.npy")

    names = open_data("shapes").classes
    by_number = [heatmaps(str(output)) for output in range(6)]
    assert np.array_equal(heatmaps(names[4].upper()), by_number[4])
    assert np.array_equal(heatmaps("#4"), by_number[4])
    assert not np.array_equal(by_number[0], by_number[4])
    rows = json.loads((tmp_path / "0" / "images.json").read_text())
    for said, key in (("true", "class"), ("predicted", "prediction")):
        found = heatmaps(said)
        for row, about in enumerate(rows):
            assert np.array_equal(found[row], by_number[names.index(about[key])][row])


def test_a_target_that_could_be_two_outputs_is_refused():
    loaded = Loaded(nn.Identity(), None, ["5", "0", "ring"], {})
    images = open_data("shapes")
    for text in ("0", "nothing", "squares or circles"):
        with pytest.raises(NiwakiError, match=f"--target '?{text}'? is"):
            loaded.choice(text, images)
    assert loaded.choice("#0", images) == 0
    assert loaded.choice("Ring", images) == 2
    assert loaded.choice("2", images) == 2
    assert loaded.choice("true", images) == "true"
    with pytest.raises(NiwakiError, match="no labels"):
        loaded.choice("true", SimpleNamespace(labelled=False))
    with pytest.raises(NiwakiError, match="have no names"):
        Loaded(nn.Identity(), None, None, {}).choice("ring", images)
