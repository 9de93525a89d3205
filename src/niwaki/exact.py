"""Sums of doubles for which the order does not matter: twice as precise, or in whole numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

__all__ = ["added", "as_counts", "buckets", "from_counts", "room_for", "units"]

_AT_ONCE = 2**18  # numbers that are added at a time, so that what is between takes no memory
_BITS = 60
_BUCKET = 2**20  # numbers that travel together


def added(one: Tensor, other: Tensor, rests: Sequence[Tensor] = ()) -> tuple[Tensor, Tensor]:
    """Return a sum as the double next to it, and what is left (Knuth's and Dekker's sums).

    Parameters
    ----------
    one, other : Tensor
        In double precision, of one shape.
    rests : sequence of Tensor
        What doubles could not hold of them.
    """
    total = torch.empty(one.shape, dtype=one.dtype, device=one.device)
    left = torch.empty_like(total)
    into = zip(*(torch.split(t.view(-1), _AT_ONCE) for t in (total, left)), strict=True)
    every = (one, other, *rests)
    parts = zip(*(torch.split(t.reshape(-1), _AT_ONCE) for t in every), strict=True)
    for (place, place_left), (a, b, *small) in zip(into, parts, strict=True):
        rounded = a + b
        of_b = rounded - a
        lost = (a - (rounded - of_b)) + (b - of_b)
        for rest in small:
            lost += rest
        lost = torch.where(rounded.isfinite(), lost, 0.0)
        torch.add(rounded, lost, out=place)
        torch.sub(lost, place - rounded, out=place_left)
    return total, torch.where(total.isfinite(), left, 0.0)


def room_for(processes: int) -> int:
    """Return the bits of a whole number, so that the sum over processes fits into 64 of them."""
    return _BITS - math.ceil(math.log2(processes))


def units(largest: Tensor, lengths: Sequence[int], room: int) -> Tensor:
    """Return how many units there are in 1, for each value of parts of so many values.

    Parameters
    ----------
    largest : Tensor
        The largest absolute value of each part, finite.
    lengths : sequence of int
        How many values each part has.
    room : int
        From `room_for`.
    """
    found = [math.ldexp(1.0, min(room - math.frexp(most)[1], 1000)) for most in largest.tolist()]
    each = torch.tensor(found, dtype=torch.float64)
    return each.repeat_interleave(torch.tensor(list(lengths)))


def as_counts(values: Tensor, rests: Tensor, unit: Tensor, room: int) -> Tensor:
    """Return two whole numbers for each value and its rest: units, and parts of one; (2, N)."""
    both = [values * unit, rests * unit]
    whole = both[0].trunc().long() + both[1].trunc().long()
    parts = (both[0].frac() + both[1].frac()) * 2.0**room
    return torch.stack([whole, parts.round().long()])


def from_counts(counts: Tensor, unit: Tensor, room: int) -> Tensor:
    """Return the doubles next to sums of `as_counts`."""
    near = counts[0].double()
    apart = (counts[0] - near.long()).double() + counts[1].double() / 2.0**room
    return (near + apart) / unit


def buckets(sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """Divide named tensors of so many numbers each into those that travel together."""
    bucket: list[str] = []
    count = 0
    for name, numbers in sizes.items():
        if bucket and count + numbers > _BUCKET:
            yield bucket
            bucket, count = [], 0
        bucket.append(name)
        count += numbers
    if bucket:
        yield bucket
