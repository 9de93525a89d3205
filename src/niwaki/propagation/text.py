"""Composites as text: saved, read again, compared by eye."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from difflib import get_close_matches
from math import isfinite
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from niwaki.errors import DataError
from niwaki.files import write_json
from niwaki.propagation.composites import Assign, Composite
from niwaki.propagation.gates import BetaSmooth, Rescale
from niwaki.propagation.operation import KINDS, Rule
from niwaki.propagation.presets import PRESETS, epsilon, gradient
from niwaki.propagation.rules import (
    AlphaBeta,
    Deconvnet,
    Epsilon,
    Flat,
    Gradient,
    Guided,
    Pass,
    Ratio,
    ZBox,
    ZPlus,
)
from niwaki.propagation.weight_rules import Gamma, Norm, WSquare
from niwaki.schema import Anything, MapOf, read_json

__all__ = ["from_json", "load_composite", "save_composite", "to_json"]

_RULES: dict[str, type[Rule]] = {
    rule.__name__: rule
    for rule in (
        AlphaBeta,
        BetaSmooth,
        Deconvnet,
        Epsilon,
        Flat,
        Gamma,
        Gradient,
        Guided,
        Norm,
        Pass,
        Ratio,
        Rescale,
        WSquare,
        ZBox,
        ZPlus,
    )
}


def to_json(composite: Composite) -> dict[str, Any]:
    """Return plain dicts and lists; `from_json` is the way back.

    Raises
    ------
    ValueError
        For a rule that is not one of niwaki's own, or holds tensors.
    """
    rows = []
    for row in composite.rows:
        name = type(row.rule).__name__
        if name not in _RULES:
            raise ValueError(f"the rule {row.rule} cannot be written as text")
        values = asdict(row.rule)  # type: ignore[call-overload]
        rows.append(
            {
                "rule": name,
                **({"options": values} if values else {}),
                **({} if row.kinds == KINDS else {"kind": list(row.kinds)}),
                **({} if row.layer == "*" else {"layer": row.layer}),
                **({} if row.operation == "*" else {"operation": row.operation}),
                **({} if row.place == "any" else {"place": row.place}),
            }
        )
    return {"name": composite.name, "rows": rows}


def from_json(about: dict[str, Any]) -> Composite:
    """Rebuild a composite.

    Raises
    ------
    ValueError
        For a rule, an option, a kind or a place that does not exist, or a value of another type
        than the option has.
    """
    try:
        rows = tuple(_row(dict(row)) for row in about["rows"])
        return Composite(str(about["name"]), rows)
    except (KeyError, TypeError) as error:
        raise ValueError(f"this is no composite: {error!r}") from error


def _row(about: dict[str, Any]) -> Assign:
    rule = _rule(about.pop("rule"), about.pop("options", {}))
    for name, value in about.items():
        if not isinstance(value, str) and not (name == "kind" and isinstance(value, list)):
            raise ValueError(f"{name} = {value!r} in a row of a composite: must be a text")
    if isinstance(about.get("kind"), list):
        about["kind"] = tuple(about["kind"])
    return Assign(rule, **about)


def _rule(name: Any, options: Any) -> Rule:
    if name not in _RULES:
        raise ValueError(f"there is no rule {name!r}; rules: {', '.join(sorted(_RULES))}")
    known = get_type_hints(_RULES[name])
    del known["needs_inputs"]
    values = {}
    for option, value in dict(options).items():
        if option not in known:
            raise ValueError(f"the rule {name} has no option {option!r}; it has {sorted(known)}")
        values[option] = tuple(value) if isinstance(value, list) else value
        if not _fits(values[option], known[option]):
            raise ValueError(
                f"{option} = {value!r} of the rule {name}: must be {_words(known[option])}"
            )
    return _RULES[name](**values)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value from a text is of the type that an option is annotated with."""
    kind, parts = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if kind is Literal:
        return value in parts
    if kind is tuple:
        return isinstance(value, tuple) and len(value) > 0 and all(_fits(v, float) for v in value)
    if hint is float:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return number and isfinite(value)
    return isinstance(value, hint)


def _words(hint: Any) -> str:
    kind, parts = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        return " or ".join(_words(part) for part in parts)
    if kind is Literal:
        return " or ".join(json.dumps(part) for part in parts)
    if kind is tuple:
        return "a list of numbers"
    words: dict[Any, str] = {float: "a number", bool: "true or false"}
    return words[hint]


def save_composite(composite: Composite, path: str | Path) -> None:
    """Write a composite as a JSON file."""
    write_json(path, to_json(composite))


def load_composite(path: str | Path) -> Composite:
    """Read what `save_composite` wrote.

    Raises
    ------
    ValueError
        For a file that is no composite.
    """
    try:
        return from_json(read_json(path, MapOf(Anything()), "it cannot be read"))
    except ValueError as error:
        raise DataError(f"{path} is no composite: {error}") from error


def composite_names() -> list[str]:
    """Return the names of the composites that come ready-made, as `composite_named` takes them."""
    return sorted(_MADE)


def composite_named(text: str) -> Composite:
    """Make the composite of that name, or read one.

    Parameters
    ----------
    text : str
        ``"EpsilonPlus"`` or ``"epsilon_plus"``; or a file ``*.json`` that `save_composite` wrote.

    Raises
    ------
    ValueError
        For a name that does not exist, or a file that is no composite.
    OSError
        For a file that cannot be read.
    """
    if text.endswith(".json"):
        return load_composite(text)
    wanted = text.replace("_", "").lower()
    by_text = {name.lower(): name for name in _MADE}
    if wanted not in by_text:
        close = [by_text[name] for name in get_close_matches(wanted, by_text, n=3, cutoff=0.4)]
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise ValueError(
            f"there is no composite {text!r}; {hint}All: {', '.join(composite_names())}"
        )
    return _MADE[by_text[wanted]]()


_MADE: dict[str, Callable[..., Composite]] = {
    **PRESETS,
    "Epsilon": epsilon,
    "Gradient": gradient,
}
