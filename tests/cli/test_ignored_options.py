"""An option that would do nothing beside, or without, others is refused."""

import sys
from inspect import signature
from pathlib import Path
from typing import get_args

import pytest

from niwaki.cli import app, main
from niwaki.cli._acts import Acts
from niwaki.cli._spread import flag_of

MODEL = "niwaki.models.zoo:vgg_digits"
COMMANDS = {info.name: info.callback for info in app.registered_commands}
# A value of each such option that is not its default.
VALUES = {
    "tune": "end", "optimizer": "adamw", "lr": "0.1", "momentum": "0.5", "weight_decay": "0",
    "lr_schedule": "step", "label_smoothing": "0.1", "distil": "0.5", "temperature": "2",
    "patience": "3", "precision": "no", "tune_batch": "8", "held_out": "3", "top": "5",
    "floor": "0.5", "first": "3", "least_tissue": "0.3", "limit": "30", "method": "gradient",
    "target": "true", "training": "digits", "centres": "^(.)", "region": "pen=masks",
    "questions": "position", "confirm": "candidates.csv",
}  # fmt: skip


def cases():
    for name, command in COMMANDS.items():
        for parameter in signature(command).parameters.values():
            for about in get_args(parameter.annotation)[1:]:
                if isinstance(about, Acts):
                    for other in about.beside or about.without:
                        yield pytest.param(name, parameter, other, bool(about.beside),
                                           id=f"{name}-{parameter.name}-{other}")  # fmt: skip


def failing(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["niwaki", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    return capsys.readouterr().err


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def option(parameter):
    flag = flag_of(parameter)
    return [flag] if parameter.default is False else [flag, VALUES[parameter.name]]


@pytest.mark.parametrize(("command", "parameter", "other", "needed"), list(cases()))
def test_it_is_named_with_the_option_that_makes_it_idle(
    command, parameter, other, needed, monkeypatch, capsys, tmp_path
):
    known = signature(COMMANDS[command]).parameters
    named = {"slide": "slide.svs", "model": MODEL, "data": "digits"}
    if needed and other == "data":
        del named["data"]
    arguments = [value for name, value in named.items() if name in known]
    given = option(parameter)
    name, _, value = other.partition("=")
    if value:  # another value than that; all else that is needed is there
        given += ["--epochs", "1", flag_of(known[name]), "adamw"]
    elif not needed:
        given += {"greedy": ["--greedy", "2"], "watch": ["--watch", "digits"]}.get(
            name, [flag_of(known[name])]
        )
    elif parameter.name == "temperature":
        given += ["--epochs", "1"]
    said = failing(monkeypatch, capsys, command, *arguments, *given)
    assert said.startswith(f"error: {given[0]}")
    assert flag_of(known[name]) in said
    assert "does nothing" in said
    assert said.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_there_are_such_options():
    assert len(list(cases())) > 25


@pytest.mark.parametrize(("command", "parameter", "other", "needed"), list(cases()))
def test_the_default_and_what_is_complete_pass(command, parameter, other, needed):
    known = signature(COMMANDS[command]).parameters
    flags = {name: flag_of(one) for name, one in known.items()}
    nothing = {name: None for name in known}
    name, _, value = other.partition("=")
    rules = [a for a in get_args(parameter.annotation)[1:] if isinstance(a, Acts)]
    rule = next(rule for rule in rules if other in (*rule.beside, *rule.without))
    rule.check(parameter, {**nothing, parameter.name: parameter.default}, flags)
    complete = {**nothing, parameter.name: "given"}
    rule.check(parameter, {**complete, **({name: value or 1} if needed else {})}, flags)


IDLE = {
    "references without images": (
        [
            "prune",
            MODEL,
            "digits",
            "--criterion",
            "weight",
            "--repair",
            "none",
            "--references",
            "3",
        ],
        "--references 3",
    ),
    "references of random weights": (
        ["prune-weights", MODEL, "digits", "--criterion", "random", "--references", "3"],
        "--references 3",
    ),
    "outputs without images": (["info", MODEL, "--outputs", "0,1"], "--outputs 0,1"),
    "outputs of a slide": (["slide", "x.png", MODEL, "--outputs", "0,1"], "--outputs 0,1"),
    "a resized slide": (["slide", "x.png", MODEL, "--resize", "300"], "--resize 300"),
    "a watch over a demonstration": (["audit", "--demo", "--watch", "digits"], "--watch"),
    "a demonstration of another size": (["audit", "--demo", "--limit", "50"], "--limit"),
    "the weights of a demonstration": (["audit", "--demo", "--weights", "random"], "--weights"),
    "a demonstration of a model": (["audit", MODEL, "digits", "--demo"], "MODEL"),
}


@pytest.mark.parametrize("case", IDLE)
def test_what_depends_on_more_than_options(case, monkeypatch, capsys, tmp_path):
    arguments, named = IDLE[case]
    said = failing(monkeypatch, capsys, *arguments)
    assert said.startswith("error: ")
    assert named in said
    assert "nothing" in said or "leave" in said
    assert said.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_names_without_a_mask(monkeypatch, capsys, tmp_path):
    import numpy as np
    from PIL import Image

    Image.fromarray(np.full((300, 300, 3), 200, np.uint8)).save("slide.png")
    Path("slide.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    said = failing(monkeypatch, capsys, "tiles", "slide.png", "--slide-mpp", "0.5",
                   "--annotations", "slide.geojson", "--names", "a,b")  # fmt: skip
    assert "--names a,b does nothing" in said
