"""Words on a terminal: names of files, classes and layers are words, never markup or commands."""

from __future__ import annotations

import unicodedata
from typing import Any

from rich.console import Console
from rich.text import Text

__all__ = ["Terminal", "clean", "headed"]

# Control, format (writing direction), surrogate and private characters.
_HIDDEN = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")


def clean(text: str) -> str:
    r"""Write out what a terminal would obey or cannot show, such as an escape as ``\x1b``."""
    if text.isprintable():
        return text
    return "".join(letter if _is_plain(letter) else _written_out(letter) for letter in text)


class Terminal(Console):
    """A console that takes all text as it is; what is coloured says so by a style."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Turn a text, also one in a table, into what is shown."""
        return super().render_str(clean(text), **options)


def headed(head: str, rest: str, style: str = "bold") -> Text:
    """Return a text whose first words are set off."""
    return Text.assemble((clean(head), style), f" {clean(rest)}")


def _is_plain(letter: str) -> bool:
    return letter in "\n\t" or unicodedata.category(letter) not in _HIDDEN


def _written_out(letter: str) -> str:
    code = ord(letter)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
