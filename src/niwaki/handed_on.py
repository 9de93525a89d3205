"""Options that a function hands on to what it makes: one that nobody knows is told as such.

``niwaki.audit(model, data, tissues=True)`` hands ``tissues`` on to the method, which does not
have it. The error names the function that was called, and what the option might have been there.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any, TypeVar

from niwaki.errors import UnknownOptionError

__all__ = ["make_with", "retold"]

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
