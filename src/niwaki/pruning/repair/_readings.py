"""What a layer reads in the smaller network, beside what its outputs should be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor

from niwaki.processes import is_mine
from niwaki.pruning.repair._lockstep import BLOCK, Values
from niwaki.pruning.repair._rows import Places, by_group, inputs_at, matrix_of, outputs_at
from niwaki.pruning.repair._targets import Target

__all__ = ["Goal", "Reading", "Rows"]

_KEPT = 2**28  # bytes of a layer's rows that are kept, instead of gathered anew in each round


@dataclass(frozen=True)
class Rows:
    """Some rows of what a layer reads, and between which values its outputs should be.

    Attributes
    ----------
    inputs : Tensor
        Shape (groups, rows, features).
    target, least, largest : Tensor
        Shape (groups, rows, outputs).
    images : int
        Number of images that they come from.
    """

    inputs: Tensor
    target: Tensor
    least: Tensor
    largest: Tensor
    images: int

    def halved(self) -> tuple[int, int]:
        """Return the number of images in the first half, and that of their rows."""
        half = self.images // 2
        return half, half * (self.inputs.shape[1] // self.images)


@dataclass(frozen=True)
class Goal:
    """Between which values some outputs of a layer should be in a block of samples.

    Attributes
    ----------
    block : int
        Its place among this process's blocks.
    places : Tensor
        Of each sample's outputs.
    target, least, largest : Tensor
        Shape (rows, outputs).
    """

    block: int
    places: Tensor
    target: Tensor
    least: Tensor
    largest: Tensor


@dataclass(frozen=True)
class Reading:
    """What a layer reads in the smaller network, beside what it gave in the whole one.

    Of several processes, each goes through its own blocks, which have numbers. From the
    first on, every so many samples of a block count, which is all of them by default.
    """

    layer: Any
    inputs: Values
    before: Values
    target: Target
    places: Places
    numbers: Sequence[int]
    first: int = 0
    step: int = 1

    def __iter__(self) -> Iterator[Rows]:
        for goal in self.goals():
            read, before = (self.some(values[goal.block]) for values in (self.inputs, self.before))
            yield Rows(
                inputs_at(self.layer, read, before.shape, goal.places),
                by_group(self.layer, goal.target),
                by_group(self.layer, goal.least),
                by_group(self.layer, goal.largest),
                len(before),
            )

    def some(self, block: Tensor) -> Tensor:
        """Pick the samples of a block that count."""
        if self.step == 1:
            return block
        return block[min(self.first, len(block) - 1) :: self.step]

    def goals(self) -> Iterator[Goal]:
        """Say what the layer should give in each block, whatever it reads."""
        for block, number in enumerate(self.numbers):
            if not is_mine(number):
                continue
            before = self.some(self.before[block])
            at = self.places.of(BLOCK * number, len(before))
            beside = [outputs_at(self.layer, self.some(v[block]), at) for v in self.target.beside]
            target = self.target.of(outputs_at(self.layer, before, at), beside)
            yield Goal(block, at, target, *self.target.range_of(target, beside))

    def kept(self) -> Iterable[Rows]:
        """Return the rows in memory if they are few enough."""
        features = matrix_of(self.layer).shape
        each = prod(features[::2]) + 3 * prod(features[:2])
        images = sum(len(block) for block in self.inputs)
        size = images * self.places.each * each * self.before[0].element_size()
        return list(self) if size <= _KEPT else self
