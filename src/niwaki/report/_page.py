"""Pages: filled-in templates, which show their own pictures and run their own script alone."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader

from niwaki.files import write_atomically

__all__ = ["data_uri", "write_page"]


def write_page(path: str | Path, template: str, **values: Any) -> None:
    """Fill in a template of ``report/templates`` and write it, a piece at a time.

    All values are escaped: names of classes, files and layers are words, never markup. The
    template's `policy` is its content security policy.
    """
    environment = Environment(
        loader=PackageLoader("niwaki.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    assert environment.loader is not None
    source, _, _ = environment.loader.get_source(environment, template)
    page = environment.get_template(template).stream(policy=_policy(source), **values)
    write_atomically(path, lambda file: page.dump(str(file), encoding="utf-8"))


def data_uri(picture: bytes, kind: str = "png") -> str:
    """Return a picture of this kind as text that a page can embed."""
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


def _policy(template: str) -> str:
    """Return a content security policy for the pages of a template.

    Pictures are embedded; of styles and scripts, only those in the template itself are allowed, by
    their hashes. Whatever a name of a class or file might bring along does nothing.
    """
    allowed = {
        kind: " ".join(_hash(text) for text in _inside(template, tag)) or "'none'"
        for kind, tag in (("style-src", "style"), ("script-src", "script"))
    }
    parts = {"default-src": "'none'", "img-src": "data:", **allowed}
    parts |= {"base-uri": "'none'", "form-action": "'none'"}
    return "; ".join(f"{kind} {sources}" for kind, sources in parts.items())


def _inside(template: str, tag: str) -> list[str]:
    return re.findall(rf"<{tag}>(.*?)</{tag}>", template, re.DOTALL)


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
