"""Slots: along which dimension of a tensor the units lie, and which index belongs to which.

A channel is gone where it lies in no tensor any more. As tensors stay rectangular, a unit takes
whole slices of each of them: a slot is a dimension with a variable for each index along it. The
result of a layer has one slot, its channels; its weight has two, as each of its values belongs to
an output and to an input; the product of two feature maps may have two as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from niwaki.pruning.units._variables import FIXED, Units

__all__ = ["Slot", "Slots", "along", "concatenated", "joined", "moved"]


_JOINS = "joins them with values that keep their width"


class Slot(NamedTuple):
    """A dimension, and the variable of each index along it."""

    dim: int
    variables: Tensor


Slots = tuple[Slot, ...]


def along(slots: Slots, dim: int) -> list[Tensor]:
    """Return the variables of the slots that lie in a dimension."""
    return [slot.variables for slot in slots if slot.dim == dim]


def moved(
    units: Units, slots: Slots, shape: Sequence[int], move: Callable[[Tensor], Tensor], why: str
) -> list[Slots]:
    """Follow an operation that moves values: it is done with their variables.

    Returns
    -------
    list of Slots
        For each of its results.
    """
    results: list[list[Slot]] = []
    for slot in slots:
        labels = slot.variables.view([-1 if d == slot.dim else 1 for d in range(len(shape))])
        found = move(labels.expand(tuple(shape)))
        for place, part in enumerate([found] if isinstance(found, Tensor) else found):
            if place == len(results):
                results.append([])
            if (made := _slot(units, part, why)) is not None:
                results[place].append(made)
    return [tuple(result) for result in results]


def _slot(units: Units, labels: Tensor, why: str) -> Slot | None:
    """Describe variables as one slot; ties what must go together for tensors to be rectangular."""
    for dim in range(labels.dim()):
        if labels.shape[dim] == 0:
            return None
        first = labels.narrow(dim, 0, 1)
        if labels.stride(dim) == 0 or bool((labels == first).all()):
            labels = first
    labels = units.find(labels)
    varying = [d for d in range(labels.dim()) if not torch.equal(labels, _first_of(labels, d))]
    if not varying:
        units.fix(labels, f"{why} takes a channel out on its own")
        return None
    dim = varying[0]
    if len(varying) > 1:
        dim = max(varying, key=lambda d: len(_tied(labels, d)))
        first = labels
        for d in varying:
            if d != dim:
                first = first.narrow(d, 0, 1)
        units.tie(labels, first.expand_as(labels), f"{why} {_JOINS}")
        labels = first
    for d in range(labels.dim()):
        if d != dim:
            labels = labels.narrow(d, 0, 1)
    return Slot(dim, labels.flatten())


def _first_of(labels: Tensor, dim: int) -> Tensor:
    return labels.narrow(dim, 0, 1).expand_as(labels)


def _tied(labels: Tensor, dim: int) -> set[int]:
    """Return the sets that are left when all slices along a dimension are tied in themselves."""
    parent: dict[int, int] = {}

    def root(value: int) -> int:
        while parent.setdefault(value, value) != value:
            value = parent[value]
        return value

    for row in labels.movedim(dim, 0).flatten(1).tolist():
        roots = {root(value) for value in row}
        for value in roots:
            parent[value] = min(roots)
    return {root(value) for value in list(parent)} - {FIXED}


def concatenated(
    units: Units, parts: Sequence[Slots], shapes: Sequence[Sequence[int]], dim: int, why: str
) -> Slots:
    """Follow a concatenation."""
    result: list[Slot] = []
    for d in range(len(shapes[0])):
        found = [along(slots, d) for slots in parts]
        for place in range(max(map(len, found))):
            if d == dim:
                vectors = [
                    f[place] if place < len(f) else torch.full((shape[d],), FIXED)
                    for f, shape in zip(found, shapes, strict=True)
                ]
                result.append(Slot(d, torch.cat(vectors)))
                continue
            there = [f[place] for f in found if place < len(f)]
            for other in there[1:]:
                units.tie(there[0], other, f"{why} {_JOINS}")
            if len(there) < len(found):
                units.fix(there[0], f"{why} {_JOINS}")
            result.append(Slot(d, there[0]))
    return tuple(result)


def joined(
    units: Units,
    parts: Sequence[tuple[Slots, Sequence[int], bool]],
    dims: int,
    why: str,
) -> tuple[Slots, list[Tensor]]:
    """Follow an operation between tensors, value by value.

    Parameters
    ----------
    units : Units
        Ties what meets.
    parts : sequence of tuple
        Slots and shape of each tensor, and whether it depends on the network's input.
    dims : int
        Number of dimensions of the result.
    why : str
        Names the operation.

    Returns
    -------
    slots : tuple of Slot
        The slots of the result.
    doubtful : list of Tensor
        Variables that met a constant of the same width, which may or may not follow them.
    """
    result: list[Slot] = []
    doubtful: list[Tensor] = []
    for d in range(dims):
        there: list[list[Tensor]] = []
        fixed = constant = False
        for slots, shape, signal in parts:
            own = d - dims + len(shape)
            found = along(slots, own) if own >= 0 else []
            if found:
                there.append(found)
            elif own >= 0 and shape[own] > 1:
                fixed, constant = fixed or signal, constant or not signal
        if not there:
            continue
        for found in there[1:]:
            _meet(units, there[0], found, why)
        if fixed:
            for vector in there[0]:
                units.fix(vector, f"{why} {_JOINS}")
            continue
        if constant:
            doubtful += there[0]
        result += [Slot(d, vector) for vector in max(there, key=len)]
    return tuple(result), doubtful


def _meet(units: Units, one: list[Tensor], other: list[Tensor], why: str) -> None:
    """Tie the slots of two tensors in the same dimension, one by one."""
    if len(one) != len(other):
        for vector in one + other:
            units.fix(vector, f"{why} joins pairs of channels with single ones")
        return
    for a, b in zip(one, other, strict=True):
        units.tie(a, b, f"{why} {_JOINS}")
