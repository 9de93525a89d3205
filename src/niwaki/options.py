"""Options of what is made by its name: read from text, and refused where nobody knows them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any, TypeVar

from niwaki.errors import NiwakiError, UnknownOptionError
from niwaki.schema import Anything, parse_json

__all__ = ["make_with", "retold", "split_options"]


Made = TypeVar("Made")


def make_with(what: str, factory: Callable[..., Made], *args: Any, **options: Any) -> Made:
    """Call a factory with options.

    Parameters
    ----------
    what : str
        Names it in the message, such as ``"method 'lrp'"``.
    factory : callable
        Called with `args` and `options`.

    Raises
    ------
    UnknownOptionError
        For an option that it does not have.
    """
    try:
        return factory(*args, **options)
    except TypeError as error:
        found = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if isinstance(error, UnknownOptionError) or not found or found[1] not in options:
            raise
        raise UnknownOptionError(found[1], {what: names_of(factory, len(args))}) from error


def names_of(function: Callable[..., Any], given: int = 0) -> tuple[str, ...]:
    """Return the parameters of a function that have names, after so many given by position."""
    parameters = list(inspect.signature(function).parameters.values())[given:]
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return tuple(p.name for p in parameters if p.kind in named and p.name != "self")


def retold(error: UnknownOptionError, function: Callable[..., Any]) -> UnknownOptionError:
    """Return the error as the caller of a function further out has to hear it."""
    own = names_of(function)
    # A function in between, all of whose options this one has, too, is none of the caller's.
    inner = {
        who: names for who, names in error.takers.items() if not (names and {*names} <= {*own})
    }
    return UnknownOptionError(error.option, {f"{function.__name__}()": own, **inner})


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
