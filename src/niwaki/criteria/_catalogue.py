"""The catalogue of criteria: a decorator registers, a name creates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, TypeVar

from niwaki.criteria._criterion import Criterion, Granularity
from niwaki.errors import suggested
from niwaki.options import make_with

__all__ = ["describe", "make", "names", "register", "register_made", "register_variant"]

C = TypeVar("C", bound=type[Criterion])


@dataclass(frozen=True)
class _Entry:
    """How a criterion is made, and what it is in a line."""

    factory: Callable[..., Criterion]
    about: str
    options: dict[str, Any] = field(default_factory=dict)


_CATALOGUE: dict[Granularity, dict[str, _Entry]] = {"unit": {}, "weight": {}}

# Packages on higher floors that register criteria of their own; imported when a name is asked for.
_OTHERS = ("niwaki.car",)


def register(name: str, granularity: Granularity = "unit") -> Callable[[C], C]:
    """Register a criterion under a name.

    Parameters
    ----------
    name : str
        Name of the criterion.
    granularity : {"unit", "weight"}
        What it scores. One that scores either is registered for both, under the same name.
    """

    def decorator(criterion: C) -> C:
        criterion.name = name
        options = {} if criterion.granularity == granularity else {"granularity": granularity}
        about = (criterion.__doc__ or "").strip().splitlines()[0]
        _CATALOGUE[granularity][name] = _Entry(criterion, about, options)
        return criterion

    return decorator


def register_variant(name: str, of: str, about: str, **options: Any) -> None:
    """Register a name for a criterion of units with some options set, so that text can choose it.

    Parameters
    ----------
    name : str
        Name of the variant: that of the criterion, a dot, and what differs.
    of : str
        Name of the criterion.
    about : str
        What it is, in a line.
    **options
        Those that differ from the criterion's defaults; whoever creates it may still set others.
    """
    _CATALOGUE["unit"][name] = _Entry(_CATALOGUE["unit"][of].factory, about, options)


def register_made(name: str, factory: Callable[..., Criterion], about: str) -> None:
    """Register a name for what a function makes of the options."""
    _CATALOGUE["unit"][name] = _Entry(factory, about)


def names(granularity: Granularity = "unit") -> list[str]:
    """Return the names of all criteria and their variants, sorted.

    Parameters
    ----------
    granularity : {"unit", "weight"}
        What they score.
    """
    return sorted(_all(granularity))


def describe(name: str, granularity: Granularity = "unit") -> str:
    """Return a line on what a criterion is."""
    return _lookup(name, granularity).about


def make(name: str, granularity: Granularity = "unit", **options: Any) -> Criterion:
    """Make the criterion of that name.

    Raises
    ------
    ValueError
        For a name that does not exist.
    UnknownOptionError
        For an option that the criterion does not have.
    """
    entry = _lookup(name, granularity)
    what = f"criterion {name!r}{' of weights' if granularity == 'weight' else ''}"
    made = make_with(what, entry.factory, **{**entry.options, **options})
    made.name = name
    return made


def _all(granularity: Granularity) -> dict[str, _Entry]:
    for room in _OTHERS:
        import_module(room)
    if granularity not in _CATALOGUE:
        raise ValueError(f"granularity {granularity!r} is neither 'unit' nor 'weight'")
    return _CATALOGUE[granularity]


def _lookup(name: str, granularity: Granularity) -> _Entry:
    known = _CATALOGUE.get(granularity, {})
    if name not in known and name not in _all(granularity):
        hint = suggested(name, known)
        of = " of weights" if granularity == "weight" else ""
        raise ValueError(
            f"there is no criterion {name!r}{of}; {hint}All: {', '.join(names(granularity))}"
        )
    return known[name]
