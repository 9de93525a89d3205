"""Settings as text, told apart by all that they are made of, down to the code of functions."""

from __future__ import annotations

import dis
import enum
import hashlib
import sys
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property, partial, singledispatch
from pathlib import Path, PurePath
from types import (
    CellType,
    CodeType,
    FunctionType,
    MethodType,
    ModuleType,
    SimpleNamespace,
)
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from niwaki import models
from niwaki.errors import NiwakiError
from niwaki.hashing import content, without_addresses
from niwaki.runs._digest import digest

__all__ = ["described", "identified"]

_LONGEST = 300  # characters that are shown of a value


def described(value: Any) -> Any:
    """Describe a setting as plain data that can be written down and compared.

    Parameters
    ----------
    value : object
        Plain data stand for themselves. Of anything else, its text and a hash of all that it is
        made of: attributes, tensors, the samples of data sets, and the code of functions and
        classes with the settings that it reads. What is installed is told by its name.

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
    return f"{without_addresses(repr(value))[:_LONGEST]} [{_hash(value)}]"


def identified(model: nn.Module) -> str:
    """Tell a network from all others, also those of equal weights that compute something else.

    Returns
    -------
    str
        Its `niwaki.models.fingerprint`, and a hash of the code of its classes, of its hooks, and of
        tensors and functions that are attributes.
    """
    return f"{models.fingerprint(model)}-{_hash(_beside_weights(model))}"


def _hash(value: Any) -> str:
    sha = hashlib.sha256()
    for part in _walk(value, [], {}):
        sha.update(part)
    return sha.hexdigest()[:8]


@dataclass(frozen=True)
class _Read:
    """What a function or an object refers to; of what it may fill as it runs, little counts."""

    value: Any


def _walk(value: Any, above: list[int], seen: dict[int, int]) -> Iterator[bytes]:
    """Yield all that a value is made of.

    `above` are the objects that it was reached through, `seen` the functions, classes and networks
    that were looked into before.
    """
    if isinstance(value, bytes):
        yield value
        return
    if isinstance(value, _Read) and isinstance(value.value, _WHOLE):
        value = value.value
    itself = value.value if isinstance(value, _Read) else value
    mark = id(itself)
    if mark in above:
        yield f"<{len(above) - above.index(mark)} up>".encode()
        return
    if isinstance(itself, (FunctionType, type, nn.Module)):
        if mark in seen:
            yield f"<number {seen[mark]}>".encode()
            return
        seen[mark] = len(seen)
    yield f"({type(itself).__qualname__}:".encode()
    for part in _parts(value):
        yield from _walk(part, [*above, mark], seen)
    yield b")"


@singledispatch
def _parts(value: Any) -> list[Any]:
    """Return what a value is made of: bytes, or values that are looked into in turn."""
    if callable(value) and _is_own(type(value)):
        return _parts(_Read(value))
    return [without_addresses(repr(value)).encode(), type(value), _attributes(value)]


def _text(value: Any) -> list[Any]:
    return [repr(value).encode()]


_PLAIN = (bool, int, float, complex, str, type(None), enum.Enum, PurePath, np.generic, range)
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


@_parts.register(Dataset)
@_parts.register(DataLoader)
def _(value: Any) -> list[Any]:
    of = value.dataset if isinstance(value, DataLoader) else value
    if isinstance(of, IterableDataset):  # it may have no end
        return [type(value), type(of)]
    try:
        return [digest(value, seeded=True)]
    except (NiwakiError, TypeError, ValueError, RuntimeError):  # no pairs of inputs and labels
        return [type(value), type(of), len(value)]


@_parts.register
def _(value: nn.Module) -> list[Any]:
    return [models.fingerprint(value), *_beside_weights(value)]


def _beside_weights(model: nn.Module) -> list[Any]:
    found: list[Any] = []
    for module in model.modules():
        hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
        own = {name: _Read(one) for name, one in models.own_attributes(module).items()}
        found += [type(module), *map(_Read, hooks), own]
    return found


@_parts.register
def _(value: type) -> list[Any]:
    code = [
        {name: _Read(one) for name, one in vars(kind).items() if not _is_of_python(name, one)}
        for kind in value.__mro__
        if _is_own(kind)
    ]
    return [f"{value.__module__}.{value.__qualname__}", *code]


def _is_of_python(name: str, value: Any) -> bool:
    """Whether an entry of a class is one that Python makes."""
    return name.startswith("__") and not isinstance(value, FunctionType)


@_parts.register
def _(value: partial) -> list[Any]:  # type: ignore[type-arg]
    return [value.func, value.args, value.keywords]


@_parts.register
def _(value: MethodType) -> list[Any]:
    return [_Read(value.__self__), value.__func__]


@_parts.register
def _(value: FunctionType) -> list[Any]:
    name = f"{value.__module__}.{value.__qualname__}"
    code, cells = value.__code__, value.__closure__ or ()
    read = {n: _cell(cell) for n, cell in zip(code.co_freevars, cells, strict=True)}
    if _is_own(value):
        around = value.__globals__
        names = _names(code, ("LOAD_GLOBAL", "LOAD_NAME"))
        read |= {n: around[n] for n in sorted(names) if n in around}
    # What code itself gives another value is no setting, but such as a count of calls.
    given = _names(code, ("STORE_GLOBAL", "STORE_DEREF"))
    known = {name: _Read(entry) for name, entry in read.items() if name not in given}
    return [name, code, value.__defaults__, value.__kwdefaults__, known]


@_parts.register
def _(value: CodeType) -> list[Any]:
    return [value.co_code, value.co_names, value.co_consts]


def _cell(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # still empty
        return None


def _names(code: CodeType, acts: tuple[str, ...]) -> set[str]:
    """Return the names of which code does such an act, also in the functions within it."""
    names = {str(step.argval) for step in dis.get_instructions(code) if step.opname in acts}
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return names.union(*(_names(one, acts) for one in inner))


_NAMED = (*_PLAIN, torch.dtype, torch.device, FunctionType, type)
_WHOLE = (*_NAMED, MethodType, partial, Tensor, np.ndarray, Dataset, DataLoader, nn.Module)


@_parts.register
def _(read: _Read) -> list[Any]:
    value = read.value
    if isinstance(value, tuple):
        return [_Read(entry) for entry in value]
    if isinstance(value, (staticmethod, classmethod)):
        return [value.__func__]
    if isinstance(value, property):
        return [value.fget]
    if isinstance(value, cached_property):
        return [value.func]
    # What a list holds, and the tensors in a dict, change as a function fills them.
    found: Mapping[Any, Any] = {}
    if isinstance(value, Mapping):
        found = {key: one for key, one in value.items() if not isinstance(one, Tensor)}
    elif isinstance(value, ModuleType) and _is_own(value):
        found = {key: one for key, one in vars(value).items() if isinstance(one, _NAMED)}
    elif isinstance(value, (Namespace, SimpleNamespace)) or _is_own(type(value)):
        found = _attributes(value)
    entries = [part for key, one in found.items() for part in (str(key), _Read(one))]
    return [type(value), str(getattr(value, "__name__", "")), *entries]


def _is_own(value: type | FunctionType | ModuleType) -> bool:
    """Whether code is that of whoever uses niwaki, and not of something installed."""
    name = value.__name__ if isinstance(value, ModuleType) else value.__module__
    top = (name or "").partition(".")[0]
    if top in ("niwaki", "torch", "builtins") or (
        top in sys.stdlib_module_names and top != "__main__"
    ):
        return False
    file = getattr(sys.modules.get(name or ""), "__file__", None)
    return file is None or _INSTALLED.isdisjoint(Path(file).parts)


_INSTALLED = {"site-packages", "dist-packages"}


def _attributes(value: Any) -> dict[str, Any]:
    found = dict(getattr(value, "__dict__", {}))
    for kind in type(value).__mro__:
        for name in getattr(kind, "__slots__", ()):
            if isinstance(name, str) and hasattr(value, name):
                found.setdefault(name, getattr(value, name))
    return found
