"""Whether two data sets are the same: a short hash of every sample."""

from __future__ import annotations

import hashlib
import random
import secrets
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from niwaki.data import Data, Images, batches
from niwaki.hashing import content, sha256_of
from niwaki.stages import stage

__all__ = ["digest"]


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
        _hash(how + bytes.fromhex(sha256_of(source.paths[i])), source.targets[i])
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
