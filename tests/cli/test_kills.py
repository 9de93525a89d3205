"""Killed at random moments, each command goes on, ends as it would have, and leaves no trace."""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from launching import Launcher, kill

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
def launcher(tmp_path_factory):
    launcher = Launcher(tmp_path_factory.mktemp("work"))
    yield launcher
    launcher.stop()


def run(launcher, command):
    """Run a command to its end; return the seconds that it took."""
    began = time.monotonic()
    assert launcher.run(command, 1) == [0], launcher.said()
    return time.monotonic() - began


@pytest.mark.long
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("name", COMMANDS)
def test_killed_again_and_again_it_ends_the_same(name, launcher):
    place = launcher.place
    chance = random.Random(name)
    command = [name.split()[0], "tiny.py:build", "digits", "--weights", "weights.safetensors",
               *COMMANDS[name].split(), "--out", "out"]  # fmt: skip
    out, unfinished = place / "out", place / "out.run"
    for path in (out, unfinished):  # of a test that failed
        shutil.rmtree(path, ignore_errors=True)
    before = sorted(place.iterdir())
    run(launcher, command)
    expected = content(out)
    shutil.rmtree(out)
    seconds = run(launcher, command)
    again = content(out)
    shutil.rmtree(out)
    check_same(again, expected)

    kills = starts = ends = 0
    while kills < KILLS or unfinished.exists() or out.exists():
        starts += 1
        assert starts < 20 * KILLS, f"{kills} kills in {starts} starts"
        children = launcher.start(command, 1)
        if kills < KILLS:
            kill_at_random(children[0], unfinished, out, chance, seconds)
        (code,) = launcher.ended(children)
        if code == -signal.SIGKILL:
            kills += unfinished.exists() or out.exists()  # before, there is nothing to go on from
            continue
        if code != 0:  # killed when all was done, but for the last words
            assert "exists" in launcher.said(), launcher.said()
            assert out.exists()
        ends += 1
        check_same(content(out), expected)
        left = sorted(set(place.iterdir()) - set(before) - {out})
        assert not left, left
        assert not [p for p in out.rglob("*") if p.name.endswith(".lock") or ".run" in p.name]
        shutil.rmtree(out)
    assert ends > 0  # the last kill left something, and it was gone on from
    print(f"{name}: {kills} kills at work, {starts} starts, {ends} ends, {seconds:.1f} s unharmed")


def check_same(found, expected):
    assert found.keys() == expected.keys()
    assert not [file for file in expected if found[file] != expected[file]]


def kill_at_random(
    child: int, unfinished: Path, out: Path, chance: random.Random, seconds: float
) -> None:
    """Kill a command as it works or, every third time, as it writes what it has found."""
    if chance.random() < 1 / 3:
        wait_for(unfinished / "result", out, 2 * seconds)
        time.sleep(chance.uniform(0, 0.15))
    else:
        wait_for(unfinished, out, seconds)
        time.sleep(chance.uniform(0, seconds))
    kill(child)


def wait_for(path: Path, out: Path, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not path.exists() and not out.exists():
        time.sleep(0.002)
