"""The catalogue of criteria: a decorator registers, a name creates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import import_module
from typing import Any, TypeVar

from niwaki.criteria._criterion import Criterion
from niwaki.handed_on import make_with

__all__ = ["describe", "make", "names", "register", "register_made", "register_variant"]

C = TypeVar("C", bound=type[Criterion])


@dataclass(frozen=True)
class _Entry:
    """How a criterion is made, and what it is in a line."""

    factory: Callable[..., Criterion]
    about: str
    options: dict[str, Any] = field(default_factory=dict)


_CATALOGUE: dict[str, _Entry] = {}

# Rooms above this one that bring criteria of their own; they are imported when a name is asked for.
_OTHERS = ("niwaki.car",)


def register(name: str) -> Callable[[C], C]:
    """Register a criterion under a name."""

    def decorator(criterion: C) -> C:
        criterion.name = name
        _CATALOGUE[name] = _Entry(criterion, (criterion.__doc__ or "").strip().splitlines()[0])
        return criterion

    return decorator


def register_variant(name: str, of: str, about: str, **options: Any) -> None:
    """Register a name for a criterion with some options set, so that text alone can choose it.

    Parameters
    ----------
    name : str
        Of the variant: that of the criterion, a dot, and what differs.
    of : str
        Name of the criterion.
    about : str
        What it is, in a line.
    **options
        Those that differ from the criterion's defaults; whoever creates it may still set others.
    """
    _CATALOGUE[name] = _Entry(_CATALOGUE[of].factory, about, options)


def register_made(name: str, factory: Callable[..., Criterion], about: str) -> None:
    """Register a name for what a function makes of the options."""
    _CATALOGUE[name] = _Entry(factory, about)


def names() -> list[str]:
    """Return the names of all criteria and their variants, sorted."""
    return sorted(_all())


def describe(name: str) -> str:
    """Return a line on what a criterion is."""
    return _lookup(name).about


def make(name: str, **options: Any) -> Criterion:
    """Make the criterion of that name.

    Raises
    ------
    ValueError
        For a name that does not exist.
    UnknownOptionError
        For an option that the criterion does not have.
    """
    entry = _lookup(name)
    made = make_with(f"criterion {name!r}", entry.factory, **{**entry.options, **options})
    made.name = name
    return made


def _all() -> dict[str, _Entry]:
    for room in _OTHERS:
        import_module(room)
    return _CATALOGUE


def _lookup(name: str) -> _Entry:
    if name not in _CATALOGUE and name not in _all():
        close = get_close_matches(name, _CATALOGUE, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise ValueError(f"there is no criterion {name!r}; {hint}All: {', '.join(names())}")
    return _CATALOGUE[name]
