"""The house as docs/architecture.md draws it: no import circles, no import from above.

The floors are read from the table of that page, so that the page cannot go stale.
"""

from __future__ import annotations

import ast
import graphlib
import re
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


def edges() -> dict[str, set[str]]:
    """Return what each file imports; the package itself hands on everything, and is left out."""
    return {
        name: set(imported(path)) - {name} for name, path in MODULES.items() if name != "niwaki"
    }


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


def test_no_file_is_long() -> None:
    long = {module(p): n for p in files() if (n := len(p.read_text().splitlines())) > MOST_LINES}
    assert not long
