"""What a page may do: show its own pictures and run its own script, and nothing else."""

from __future__ import annotations

import base64
import hashlib
import re

__all__ = ["policy"]


def policy(template: str) -> str:
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
