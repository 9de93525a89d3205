"""`niwaki estimate`: what it says of commands, against the commands themselves."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from niwaki import stages
from niwaki.cli import _estimate, app
from niwaki.cli._works import WORKS
from niwaki.errors import NiwakiError
from niwaki.estimation import Trial
from niwaki.files import is_dead
from niwaki.stages import Stage

MODEL = ["niwaki.models.zoo:vgg_digits", "digits", "--weights", "random", "--threads", "1"]
FAST = {
    "explain": [*MODEL, "--limit", 40],
    "compare": [*MODEL, "--limit", 20, "--method", "gradient"],
    "evaluate": [*MODEL, "--limit", 20, "--method", "gradient", "--layers", 1],
    "prune": [*MODEL, "--keep", 0.8, "--per-step", 0.05, "--references", 3, "--epochs", 2],
    "prune-weights": [*MODEL, "--steps", 3, "--references", 3],
    "car": [*MODEL, "--layer", "conv1_1"],
    "filters": [*MODEL, "--limit", 40, "--layer", "conv1_1", "--steps", 3, "--no-car"],
    "audit": [*MODEL, "--limit", 100, "--questions", "colour"],
}


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


def test_every_command_that_works_long_is_known():
    assert set(FAST) | {"slide"} == set(WORKS)


def test_stages_have_the_names_that_the_code_gives_them():
    files = (Path(__file__).parents[2] / "src" / "niwaki").rglob("*.py")
    known = set(re.findall(r'stage\("([^"]+)"\)', "".join(f.read_text() for f in files)))
    assert {name for work in WORKS.values() for name in work.stages} <= known


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("command", FAST)
def test_a_command_knows_what_it_is_limited_by(command, tmp_path):
    limits = WORKS[command].limited(0)
    with stages.recorded(limits) as kept:
        run(command, *FAST[command], "--out", tmp_path / "out")
    assert set(limits) <= set(kept.counts)
    assert all(kept.done[name] < kept.counts[name] for name in limits if kept.counts[name] > 2)
    terms = [term for terms in WORKS[command].stages.values() for term in terms]
    names = {re.split("[+<]", part.strip())[0] for term in terms for part in term.split("*")}
    assert names <= {*kept.counts, "1"}


@pytest.mark.slow
def test_a_small_job_is_tried_as_a_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    found = run("estimate", "explain", *MODEL, "--limit", 4, "--processes", 4, "--json")
    assert found.exit_code == 0, found.output
    assert not list(tmp_path.glob("*niwaki*"))  # the trial's folder is gone
    assert not (tmp_path / "heatmaps").exists()
    said = json.loads(found.stdout)
    assert said["counts"]["images"] == 4
    assert len(said["trials"]) == 1
    assert said["seconds"] == pytest.approx(said["trials"][0]["seconds"])
    assert said["memory"] == said["trials"][0]["memory"] > 2**27
    assert said["serial"] == pytest.approx(1, abs=0.01)
    run("explain", *MODEL, "--limit", 4, "--out", "out")
    written = sum(file.stat().st_size for file in Path("out").rglob("*") if file.is_file())
    assert said["disk"] == pytest.approx(written, rel=0.1)


class Job:
    """Stands for a job that takes 3 s, and 2 s of 10 MB for each batch of 8 images."""

    def __init__(self, images):
        self.images, self.limits = images, []

    def __call__(self, command, limits, processes):
        self.limits.append(limits["images"])
        done = min(self.images, 8 * limits["images"])
        batches = done / 8
        stage = Stage(2 * batches, shared=2 * batches, loops=1, turns=batches)
        stages = {"everything else": Stage(3), "perturbing": stage}
        counts = {"images": self.images}
        memory = int(1e7 * batches)
        return Trial(counts, {"images": done}, stages, memory=memory, disk=memory // 2)


@pytest.mark.parametrize(("budget", "tried"), [(1, [1, 3]), (60, [1, 3, 8]), (120, [1, 3, 8, 20])])
def test_trials_grow_while_there_is_time(budget, tried, monkeypatch):
    job = Job(images=8000)
    monkeypatch.setattr(_estimate, "_tried", job)
    found = run("estimate", "evaluate", *MODEL, "--budget", budget, "--processes", 8)
    assert job.limits == tried
    assert "4.22 min on 8 processes" in found.stdout
    assert "9.31 GB of memory in each process" in found.stdout
    assert "4.66 GB on the disk" in found.stdout
    assert "0.1% of the time of one process cannot be shared" in found.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["doctor"], "known are explain"),
        (["explain", "nonsense", "digits"], "does not run: .*nonsense"),
    ],
)
def test_what_cannot_be_estimated_is_told(command, message):
    with pytest.raises(NiwakiError, match=message):
        run("estimate", *command)


LASTING = """
import os, time
from pathlib import Path
def build():
    Path("begun").write_text(str(os.getpid()))
    os.replace("begun", "trial")
    time.sleep(300)
"""


def until(happened):
    for _ in range(600):
        if happened():
            return
        time.sleep(0.1)
    raise AssertionError("it has not happened within a minute")


def litter(folder):
    """List what niwaki has left; torch may have a folder of its own there."""
    return list(folder.glob(".niwaki-*"))


def heed_interrupts():
    """Shells start what runs in the background with interrupts ignored, and that is inherited."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals are those of POSIX")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGKILL"])
def test_stopped_it_leaves_no_trial_and_no_files(name, tmp_path, monkeypatch):
    (tmp_path / "lasting.py").write_text(LASTING)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    words = ["-m", "niwaki", "estimate", "explain", "lasting.py:build", "digits"]
    environment = {**os.environ, "TMPDIR": str(scratch)}
    started = {"cwd": tmp_path, "env": environment, "preexec_fn": heed_interrupts}
    with subprocess.Popen([sys.executable, *words], **started) as run:
        until((tmp_path / "trial").exists)
        assert litter(scratch)
        run.send_signal(getattr(signal, name))
        code = run.wait(60)
    assert code == {"SIGTERM": -15, "SIGINT": 130, "SIGKILL": -9}[name]
    trial = int((tmp_path / "trial").read_text())
    until(lambda: is_dead(trial))
    if name == "SIGKILL":  # nothing of it was left to clean up: the next estimate does it
        monkeypatch.setattr(tempfile, "tempdir", str(scratch))
        with _estimate._scratch() as own:
            assert litter(scratch) == [own]
    assert not litter(scratch)
