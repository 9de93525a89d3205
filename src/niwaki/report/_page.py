"""Pages: a filled-in template in one file, which shows and runs nothing but what is its own."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup, escape

from niwaki.files import write_atomically
from niwaki.ownership import SIGNATURE

__all__ = ["write_page"]

_SCRIPTS = ("contents", "chart", "steps", "gallery", "scatter", "heat", "enlarge")


def write_page(path: str | Path, template: str, **values: Any) -> None:
    """Fill in a template of ``report/templates`` and write it, a piece at a time.

    All values are escaped: names of classes, files and layers are words, never markup. The page
    may load nothing, and run nothing but our own style and scripts, which it holds.

    Parameters
    ----------
    path : str or Path
        Where the HTML goes.
    template : str
        Its name; it gets the style, the scripts and the policy besides its values.
    **values
        What it is filled with.
    """
    style = _source("style.css")
    script = "\n".join(f"(() => {{\n{_source(f'scripts/{name}.js')}}})();" for name in _SCRIPTS)
    page = (
        _environment()
        .get_template(template)
        .stream(
            policy=content_policy([style], [script]),
            style=Markup(style),
            script=Markup(script),
            signature=SIGNATURE,
            **values,
        )
    )

    def write(file: Path) -> None:
        with file.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as opened:
            opened.writelines(page)

    write_atomically(path, write)


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("niwaki.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    made.filters |= {
        "thousands": _thousands, "percent": _percent, "short": _short, "breakable": _breakable
    }  # fmt: skip
    return made


@cache
def _source(name: str) -> str:
    return (files("niwaki.report") / "templates" / name).read_text(encoding="utf-8")


def content_policy(styles: Iterable[str], scripts: Iterable[str], images: str = "data:") -> str:
    """Return a content security policy: no network, and these styles and scripts alone.

    Whatever a name of a class or file might bring along does nothing.

    Parameters
    ----------
    styles, scripts : iterable of str
        As they stand in the page.
    images : str
        Where pictures may come from; by default they are embedded.
    """
    parts = {
        "default-src": "'none'",
        "img-src": images,
        "style-src": " ".join(map(_hash, styles)),
        "script-src": " ".join(map(_hash, scripts)),
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{kind} {sources}" for kind, sources in parts.items())


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _thousands(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f}\N{NO-BREAK SPACE}%"


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _breakable(name: str) -> Markup:
    """Let the name of a method or layer go on a new line between its parts."""
    return Markup(re.sub(r"([._:])(?=[^\W\d])", r"\1<wbr>", str(escape(name))))
