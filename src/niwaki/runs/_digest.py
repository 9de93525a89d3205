"""What data are told apart by: a digest of every sample."""

from __future__ import annotations

import hashlib
import random
import secrets
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from functools import partial
from itertools import groupby
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from niwaki.data import Data, Images, batches, generators
from niwaki.hashing import content
from niwaki.stages import stage

__all__ = ["digest"]

Samples: TypeAlias = Generator[tuple[Tensor, Tensor], None, None]


@stage("hashing images")
def digest(data: Data, *, ordered: bool = False, seeded: bool = False) -> str:
    """Say how many samples there are, with a hash of all of them, inputs and labels.

    Parameters
    ----------
    data : DataLoader, Dataset or pair of tensors
        Read once from end to end, in the order in which it would be read next. No random number is
        missed afterwards.
    ordered : bool
        Whether the order of the samples counts. Where it does not, random augmentation is the same
        in each call; where an augmentation has a generator of its own, the labels have to do.
    seeded : bool
        Whether the order counts, and of a loader the batches, too: those that a training loop gets
        which seeds all generators, so that a loader that shuffles is the same in each call.

    Returns
    -------
    str
        Such as ``"60 samples, 0123456789abcdef"``.
    """
    read, kept = partial(_read, data, seeded=seeded or not ordered), ordered or seeded
    files = _of_files(data)
    if files is not None:
        return _summary(files, kept)
    steady = isinstance(data, tuple) or _is_steady(read)
    samples: list[bytes] = []
    sizes: list[int] = []
    for inputs, labels in read():
        sizes.append(len(labels))
        for x, label in zip(inputs.cpu(), labels.tolist(), strict=True):
            values = f"{tuple(x.shape)}{x.dtype}".encode() + content(x) if steady else b""
            samples.append(_hash(values, label))
    if not steady and ordered:  # nothing says which sample is which
        samples.append(secrets.token_bytes(16))
    told = _summary(samples, kept) + ("" if steady else ", changing from look to look")
    grouped = seeded and isinstance(data, DataLoader)
    return f"{told}, in batches of {_lengths(sizes)}" if grouped else told


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


def _is_steady(read: Callable[[], Samples]) -> bool:
    """Whether a second look at the first samples finds them as they were."""
    one, other = _first(read()), _first(read())
    return one.shape == other.shape and torch.equal(one, other)


def _first(samples: Samples) -> Tensor:
    with closing(samples):
        return next(samples)[0]


def _read(data: Data, *, seeded: bool) -> Samples:
    with _no_trace(data):
        if seeded:
            for generator in (torch.default_generator, *generators(data)):
                generator.manual_seed(0)
            random.seed(0)
            np.random.seed(0)  # noqa: NPY002
        yield from batches(data, 64)


@contextmanager
def _no_trace(data: Data) -> Iterator[None]:
    """Put all generators back to where they were."""
    drawn = [torch.default_generator, *generators(data)]
    states = [generator.get_state() for generator in drawn]
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        for generator, state in zip(drawn, states, strict=True):
            generator.set_state(state)
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def _lengths(sizes: list[int]) -> str:
    """Write the sizes of batches down, such as "3 x 64, 1 x 8"."""
    return ", ".join(f"{len(list(same))} x {size}" for size, same in groupby(sizes))
