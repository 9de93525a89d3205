"""Settings as text that is the same in every process, and different for different settings."""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterator, Mapping, Sequence, Set
from functools import partial, singledispatch
from pathlib import PurePath
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from niwaki import models
from niwaki.hashing import content, without_addresses

__all__ = ["described"]

_LONGEST = 300  # characters that are shown of a value


def described(value: Any) -> Any:
    """Describe a setting as plain data that can be written down and compared.

    Parameters
    ----------
    value : object
        Plain data stand for themselves. Of anything else, its text and a hash of all that it is
        made of: attributes, tensors, and the code of functions.

    Returns
    -------
    None, bool, int, float, str, list or dict
        Equal in every process for equal values.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if abs(value) < float("inf") else repr(value)
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: described(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [described(entry) for entry in value]
    sha = hashlib.sha256()
    for part in _walk(value, []):
        sha.update(part)
    return f"{without_addresses(repr(value))[:_LONGEST]} [{sha.hexdigest()[:8]}]"


def _walk(value: Any, above: list[int]) -> Iterator[bytes]:
    """Yield all that a value is made of; `above` are the objects that it was reached through."""
    if isinstance(value, bytes):
        yield value
        return
    if id(value) in above:
        yield f"<{len(above) - above.index(id(value))} up>".encode()
        return
    yield f"({type(value).__qualname__}:".encode()
    for part in _parts(value):
        yield from _walk(part, [*above, id(value)])
    yield b")"


@singledispatch
def _parts(value: Any) -> list[Any]:
    """Return what a value is made of: bytes, or values that are looked into in turn."""
    return [without_addresses(repr(value)).encode(), _attributes(value)]


def _text(value: Any) -> list[Any]:
    return [repr(value).encode()]


_PLAIN = (bool, int, float, complex, str, type(None), enum.Enum, PurePath, np.generic)
for _kind in (*_PLAIN, torch.dtype, torch.device):
    _parts.register(_kind, _text)


@_parts.register
def _(value: Mapping) -> list[Any]:  # type: ignore[type-arg]
    return [part for pair in value.items() for part in pair]


@_parts.register
def _(value: Sequence) -> list[Any]:  # type: ignore[type-arg]
    return list(value)


@_parts.register
def _(value: Set) -> list[Any]:  # type: ignore[type-arg]
    return sorted(without_addresses(repr(entry)) for entry in value)


@_parts.register
def _(value: Tensor) -> list[Any]:
    return [f"{value.dtype}{tuple(value.shape)}".encode(), content(value)]


@_parts.register
def _(value: np.ndarray) -> list[Any]:
    return [f"{value.dtype}{value.shape}".encode(), *map(repr, value.ravel().tolist())]


@_parts.register
def _(value: torch.Generator) -> list[Any]:
    return [value.get_state()]


@_parts.register
def _(value: nn.Module) -> list[Any]:
    return [models.fingerprint(value)]


@_parts.register
def _(value: type) -> list[Any]:
    return [f"{value.__module__}.{value.__qualname__}"]


@_parts.register
def _(value: partial) -> list[Any]:  # type: ignore[type-arg]
    return [value.func, value.args, value.keywords]


@_parts.register
def _(value: MethodType) -> list[Any]:
    return [value.__self__, value.__func__]


@_parts.register
def _(value: FunctionType) -> list[Any]:
    # What it has caught beside fixed values, such as a list that it fills, changes as it runs.
    caught = [cell for cell in map(_cell, value.__closure__ or ()) if _is_fixed(cell)]
    name = f"{value.__module__}.{value.__qualname__}"
    return [name, value.__code__, value.__defaults__, value.__kwdefaults__, caught]


@_parts.register
def _(value: CodeType) -> list[Any]:
    return [value.co_code, value.co_names, value.co_consts]


def _cell(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # still empty
        return None


def _is_fixed(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_fixed, value))
    return isinstance(value, (*_PLAIN, FunctionType, type))


def _attributes(value: Any) -> dict[str, Any]:
    found = dict(getattr(value, "__dict__", {}))
    for kind in type(value).__mro__:
        for name in getattr(kind, "__slots__", ()):
            if isinstance(name, str) and hasattr(value, name):
                found.setdefault(name, getattr(value, name))
    return found
