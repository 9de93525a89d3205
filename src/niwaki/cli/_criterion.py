"""Criteria as text: a name with options, such as ``lrp:reduce=signed,composite=rules.json``."""

from __future__ import annotations

from typing import Any

from niwaki.errors import NiwakiError, UnknownOptionError
from niwaki.options import split_options

__all__ = ["named_files", "parse_criterion"]


def named_files(text: str) -> list[str]:
    """Return the values of the options, any of which may be the path of a file."""
    return [part.partition("=")[2].strip() for part in text.split(",") if part.partition("=")[2]]


def parse_criterion(text: str) -> tuple[str, dict[str, Any]]:
    """Return the name and the options.

    Raises
    ------
    ValueError
        For a name or value that does not exist.
    NiwakiError
        For text of another form, or an option that the criterion does not have.
    """
    from niwaki.criteria import create

    name, options = split_options(text)
    try:
        create(name, **options)
    except UnknownOptionError as error:
        raise NiwakiError(f"--criterion {text!r}: {error}") from error
    return name, options
