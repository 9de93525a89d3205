"""What a run is of, told apart: digests of its data, and its settings as text."""

from __future__ import annotations

import enum
import hashlib
import random
import secrets
from collections.abc import Generator, Iterator, Mapping, Sequence, Set
from contextlib import closing, contextmanager
from functools import partial, singledispatch
from pathlib import PurePath
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from niwaki import models
from niwaki.data import Data, Images, batches
from niwaki.hashing import content, without_addresses
from niwaki.stages import stage

__all__ = ["described", "digest"]


@stage("hashing images")
def digest(data: Data, *, ordered: bool = False) -> str:
    """Say how many samples there are, with a hash of all of them, inputs and labels.

    Parameters
    ----------
    data : DataLoader, Dataset or pair of tensors
        Read once from end to end, in the order in which it would be read next. No random number is
        missed afterwards.
    ordered : bool
        Whether the order of the samples counts. Batches never do. Where it does not, random
        augmentation is the same in each call; where an augmentation has a generator of its own,
        the labels have to do.

    Returns
    -------
    str
        Such as ``"60 samples, 0123456789abcdef"``.
    """
    files = _of_files(data)
    if files is not None:
        return _summary(files, ordered)
    if _is_steady(data, ordered):
        samples = [
            _hash(f"{tuple(x.shape)}{x.dtype}".encode() + content(x), label)
            for inputs, labels in _read(data, ordered)
            for x, label in zip(inputs.cpu(), labels.tolist(), strict=True)
        ]
        return _summary(samples, ordered)
    found = [_hash(b"", label) for _, labels in _read(data, ordered) for label in labels.tolist()]
    if ordered:  # nothing says which sample is which
        found.append(secrets.token_bytes(16))
    return f"{_summary(found, ordered)}, changing from look to look"


def _of_files(data: Data) -> list[bytes] | None:
    """Hash image files as they lie there, which spares decoding them; None for other data."""
    source, order = data, None
    while isinstance(source, Subset):
        inner = source.indices
        order = list(inner) if order is None else [inner[i] for i in order]
        source = source.dataset
    if type(source) is not Images or source.paths is None:
        return None
    how = f"{source.preprocessing!r}:".encode()
    return [
        _hash(how + hashlib.sha256(source.stored(i)).digest(), source.targets[i])
        for i in (range(len(source)) if order is None else order)
    ]


def _hash(values: bytes, label: int) -> bytes:
    return hashlib.sha256(f"{label}:".encode() + values).digest()


def _summary(samples: list[bytes], ordered: bool) -> str:
    whole = hashlib.sha256(b"".join(samples if ordered else sorted(samples))).hexdigest()[:16]
    return f"{len(samples)} samples, {whole}"


def _is_steady(data: Data, ordered: bool) -> bool:
    """Whether a second look at the first samples finds them as they were."""
    if isinstance(data, tuple):
        return True
    one, other = _first(data, ordered), _first(data, ordered)
    return one.shape == other.shape and torch.equal(one, other)


def _first(data: Data, ordered: bool) -> Tensor:
    with closing(_read(data, ordered)) as samples:
        return next(samples)[0]


def _read(data: Data, ordered: bool) -> Generator[tuple[Tensor, Tensor], None, None]:
    with _no_trace(data):
        if not ordered:
            torch.default_generator.manual_seed(0)
            random.seed(0)
            np.random.seed(0)  # noqa: NPY002
        yield from batches(data, 64)


@contextmanager
def _no_trace(data: Data) -> Iterator[None]:
    """Put all generators back to where they were."""
    generators = [torch.default_generator, *_generators(data)]
    states = [generator.get_state() for generator in generators]
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def _generators(data: Any) -> list[torch.Generator]:
    """Return the generators that a loader draws from."""
    if not isinstance(data, DataLoader):
        return []
    places = (data, data.sampler, data.batch_sampler)
    found = [getattr(place, "generator", None) for place in places]
    return [generator for generator in found if isinstance(generator, torch.Generator)]


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
