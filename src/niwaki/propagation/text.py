"""Composites as text: saved, read again, compared by eye."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from niwaki.files import write_json
from niwaki.propagation.composites import Assign, Composite
from niwaki.propagation.gates import BetaSmooth, Rescale
from niwaki.propagation.operation import KINDS
from niwaki.propagation.rules import (
    AlphaBeta,
    Deconvnet,
    Epsilon,
    Flat,
    Gradient,
    Guided,
    Pass,
    Rule,
    ZBox,
    ZPlus,
)
from niwaki.propagation.weight_rules import Gamma, Norm, WSquare

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
        For a rule, an option, a kind or a place that does not exist.
    """
    try:
        rows = tuple(_row(dict(row)) for row in about["rows"])
        return Composite(str(about["name"]), rows)
    except (KeyError, TypeError) as error:
        raise ValueError(f"this is no composite: {error!r}") from error


def _row(about: dict[str, Any]) -> Assign:
    name = about.pop("rule")
    if name not in _RULES:
        raise ValueError(f"there is no rule {name!r}; rules: {', '.join(sorted(_RULES))}")
    options = about.pop("options", {})
    known = {field.name for field in fields(_RULES[name])}  # type: ignore[arg-type]
    for option in options:
        if option not in known:
            raise ValueError(f"the rule {name} has no option {option!r}; it has {sorted(known)}")
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    if not isinstance(about.get("kind", ""), str):
        about["kind"] = tuple(about["kind"])
    return Assign(_RULES[name](**values), **about)


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
        about = json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no composite: {error}") from error
    return from_json(about)
