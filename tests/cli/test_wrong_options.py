"""For every option of every command and every value that it cannot have: one line, nothing left."""

import json
import re
import sys
from inspect import signature
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
import typer
from typer.main import get_command

from niwaki.cli import _app, app, main
from niwaki.cli._fits import check_fits
from niwaki.cli._spread import Bytes, Listed, Written, flag_of
from niwaki.data import Images
from niwaki.errors import DataError
from niwaki.ranges import Range

MODEL = "niwaki.models.zoo:vgg_digits"
ARGUMENTS = (
    "command",
    "files",
    "runs",
    "slide",
    "model",
    "data",
    "images",
)  # in the order of a command line
COMMANDS = {info.name: info.callback for info in app.registered_commands}


def outside(found):
    """Numbers that a range does not hold, as a person may type them."""
    yield "nan" if not found.whole else "0.5"
    if found.low > float("-inf"):
        yield str(found.low if found.open_low else found.low - 1)
        yield "-1e308" if not found.whole else str(-(10**12))
    if found.high < float("inf"):
        yield str(found.high if found.open_high else found.high + 1)
        yield "1e308" if not found.whole else str(10**12)
    if not found.whole:
        yield from ("inf", "-inf")


def wrong_values(parameter):
    """What an option must refuse, by what its annotation says of it."""
    kind, *about = get_args(parameter.annotation) or [None]  # a context is no option
    for one in about:
        if isinstance(one, Range):
            yield from outside(one)
            yield from ("many", "")
        if isinstance(one, Listed):
            some = max(one.least, 1)
            for value in outside(one.range):
                yield ",".join([value] * some)
            yield from ("", ",", "1,,2", "a", ",".join(["1"] * (one.most + 1)))
        if isinstance(one, Bytes):
            yield from ("1B", "0", "-1GB", "lots", "nanMB", "infGB", "", "9" * 40)
        if isinstance(one, Written):
            yield from ("{folder}/file/out", "/proc/out", "/", "")
    if "Literal" in str(kind):
        yield from ("nope", "")
    elif kind is str or "str" in str(kind):
        yield ""


def shown(value):
    """Return a value as a message shows it."""
    try:
        return value if "." not in value and "e" not in value else str(float(value))
    except ValueError:
        return value[:70]


PROGRAM = get_command(app)  # built once: typer builds it anew in every call


def cases():
    """Each option of each command with its wrong values; what commands share, once in full."""
    seen = set()
    for name, command in COMMANDS.items():
        for parameter in signature(command).parameters.values():
            values = list(dict.fromkeys(wrong_values(parameter)))
            again = (parameter.name, tuple(values)) in seen
            seen.add((parameter.name, tuple(values)))
            if values:
                yield pytest.param(name, parameter, values[: 1 if again else None],
                                   id=f"{name}-{parameter.name}")  # fmt: skip


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("of a user")
    monkeypatch.setattr(_app, "app", PROGRAM)
    monkeypatch.chdir(tmp_path)


def failing(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["niwaki", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    return capsys.readouterr()


@pytest.mark.parametrize(("command", "parameter", "values"), list(cases()))
def test_a_wrong_value_is_one_line_and_leaves_nothing(
    command, parameter, values, tmp_path, monkeypatch, capsys
):
    flag = flag_of(parameter)
    known = signature(COMMANDS[command]).parameters
    for value in values:
        given = value.format(folder=tmp_path)
        arguments = [given if name == parameter.name else {"model": MODEL}.get(name, "digits")
                     for name in ARGUMENTS if name in known]  # fmt: skip
        out = [] if "out" not in known or parameter.name == "out" else ["--out=out"]
        option = [f"{flag}={given}"] if flag.startswith("-") else []
        said = failing(monkeypatch, capsys, command, *arguments, *out, *option)
        assert said.err.startswith("error: ")
        assert said.err.count("\n") == 1
        assert flag in said.err
        assert shown(given) in said.err or parameter.name == "out"
        assert said.out == ""
        assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


@pytest.mark.parametrize("command", COMMANDS)
def test_with_json_the_error_is_json_too(command, monkeypatch, capsys):
    known = signature(COMMANDS[command]).parameters
    named = [name for name in ARGUMENTS if name in known]
    arguments = [MODEL if name == "model" else "digits" for name in named]
    wrong = ["--out", "file"] if "out" in known else ["--device", "toaster"]
    said = failing(monkeypatch, capsys, command, *arguments, *wrong, "--json")
    told = json.loads(said.out)
    assert said.err == f"error: {told['error']}\n"
    assert told["kind"].endswith("Error")


def test_every_number_of_every_command_has_a_range():
    seen = 0
    for name, command in COMMANDS.items():
        for parameter in signature(command).parameters.values():
            kind, *about = get_args(parameter.annotation) or [None]
            if re.search(r"\b(int|float)\b", str(kind)):
                seen += 1
                assert any(isinstance(one, Range) for one in about), (name, parameter.name)
            if parameter.name == "out":
                assert any(isinstance(one, Written) for one in about), name
    assert seen > 100


def test_every_default_is_within_its_range():
    for name, command in COMMANDS.items():
        for parameter in signature(command).parameters.values():
            for about in get_args(parameter.annotation)[1:]:
                if isinstance(about, (Range, Listed)) and parameter.default is not None:
                    about.check(f"{name} {parameter.name}", parameter.default)


def test_the_help_of_every_option_is_a_sentence_and_names_its_range():
    for name, command in get_command(app).commands.items():
        for option in command.params:
            told = getattr(option, "help", None)
            if option.name == "help":
                continue
            assert told, (name, option.name)
            assert told.rstrip().endswith((".", ").", "DATA.")), (name, option.name, told)
            assert told[0].isupper() or told.startswith(("torchvision:", "'")), (name, told)
            assert not told.startswith(("Of ", "For ", "May ", "See ")), (name, option.name, told)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["prnue"], "Did you mean 'prune'?"),
        (["prune", MODEL, "digits", "--kep", "0.5"], "--keep"),
        (["prune", MODEL], "'DATA'"),
        (["prune", MODEL, "digits", "extra"], "extra"),
    ],
)
def test_misspelled_commands_and_options_are_one_line(arguments, says, monkeypatch, capsys):
    said = failing(monkeypatch, capsys, *arguments).err
    assert said.startswith("error: ")
    assert says in said
    assert said.count("\n") == 1


def test_without_a_command_the_help_is_shown(monkeypatch, capsys):
    said = failing(monkeypatch, capsys)
    assert "compare-criteria" in said.out + said.err


def test_a_file_in_the_way_and_a_place_that_cannot_be_written(monkeypatch, capsys, tmp_path):
    said = failing(monkeypatch, capsys, "export", MODEL, "--out", "file/a.onnx").err
    assert "file is a file" in said
    locked = tmp_path / "locked"
    locked.mkdir()
    tried = []

    def refuse(self, *args, **options):
        tried.append(self)
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    said = failing(monkeypatch, capsys, "car", MODEL, "digits", "--out", "locked/a/b").err
    assert "Permission denied" in said
    assert [path.parent for path in tried] == [locked]


def test_typer_has_what_the_program_catches():
    names = [kind.__name__ for kind in typer.BadParameter.__mro__[:3]]
    assert names == ["BadParameter", "UsageError", "ClickException"]


DIGITS = [MODEL, "digits"]
GREY = ["--mean", "0.5", "--std", "0.5"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["explain", *DIGITS, "--device", "meta"], "--device meta"),
        (["explain", *DIGITS, "--size", "16000", *GREY], "8 images of 1 x 16000 x 16000"),
        (["explain", *DIGITS, "--size", "8", "--mean", "0,0,0", "--std", "1,1,1"], "3 x 8 x 8"),
        (["explain", *DIGITS, "--size", "32", *GREY], "1 x 32 x 32"),
        (["explain", *DIGITS, "--target", "10"], "--target 10: the network has 10 outputs"),
        (["explain", *DIGITS, "--outputs", "0,1,2,3,4,5,6,7,8,10"], "has 10 outputs"),
        (["explain", *DIGITS, "--colours", "nope"], "no colour map 'nope'"),
        (["explain", *DIGITS, "--method", "gradint"], "did you mean gradient"),
        (["compare", *DIGITS, "--colours", "nope", "--out", "a.png"], "no colour map 'nope'"),
        (["evaluate", *DIGITS, "--region", "9", "--method", "gradient"], "--region 9"),
        (["prune", *DIGITS, "--criterion", "lrp:normalise=nope"], "normalise = 'nope'"),
        (["prune", *DIGITS, "--criterion", "lrp:max_loss=nan"], "max_loss = "),
        (["prune", *DIGITS, "--precision", "fp16", "--epochs", "1"], "'fp16' needs a GPU"),
        (["prune", *DIGITS, "--ceiling", "nan"], "--ceiling nan"),
        (["prune", *DIGITS, "--ceiling", "0.5", "--ceiling", "0.6"], "there is one already"),
        (["prune", *DIGITS, "--round-to", "1000000"], "multiples of 1000000"),
        (["prune", *DIGITS, "--keep", "1e-300", "--per-step", "0.0001", "--schedule", "geometric"],
         "make steps ="),
        (["prune-weights", *DIGITS, "--min-weights", "100000000"], "min_weights = 100000000"),
        (["compare-criteria", *DIGITS, "--keep", "0.0001", "--criterion", "weight"], "reached"),
        (["compare-criteria", *DIGITS, "--count", "193", "--criterion", "weight"], "--count 193"),
        (["compare-criteria", *DIGITS, "--criterion", "weight:p=3"], "p = 3"),
        (["choose-rules", *DIGITS, "--per-cost", "1,0"], "the smaller one comes first"),
        (["car", *DIGITS, "--greedy", "1000000"], "remove = 1000000"),
        (["filters", *DIGITS, "--pruned", "nope"], "--pruned nope"),
        (["filters", *DIGITS, "--method", "nope"], "no method 'nope'"),
        (["export", MODEL, "--input-shape", "3,8,8", "--out", "a.onnx"], "3 x 8 x 8"),
        (["export", MODEL, "--input-shape", "1,32,32", "--out", "a.onnx"], "1 x 32 x 32"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)  # fmt: skip
def test_what_only_the_network_and_the_data_tell_is_found_before_the_work(
    arguments, says, tmp_path, monkeypatch, capsys
):
    out = [] if "--out" in arguments else ["--out", "out"]
    said = failing(monkeypatch, capsys, *arguments, *out, "--threads", "1")
    assert says in said.err
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


@pytest.mark.parametrize("command", ["explain", "prune", "car"])
def test_images_larger_than_the_memory_are_refused_before_one_is_read(command, monkeypatch, capsys):
    monkeypatch.setattr(Images, "image", None)  # not to be called
    said = failing(monkeypatch, capsys, command, *DIGITS, "--size", "16000", *GREY,
                   "--batch-size", "100000", "--out", "out", "--threads", "1")  # fmt: skip
    assert "images of 1 x 16000 x 16000 needs at least" in said.err


def test_random_weights_follow_from_the_seed(tmp_path, monkeypatch):
    def heatmaps(name, *options):
        arguments = [
            "explain",
            *DIGITS,
            "--weights",
            "random",
            "--method",
            "gradient",
            "--limit",
            "2",
        ]
        monkeypatch.setattr(sys, "argv", ["niwaki", *arguments, "--out", name, *options])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 0
        return np.load(tmp_path / name / "gradient.npy")

    before = torch.get_rng_state()
    first = heatmaps("first", "--seed", "1")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert np.array_equal(first, heatmaps("again", "--seed", "1"))
    assert not np.array_equal(first, heatmaps("other", "--seed", "2"))


@pytest.mark.parametrize(
    ("module", "shape", "says"),
    [
        (torch.nn.Conv2d(3, 4, 3), (3, 20_000, 20_000), "choose a smaller"),
        (torch.nn.Conv2d(1, 4096, 3), (1, 2_100, 2_100), "choose a smaller"),
        (torch.nn.Conv2d(3, 4, 3), (1, 8, 8), "does not take images of 1 x 8 x 8"),
        (torch.nn.Linear(5, 2), (1, 8, 8), "does not take images of 1 x 8 x 8"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused_without_computing_it(module, shape, says):
    with pytest.raises(DataError, match=says):
        check_fits(module, shape, 4)


def test_a_network_that_fits_is_left_as_it_is_and_its_outputs_are_counted():
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(1), torch.nn.Flatten(), torch.nn.Linear(64, 7))
    state = {name: value.clone() for name, value in model.eval().state_dict().items()}
    assert check_fits(model, (1, 8, 8), 4) == 7
    assert check_fits(torch.nn.Conv2d(1, 2, 3), (1, 8, 8), 4) is None
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
