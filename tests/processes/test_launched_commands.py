"""Commands that a launcher starts in several processes: one output, one voice."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
INPUTS = ["tiny.py:build", "digits", "--weights", "weights.safetensors"]
SLIDE = [*INPUTS[:1], *INPUTS[2:], "--slide-mpp", "0.5", "--size", "8", "--mean", "0.5",
         "--std", "0.25", "--target", "1", "--everywhere", "--no-page"]  # fmt: skip
TABLES = ("tiles.csv", "objects.geojson", "slide.json")
OTHERS = ["explain", "compare", "choose-rules", "compare-criteria"]


def pruned(folder):
    plan = json.loads((folder / "plan.json").read_text())
    rows = json.loads((folder / "trajectory.json").read_text())
    return plan, [(row["units"], row["accuracy"]) for row in rows], load_file(
        folder / "weights.safetensors"
    )  # fmt: skip


@pytest.fixture
def out(launcher):
    folder = launcher.place / "out"
    yield folder
    for path in (folder, launcher.place / "out.run"):
        shutil.rmtree(path, ignore_errors=True)


def run_well(launcher, command, count):
    codes = launcher.run(command, count)
    assert codes == [0] * count, [launcher.said(rank) for rank in range(count)]


@pytest.mark.slow
def test_prune_writes_once_what_one_process_writes(launcher, out):
    command = ["prune", *INPUTS, "--references", "5", "--steps", "2", "--out", "out"]
    run_well(launcher, command, 1)
    plan, rows, weights = pruned(out)
    said = [line.split()[:4] for line in launcher.said().splitlines() if "references" not in line]
    shutil.rmtree(out)
    run_well(launcher, command, 3)
    found = pruned(out)
    assert found[:2] == (plan, rows)
    for name, value in weights.items():
        assert torch.allclose(found[2][name], value, rtol=1e-6, atol=1e-7), name
    again = [line.split()[:4] for line in launcher.said().splitlines() if "references" not in line]
    assert again[:4] == said[:4]
    assert launcher.said(1) == launcher.said(2) == ""
    assert not (launcher.place / "out.run").exists()


@pytest.mark.slow
def test_slide_writes_once_what_one_process_writes(launcher, out):
    pytest.importorskip("openslide", reason="the extra slides is not installed")
    pixels = np.random.default_rng(0).integers(60, 256, (60, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(launcher.place / "slide.png")
    command = ["slide", "slide.png", *SLIDE, "--out", "out"]
    run_well(launcher, command, 1)
    expected = {name: (out / name).read_bytes() for name in TABLES}
    said = launcher.said()
    shutil.rmtree(out)
    run_well(launcher, command, 3)
    assert {name: (out / name).read_bytes() for name in TABLES} == expected
    assert launcher.said() == said
    assert launcher.said(1) == launcher.said(2) == ""
    assert not (launcher.place / "out.run").exists()


@pytest.mark.slow
def test_greedy_writes_once_what_one_process_writes(launcher, out):
    command = ["car", *INPUTS, "--greedy", "3", "--per-class", "9", "--out", "out"]
    run_well(launcher, command, 1)
    plan, rows, weights = pruned(out)
    said = launcher.said()
    shutil.rmtree(out)
    run_well(launcher, command, 3)
    found = pruned(out)
    assert found[:2] == (plan, rows)
    assert all(torch.equal(found[2][name], value) for name, value in weights.items())
    assert launcher.said() == said
    assert launcher.said(1) == launcher.said(2) == ""
    assert not (launcher.place / "out.run").exists()


def drawn(folder):
    """What was written of filters, up to the order in which sums were added up."""
    names = ("filters.csv", "gallery.json", "pictures.zip")
    told = (folder / "filters.json").read_text()
    rounded = json.loads(told, parse_float=lambda text: round(float(text), 9))
    return {name: (folder / name).read_bytes() for name in names}, rounded


@pytest.mark.slow
def test_filters_writes_once_what_one_process_writes(launcher, out):
    command = [
        "filters",
        *INPUTS,
        "--limit",
        "41",
        "--steps",
        "2",
        "--patches",
        "3",
        "--out",
        "out",
    ]
    run_well(launcher, command, 1)
    expected, said = drawn(out), launcher.said()
    shutil.rmtree(out)
    run_well(launcher, command, 3)
    assert drawn(out) == expected
    assert launcher.said() == said
    assert launcher.said(1) == launcher.said(2) == ""
    assert not (launcher.place / "out.run").exists()


@pytest.mark.slow
def test_an_error_is_told_once(launcher, out):
    wrong = {
        "not shared": ["audit", "--demo", "--out", "out"],
        "no such option": ["prune", *INPUTS, "--references", "-3", "--out", "out"],
        "in all of them": ["prune", *INPUTS, "--keep", "0.0001", "--out", "out"],
        "in the first": ["prune", *INPUTS, "--out", "/proc/out"],
    }
    for what, command in wrong.items():
        codes = launcher.run(command, 3)
        assert codes == [2] * 3, what
        told = [line for rank in range(3) for line in launcher.said(rank).splitlines()]
        assert sum("error:" in line for line in told) == 1, (what, told)
    assert not out.exists()


@pytest.mark.slow
@pytest.mark.parametrize("command", OTHERS)
def test_what_is_not_shared_is_refused(launcher, out, command):
    codes = launcher.run([command, *INPUTS, "--out", "out"], 2)
    assert codes == [2] * 2
    assert launcher.said(1) == ""
    assert "2 processes" in launcher.said()
    assert not out.exists()


@pytest.mark.long
@pytest.mark.parametrize("module", ["torch.distributed.run", "accelerate.commands.launch"])
def test_under_real_launchers(launcher, out, module):
    start = {
        "torch.distributed.run": ["--standalone", "--nproc-per-node", "2"],
        "accelerate.commands.launch": ["--num_processes", "2", "--cpu", "--num_machines", "1",
                                       "--mixed_precision", "no", "--dynamo_backend", "no"],
    }[module]  # fmt: skip
    command = ["prune", *INPUTS, "--references", "3", "--steps", "1", "--out", "out"]
    done = subprocess.run(
        [sys.executable, "-m", module, *start, "-m", "niwaki", *command],
        cwd=launcher.place, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (out / "weights.safetensors").exists()
    assert done.stdout.count("wrote out") == 1
