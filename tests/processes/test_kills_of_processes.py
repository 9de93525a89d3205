"""Processes that are killed: the others end by themselves, and the next start ends unharmed.

A launcher that starts a command again after a process has died (``torchrun --max-restarts``) does
what these tests do.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from launching import kill

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
INPUTS = ["tiny.py:build", "digits", "--weights", "weights.safetensors"]
COMMANDS = {
    "prune": "--keep 0.5 --steps 6 --references 6",
    "prune --tune": "--keep 0.6 --steps 2 --references 4 --tune each --epochs 1",
    "prune-weights": "--keep 0.2 --steps 5 --references 6",
    "car": "--per-class 12",
    "audit": "--limit 100 --heatmaps",
    "filters": "--limit 60 --steps 4 --patches 3",
    "slide": "--slide-mpp 0.5 --size 8 --mean 0.5 --std 0.25 --target 1 --everywhere --no-page",
    "evaluate": "--limit 24 --method gradient --method lrp.epsilon_plus --layers 2 --steps 4",
}
#: Of commands that read something else than a data set.
GIVEN = {"slide": ["slide.png", "tiny.py:build", "--weights", "weights.safetensors"]}
KILLS = 10  # of each command
PATIENCE = 30  # seconds in which the others have to end
TIMED = {"seconds", "ms", "lost", "Date", "date", "made", "time"}


@pytest.fixture
def out(launcher):
    folder, run = launcher.place / "out", launcher.place / "out.run"
    for path in (folder, run):
        shutil.rmtree(path, ignore_errors=True)
    yield folder
    for path in (folder, run):
        shutil.rmtree(path, ignore_errors=True)


def numbers(folder: Path):
    """Return what a command has found: plans, tables and tensors, without what a clock measures."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".safetensors":
            found[name] = load_file(path)
        elif path.suffix == ".json" and path.name != "run.json":
            found[name] = json.loads(path.read_text())
        elif path.name in ("tiles.csv", "objects.geojson"):
            found[name] = path.read_text()
        elif path.is_file():
            found[name] = None
    return found


def assert_alike(found, expected, where=""):
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for name in expected.keys() - TIMED:
            assert_alike(found[name], expected[name], f"{where}/{name}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for place, pair in enumerate(zip(found, expected, strict=True)):
            assert_alike(*pair, f"{where}/{place}")
    elif isinstance(expected, torch.Tensor):
        assert torch.allclose(found.double(), expected.double(), rtol=1e-5, atol=1e-6), where
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-6), where
    else:
        assert found == expected, where


@pytest.mark.long
@pytest.mark.parametrize("name", COMMANDS)
def test_killed_again_and_again_they_end_the_same(launcher, out, name):
    chance, run = random.Random(name), launcher.place / "out.run"
    command = [name.split()[0], *GIVEN.get(name, INPUTS), *COMMANDS[name].split(), "--out", "out"]
    if name == "slide":
        pytest.importorskip("openslide", reason="the extra slides is not installed")
        pixels = np.random.default_rng(0).integers(60, 256, (240, 240, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(launcher.place / "slide.png")
    sizes = (2,) if "tune" in name else (2, 3)  # batch norms see the share of a process
    before = sorted(launcher.place.iterdir())
    began = time.monotonic()
    assert launcher.run(command, 2) == [0, 0], launcher.said()
    seconds = time.monotonic() - began
    expected = numbers(out)
    shutil.rmtree(out)
    kills, starts, ranks = 0, 0, set()
    while kills < KILLS:
        starts += 1
        assert starts < 6 * KILLS
        count = chance.choice(sizes)
        children = launcher.start(command, count)
        wait_for(run, children[0], 3 * seconds)
        time.sleep(chance.uniform(0, 0.8 * seconds))
        doomed = children if chance.random() < 0.25 else [chance.choice(children)]
        for child in doomed:
            kill(child)
        killed_at = time.monotonic()
        codes = launcher.ended(children)
        if -9 not in codes:  # it was too late
            assert codes == [0] * count, [launcher.said(rank) for rank in range(count)]
            assert_alike(numbers(out), expected)
            shutil.rmtree(out)
            continue
        assert time.monotonic() - killed_at < PATIENCE, "the others wait for the dead"
        told = [launcher.said(rank) for rank in range(count)]
        assert sum("error:" in text for text in told) <= 1, told
        assert not any("Traceback" in text for text in told), told
        kills += 1
        ranks.add("all" if doomed is children else children.index(doomed[0]))
        if out.exists():  # all was written when it was killed
            assert_alike(numbers(out), expected)
            shutil.rmtree(out)
    codes = launcher.run(command, 2)
    assert codes == [0, 0], launcher.said()
    assert_alike(numbers(out), expected)
    left = sorted(set(launcher.place.iterdir()) - set(before) - {out})
    assert not left, left
    print(f"{name}: {kills} kills of {sorted(map(str, ranks))} in {starts} starts")


def wait_for(run: Path, first: int, seconds: float) -> None:
    """Wait until a process holds the run: then all have joined (see test_joining for before)."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and first not in map(owner, run.rglob("niwaki.lock")):
        time.sleep(0.002)


def owner(lock: Path) -> int:
    with suppress(OSError, ValueError):  # as it is made, or deleted
        return int(json.loads(lock.read_text())["pid"])
    return 0


@pytest.mark.long
def test_a_full_disk_ends_all_with_one_line(launcher, out, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48k", "tmpfs", disk], check=False)
    if made.returncode:
        pytest.skip("no small disk can be mounted")
    try:
        for name in ("prune", "car", "audit"):
            command = [name, *INPUTS, *COMMANDS[name].split(), "--out", str(disk / "out")]
            first, *others = launcher.run(command, 3)
            assert first == 2, name
            assert set(others) <= {0, 2}, name  # the first writes when the others may be done
            told = "".join(launcher.said(rank) for rank in range(3))
            assert told.count("error:") == 1, told
            assert "no space is left on the disk" in told
            assert not (disk / "out").exists()
            shutil.rmtree(disk / "out.run", ignore_errors=True)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.long
@pytest.mark.parametrize("harm", ["torn", "flipped", "gone"])
def test_damaged_parts_are_computed_again(launcher, out, harm):
    command = ["car", *INPUTS, "--per-class", "12", "--out", "out"]
    assert launcher.run(command, 2) == [0, 0]
    expected = numbers(out)
    shutil.rmtree(out)
    children = launcher.start(command, 2)
    run = launcher.place / "out.run"
    end = time.monotonic() + 60
    while time.monotonic() < end and not list(run.glob("*/*.safetensors")):
        time.sleep(0.002)
    for child in children:
        kill(child)
    launcher.ended(children)
    for file in [path for path in run.glob("*/*") if path.name != "niwaki.lock"]:
        data = bytearray(file.read_bytes())
        if harm == "gone":
            file.unlink()
        elif harm == "torn":
            file.write_bytes(data[: len(data) // 2])
        else:
            data[len(data) // 2] ^= 255
            file.write_bytes(data)
    assert launcher.run(command, 3) == [0] * 3, launcher.said()
    assert_alike(numbers(out), expected)


@pytest.mark.slow
def test_two_runs_do_not_share_a_folder(launcher, out):
    command = ["car", *INPUTS, "--per-class", "12", "--out", "out"]
    first = launcher.start(command, 2)
    wait_for(launcher.place / "out.run", first[0], 60)
    assert launcher.run(command, 2) == [2, 2]
    assert f"in use by process {first[0]}" in launcher.said(0) + launcher.said(1)
    for child in first:
        kill(child)
    launcher.ended(first)


READ_ONLY = ["prune", *INPUTS, "--keep", "0.8", "--references", "2"]


@pytest.mark.long
@pytest.mark.parametrize("count", [1, 2])
def test_a_run_folder_that_cannot_be_written_ends_all_with_one_line(launcher, out, count, tmp_path):
    disk = tmp_path / "disk"
    (disk / "out.run").mkdir(parents=True)
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root may mount a disk for reading")
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", disk], check=False)
    if made.returncode:
        pytest.skip("no disk can be mounted for reading")
    try:
        codes = launcher.run([*READ_ONLY, "--out", str(disk / "out")], count)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
    assert codes == [2] * count
    told = "".join(launcher.said(rank) for rank in range(count))
    assert told.count("error:") == 1, told
    assert "cannot be written (Read-only file system)" in told


@pytest.mark.long
def test_a_run_of_before_that_lies_on_a_disk_for_reading(launcher, out, tmp_path):
    """The place of the output can be written, but not what lies beside it already."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root may mount a disk for reading")
    run = tmp_path / "out.run"
    run.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", run], check=False)
    if made.returncode:
        pytest.skip("no disk can be mounted for reading")
    try:
        codes = launcher.run([*READ_ONLY, "--out", str(tmp_path / "out")], 1)
    finally:
        subprocess.run(["umount", "-l", run], check=True)
    assert codes == [2], launcher.said()
    assert launcher.said().count("error:") == 1, launcher.said()
    assert "Traceback" not in launcher.said()
    assert "out.run" in launcher.said()
    assert sorted(tmp_path.iterdir()) == [run]


DIES = """
import os, threading, time
from pathlib import Path

def build():
    import tiny
    return tiny.build()

def die():
    while len(list(Path("out.run").glob("*/step-*"))) < 3:
        time.sleep(0.002)
    os.kill(os.getpid(), 9)

first = os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0"
if first and os.environ["RANK"] == "1":
    threading.Thread(target=die, daemon=True).start()
"""


@pytest.mark.long
def test_torchrun_starts_again_and_the_run_goes_on(launcher, out):
    (launcher.place / "dies.py").write_text(DIES)
    given = COMMANDS["prune"].split()
    assert launcher.run(["prune", *INPUTS, *given, "--out", "out"], 2) == [0, 0]
    expected = numbers(out)
    shutil.rmtree(out)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += ["--nproc-per-node", "2", "--max-restarts", "1", "-m", "niwaki"]
    command = ["prune", "dies.py:build", *INPUTS[1:], *given, "--out", "out"]
    done = subprocess.run(
        [*torchrun, *command],
        cwd=launcher.place, capture_output=True, text=True, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "(exitcode: -9) local_rank: 1" in done.stderr, done.stderr
    words = [line.split() for line in done.stdout.splitlines()]
    rows = [row for row in words if len(row) == 6 and row[0].isdigit()]
    steps = [int(row[0]) for row in rows]
    again = steps.index(0, 1)  # where the second start tells what was there
    assert again >= 2
    assert rows[again : again + 2] == rows[:2]  # with the seconds that they took then
    assert steps[again:] == list(range(len(steps) - again))
    found = numbers(out)
    assert_alike(found["plan.json"], expected["plan.json"])
    assert_alike(found["weights.safetensors"], expected["weights.safetensors"])
    (launcher.place / "dies.py").unlink()
