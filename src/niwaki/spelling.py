"""Names with options as text, such as ``lrp:max_loss=None`` or ``smoothgrad:samples=8``."""

from __future__ import annotations

from typing import Any

from niwaki.errors import NiwakiError
from niwaki.schema import Anything, parse_json

__all__ = ["split_options"]

_WORDS = {"none": None, "null": None, "true": True, "false": False}


def split_options(text: str) -> tuple[str, dict[str, Any]]:
    """Return the name and the options of ``NAME:OPTION=VALUE,OPTION=VALUE``.

    Values are numbers, ``None``, ``true`` and ``false`` in either spelling, lists of JSON, or text.

    Raises
    ------
    NiwakiError
        For text of another form.
    """
    name, _, rest = text.partition(":")
    options: dict[str, Any] = {}
    for part in rest.split(",") if rest else ():
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not key:
            raise NiwakiError(f"{text!r}: expected NAME:OPTION=VALUE,OPTION=VALUE")
        options[key] = _value(value)
    return name.strip(), options


def _value(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return parse_json(text, Anything(), text)
    except NiwakiError:
        return text
