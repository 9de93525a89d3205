"""Composites that are the criteria's own, and how a criterion tells which it has."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import fields, replace
from functools import cache
from typing import Any

from torch import Tensor

from niwaki import hashing
from niwaki.propagation import (
    Composite,
    ZPlus,
    composite_named,
    composite_names,
    epsilon,
    epsilon_plus,
)

__all__ = ["EPSILON", "EPSILON_PLUS", "told"]

# Where two branches nearly cancel, the epsilon rule lets relevances of both signs grow without
# bound, which says nothing about a unit: z-plus takes its place at residual sums.
EPSILON = replace(epsilon(sums=ZPlus()), name="Epsilon with z-plus at sums")
EPSILON_PLUS = replace(epsilon_plus(sums=ZPlus()), name="EpsilonPlus with z-plus at sums")


def told(composite: Composite) -> str:
    """Return a composite's name, and where it is no preset of that name, a digest of its rules.

    So that two settings that differ never read the same: run folders are recognised by this.
    """
    if _digest(composite) in _usual():
        return composite.name
    return f"{composite.name} #{_digest(composite)}"


@cache
def _usual() -> frozenset[str]:
    """Digests of all presets, and of those that criteria add."""
    known = [composite_named(name) for name in composite_names()]
    return frozenset(map(_digest, [*known, EPSILON, EPSILON_PLUS]))


def _digest(composite: Composite) -> str:
    content = hashlib.sha256(composite.name.encode())
    for row in composite.rows:
        about = (type(row.rule).__name__, row.kinds, row.layer, row.operation, row.place)
        content.update(repr(about).encode())
        for field in fields(row.rule):  # type: ignore[arg-type]
            content.update(field.name.encode())
            _add(content, getattr(row.rule, field.name))
    return content.hexdigest()[:12]


def _add(content: Any, value: Any) -> None:
    """Hash an option of a rule; patterns are tensors, whose text is abridged."""
    if isinstance(value, Tensor):
        content.update(f"{tuple(value.shape)}{value.dtype}".encode())
        content.update(hashing.content(value))
    elif isinstance(value, Mapping):
        for key, part in value.items():
            content.update(repr(key).encode())
            _add(content, part)
    else:
        content.update(repr(value).encode())
