"""Killed at random moments, each command goes on, ends as it would have, and leaves no trace."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

NETWORK = """
from torch import nn
def build():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(12, 12, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10))
"""

# One process loads torch, which takes longest, and has children to be killed. What is measured
# with a clock is the same each time, so that results can be compared.
NURSERY = """
import json, os, sys
import torch
torch.set_num_threads(1)
import accelerate, matplotlib.pyplot, niwaki.auditing, niwaki.car, niwaki.evaluation, niwaki.filters
import niwaki.pruning, niwaki.report
from niwaki.cli import main
niwaki.evaluation.seconds_per_mac = lambda model, example: {
    name: 1e-9 * (1 + place) for place, (name, m) in enumerate(model.named_modules())
    if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))}
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        said = os.open("said.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1), os.dup2(said, 2)
        sys.argv = ["niwaki", *json.loads(line)]
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        finally:
            sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""

COMMANDS = {
    "audit": "--limit 100 --heatmaps",
    "audit --training": "--limit 60 --training digits",
    "filters": "--limit 60 --steps 4 --patches 3",
    "car": "--per-class 12",
    "car --greedy": "--greedy 6 --per-class 8",
    "prune --of seconds": "--of seconds --keep 0.5 --steps 8 --references 4",
    "prune --tune": "--keep 0.5 --steps 3 --references 4 --tune each --epochs 1",
    "prune-weights": "--keep 0.2 --steps 6 --references 8",
    "compare-criteria": "--criterion lrp --criterion weight --criterion taylor --references 2 "
    "--seeds 2 --steps 3 --limit 200",
    "explain": "--limit 64 --method lrp.epsilon_plus --method integrated_gradients",
    "evaluate": "--limit 16 --method gradient --method lrp.epsilon_plus --layers 2 --steps 4",
}
KILLS = 5  # of each command


class Nursery:
    """Starts commands in forks of a process that has loaded all that they need."""

    def __init__(self, place):
        self.place = place
        self.process = subprocess.Popen(
            [sys.executable, "-c", NURSERY], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, cwd=place, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def start(self, command):
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def ended(self):
        return int(self.process.stdout.readline())

    def run(self, command):
        began = time.monotonic()
        self.start(command)
        status = self.ended()
        assert status == 0, (self.place / "said.txt").read_text()
        return time.monotonic() - began


TIMED = ("seconds", "ms", "ms/image")
SEARCHED = ("evaluated", "pairs")  # how much a search had to look at


def plain(value):
    """JSON without what is measured with a clock, and without how much a search looked at."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items() if k not in TIMED + SEARCHED}
    return [plain(entry) for entry in value] if isinstance(value, list) else value


def table(text, between):
    """Rows of a table without the columns that are measured with a clock, and the text below it."""
    rows = [[cell.strip() for cell in line.split(between)] for line in text.splitlines()]
    timed = {place for place, head in enumerate(rows[0]) if head in TIMED}
    return [[cell for place, cell in enumerate(row) if place not in timed] for row in rows]


READ = {
    ".json": lambda data: plain(json.loads(data)),
    ".csv": lambda data: table(data.decode(), ","),
    ".md": lambda data: table(data.decode(), "|"),
    ".html": lambda data: None,  # it shows times, and all else is in the files beside it
}


def content(folder):
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        # The names of the parts of a comparison are drawn at random.
        if path.is_file() and name != ".niwaki" and not name.startswith("runs/"):
            found[name] = READ.get(path.suffix, bytes)(path.read_bytes())
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    (folder / "tiny.py").write_text(NETWORK)
    scope = {}
    exec(NETWORK, scope)
    torch.manual_seed(0)
    model = scope["build"]()
    for module in model.modules():  # as drawn by default, it says nearly the same of every image
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    save_file(model.state_dict(), folder / "weights.safetensors")
    return folder


@pytest.fixture(scope="module")
def nursery(place):
    nursery = Nursery(place)
    yield nursery
    nursery.process.stdin.close()
    nursery.process.wait(20)
    nursery.process.stdout.close()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("name", COMMANDS)
def test_killed_again_and_again_it_ends_the_same(name, place, nursery):
    chance = random.Random(name)
    command = [name.split()[0], "tiny.py:build", "digits", "--weights", "weights.safetensors",
               *COMMANDS[name].split(), "--out", "out"]  # fmt: skip
    out, run = place / "out", place / "out.run"
    for path in (out, run):  # of a test that failed
        shutil.rmtree(path, ignore_errors=True)
    before = sorted(place.iterdir())
    nursery.run(command)
    expected = content(out)
    shutil.rmtree(out)
    seconds = nursery.run(command)
    again = content(out)
    shutil.rmtree(out)
    check_same(again, expected)

    kills = starts = ends = 0
    while kills < KILLS or run.exists() or out.exists():
        starts += 1
        assert starts < 20 * KILLS, f"{kills} kills in {starts} starts"
        child = nursery.start(command)
        if kills < KILLS:
            kill(child, run, out, chance, seconds)
        status = nursery.ended()
        if status == signal.SIGKILL:
            kills += run.exists() or out.exists()  # before, there is nothing to go on from
            continue
        said = (place / "said.txt").read_text()
        if status != 0:  # killed when all was done, but for the last words
            assert "exists" in said, said
            assert out.exists()
        ends += 1
        check_same(content(out), expected)
        left = sorted(set(place.iterdir()) - set(before) - {out, place / "said.txt"})
        assert not left, left
        assert not [p for p in out.rglob("*") if p.name.endswith(".lock") or ".run" in p.name]
        shutil.rmtree(out)
    assert ends > 0  # the last kill left something, and it was gone on from
    print(f"{name}: {kills} kills at work, {starts} starts, {ends} ends, {seconds:.1f} s unharmed")


def check_same(found, expected):
    assert found.keys() == expected.keys()
    assert not [file for file in expected if found[file] != expected[file]]


def kill(child: int, run: Path, out: Path, chance: random.Random, seconds: float) -> None:
    """Kill a command as it works or, every third time, as it writes what it has found."""
    if chance.random() < 1 / 3:
        wait_for(run / "result", out, 2 * seconds)
        time.sleep(chance.uniform(0, 0.15))
    else:
        wait_for(run, out, seconds)
        time.sleep(chance.uniform(0, seconds))
    with suppress(ProcessLookupError):  # it has ended
        os.kill(child, signal.SIGKILL)


def wait_for(path: Path, out: Path, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not path.exists() and not out.exists():
        time.sleep(0.002)
