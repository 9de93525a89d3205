"""Sections of a page: each is made of what a run's folder holds, and is there if that is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from niwaki.report._run_folder import RunFolder

__all__ = ["Section", "section", "sections_of"]


@dataclass(frozen=True)
class Section:
    """A part of a page.

    Attributes
    ----------
    title : str
        Its heading.
    template : str
        A file in ``templates/sections``, which finds the values as ``it``.
    values : mapping
        What it shows. Iterators are read while the page is written.
    facts : tuple of tuple
        For the summary: what was measured, before, and now (or only now).
    cautions : tuple of str
        What to distrust, in whole sentences.
    """

    title: str
    template: str
    values: Mapping[str, Any] = field(default_factory=dict)
    facts: tuple[tuple[str, ...], ...] = ()
    cautions: tuple[str, ...] = ()


Maker: TypeAlias = Callable[[RunFolder], Section | None]
_MAKERS: list[Maker] = []


def section(make: Maker) -> Maker:
    """Register a function that makes a section of a run's folder, or None without its data.

    Sections stand on the page in the order in which they are registered.
    """
    _MAKERS.append(make)
    return make


def sections_of(run: RunFolder) -> Iterator[Section]:
    """Make all sections that a run has data for."""
    for make in _MAKERS:
        found = make(run)
        if found is not None:
            yield found
