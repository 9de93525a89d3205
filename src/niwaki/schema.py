"""Plain data from files that anybody may have written: read with limits, checked as a whole.

A form says what a value must look like; `check` compares and says where a value differs.
`read_json` reads a file and checks it; `rebuild` makes a dataclass of plain data, whose annotations
are the form. Nothing that passed needs to be looked at again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from functools import lru_cache, reduce
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from niwaki.errors import DataError, NiwakiError

__all__ = [
    "Anything",
    "Either",
    "Form",
    "ListOf",
    "MapOf",
    "Nothing",
    "Number",
    "Record",
    "Text",
    "Truth",
    "Whole",
    "check",
    "form_of",
    "parse_json",
    "read_json",
    "rebuild",
]

Made = TypeVar("Made")

_LARGEST = 2**28  # bytes
_DEEPEST = 50
_DIGITS = 40  # of a number


@dataclass(frozen=True)
class Whole:
    """A whole number within bounds."""

    low: int = 0
    high: int = 2**53


@dataclass(frozen=True)
class Number:
    """A finite number within bounds."""

    low: float = -math.inf
    high: float = math.inf


@dataclass(frozen=True)
class Text:
    """A text; one of some, where they are given."""

    among: tuple[str, ...] = ()
    longest: int = 100_000


@dataclass(frozen=True)
class Truth:
    """True or false."""


@dataclass(frozen=True)
class Nothing:
    """Null."""


@dataclass(frozen=True)
class Anything:
    """Any plain value."""


@dataclass(frozen=True)
class ListOf:
    """A list of equal items."""

    item: Form
    longest: int = 10_000_000
    shortest: int = 0


@dataclass(frozen=True)
class MapOf:
    """Names to equal values."""

    value: Form


@dataclass(frozen=True)
class Record:
    """Named values of different forms; others may be there only if `open`."""

    needed: Mapping[str, Form]
    optional: Mapping[str, Form] = field(default_factory=dict)
    open: bool = False


@dataclass(frozen=True)
class Either:
    """One of two forms, the plainer first."""

    first: Form
    second: Form


Form = Whole | Number | Text | Truth | Nothing | Anything | ListOf | MapOf | Record | Either


class _MismatchError(DataError):
    """What differs, and where."""


def read_json(
    path: str | Path, form: Form, complaint: str, error: type[NiwakiError] = DataError
) -> Any:
    """Read a JSON file and check what it holds.

    Parameters
    ----------
    path
        The file.
    form
        What it must look like.
    complaint
        What the message begins with.
    error
        The class of the error.

    Raises
    ------
    NiwakiError
        An error of the class `error`: the file cannot be read, is no JSON, or holds something else.
    """
    try:
        if Path(path).stat().st_size > _LARGEST:
            raise _MismatchError(f"it has more than {_LARGEST // 2**20} MiB")
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as reason:
        raise error(f"{complaint}: {reason}") from reason
    return parse_json(text, form, complaint, error, where=Path(path).name)


def parse_json(
    text: str | bytes,
    form: Form,
    complaint: str,
    error: type[NiwakiError] = DataError,
    where: str = "it",
    constant: Callable[[str], Any] | None = None,
) -> Any:
    """Parse and check JSON; an error of the class `error` begins with the complaint.

    `constant` says what NaN and Infinity mean, which some programs write; without it, they are
    refused.
    """
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=constant or _refuse,
            parse_int=_whole,
            parse_float=_finite,
        )
        check(value, form, where)
    except RecursionError:
        raise error(f"{complaint}: {where} is nested too deeply") from None
    except ValueError as reason:
        raise error(f"{complaint}: {reason}") from reason
    return value


def check(value: Any, form: Form, where: str = "it") -> None:
    """Compare a value with a form.

    Raises
    ------
    DataError
        Saying what differs, and where.
    """
    match form:
        case Either(first, second):
            try:
                check(value, first, where)
            except _MismatchError:
                check(value, second, where)
        case Record():
            _check_record(value, form, where)
        case MapOf(inner):
            for name, item in _is(value, Mapping, where, "names with values").items():
                _plain_text(name, where)
                check(item, inner, f"{where}[{name!r}]")
        case ListOf(inner, longest, shortest):
            items = _is(value, list, where, "a list")
            if not shortest <= len(items) <= longest:
                raise _MismatchError(f"{where} has {len(items)} items, not {shortest} to {longest}")
            for index, item in enumerate(items):
                check(item, inner, f"{where}[{index}]")
        case Anything():
            _check_anything(value, where)
        case _:
            _check_single(value, form, where)


def rebuild(kind: type[Made], value: Any, where: str = "it") -> Made:
    """Make a dataclass of what `dataclasses.asdict` and JSON have made of one.

    Raises
    ------
    DataError
        For anything that does not fit its annotations.
    """
    hint: Any = kind
    check(value, form_of(hint), where)
    made: Made = _made(kind, value)
    return made


@lru_cache
def form_of(hint: Any) -> Form:
    """Return the form of values with an annotation, such as ``dict[str, float | None]``."""
    kind, parts = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        return reduce(Either, map(form_of, parts))
    if kind is Literal:
        return Text(parts)
    if kind is tuple or (kind is not None and issubclass(kind, list)):
        return ListOf(form_of(parts[0]))
    if kind is not None and issubclass(kind, Mapping):
        return MapOf(form_of(parts[1]))
    if is_dataclass(hint):
        hints = get_type_hints(hint)
        forms = {f.name: form_of(hints[f.name]) for f in fields(hint)}
        free = {f.name for f in fields(hint) if (f.default, f.default_factory) != (MISSING,) * 2}
        return Record(
            {name: form for name, form in forms.items() if name not in free},
            {name: form for name, form in forms.items() if name in free},
        )
    return _PLAIN[hint]


def _made(hint: Any, value: Any) -> Any:
    """Give back to checked data the types that JSON does not have."""
    kind, parts = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType) and value is not None:
        made = [part for part in parts if is_dataclass(part)]
        return _made(made[0], value) if made else value  # beside None, nothing else
    if kind is tuple:
        return tuple(_made(parts[0], item) for item in value)
    if kind is not None and isinstance(kind, type) and issubclass(kind, Mapping):
        return {name: _made(parts[1], item) for name, item in value.items()}
    if is_dataclass(hint) and isinstance(hint, type):
        hints = get_type_hints(hint)
        return hint(**{name: _made(hints[name], item) for name, item in value.items()})
    return value


_PLAIN: dict[Any, Form] = {
    int: Whole(-(2**62), 2**62),
    float: Number(),
    str: Text(),
    bool: Truth(),
    NoneType: Nothing(),
    Any: Anything(),
}


def _check_record(value: Any, form: Record, where: str) -> None:
    _is(value, Mapping, where, "names with values")
    if missing := [name for name in form.needed if name not in value]:
        raise _MismatchError(f"{where} lacks {', '.join(map(repr, missing))}")
    known = {**form.optional, **form.needed}
    for name, item in value.items():
        if name in known:
            check(item, known[name], f"{where}[{name!r}]")
        elif form.open:
            _plain_text(name, where)
            _check_anything(item, f"{where}[{name!r}]")
        else:
            raise _MismatchError(f"{where} has {_short(name)}, which is not known")


def _check_single(value: Any, form: Form, where: str) -> None:
    match form:
        case Whole(low, high):
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise _MismatchError(
                    f"{where} is {_short(value)}, not a whole number from {low} to {high}"
                )
        case Number(low, high):
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise _MismatchError(f"{where} is {_short(value)}, not a number")
            if not (low <= value <= high and math.isfinite(value)):
                raise _MismatchError(f"{where} is {_short(value)}, not between {low} and {high}")
        case Text(among, longest):
            _plain_text(value, where)
            if len(value) > longest or (among and value not in among):
                wanted = f"not one of {', '.join(among)}" if among else "which is too long"
                raise _MismatchError(f"{where} is {_short(value)}, {wanted}")
        case Truth():
            _is(value, bool, where, "true or false")
        case Nothing():
            if value is not None:
                raise _MismatchError(f"{where} is {_short(value)}, not null")


def _check_anything(value: Any, where: str, depth: int = 0) -> None:
    if depth > _DEEPEST:
        raise _MismatchError(f"{where[:80]} is nested too deeply")
    if isinstance(value, str):
        _plain_text(value, where)
    elif isinstance(value, Mapping):
        for name, item in value.items():
            _plain_text(name, where)
            _check_anything(item, f"{where}[{name!r}]", depth + 1)
    elif isinstance(value, Sequence):
        for index, item in enumerate(value):
            _check_anything(item, f"{where}[{index}]", depth + 1)


def _is(value: Any, kind: type[Any], where: str, name: str) -> Any:
    if not isinstance(value, kind):
        raise _MismatchError(f"{where} is {_short(value)}, not {name}")
    return value


def _plain_text(value: Any, where: str) -> None:
    """Refuse what no file name and no terminal takes."""
    if not isinstance(value, str):
        raise _MismatchError(f"{where} is {_short(value)}, not a text")
    if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
        raise _MismatchError(f"{where} has a character that no text has")


def _short(value: Any) -> str:
    text = ascii(value) if not isinstance(value, list | Mapping) else f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:60]}..."


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _MismatchError(f"{_short(twice)} is there twice")
    return made


def _refuse(constant: str) -> float:
    raise _MismatchError(f"{constant} is no number")


def _whole(text: str) -> int:
    if len(text) > _DIGITS:
        raise _MismatchError(f"{_short(text)} is too large a number")
    return int(text)


def _finite(text: str) -> float:
    value = float(text) if len(text) <= 400 else math.inf
    if not math.isfinite(value):
        raise _MismatchError(f"{_short(text)} is too large a number")
    return value
