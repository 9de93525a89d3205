"""The catalogue of criteria: a decorator registers, a name creates."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, TypeVar

from niwaki.criteria._criterion import Criterion

__all__ = ["create", "describe", "names", "register"]

C = TypeVar("C", bound=type[Criterion])
_CATALOGUE: dict[str, type[Criterion]] = {}


def register(name: str) -> Callable[[C], C]:
    """Register a criterion under a name."""

    def decorator(criterion: C) -> C:
        criterion.name = name
        _CATALOGUE[name] = criterion
        return criterion

    return decorator


def names() -> list[str]:
    """Return the names of all criteria, sorted."""
    return sorted(_CATALOGUE)


def describe(name: str) -> str:
    """Return the first line of a criterion's documentation."""
    return (_lookup(name).__doc__ or "").strip().splitlines()[0]


def create(criterion: str | Criterion, **options: Any) -> Criterion:
    """Make the criterion of that name; one that is made already is handed on.

    Raises
    ------
    ValueError
        For a name that does not exist, or options beside a criterion that is made already.
    TypeError
        For an option that the criterion does not have.
    """
    if isinstance(criterion, Criterion):
        if options:
            raise ValueError(f"{criterion} is made already: it takes no options {sorted(options)}")
        return criterion
    return _lookup(criterion)(**options)


def _lookup(name: str) -> type[Criterion]:
    if name not in _CATALOGUE:
        close = get_close_matches(name, _CATALOGUE, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise ValueError(f"there is no criterion {name!r}; {hint}All: {', '.join(names())}")
    return _CATALOGUE[name]
