"""Run folders: killed at any moment, a run goes on and ends as it would have."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from bundles import bundled
from pruning_networks import Residual, data_for, randomise
from torch import nn

from niwaki.errors import NiwakiError
from niwaki.pruning import FineTune, Run, Schedule, prune


def network(seed=0):
    torch.manual_seed(seed)
    return randomise(Residual(), seed)


TUNE = FineTune(epochs=1, lr=0.01, batch_size=4)
OPTIONS = {
    "plain": {},
    "within layers": {"criterion": "taylor.rebuilt"},
    "recalibrated": {"repair": "recalibrate"},
    "compensated": {"repair": "compensate"},
    "once": {"recompute": False},
    "tuned": {"tune": TUNE, "repair": "recalibrate"},
    "tuned in the end": {"tune": TUNE, "tune_each": False, "recompute": False},
}


def play(folder=None, model=None, data=None, callback=None, **options):
    options = {"criterion": "taylor", "keep": 0.4, "of": "units", "steps": 4, **options}
    return prune(
        model or network(),
        data or data_for(8),
        **bundled(test=data_for(8), folder=folder, callback=callback, **options),
    )


def assert_equal(one, other):
    assert one.plan == other.plan
    mine, theirs = one.model.state_dict(), other.model.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)

    def rows(pruned):
        return [{**row, "seconds": 0} for row in pruned.trajectory.to_json()]

    assert rows(one) == rows(other)


@pytest.fixture(scope="module")
def whole():
    return {name: play(**options) for name, options in OPTIONS.items()}


class Killed(BaseException):
    """Ends a run as nothing catches."""


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("after", range(5))
def test_a_run_goes_on_after_each_step(name, after, whole, tmp_path):
    folder, told = tmp_path / "run", []

    def stop(row):
        told.append(row.step)
        if row.step == after:
            raise Killed

    with pytest.raises(Killed):
        play(folder, callback=stop, **OPTIONS[name])
    assert told == list(range(after + 1))
    told.clear()
    assert_equal(
        play(folder, callback=lambda row: told.append(row.step), **OPTIONS[name]), whole[name]
    )
    assert told == [0, 1, 2, 3, 4]


def test_a_finished_run_is_read(whole, tmp_path, monkeypatch):
    from niwaki.pruning import _loop

    play(tmp_path / "run")
    assert len(steps(tmp_path / "run")) == 2  # the last, and the one before it
    monkeypatch.setattr(_loop, "score", None)
    assert_equal(play(tmp_path / "run"), whole["plain"])


def test_a_run_that_hit_its_floor_stays_there(tmp_path, monkeypatch):
    whole = sum(p.numel() for p in network().parameters())

    def share_left(model, *_, **__):
        return sum(p.numel() for p in model.parameters()) / whole

    monkeypatch.setattr("niwaki.pruning.steps.accuracy", share_left)
    options = {"floor": 0.5, "validation": data_for(8)}
    first = play(tmp_path / "run", **options)
    assert first.trajectory[-1].rejected
    assert 0.5 <= share_left(first.model) < 1
    assert_equal(play(tmp_path / "run", **options), first)


# Damage.


def steps(folder):
    """Files of the steps, the last one last."""
    return sorted(path for path in folder.iterdir() if path.name.startswith("step-"))


def interrupted(folder, after=3, **options):
    def stop(row):
        if row.step == after:
            raise Killed

    with pytest.raises(Killed):
        play(folder, callback=stop, **options)
    assert [step.name[:9] for step in steps(folder)] == [f"step-{i:04}" for i in (after - 1, after)]


@pytest.mark.parametrize("which", ["last", "both", "record"])
@pytest.mark.parametrize("damage", ["gone", "empty", "half", "one bit", "one byte short"])
def test_a_torn_file_never_stops_a_run(damage, which, whole, tmp_path):
    folder = tmp_path / "run"
    interrupted(folder, **OPTIONS["once"])
    record = [folder / "niwaki-run.json"]
    chosen = {"last": steps(folder)[-1:], "both": steps(folder), "record": record}
    for path in chosen[which]:
        content = path.read_bytes()
        if damage == "gone":
            path.unlink()
            continue
        middle = len(content) // 2
        path.write_bytes(
            {
                "empty": b"",
                "half": content[:middle],
                "one bit": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
                "one byte short": content[:-1],
            }[damage]
        )
    assert_equal(play(folder, **OPTIONS["once"]), whole["once"])


def test_what_a_kill_leaves_beside_is_cleared_away(whole, tmp_path):
    folder = tmp_path / "run"
    interrupted(folder)
    unnamed = folder / "step-0004.0123abcd.safetensors"
    unnamed.write_bytes(b"half")
    assert_equal(play(folder), whole["plain"])
    assert not unnamed.exists()
    assert len(list(folder.iterdir())) == 3


def test_a_step_of_another_version_is_passed_over(whole, tmp_path):
    folder = tmp_path / "run"
    interrupted(folder)
    (folder / "niwaki-run.json").write_text("{}")
    assert_equal(play(folder), whole["plain"])


# Refusals.


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"model": network(1)}, r"another model:\n  model: there '.*', now '"),
        ({"data": data_for(8, samples=9)}, "another data:\n  data: there '6 samples"),
        ({"data": (data_for(8)[0], data_for(8)[1].flip(0))}, "another data:\n  data: there"),
        ({"keep": 0.5}, "another setting:\n  keep: there 0.4, now 0.5"),
        ({"criterion": "weight"}, "another setting:\n  criterion: there .Taylor.*, now .Weight"),
        ({"steps": 5}, "steps: there 4, now 5"),
        ({"repair": "recalibrate"}, "repair: there 'rebuild_jointly', now 'recalibrate'"),
        ({"tune": TUNE}, "tune: there None, now {'epochs': 1"),
        ({"ignore": ["inner"], "keep": 0.7}, r"ignore: there \[\], now \['inner'\]"),
        ({"ceilings": 0.9}, "ceilings: there {}, now"),
        ({"batch_size": 2}, "batch_size: there 32, now 2"),
        ({"validation": data_for(8)}, "another data:\n  validation: there None, now '6 samples"),
        ({"keep": 0.5, "model": network(1)}, "another model and setting"),
    ],
    ids=lambda value: str(list(value)) if isinstance(value, dict) else "",
)
def test_another_run_is_refused(other, says, tmp_path_factory, whole):
    folder = tmp_path_factory.getbasetemp() / "refusals"
    if not folder.exists():
        interrupted(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(NiwakiError, match=says):
        play(folder, **other)
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_with_something_else_in_it(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(NiwakiError, match=r"no folder of a run, it holds 'thesis.tex'"):
        play(tmp_path)
    with pytest.raises(NiwakiError, match="is a file"):
        play(tmp_path / "thesis.tex")


def test_nothing_is_written_for_what_cannot_be_done(tmp_path):
    with pytest.raises(NiwakiError, match="cannot be reached"):
        play(tmp_path / "run", keep=0.0001)
    assert not (tmp_path / "run").exists()


# Killed from outside.

# One process loads torch, which takes longest, and has children to be killed.
NURSERY = """
import os, sys, torch
sys.path.insert(0, {tests!r})
torch.set_num_threads(1)
from test_run import slow
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        slow({folder!r}).save({out!r})
        os._exit(0)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


def slow(folder):
    """Prune in some seconds, with everything in it that a run can have."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 3),
    )
    return prune(
        randomise(model),
        data_for(12, samples=24),
        "lrp",
        keep=0.3,
        of="units",
        repair="recalibrate",
        tune=FineTune(epochs=1, lr=0.01, batch_size=8),
        schedule=Schedule(steps=12),
        run=Run(batch_size=8, folder=folder),
    )


def last_step(folder):
    found = steps(folder) if folder.is_dir() else []
    return int(found[-1].name[5:9]) if found else -1


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_killed_ten_times_a_run_ends_the_same(tmp_path, request):
    """Each kill comes at a random moment, in any phase of a step."""
    generator, folder, out = random.Random(0), tmp_path / "run", tmp_path / "out"
    expected = slow(tmp_path / "whole")
    step = sum(row.seconds for row in expected.trajectory[1:]) / 12
    script = NURSERY.format(tests=str(Path(__file__).parent), folder=str(folder), out=str(out))
    nursery = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    request.addfinalizer(lambda: nursery.poll() is None and nursery.kill())
    request.addfinalizer(nursery.communicate)

    def bear():
        nursery.stdin.write("\n")
        nursery.stdin.flush()
        return int(nursery.stdout.readline())

    reached = []
    for kill in range(10):
        goal = min(last_step(folder) + generator.choice([0, 1, 1, 2]), 7)
        child = bear()
        while last_step(folder) < goal:
            time.sleep(0.01)
        time.sleep(generator.uniform(0, step))
        os.kill(child, signal.SIGKILL)
        assert int(nursery.stdout.readline()) == signal.SIGKILL
        reached.append(last_step(folder))
        if kill in (4, 8) and steps(folder):  # and the disk has lost the end of a file
            path = steps(folder)[-1]
            path.write_bytes(path.read_bytes()[:-7])
    bear()
    assert int(nursery.stdout.readline()) == 0
    assert len(set(reached)) > 3, reached
    expected.save(tmp_path / "expected")
    for name in ("plan.json", "weights.safetensors"):
        assert (out / name).read_bytes() == (tmp_path / "expected" / name).read_bytes(), name
