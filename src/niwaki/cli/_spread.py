"""From the declaration of a command to its options: bundles spread out, values checked."""

from __future__ import annotations

import copy
import functools
import inspect
import os
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from typer.models import ArgumentInfo, OptionInfo

from niwaki.cli._acts import Acts
from niwaki.errors import NiwakiError
from niwaki.machine import parse_bytes
from niwaki.ranges import Range

__all__ = ["Bytes", "Listed", "Written", "check", "flag_of", "numbers", "spread"]


@dataclass(frozen=True)
class Listed:
    """Text of numbers separated by commas, each in a range; how many there may be."""

    range: Range
    least: int = 1
    most: int = 100_000

    def check(self, what: str, value: str | None) -> None:
        """Refuse text of another form."""
        if value is not None:
            numbers(what, value, self)


@dataclass(frozen=True)
class Bytes:
    """A size in bytes, such as 500MB."""

    def check(self, what: str, value: str) -> None:
        """Refuse text that is no size, and sizes in which no work can be done."""
        parse_bytes(value, what)


@dataclass(frozen=True)
class Written:
    """A path that the command writes: what stands there is not looked at, but it can be made."""

    def check(self, what: str, value: Path | None) -> None:
        """Refuse a path that cannot be written."""
        if value is not None:
            _check_writable(what, value)


def numbers(what: str, text: str, listed: Listed) -> list[float]:
    """Read numbers separated by commas.

    Raises
    ------
    NiwakiError
        For text of another form, or too few or too many.
    RangeError
        For a number outside its range.
    """
    kind: type = int if listed.range.whole else float
    try:
        found = [kind(part) for part in text.split(",")]
    except ValueError:
        every = "whole numbers" if listed.range.whole else "numbers"
        raise NiwakiError(f"{what} {text!r}: expected {every} separated by commas") from None
    if not listed.least <= len(found) <= listed.most:
        many = str(listed.least)
        many += "" if listed.least == listed.most else f" to {listed.most}"
        raise NiwakiError(f"{what} {text!r}: expected {many} numbers separated by commas")
    listed.range.check(what, found)
    return found


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """Replace each parameter that is a bundle, such as `Common`, by its options, one by one.

    An option's annotation may hold a `Range`, `Listed`, `Bytes`, `Written` or `Acts` beside typer's
    own information: ranges are shown in the help, and all are checked before the command begins. No
    text may be empty.
    """
    own = get_type_hints(command, include_extras=True)
    keyword = inspect.Parameter.KEYWORD_ONLY
    bundles: dict[str, Any] = {}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if not is_dataclass(own[name]):
            parameters.append(parameter.replace(annotation=own[name], kind=keyword))
            continue
        bundles[name] = own[name]
        types = get_type_hints(own[name], include_extras=True)
        parameters += [
            inspect.Parameter(f.name, keyword, default=f.default, annotation=types[f.name])
            for f in fields(own[name])
            if f.init
        ]
    parameters = [p.replace(annotation=_with_range(p.annotation)) for p in parameters]

    @functools.wraps(command)
    def spread_out(**given: Any) -> None:
        for parameter in parameters:
            check(parameter.annotation, flag_of(parameter), given[parameter.name])
        flags = {parameter.name: flag_of(parameter) for parameter in parameters}
        for parameter in parameters:
            for about in get_args(parameter.annotation)[1:]:
                if isinstance(about, Acts):
                    about.check(parameter, given, flags)
        made = {
            name: bundle(**{f.name: given.pop(f.name) for f in fields(bundle) if f.init})
            for name, bundle in bundles.items()
        }
        with ExitStack() as stack:
            for bundle in made.values():
                stack.enter_context(getattr(bundle, "opened", nullcontext()))
            command(**made, **given)

    spread_out.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    spread_out.__annotations__ = {p.name: p.annotation for p in parameters}
    return spread_out


def check(annotation: Any, what: str, value: Any) -> None:
    """Check a value against what its annotation says.

    Raises
    ------
    NiwakiError
        With the option, the value, and what it may be.
    """
    for text in value if isinstance(value, (list, tuple)) else [value]:
        if isinstance(text, str) and not text.strip():
            raise NiwakiError(f"{what} {text!r}: is empty; give a value, or leave it out")
    for about in get_args(annotation)[1:]:
        if isinstance(about, (Range, Listed, Bytes, Written)):
            about.check(what, value)


def flag_of(parameter: inspect.Parameter) -> str:
    """Return how a person writes an option, or what the help calls an argument."""
    for about in get_args(parameter.annotation)[1:]:
        if isinstance(about, ArgumentInfo):
            return str(about.metavar or parameter.name.upper())
        if isinstance(about, OptionInfo):
            # What stands first is taken for a default until typer looks at it.
            for name in (about.default, *(about.param_decls or ())):
                if isinstance(name, str) and name.startswith("--"):
                    return name.partition("/")[0]
    return f"--{parameter.name.replace('_', '-')}"


def _with_range(annotation: Any) -> Any:
    """Let the help of an option end with its range."""
    if get_origin(annotation) is None or not hasattr(annotation, "__metadata__"):
        return annotation
    parts = list(annotation.__metadata__)
    ranges = [part for part in parts if isinstance(part, Range)]
    for place, part in enumerate(parts):
        if isinstance(part, OptionInfo) and ranges:
            told = copy.copy(part)
            told.help = f"{part.help} {_sentence(ranges[0])}"
            parts[place] = told
    annotated: Any = annotation.__origin__
    for part in parts:
        annotated = Annotated[annotated, part]
    return annotated


_ANY = 10**9  # counts up to here are "at the most": more than there are means all


def _sentence(found: Range) -> str:
    if found.whole and found.high >= _ANY:
        return f"At least {found.low}."
    text = str(found).removeprefix("a whole number ").removeprefix("a number ")
    return f"{text[0].upper()}{text[1:]}."


def _check_writable(what: str, path: Path) -> None:
    if not path.name:
        raise NiwakiError(f"{what} {path}: give the name of what is to be written, such as out")
    where = path.absolute().parent
    while not where.exists():
        where = where.parent
    if not where.is_dir():
        raise NiwakiError(f"{what} {path}: {where} is a file, so that nothing can be made in it")
    # Root may write everywhere but on what is mounted for reading: only trying tells.
    probe = where / f".niwaki-{os.getpid()}"
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise NiwakiError(
            f"{what} {path}: cannot be written ({error.strerror}); choose another place"
        ) from error
