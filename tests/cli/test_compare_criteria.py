"""`niwaki compare-criteria`: table, numbers and pictures, kept when interrupted."""

import csv
import json
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

from niwaki.cli import app, main
from niwaki.pruning import Comparison

pytestmark = pytest.mark.slow


def build():
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, 10),
    )  # fmt: skip


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    folder = tmp_path_factory.mktemp("network")
    torch.manual_seed(0)
    save_file(build().state_dict(), folder / "weights.safetensors")
    (folder / "tiny.py").write_text(
        "from torch import nn\ndef build():\n    return nn.Sequential(nn.Conv2d(1, 6, 3), "
        "nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), "
        "nn.Linear(8, 10))\n"
    )
    return [f"{folder / 'tiny.py'}:build", "digits", "--weights", folder / "weights.safetensors"]


def run(*arguments):
    whole = ["compare-criteria", *arguments, "--threads", 1]
    return CliRunner().invoke(app, [str(a) for a in whole], catch_exceptions=False)


SMALL = ["--repair", "none", "--seeds", 2, "--steps", 2, "--keep", 0.5, "--limit", 40]


@pytest.fixture(scope="module")
def compared(network, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "comparison"
    done = run(*network, "--criterion", "lrp", "--criterion", "lrp:reduce=signed,normalise=sum",
               "--criterion", "weight", "--references", 1, "--references", 3, *SMALL,
               "--out", out, "--json")  # fmt: skip
    assert done.exit_code == 0
    return out, json.loads(done.stdout)


@pytest.mark.slow
def test_it_writes_table_numbers_and_pictures(compared):
    out, said = compared
    assert len(said["table"]) == 5  # two that look at data at two sizes, one that does not
    assert {row["runs"] for row in said["table"]} == {1, 2}
    whole = Comparison.from_json(json.loads((out / "comparison.json").read_text()))
    assert len(whole.runs) == 9
    assert whole.rows() == said["table"]
    with (out / "curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9 * 3
    assert (out / "table.md").read_text().count("\n") == 7
    for name in ("curves.png", "layers.png", "rank_correlation.png"):
        with Image.open(out / name) as picture:
            assert picture.width > 400


def test_the_same_command_goes_on_and_another_is_refused(
    network, compared, monkeypatch, capsys, tmp_path
):
    out, said = compared
    files = {f.name: f.stat().st_mtime_ns for f in (out / "runs").iterdir()}
    again = run(*network, "--criterion", "lrp", "--criterion", "lrp:reduce=signed,normalise=sum",
                "--criterion", "weight", "--references", 1, "--references", 3, *SMALL,
                "--out", out, "--json")  # fmt: skip
    assert json.loads(again.stdout) == said
    assert {f.name: f.stat().st_mtime_ns for f in (out / "runs").iterdir()} == files
    other = [*network, "--criterion", "lrp", "--steps", 1, "--keep", 0.5, "--out", out]
    assert "holds a run of another data and setting:\n  test: there" in failing(
        monkeypatch, capsys, *other
    )


def test_a_foreign_folder_is_refused(network, monkeypatch, capsys, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    said = failing(monkeypatch, capsys, *network, "--out", tmp_path)
    assert "--force" in said


@pytest.mark.parametrize(
    ("criterion", "says"),
    [
        ("lrb", "did you mean lrp"),
        ("lrp:signed", "expected NAME:OPTION=VALUE"),
        ("lrp:colour=red", "colour"),
    ],
)
def test_wrong_criteria_are_named(network, monkeypatch, capsys, tmp_path, criterion, says):
    out = tmp_path / "out"
    said = failing(monkeypatch, capsys, *network, "--criterion", criterion, "--out", out)
    assert says in said
    assert not out.exists()


def failing(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["niwaki", "compare-criteria", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said
