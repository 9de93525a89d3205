"""The catalogue of embedded data sets: a decorator registers, a name opens."""

from collections.abc import Callable
from importlib import import_module
from typing import TypeAlias

from niwaki.data._images import Images
from niwaki.data._preprocessing import Preprocessing

__all__ = ["Opener", "names", "opener", "register"]

Opener: TypeAlias = Callable[[Preprocessing | None, str], Images]

_OPENERS: dict[str, Opener] = {}


def register(name: str) -> Callable[[Opener], Opener]:
    """Make a function `(preprocessing or None, split) -> Images` known under a name."""

    def keep(function: Opener) -> Opener:
        if name in _OPENERS:
            raise ValueError(f"a data set named {name!r} is registered already")
        _OPENERS[name] = function
        return function

    return keep


def names() -> list[str]:
    """Return the names of the embedded data sets."""
    import_module("niwaki.datasets")  # what niwaki brings along registers itself
    return sorted(_OPENERS)


def opener(name: str) -> Opener | None:
    """Return the function that opens a registered data set, or None."""
    return _OPENERS[name] if name in names() else None
