"""The house as docs/architecture.md draws it: no import circles, no import from above.

The floors are read from the table of that page, so that the page cannot go stale.
"""

from __future__ import annotations

import ast
import functools
import graphlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "niwaki"
MOST_LINES = 450


def files() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def module(path: Path) -> str:
    parts = ("niwaki", *path.relative_to(SOURCE).with_suffix("").parts)
    return ".".join(parts).removesuffix(".__init__")


MODULES = {module(path): path for path in files()}


def imported(path: Path) -> Iterator[str]:
    """Yield the modules of niwaki that a file imports, wherever in it, also for types alone."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            for name in node.names:
                whole = f"{node.module}.{name.name}"
                if whole in MODULES:
                    yield whole
                elif node.module in MODULES:
                    yield node.module


@functools.cache
def edges() -> dict[str, set[str]]:
    """Return what each file imports; the package itself hands on everything, and is left out."""
    return {
        name: set(imported(path)) - {name} for name, path in MODULES.items() if name != "niwaki"
    }


@functools.cache
def floors() -> dict[str, int]:
    """Read the table of floors: the name of a package or file to its floor, from the ground up."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    found: dict[str, int] = {}
    for floor, names in re.findall(r"^\| (\d+) \| (.+?) \|", text, re.MULTILINE):
        for name in re.findall(r"`niwaki\.(\w+)`", names):
            assert name not in found, f"{name} stands on two floors"
            found[name] = int(floor)
    return found


def part(name: str) -> str:
    return name.removeprefix("niwaki").removeprefix(".").split(".")[0]


def test_no_circles_between_files() -> None:
    graph = edges()
    assert sum(map(len, graph.values())) > 500  # the imports are seen
    graphlib.TopologicalSorter(graph).prepare()  # names the circle, where there is one


def test_every_part_has_a_floor() -> None:
    assert {part(name) for name in MODULES if name != "niwaki"} == set(floors())


@pytest.mark.parametrize("name", sorted(set(map(part, set(MODULES) - {"niwaki"}))))
def test_no_import_from_above(name: str) -> None:
    floor = floors()
    above = {
        f"{one} imports {other}"
        for one, others in edges().items()
        if part(one) == name
        for other in others
        if other != "niwaki" and floor[part(other)] > floor[name]
    }
    assert not above
    same = {
        f"{one} imports {other}"
        for one, others in edges().items()
        if part(one) == name
        for other in others
        if other != "niwaki" and floor[part(other)] == floor[name] != 0 and part(other) != name
    }
    assert not same, "neighbours on a floor know nothing of each other"


def test_private_files_are_not_imported_across_packages() -> None:
    across = {
        f"{one} imports {other}"
        for one, others in edges().items()
        for other in others
        if part(one) != part(other) and any(word.startswith("_") for word in other.split("."))
    }
    assert not across


def test_no_file_is_long() -> None:
    long = {module(p): n for p in files() if (n := len(p.read_text().splitlines())) > MOST_LINES}
    assert not long


USES = """
import numpy as np
import torch
import a_rule, a_method, a_criterion, a_question, a_data_set
import niwaki
from niwaki.auditing import question_names
from niwaki.data import Described, open_data

torch.manual_seed(0)
model = torch.nn.Sequential(
    torch.nn.Conv2d(1, 6, 3, bias=False), torch.nn.ReLU(), torch.nn.Flatten(),
    torch.nn.Linear(216, 2, bias=False),
).eval()
images = open_data("greys")
assert len(images) == 16 and images.classes == ["dark", "light"]
inputs = torch.stack([image for image, _ in images])
labels = torch.tensor([label for _, label in images])

assert "lrp.absolute_shares" in niwaki.attribution.names()
heatmaps = niwaki.explain(model, inputs, method="lrp.absolute_shares")
torch.testing.assert_close(heatmaps.flatten(1).sum(1), model(inputs).amax(1), rtol=1e-4, atol=1e-5)

assert "largest_weight" in niwaki.criteria.names()
scores = niwaki.score(model, (inputs, labels), "largest_weight")
assert torch.equal(scores["0"], model[0].weight.detach().abs().flatten(1).amax(1).double())
pruned = niwaki.prune(model, (inputs, labels), "largest_weight", keep=0.7)
assert pruned.model[0].out_channels < 6

assert "upper half" in question_names()
found = niwaki.audit(model, images, method="lrp.absolute_shares", questions=["upper half"])
assert {finding.key for finding in found.findings} == {"upper half/dark", "upper half/light"}
print("all five are used")
"""


@pytest.mark.slow
def test_a_stranger_adds_a_part_in_one_file(tmp_path: Path) -> None:
    """The files of the page, as they stand, add a rule, a method, a criterion and so on."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    parts = re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(parts) == 5
    for name, content in parts:
        (tmp_path / name).write_text(content, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", USES],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        check=False,
    )
    assert done.stdout.strip() == "all five are used", done.stderr
