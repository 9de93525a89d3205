"""On a full disk, a command ends with one clear line, and what was there stays."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from niwaki.cli import main
from niwaki.files import new_folder, together, write_atomically, write_layers
from niwaki.models import export
from niwaki.runs import open_run, workplace

NETWORK = """
from torch import nn
def build():
    return nn.Sequential(
        nn.Conv2d(1, 48, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(48, 96, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 10))
"""


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True
    )
    if made.returncode:
        pytest.skip(f"no small disk can be mounted: {made.stderr.decode()}")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def left(disk):
    return sorted(str(path.relative_to(disk)) for path in disk.rglob("*"))


def test_files_and_folders_are_whole_or_as_they_were(small_disk):
    large = {"a": torch.zeros(2**16)}
    says = "cannot be written: no space is left on the disk"
    (small_disk / "a.safetensors").write_text("before")
    with pytest.raises(OSError, match=rf"a\.safetensors {says}"):
        write_layers(small_disk / "a.safetensors", large)
    assert (small_disk / "a.safetensors").read_text() == "before"
    with pytest.raises(OSError, match=f"b {says}"), new_folder(small_disk / "b") as folder:
        write_layers(folder / "x", large)
    (small_disk / "f").mkdir()
    (small_disk / "f" / "a").write_text("before")
    with pytest.raises(OSError, match=f"f {says}"), together(small_disk / "f") as folder:  # noqa: PT012
        (folder / "a").write_text("after")
        write_layers(folder / "x", large)
    assert left(small_disk / "f") == ["a"]
    assert (small_disk / "f" / "a").read_text() == "before"
    with together(small_disk / "f") as folder:
        (folder / "a").write_text("after")
    assert (small_disk / "f" / "a").read_text() == "after"
    with pytest.raises(OSError, match=says), workplace(small_disk / "c") as work:  # noqa: SIM117
        with work.result() as folder:
            (folder / "x").write_bytes(bytes(2**18))
    with pytest.raises(OSError, match=says), open_run(small_disk / "d", dict) as run:
        run.write("x", large)
    with pytest.raises(OSError, match=says):
        write_atomically(small_disk / "e", lambda path: torch.save(large, path))
    assert left(small_disk) == ["a.safetensors", "f", "f/a"]


@pytest.mark.parametrize("format", ["onnx", "program"])
def test_an_export_does_not_end_the_process(small_disk, format):
    if format == "onnx":
        pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 500)).eval()
    with pytest.raises(OSError, match="no space is left on the disk"):
        export(model, small_disk / "net", (3, 8, 8), format=format)
    assert left(small_disk) == []


COMMANDS = {
    "prune": "--keep 0.5 --steps 1 --references 2",
    "prune-weights": "--references 2",
    "car": "--per-class 2",
    "car --greedy": "--greedy 1 --per-class 2",
    "explain": "--limit 64 --method gradient",
    "audit": "--limit 60 --heatmaps --method gradient",
    "filters": "--limit 20 --steps 0 --no-car",
    "evaluate": "--limit 20 --layers 0 --steps 1 --method gradient",
    "compare-criteria": "--criterion weight --references 1 --seeds 1 --steps 1 --limit 50",
}


@pytest.mark.long
@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_says_so_in_one_line(name, small_disk, tmp_path, monkeypatch, capsys):
    (tmp_path / "tiny.py").write_text(NETWORK)
    scope = {}
    exec(NETWORK, scope)
    save_file(scope["build"]().state_dict(), tmp_path / "w.safetensors")
    monkeypatch.chdir(tmp_path)
    (small_disk / "filler").write_bytes(bytes(2**15))
    command = [name.split()[0], "tiny.py:build", "digits", "--weights", "w.safetensors",
               *COMMANDS[name].split(), "--out", str(small_disk / "out")]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["niwaki", *command])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code == 2, said
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, said
    assert "no space" in lines[0].lower(), said
    assert "Traceback" not in said
    written = [place for place in left(small_disk) if place.startswith("out/")]
    assert all(place.startswith(("out/runs", "out/.niwaki")) for place in written), written
