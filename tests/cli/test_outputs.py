"""What the commands write never destroys what they read, nor what niwaki did not write."""

import os

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from niwaki.cli import app
from niwaki.errors import NiwakiError
from niwaki.ownership import MARKER

NETWORK = """
from torch import nn
def small(num_classes=2):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, num_classes))
"""
INPUTS = ["--size", "8", "--mean", "0,0,0", "--std", "1,1,1", "--threads", "1"]


@pytest.fixture
def work(tmp_path, monkeypatch):
    """Return a working directory with photographs, a network and its weights."""
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(12):
            file = tmp_path / "photos" / name / f"{number}.png"
            Image.new("RGB", (8, 8), (20 * number, 99, 99)).save(file)
    (tmp_path / "nets.py").write_text(NETWORK)
    state = {
        "0.weight": torch.randn(4, 3, 3, 3),
        "0.bias": torch.randn(4),
        "3.weight": torch.randn(2, 144),
        "3.bias": torch.randn(2),
    }
    (tmp_path / "trained").mkdir()
    save_file(state, tmp_path / "trained" / "w.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


COMMANDS = {
    "explain": [],
    "evaluate": [],
    "filters": [],
    "audit": [],
    "car": [],
    "prune": [],
    "prune-weights": [],
    "compare-criteria": ["--seeds", "1"],
    "choose-rules": ["--trials", "1"],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "out",
    [
        "photos",
        ".",
        "..",
        "trained",
        "photos/cat",
        "photos/heatmaps",
        "way",
        "others",
        "~",
        "itself",
    ],
)
def test_force_spares_what_is_read_or_foreign(work, command, out, monkeypatch, tmp_path_factory):
    (work / "way").symlink_to("photos")
    (work / "others").mkdir()
    (work / "others" / "thesis.txt").write_text("years of work")
    monkeypatch.setenv("HOME", str(work / "others"))
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path_factory.mktemp("matplotlib")))
    before = files(work)
    options = ["--weights", "trained/w.safetensors", *INPUTS, *COMMANDS[command]]
    out = os.path.expanduser(out) if out != "itself" else f"../{work.name}"
    with pytest.raises(
        NiwakiError, match=r"never replaced|lies inside|did not write|give the name"
    ):
        run(command, "nets.py:small", "photos", *options, "--out", out, "--force")
    assert files(work) == before


@pytest.mark.parametrize(
    ("command", "out"),
    [
        (["compare", "nets.py:small", "photos/cat/1.png", *INPUTS], "photos/cat/1.png"),
        (["compare", "nets.py:small", "photos", *INPUTS], "photos/cat/1.png"),
        (["compare", "nets.py:small", "photos", *INPUTS], "photos/cat/new.png"),
        (["export", "nets.py:small", "--weights", "w.onnx", "--input-shape", "3,8,8"], "w.onnx"),
        (["demo", "--threads", "1"], "photos"),
        (["demo", "--threads", "1"], "."),
        (["audit", "--demo"], "photos"),
    ],
)
def test_force_spares_single_files_and_demos(work, command, out):
    (work / "w.onnx").write_bytes((work / "trained" / "w.safetensors").read_bytes())
    before = files(work)
    force = [] if command[0] == "demo" else ["--force"]
    with pytest.raises(
        NiwakiError, match=r"read|exists|never replaced|did not write|give the name"
    ):
        run(*command, "--out", out, *force)
    assert files(work) == before


def test_masks_training_and_criteria_are_read_too(work):
    (work / "masks").mkdir()
    (work / "masks" / "1.png").write_bytes(b"")
    (work / "rules.json").write_text("{}")
    before = files(work)
    audit = ["audit", "nets.py:small", "photos", *INPUTS, "--force"]
    for options in (["--region", "pen=masks"], ["--training", "masks"]):
        with pytest.raises(NiwakiError, match=r"masks.* read"):
            run(*audit, *options, "--out", "masks")
    prune = ["prune", "nets.py:small", "photos", *INPUTS, "--force"]
    with pytest.raises(NiwakiError, match=r"rules\.json.* read"):
        run(*prune, "--criterion", "lrp:composite=rules.json", "--out", "rules.json")
    assert files(work) == before


def test_force_replaces_what_niwaki_wrote(work):
    explain = ["explain", "nets.py:small", "photos", *INPUTS, "--out", "heatmaps"]
    assert run(*explain, "--method", "gradient", "--limit", 2).exit_code == 0
    first = (work / "heatmaps" / "sheet.png").stat().st_ino
    assert run(*explain, "--method", "gradient", "--limit", 2, "--force").exit_code == 0
    assert (work / "heatmaps" / "sheet.png").stat().st_ino != first
    assert (work / "heatmaps" / MARKER).exists()
    (work / "heatmaps" / "note.txt").write_text("look at the third one")
    with pytest.raises(NiwakiError, match=r"note\.txt"):
        run(*explain, "--force")
    assert (work / "heatmaps" / "note.txt").exists()


def test_a_folder_of_a_comparison_may_be_gone_on_with_and_one_of_another_not(work):
    (work / "mine" / "runs").mkdir(parents=True)
    (work / "mine" / "runs" / "a.json").write_text("tensorboard")
    (work / "mine" / "settings.json").write_text("{}")
    before = files(work)
    with pytest.raises(NiwakiError, match="did not write"):
        run("compare-criteria", "nets.py:small", "photos", *INPUTS, "--out", "mine", "--force")
    assert files(work) == before


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["compare", "nets.py:small", "photos", *INPUTS, "--method", "gradient"], "a.png"),
        (["export", "nets.py:small", "--input-shape", "3,8,8"], "a.pt2"),
    ],
)
def test_force_replaces_a_single_file_only_if_niwaki_wrote_it(work, command, name):
    (work / name).write_bytes(b"\x89PNG of somebody")
    before = files(work)
    with pytest.raises(NiwakiError, match="did not write it"):
        run(*command, "--out", name, "--force")
    assert files(work) == before
    (work / name).unlink()
    assert run(*command, "--out", name).exit_code == 0
    first = (work / name).stat().st_ino
    with pytest.raises(NiwakiError, match="exists"):
        run(*command, "--out", name)
    assert run(*command, "--out", name, "--force").exit_code == 0
    assert (work / name).stat().st_ino != first
