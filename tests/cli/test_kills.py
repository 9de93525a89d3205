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
import accelerate, matplotlib.pyplot, niwaki.audit, niwaki.car, niwaki.evaluation, niwaki.filters
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
KILLS = 4  # of each command


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


def plain(value):
    """JSON without what is measured with a clock, and without how much a search had to look at."""
    if isinstance(value, dict):
        left_out = ("seconds", "ms", "evaluated", "pairs")
        return {k: plain(v) for k, v in value.items() if k not in left_out}
    return [plain(entry) for entry in value] if isinstance(value, list) else value


def content(folder):
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            name = str(path.relative_to(folder))
            if name == ".niwaki" or name.startswith("runs/"):
                continue  # of a comparison: the names of the parts are drawn at random
            found[name] = plain(json.loads(data)) if path.suffix == ".json" else data
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    (folder / "tiny.py").write_text(NETWORK)
    scope = {}
    exec(NETWORK, scope)
    torch.manual_seed(0)
    model = scope["build"]()
    save_file(model.state_dict(), folder / "weights.safetensors")
    return folder


@pytest.fixture(scope="module")
def nursery(place):
    nursery = Nursery(place)
    yield nursery
    nursery.process.stdin.close()
    nursery.process.wait(20)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("name", COMMANDS)
def test_killed_again_and_again_it_ends_the_same(name, place, nursery):
    generator = random.Random(name)
    command = [name.split()[0], "tiny.py:build", "digits", "--weights", "weights.safetensors",
               *COMMANDS[name].split(), "--out", "out"]  # fmt: skip
    out, before = place / "out", sorted(place.iterdir())
    shutil.rmtree(out, ignore_errors=True)
    seconds = nursery.run(command)
    expected = content(out)
    shutil.rmtree(out)
    nursery.run(command)
    again = content(out)
    assert again.keys() == expected.keys()
    steady = {file for file, data in again.items() if data == expected[file]}
    assert steady, sorted(expected)
    shutil.rmtree(out)
    kills = ends = in_result = 0
    while kills < KILLS or out.exists() or (place / "out.run").exists():
        child = nursery.start(command)
        killed = kills < KILLS
        if killed:
            if generator.random() < 0.4:  # as it writes what it has found
                wait_for(place / "out.run" / "result", out, 2 * seconds)
                time.sleep(generator.uniform(0, 0.15))
                in_result += 1
            else:
                time.sleep(generator.uniform(0, seconds))
            with suppress(ProcessLookupError):  # it has ended
                os.kill(child, signal.SIGKILL)
        status = nursery.ended()
        kills += status == signal.SIGKILL
        if status == signal.SIGKILL:
            continue
        said = (place / "said.txt").read_text()
        if status != 0:  # killed when all was done, but for the last words
            assert "exists" in said, said
            assert out.exists()
        ends += 1
        found = content(out)
        assert found.keys() == expected.keys(), said
        for file in steady:
            assert found[file] == expected[file], file
        left = sorted(set(place.iterdir()) - set(before) - {out, place / "said.txt"})
        assert not left, left
        assert not [p for p in out.rglob("*") if p.name.endswith(".lock") or ".run" in p.name]
        shutil.rmtree(out)
    print(f"{name}: {kills} kills ({in_result} aimed at the result), {ends} ends, "
          f"{len(steady)} of {len(expected)} files compared")  # fmt: skip


def wait_for(result: Path, out: Path, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end and not result.exists() and not (out / "table.md").exists():
        time.sleep(0.002)
