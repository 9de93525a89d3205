"""Sections of a page: each is made of what a run's folder holds, and is there if that is there."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import sqrt
from os.path import relpath
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote

from niwaki.errors import DataError
from niwaki.report._pictures import PICTURES, data_uri

__all__ = ["PROVENANCE", "RunFolder", "Section", "margin", "section", "sections_of"]

PROVENANCE = "run.json"
_LARGEST = 2**28  # bytes of a file that is read


class RunFolder:
    """What a command has written.

    Parameters
    ----------
    path : Path
        The folder.
    page : Path
        The page that is made of it.

    Raises
    ------
    DataError
        If it is none of a run. Its files raise it too, when they are damaged.
    """

    def __init__(self, path: Path, page: Path) -> None:
        self.path, self.page = path, page
        if not path.is_dir():
            raise DataError(f"{path} is no folder of a run; give what a command wrote with --out")

    @cached_property
    def made(self) -> Mapping[str, Any]:
        """How it was made: the command, versions, seeds; empty where nobody wrote it down."""
        found = self.json(PROVENANCE)
        return found if isinstance(found, dict) else {}

    @property
    def title(self) -> str:
        """What stands above it."""
        return str(self.made.get("title") or self.path.absolute().name)

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return (self.path / name).is_file()

    def link(self, name: str) -> str | None:
        """Return the address of a file as the page has it, or None where there is none."""
        if not self.has(name):
            return None
        try:
            return quote(Path(relpath(self.path / name, self.page.parent)).as_posix())
        except ValueError:  # on another drive
            return None

    def json(self, name: str) -> Any:
        """Return what a JSON file holds, or None where there is none."""
        text = self._text(name)
        try:
            return None if text is None else json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{self.path / name} is damaged: {error}") from error

    def picture(self, name: str | None) -> str | None:
        """Return a picture as text that a page can embed, or None where there is none."""
        if name is None:
            return None
        if self._pictures is not None and name in self._names:
            kind = name.rpartition(".")[2]
            return data_uri(self._pictures.read(name), kind)
        if (self.path / name).suffix == ".png" and self.has(name) and "/" not in name:
            return data_uri((self.path / name).read_bytes())
        return None

    @cached_property
    def _pictures(self) -> zipfile.ZipFile | None:
        if not self.has(PICTURES):
            return None
        try:
            return zipfile.ZipFile(self.path / PICTURES)
        except zipfile.BadZipFile as error:
            raise DataError(f"{self.path / PICTURES} is damaged: {error}") from error

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(() if self._pictures is None else self._pictures.namelist())

    def _text(self, name: str) -> str | None:
        file = self.path / name
        if not file.is_file():
            return None
        if file.stat().st_size > _LARGEST:
            raise DataError(f"{file} is larger than any that a command writes")
        try:
            return file.read_text(encoding="utf-8")
        except ValueError as error:
            raise DataError(f"{file} is damaged: {error}") from error


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


def margin(share: float, count: int) -> str:
    """Say how far a measured accuracy may be from that on all such images (95 %, Wilson)."""
    z = 1.96
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return (
        f"The accuracy was measured on {count:,} images: on all images of this kind it may lie "
        f"anywhere between {middle - half:.1%} and {middle + half:.1%} (95 % interval)."
    )
