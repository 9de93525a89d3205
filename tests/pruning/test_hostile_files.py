"""Every file that is read back, broken in every way: only errors of our own, and at once."""

import copy
import json
import random
import time
from dataclasses import dataclass, field
from hashlib import sha256

import pytest
import torch
from torch import nn

import niwaki
from niwaki.attribution import Patterns
from niwaki.car import CarIndex
from niwaki.criteria import Scores, score
from niwaki.data import read_points
from niwaki.errors import DataError, NiwakiError
from niwaki.files import read_layers, write_layers, write_text
from niwaki.propagation import load_composite, save_composite
from niwaki.pruning import Choice, Outcome, Trajectory, Trial, prune
from niwaki.schema import Anything, check, form_of, parse_json, read_json, rebuild

HOSTILE = [
    None, True, -1, 0, 1, 10**6, 10**30, -(10**30), 0.5, -1e300, "", "x", "\0", "\ud800", "🙂" * 50,
    "../../etc/passwd", "=1+1", "[/b]", "\x1b[31m", [], [[]], [None], [-1], [10**9] * 3, {},
    {"": []}, {"layers": 3}, [[[[[[[[[[]]]]]]]]]], "a" * 200_000,
]  # fmt: skip
TEXTS = [
    "", " ", "\0", "null", "3", "[]", "{}", "[[]]", '"x"', "NaN", "[NaN]", "{", '{"a"', "[1e999]",
    '{"format": 1, "format": 1}', "[" * 100_000, '{"a":' * 50_000, "1" * 100_000, "-", "\ufeff{}",
    "'{}'", "{'a': 1}", "[1,]", "// x\n{}", '{"format": 1e400}', '{"format": -0.0}', "\x1b[2J",
]  # fmt: skip


def chain():
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(6 * 36, 3),
    ).eval()  # fmt: skip


DATA = (
    torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(0)) - 0.5,
    torch.arange(24) % 3,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a folder with one of each file."""
    home = tmp_path_factory.mktemp("made")
    torch.manual_seed(0)
    model = chain()
    pruned = prune(
        model,
        DATA,
        "weight",
        keep=0.6,
        schedule=niwaki.pruning.Schedule(steps=2),
        run=niwaki.pruning.Run(folder=home / "run"),
    )
    pruned.save(home / "saved", about={"preprocessing": None, "class_names": ["a", "b", "c"]})
    score(model, DATA, "weight").save(home / "scores.safetensors")
    niwaki.attribution.fit_patterns(model, DATA).save(home / "patterns.safetensors")
    niwaki.car.index(model, DATA).save(home / "index.safetensors")
    settings = {"low.rule": "Gamma", "low.gamma": 0.2, "reduce": "signed", "per_cost": 0.6}
    choice = Choice({"low": ("2",)}, (Trial(0, settings, 0.5, 1.0),), {"keep": 0.3})
    choice.save(home)
    save_composite(choice.composite, home / "rules.json")
    outcome = Outcome("lrp", 10, 0, pruned.trajectory, {"0": 0.5}, None, {"name": "lrp"})
    (home / "outcome.json").write_text(json.dumps(outcome.to_json()))
    return home, model


def resume(folder, model):
    return prune(
        model,
        DATA,
        "weight",
        keep=0.6,
        schedule=niwaki.pruning.Schedule(steps=2),
        run=niwaki.pruning.Run(folder=folder),
    )


def outcome(file):
    return Outcome.from_json(read_json(file, Anything(), "no outcome"))


READERS = {
    "saved/niwaki.json": lambda file, model: niwaki.load(file.parent, model),
    "saved/plan.json": lambda file, model: niwaki.load(file.parent, model),
    "choice.json": lambda file, model: Choice.load(file.parent).criterion,
    "rules.json": lambda file, model: load_composite(file),
    "outcome.json": lambda file, model: outcome(file),
}


def places(value, way=()):
    """List all places in plain data."""
    yield way
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value[:2])
        for key, item in items:
            yield from places(item, (*way, key))


def replaced(value, way, new):
    if not way:
        return new
    changed = copy.deepcopy(value)
    inner = changed
    for key in way[:-1]:
        inner = inner[key]
    if new is ...:
        del inner[way[-1]]
    else:
        inner[way[-1]] = new
    return changed


def outlive(read, told):
    """Read something broken: it may be taken, or be refused by an error of our own, fast."""
    started = time.perf_counter()
    try:
        read()
    except NiwakiError:
        pass
    except Exception as error:
        raise AssertionError(f"{told!r:.300}: {type(error).__name__}: {error}") from error
    assert time.perf_counter() - started < 5, told


@pytest.fixture(params=READERS)
def plain(request, made, tmp_path):
    """Return a copy of a file of plain data, and what reads it."""
    home, model = made
    original = home / request.param
    file = tmp_path / request.param
    file.parent.mkdir(exist_ok=True)
    for beside in original.parent.iterdir():
        if beside.is_file():
            (file.parent / beside.name).write_bytes(beside.read_bytes())
    return file, lambda: READERS[request.param](file, model)


def test_values_of_all_kinds_in_all_places(plain):
    file, read = plain
    read()
    good = json.loads(file.read_text())
    ways = list(places(good))
    draw = random.Random(0)
    for way in draw.sample(ways, min(25, len(ways))):
        for new in [*draw.sample(HOSTILE, 8), ...]:
            if way or new is not ...:
                file.write_text(json.dumps(replaced(good, way, new)))
                outlive(read, (way, new))


def test_texts_that_are_broken(plain):
    file, read = plain
    good = file.read_bytes()
    texts = [text.encode("utf-8", "surrogatepass") for text in TEXTS]
    texts += [good[: len(good) * part // 7] for part in range(7)]
    texts += [good.replace(b'"', b"'"), good.replace(b":", b""), b"\xff\xfe" + good, good[::-1]]
    for place in range(0, len(good), max(1, len(good) // 25)):
        texts.append(good[:place] + b"\xff" + good[place + 1 :])
        texts.append(good[:place] + good[place + 1 :])
    for text in texts:
        file.write_bytes(text)
        outlive(read, text[:80])
    file.unlink()
    outlive(read, "missing")
    file.mkdir()
    outlive(read, "a folder")


LAYERS = {
    "scores.safetensors": Scores.load,
    "patterns.safetensors": Patterns.load,
    "index.safetensors": lambda file: (index := CarIndex.load(file), repr(index), index.ranking()),
}


@pytest.mark.parametrize("name", LAYERS)
def test_heads_and_tensors_of_all_kinds(made, name, tmp_path):
    home, _ = made
    about, tensors = {}, {}

    def keep(values, **told):
        about.update(told)
        tensors.update(values)

    read_layers(home / name, keep, "thing")
    file, read = tmp_path / name, LAYERS[name]
    draw = random.Random(0)
    for way in list(places(about))[1:]:
        for new in [*draw.sample(HOSTILE, 8), ...]:
            changed = replaced(about, way, new)
            changed.pop("layers", None)
            write_layers(file, tensors, **changed)  # with a right checksum
            outlive(lambda: read(file), (way, new))
    first = next(iter(tensors))
    for wrong in (torch.zeros(0), torch.zeros(1, 1, 1, 1), torch.zeros(3, dtype=torch.bool)):
        write_layers(file, {**tensors, first: wrong}, **about)
        outlive(lambda: read(file), wrong)
    write_layers(file, {k: v for k, v in tensors.items() if k != first}, **about)
    outlive(lambda: read(file), "one layer less")
    good = (home / name).read_bytes()
    for place in [*range(0, 400, 7), *range(400, len(good), max(1, len(good) // 20))]:
        file.write_bytes(good[:place] + bytes([good[place] ^ 0x41]) + good[place + 1 :])
        outlive(lambda: read(file), place)
        file.write_bytes(good[:place])
        outlive(lambda: read(file), place)


def test_runs_with_other_content(made, tmp_path):
    home, model = made
    folder = tmp_path / "run"
    draw = random.Random(0)
    names = [file.name for file in (home / "run").iterdir() if file.is_file()]
    parts = [name for name in names if name.endswith(".safetensors")]
    record = next(name for name in names if name.endswith(".json"))
    for number in range(30):
        folder.mkdir(exist_ok=True)
        for name in names:
            (folder / name).write_bytes((home / "run" / name).read_bytes())
        if number % 2:
            text = (folder / record).read_text().partition("\n")[2].removesuffix("\n")
            good = json.loads(text)
            way = draw.choice(list(places(good))[1:])
            changed = json.dumps(replaced(good, way, draw.choice([*HOSTILE, ...])))
            told = (way, changed[-200:])
            write_text(folder / record, f"{sha256(changed.encode()).hexdigest()}\n{changed}\n")
        else:
            told = corrupt_part(folder, draw.choice(parts), draw)
            sign_again(folder, record)
        outlive(lambda: resume(folder, model), told)


def corrupt_part(folder, name, draw):
    about, tensors = {}, {}
    read_layers(folder / name, lambda v, **t: (about.update(t), tensors.update(v)), "part")
    way = draw.choice(list(places(about))[1:])
    changed = replaced(about, way, new := draw.choice([*HOSTILE, ...]))
    changed.pop("layers", None)
    write_layers(folder / name, tensors, **changed)
    return way, new


def sign_again(folder, record):
    content = json.loads((folder / record).read_text().partition("\n")[2])
    for part in content["parts"].values():
        part["sha256"] = sha256((folder / part["file"]).read_bytes()).hexdigest()
    text = json.dumps(content, indent=1)
    write_text(folder / record, f"{sha256(text.encode()).hexdigest()}\n{text}\n")


@pytest.mark.parametrize(
    "text",
    ["", "x,y\n", "x,y,type\n1,2\n", "x,y,type\na,b,c\n", "x,y,type\nnan,inf,a\n", "\0", '"',
     "x" * 9**6, "x,y,type\n1e999,2,a\n", "x;y;type\n1;2;a\n", "\ud800",
     '"x,y,type\n' + "1," * 99_999, "x,y,type\n-5,3,a\n"],
)  # fmt: skip
def test_lists_of_points(text, tmp_path):
    (tmp_path / "a.csv").write_bytes(text.encode("utf-8", "surrogatepass"))
    outlive(lambda: read_points(tmp_path / "a.csv"), text[:50])
    if "nan" in text or "1e999" in text:
        with pytest.raises(DataError):
            read_points(tmp_path / "a.csv")


@dataclass(frozen=True)
class Inner:
    size: int
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outer:
    inner: Inner
    share: float | None
    by_name: dict[str, tuple[int, ...]] = field(default_factory=dict)


def test_a_form_is_read_from_annotations():
    good = {"inner": {"size": 3, "names": ["a"]}, "share": 0.5, "by_name": {"b": [1, 2]}}
    assert rebuild(Outer, good) == Outer(Inner(3, ("a",)), 0.5, {"b": (1, 2)})
    assert rebuild(Outer, {"inner": {"size": 3}, "share": None}) == Outer(Inner(3), None)
    for way, new, words in [
        (("inner", "size"), 3.5, r"it\['inner'\]\['size'\] is 3.5, not a whole number"),
        (("inner", "size"), True, "not a whole number"),
        (("inner",), ..., "lacks 'inner'"),
        (("inner", "more"), 1, "'more', which is not known"),
        (("share",), "half", "is 'half'"),
        (("share",), float("inf"), "inf"),
        (("by_name", "b"), [1, "x"], r"\['b'\]\[1\] is 'x'"),
        (("by_name",), [1], "not names with values"),
        (("inner", "names"), "ab", "not a list"),
        (("inner", "names", 0), "\0", "no text has"),
    ]:
        with pytest.raises(DataError, match=words):
            rebuild(Outer, replaced(good, way, new))
    check(good, form_of(Outer))


def test_what_json_leaves_open_is_refused():
    for text, words in [
        ('{"a": 1, "a": 2}', "'a' is there twice"),
        ("[NaN]", "NaN is no number"),
        ("[-Infinity]", "Infinity is no number"),
        ("[1e999]", "too large"),
        ("[" + "9" * 50 + "]", "too large"),
        ("[" * 60 + "]" * 60, "nested too deeply"),
        ("[" * 100_000, "nested too deeply"),
        ('["\\ud800"]', "no text has"),
        ('["\\u0000"]', "no text has"),
    ]:
        with pytest.raises(DataError, match=words):
            parse_json(text, Anything(), "this is nothing")


def test_a_trajectory_is_checked():
    row = {"step": 0, "units": 0, "params": 1, "macs": 1, "accuracy": None,
           "accuracy_tuned": None, "seconds": 1.0}  # fmt: skip
    for changes in ({}, {"units": "1"}, {"units": 1, "extra": 2}, {"units": 1, "seconds": None}):
        with pytest.raises(DataError):
            Trajectory.from_json([{**row, **changes}])
