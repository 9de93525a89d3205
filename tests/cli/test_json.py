"""What machines read: one head for all commands, documented; and what TensorBoard reads."""

import json
import re
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import niwaki
from niwaki import evaluation
from niwaki.cli import app, main

MODEL = ["niwaki.models.zoo:vgg_digits", "digits", "--weights", "random", "--threads", "1"]
PAGE = (Path(__file__).parents[2] / "docs" / "json.md").read_text(encoding="utf-8")
ROWS = {
    name: set(re.findall(r"`([a-z_]+)`", text))
    for names, text in re.findall(r"^\| (`[a-z, `-]+`) \| (.*) \|$", PAGE, re.MULTILINE)
    for name in re.findall(r"`([a-z-]+)`", names)
}
HEAD = {"schema", "niwaki", "command"}


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


def test_every_command_with_json_is_documented():
    from typer.main import get_command

    commands = get_command(app).commands
    with_json = {n for n, c in commands.items() if any(p.name == "as_json" for p in c.params)}
    assert with_json <= set(ROWS)


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("explain", [*MODEL, "--limit", 2]),
        ("compare", [*MODEL, "--limit", 2, "--method", "gradient"]),
        ("car", [*MODEL, "--per-class", 1, "--layer", "conv1_1"]),
        ("info", MODEL),
        ("doctor", []),
    ],
)
def test_the_keys_are_those_of_the_page(command, arguments, tmp_path):
    out = ["--out", tmp_path / "out"] if command not in ("info", "doctor") else []
    said = json.loads(run(command, *arguments, *out, "--json").stdout)
    assert list(said)[:3] == ["schema", "niwaki", "command"]
    assert (said["schema"], said["niwaki"], said["command"]) == (1, niwaki.__version__, command)
    assert set(said) - HEAD - {"folder", "file"} <= ROWS[command]
    assert not out or said["folder"] == str(tmp_path / "out")


def test_an_error_has_the_head_too(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["niwaki", "explain", "nonsense", "digits", "--json"])
    with pytest.raises(SystemExit):
        main()
    said = json.loads(capsys.readouterr().out)
    assert said["command"] == "explain"
    assert said["error"]


@pytest.mark.slow
def test_steps_and_epochs_are_written_for_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = ["--keep", 0.6, "--steps", 2, "--references", 2, "--epochs", 1, "--criterion",
               "weight", "--photographs", 0, "--log", tmp_path / "log", "--json"]  # fmt: skip
    said = json.loads(run("prune", *MODEL, *options, "--out", tmp_path / "out").stdout)
    found = EventAccumulator(str(tmp_path / "log")).Reload()
    assert "fine-tuning/loss" in found.Tags()["scalars"]
    for tag, key in (("pruning/accuracy", "accuracy"), ("kept/macs", "macs")):
        values = [event.value for event in found.Scalars(tag)]
        told = [row[key] for row in said["trajectory"]]
        told = told if key == "accuracy" else [value / told[0] for value in told]
        assert values == pytest.approx(told, abs=1e-6)
    losses = [epoch["loss"] for row in said["trajectory"] for epoch in row["epochs"]]
    assert [e.value for e in found.Scalars("fine-tuning/loss")] == pytest.approx(losses, rel=1e-5)


def test_without_tensorboard_the_log_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match=r"pip install 'niwaki\[log\]'"):
        run("prune", *MODEL, "--log", tmp_path / "log", "--out", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_every_command_that_can_be_resumed_says_so(tmp_path, monkeypatch, capsys):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "randomisation_test", stop)
    out = tmp_path / "out"
    arguments = ["evaluate", *MODEL, "--limit", 2, "--method", "gradient", "--out", out]
    monkeypatch.setattr(sys, "argv", ["niwaki", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 130
    assert f"the same command resumes from {out}.run" in capsys.readouterr().err
