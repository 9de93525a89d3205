"""The documents run as they stand: their Python, and their commands against the real options."""

import doctest
import re
import shlex
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
import torch_pruning
import typer
from accelerate.commands.launch import launch_command_parser
from PIL import Image
from torch import Tensor, nn
from torch.distributed.run import get_args_parser as torchrun_parser
from torch.utils.data import DataLoader, TensorDataset
from typer.main import get_command

import niwaki
from niwaki.attribution import _catalogue
from niwaki.auditing import _question
from niwaki.cli import app
from niwaki.datasets import TISSUE, draw_tissue, plant

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]

# What a block begins with, and why it does not run here.
SKIPPED = {"explain_func =": "Quantus is no dependency of niwaki's own"}
# Its files are used where the architecture is tested.
FILES = ("docs/architecture.md",)
# What a person would wait for is asked for in smaller numbers.
SHORTER = {
    "epochs=12": "epochs=1",
    "epochs=10": "epochs=1",
    "trials=30": "trials=2",
    "seeds=5": "seeds=2",
    "references=(1, 10)": "references=(1,)",
    "iterative_steps=14": "iterative_steps=2",
    "range(14)": "range(2)",
    "keep=0.3": "keep=0.9",
    "keep=0.4": "keep=0.9",
    "keep=0.5": "keep=0.9",
    "between=(0.3, 1.0)": "between=(0.9, 1.0)",
    "accuracies(0.5,": "accuracies(0.9,",
    "(3, 224, 224)": "(3, 16, 16)",
}


def blocks(page: str, language: str) -> list[str]:
    """Return the blocks of a page in a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / page).read_text(), re.M | re.S)


# The Python.

# It has the names of layers that the pages use, and as many units as they rank.
NETWORK = """
from collections import OrderedDict

from torch import nn


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 24, 3, padding=1)
        self.features = nn.Sequential(nn.ReLU(), nn.Conv2d(24, 98, 3, padding=1), nn.ReLU())
        last = OrderedDict(conv2=nn.Conv2d(98, 24, 1), relu=nn.ReLU())
        self.layer4 = nn.Sequential(nn.MaxPool2d(4), nn.Sequential(last))
        self.fc = nn.Linear(24, 10)

    def forward(self, x):
        return self.fc(self.layer4(self.features(self.conv1(x))).mean((2, 3)))
"""


def shortened(source: str) -> str:
    """Return the source with smaller numbers."""
    for long, short in SHORTER.items():
        source = source.replace(long, short)
    return source


def given(place: Path) -> dict[str, object]:
    """Return what a page takes for granted: a network, and random images with labels."""
    (place / "nets.py").write_text(NETWORK)
    torch.manual_seed(0)
    model = niwaki.models.build(f"{place / 'nets.py'}:Small", weights="random").eval()
    images, labels = torch.rand(20, 3, 16, 16), torch.arange(20) % 10
    data = TensorDataset(torch.rand(120, 3, 16, 16), torch.arange(120) % 10)
    names: dict[str, object] = dict.fromkeys(("data", "training", "training_set", "held_out"), data)
    names |= {"few": TensorDataset(images, labels)}
    names |= {"niwaki": niwaki, "model": model, "images": images, "labels": labels}
    names |= {"network": model, "any_model": model, "my_loop": lambda network: None}
    names |= {"loader": DataLoader(data, 40, shuffle=True), "tp": torch_pruning}
    pixels = niwaki.data.Preprocessing(16, mean=(0.5,) * 3, std=(0.25,) * 3)
    names["test_set"] = names["test"] = niwaki.data.Described(data, preprocessing=pixels)
    names |= {"references": (images, labels), "slide_of_each_image": [n // 4 for n in range(120)]}
    return names


class Yellow(nn.Module):
    """Says class 1 where an image has much yellow, which no tissue has."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 1)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(1, 2)
        with torch.no_grad():
            self.conv.weight[:] = torch.tensor([0.0, 0.0, -1.0])[:, None, None]
            self.conv.bias.fill_(-5.0)  # blue is far below what tissue has
            self.fc.weight[:] = torch.tensor([[-0.05], [0.05]])
            self.fc.bias[:] = torch.tensor([1.0, -1.0])

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.fc(self.relu(self.conv(x)).sum((2, 3)))
        return found


def marked_tissue(place: Path) -> dict[str, object]:
    """Return a network that goes by a yellow mark, and tiles of which one class has it."""
    tiles = draw_tissue(100, seed=5)
    marked = plant(tiles.pixels, tiles.labels, "square", on=1, share=1.0, seed=1)
    for n, (pixels, label) in enumerate(zip(marked.pixels, tiles.labels, strict=True)):
        file = place / "tiles" / ("normal", "tumour")[label] / f"slide{n // 10}_x{n:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    order = np.argsort(tiles.labels, kind="stable")  # of the files
    images = niwaki.data.open_data(place / "tiles", TISSUE)
    return {
        **{"model": Yellow().eval(), "images": images, "new_images": images, "test_set": images},
        **{"masks": marked.mask[order], "points": list(tiles.centres[order])},
        "heatmaps": np.random.default_rng(0).normal(size=marked.mask.shape),
        "is_epithelial": tiles.types[order] == 1,
    }


LONG = ("docs/audit.md", "docs/prune.md")  # with smaller numbers, too
PAGES_OF_PYTHON = [
    pytest.param(page, marks=[pytest.mark.long] if page in LONG else [])
    for page in (*PAGES, "CONTRIBUTING.md")
    if blocks(page, "python") and page not in FILES
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("page", PAGES_OF_PYTHON)
def test_the_python_of_a_page_runs(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for room in (_catalogue, _question):  # what a page registers stays in the test
        monkeypatch.setattr(room, "_CATALOGUE", dict(room._CATALOGUE))
    names = given(tmp_path)
    if page == "docs/audit.md":
        names |= marked_tissue(tmp_path)
    if page != "docs/get-started.md":  # which takes nothing for granted
        monkeypatch.setattr(niwaki.models, "build", lambda *_, **__: names["model"])
        monkeypatch.setattr(niwaki.data, "open_data", lambda *_, **__: names["test_set"])
    run = [one for one in blocks(page, "python") if not one.startswith(tuple(SKIPPED))]
    assert run, f"{page} has no Python that runs"
    for block in run:
        exec(compile(shortened(block), page, "exec"), names)


def test_every_block_that_is_skipped_is_there() -> None:
    every = [block for page in PAGES for block in blocks(page, "python")]
    for beginning in SKIPPED:
        assert any(block.startswith(beginning) for block in every), beginning


# The examples of docstrings.

ROOMS = (
    "attribution auditing car criteria data evaluation filters models propagation pruning report "
    "slides"
)
# Examples that do not run here, and why.
TOLD = {
    "niwaki.auditing.question": "it would stay in the catalogue",
    "niwaki.auditing.watch": "it needs a network that is right",
    "niwaki.data.groups_by_name": "it needs images with such names",
    "niwaki.data.groups_named": "it needs images with such names",
    "niwaki.evaluation.quantus_explain": "Quantus is no dependency of niwaki's own",
    "niwaki.models.Part": "it builds a large network",
    "niwaki.models.export": "it takes long, and is tested with the exports",
    "niwaki.slides.open_slide": "it needs a slide",
}
SEARCHES = ("niwaki.pruning.choose_rules", "niwaki.pruning.compare")  # take long all the same


def examples() -> dict[str, doctest.DocTest]:
    """Return the examples of everything public, by name."""
    found: dict[str, doctest.DocTest] = {}
    for room in ROOMS.split():
        package = import_module(f"niwaki.{room}")
        for name in package.__all__:
            whole = f"niwaki.{room}.{name}"
            tests = doctest.DocTestFinder().find(getattr(package, name), whole, globs={})
            found |= {test.name: test for test in tests if test.examples}
    return found


EXAMPLES = examples()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.long] if name in SEARCHES else [])
        for name in sorted(set(EXAMPLES) - set(TOLD))
    ],
)
def test_an_example_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = given(tmp_path)
    for example in EXAMPLES[name].examples:
        source = shortened(example.source)
        try:
            code = compile(source, name, "eval")
        except SyntaxError:
            exec(compile(source, name, "exec"), names)
            continue
        value = eval(code, names)
        if example.want:
            assert f"{value!r}\n" == example.want


def test_every_example_that_does_not_run_is_there() -> None:
    assert set(TOLD) <= set(EXAMPLES)
    assert len(EXAMPLES) > 15


# The commands.

PROGRAM = get_command(app)
COMMANDS = PROGRAM.commands
OPTIONS = {
    name: {flag for one in command.params for flag in (*one.opts, *one.secondary_opts)} | {"--help"}
    for name, command in COMMANDS.items()
}
# What starts a command several times, and how many words its name has.
LAUNCHERS = {"torchrun": (torchrun_parser(), 1), "accelerate": (launch_command_parser(), 2)}
LAUNCHED = {
    flag
    for launcher, _ in LAUNCHERS.values()
    for action in launcher._actions
    for flag in action.option_strings
}
FLAG = r"(?<![\w-])--[a-z][a-z-]*"


def shell_lines() -> list[tuple[str, list[str]]]:
    """Return each command of the shell blocks, in words, with its page."""
    found = []
    for page in PAGES:
        for block in blocks(page, "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                for part in " ".join(map(shlex.quote, words)).split(" '&&' "):
                    found.append((page, shlex.split(part)))
    return [(page, words) for page, words in found if words]


LINES = shell_lines()


@pytest.mark.parametrize(("page", "words"), LINES, ids=str)
def test_a_shell_line_is_one_that_the_program_takes(page: str, words: list[str]) -> None:
    if words[0] in ("git", "cd", "pip"):
        return
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M)
        return
    if words[0] in LAUNCHERS:
        launcher, taken = LAUNCHERS[words[0]]
        place = words.index("-m")
        launcher.parse_args([*words[taken:place], "-m", "niwaki"])
        words = words[place + 1 :]
    assert words[0] == "niwaki", words
    command = COMMANDS[words[1]]
    command.make_context(words[1], words[2:])  # fails for what the command does not take


def test_a_shell_line_with_an_option_that_does_not_exist_would_be_told() -> None:
    words = next(words for _, words in LINES if words[:2] == ["niwaki", "prune"])
    with pytest.raises(Exception, match="No such option") as told:
        COMMANDS["prune"].make_context("prune", [*words[2:], "--kept", "0.5"])
    assert isinstance(told.value, typer.BadParameter.__base__)


def test_the_pages_have_the_lines_that_they_show() -> None:
    assert len(LINES) > 20
    assert {words[1] for _, words in LINES if words[0] == "niwaki"} > {"prune", "audit", "car"}


@pytest.mark.parametrize("page", PAGES)
def test_every_option_that_is_named_exists(page: str) -> None:
    text = (ROOT / page).read_text()
    scripts = r"`(?:python )?([\w/]+\.py)([^`]*)`"
    for name, rest in re.findall(scripts, text):
        for flag in re.findall(FLAG, rest):
            [script] = [*ROOT.glob(name), *ROOT.glob(f"benchmarks/{name}")]
            assert f'"{flag}"' in script.read_text(), (name, flag)
    known = LAUNCHED.union(*OPTIONS.values(), *(one.opts for one in PROGRAM.params))
    assert set(re.findall(FLAG, re.sub(scripts, "", text))) <= known
    for shown in re.findall(r"`niwaki ([^`\n]+)`", text):  # within a sentence, with parts left out
        name, *rest = shown.split()
        assert name in COMMANDS, shown
        assert {word for word in rest if word.startswith("--")} <= OPTIONS[name], shown


def test_every_command_is_named() -> None:
    text = "".join((ROOT / page).read_text() for page in PAGES)
    for name in COMMANDS:
        assert re.search(rf"niwaki {name}\b", text), name
