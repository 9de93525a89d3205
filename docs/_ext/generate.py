"""What the site generates when it is built: the API reference, the command line, the experiments.

The API reference follows ``__all__``: a page for ``niwaki``, and one for each package that it
names. The page of the command line follows the typer app, and the reports of the experiments are
copied from where they lie.
"""

from __future__ import annotations

import inspect
import re
import shutil
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import typer

__all__ = ["aliases", "generate"]


def generate(docs: Path) -> None:
    """Write the generated pages below a folder; a page that has not changed is left untouched."""
    kept = {
        *_write_api(docs / "api"),
        _write_commands(docs / "api" / "command-line.md"),
        *_copy_experiments(docs.parent / "experiments", docs / "experiments"),
    }
    for old in [*(docs / "api").rglob("*"), *(docs / "experiments").rglob("*")]:
        if old.is_file() and old not in kept:
            old.unlink()


def aliases() -> dict[str, str]:
    """Return the names of `niwaki` that are documented in another package: name -> name there."""
    top = import_module("niwaki")
    packages = _packages()
    found = {}
    for name in top.__all__:
        thing = getattr(top, name)
        for package in packages:
            if name in package.__all__ and getattr(package, name) is thing:
                found[f"niwaki.{name}"] = f"{package.__name__}.{name}"
    return found


# --------------------------------------------------------------------------------- the API


def _packages() -> list[ModuleType]:
    """Return the public packages, which are those that `niwaki.__all__` and they name."""
    found: list[ModuleType] = []
    new = [import_module("niwaki")]
    while new:
        package = new.pop(0)
        inside = [getattr(package, name) for name in _all(package)]
        inside = [one for one in inside if inspect.ismodule(one) and one not in found]
        found += inside
        new += inside
    return found


def _all(module: ModuleType) -> list[str]:
    return [name for name in sorted(module.__all__, key=str.lower) if not name.startswith("__")]


def _write_api(folder: Path) -> list[Path]:
    packages = sorted(_packages(), key=lambda one: one.__name__)
    written = [_write(folder / f"{one.__name__}.rst", _page(one)) for one in packages]
    top = import_module("niwaki")
    own = [name for name in _all(top) if not inspect.ismodule(getattr(top, name))]
    lines = [
        *_heading("Python API", "="),
        ".. currentmodule:: niwaki",
        "",
        *_doc(top),
        "",
        *_table(own),
        *_heading("Packages", "-"),
        *_table([one.__name__.removeprefix("niwaki.") for one in packages]),
        ".. toctree::",
        "   :hidden:",
        "",
        *(f"   {one.__name__}" for one in packages),
        "",
    ]
    return [*written, _write(folder / "index.rst", "\n".join(lines))]


def _page(module: ModuleType) -> str:
    lines = [
        *_heading(module.__name__, "="),
        f".. module:: {module.__name__}",
        "",
        *_doc(module),
        "",
    ]
    names = _all(module)
    kinds: dict[str, list[str]] = {"Functions": [], "Classes": [], "Constants and types": []}
    for name in names:
        thing = getattr(module, name)
        if inspect.isclass(thing):
            kinds["Classes"].append(name)
        elif inspect.isroutine(thing):
            kinds["Functions"].append(name)
        elif not inspect.ismodule(thing):
            kinds["Constants and types"].append(name)
    directives = {"Functions": "function", "Classes": "class", "Constants and types": "data"}
    filled = {title: some for title, some in kinds.items() if some}
    for title, some in filled.items():
        if title != "Constants and types":  # these have no line of their own to show
            lines += [f".. rubric:: {title}", "", *_table(some)]
    for title, some in filled.items():
        lines += _heading(title, "-")
        for name in some:
            lines += [f".. auto{directives[title]}:: {name}"]
            lines += ["   :members:"] if title == "Classes" else []
            lines += ["   :no-value:"] if title == "Constants and types" else []
            lines += [""]
    return "\n".join(lines)


def _heading(title: str, line: str) -> list[str]:
    return [title, line * len(title), ""]


def _doc(module: ModuleType) -> list[str]:
    return inspect.getdoc(module).splitlines()  # type: ignore[union-attr]


def _table(names: list[str]) -> list[str]:
    return [".. autosummary::", "   :nosignatures:", "", *(f"   {name}" for name in names), ""]


# ------------------------------------------------------------------------- the command line


def _write_commands(page: Path) -> Path:
    from niwaki.cli import app

    group: Any = typer.main.get_command(app)
    lines = [
        "# Command line",
        "",
        "Every command prints the same text with `--help`.",
        "",
    ]
    for name, command in group.commands.items():
        if command.hidden:
            continue
        lines += [f"## niwaki {name}", "", *_command(name, command)]
    return _write(page, "\n".join(lines))


def _command(name: str, command: Any) -> list[str]:
    context = command.make_context(f"niwaki {name}", [], resilient_parsing=True)
    arguments, rows = [], []
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is None:  # hidden
            continue
        spelled, words = record
        if parameter.param_type_name == "argument":
            spelled = spelled.split()[0].strip("[]{}")
            arguments.append(spelled if parameter.required else f"[{spelled}]")
        rows.append(f"| {_cell(f'`{spelled}`')} | {_cell(words)} |")
    usage = " ".join([f"niwaki {name}", *arguments, "[OPTIONS]"])
    words = inspect.cleandoc(command.help or "")
    return ["```text", usage, "```", "", words, "", "| | |", "| --- | --- |", *rows, ""]


def _cell(text: str) -> str:
    """Return text for a cell of a Markdown table: what is not code must not read as markup."""
    parts = " ".join(text.split()).replace("|", "\\|").split("`")
    parts[::2] = [re.sub(r"([\[\]<>*_])", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)


# -------------------------------------------------------------------------- the experiments


def _copy_experiments(source: Path, target: Path) -> list[Path]:
    """Copy the reports, with their tables and pictures, and write the page that lists them."""
    written = []
    reports = sorted(source.glob("*/README.md"))
    for report in reports:
        for picture in sorted(report.parent.glob("*.png")):
            written.append(target / picture.relative_to(source))
            if not written[-1].exists() or written[-1].read_bytes() != picture.read_bytes():
                written[-1].parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(picture, written[-1])
        for page in sorted(report.parent.glob("*.md")):
            text = page.read_text(encoding="utf-8")
            if page != report:  # the report links to it
                title = "" if text.startswith("# ") else f"# {page.stem}: {page.parent.name}\n\n"
                text = f"---\norphan: true\n---\n\n{title}{text}"
            written.append(_write(target / page.relative_to(source), text))
    lines = [
        "# Experiments",
        "",
        "These are the measurements behind the pages of this site: what was asked, how it was "
        "run, and what came out. Each report names the command that runs it again.",
        "",
        "```{toctree}",
        ":maxdepth: 1",
        "",
        *(f"{report.parent.name}/README" for report in reports),
        "```",
        "",
    ]
    return [*written, _write(target / "index.md", "\n".join(lines))]


def _write(path: Path, text: str) -> Path:
    """Write a page only if it has changed, so that Sphinx reads again only what is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
    return path
