"""What a search has counted so far: for each candidate, over the images that it has seen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from niwaki.car._evaluator import Evaluator
from niwaki.car._images import TIE, ForwardPass, ImagePool, Outcome, judge
from niwaki.car._splice import Pairs
from niwaki.processes import agreed, gathered, rank, size


@dataclass(frozen=True)
class Candidate:
    """A unit that may be the one: number of its group, and its own number there."""

    group: int
    unit: int


@dataclass(frozen=True)
class Found:
    """The unit that is removed first.

    Attributes
    ----------
    candidate : int
        Its number among the candidates.
    errors, images : int
        Images that are wrong without it, of how many that were looked at.
    near_ties : int
        How many of these are without it and may be decided by rounding.
    evaluated, pairs : int
        Pairs of a unit and an image that went through the network, and pairs in all.
    certainty : float
        Probability that no unit is better by more than the tolerance; 1 for an exact search.
    """

    candidate: int
    errors: int
    images: int
    near_ties: int
    evaluated: int
    pairs: int
    certainty: float


@dataclass(frozen=True)
class Batch:
    """Some images as the whole network sees them.

    Attributes
    ----------
    images, labels : Tensor
        Their numbers in the pool, and their classes; shape (n,).
    whole, rows : ForwardPass, Tensor
        A pass of the whole network, and their rows in it.
    before : Outcome
        What the network says about each.
    """

    images: Tensor
    labels: Tensor
    whole: ForwardPass
    rows: Tensor
    before: Outcome


class Batches:
    """The images in batches, which go through the network when they are needed.

    Parameters
    ----------
    evaluator, pool
        The network and the images.
    order : Tensor
        Numbers of the images, in the order in which they are to be seen.
    size : int
        Images of a batch.
    whole : ForwardPass, optional
        A pass over the whole pool, where that fits into memory.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        pool: ImagePool,
        order: Tensor,
        size: int,
        whole: ForwardPass | None = None,
    ) -> None:
        self._evaluator = evaluator
        self._pool = pool
        self._parts = torch.split(order, size)
        self._whole = whole
        self._last: tuple[int, Batch] | None = None
        self.images = len(order)
        self.device = order.device

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, number: int) -> Batch:
        if self._last is None or self._last[0] != number:
            self._last = None
            self._last = number, self._batch(self._parts[number])
        return self._last[1]

    def _batch(self, images: Tensor) -> Batch:
        labels = self._pool.labels[images]
        if self._whole is not None:
            before = judge(self._whole.logits[images], labels)
            return Batch(images, labels, self._whole, images, before)
        whole = self._evaluator.forward(self._pool.read(images))
        rows = torch.arange(len(images), device=images.device)
        return Batch(images, labels, whole, rows, judge(whole.logits, labels))


class _Seen(NamedTuple):
    """What became of pairs of a candidate and an image of a batch: right images lost, and so on."""

    owner: Tensor
    image: Tensor
    lost: Tensor
    near: Tensor
    change: Tensor


class Counts:
    """Counts for each of K candidates, over the images that it has seen.

    Parameters
    ----------
    evaluator : Evaluator
        The evaluator of the network.
    candidates : sequence of Candidate
        In the order that decides between equals.
    device : torch.device
        Where the counts are.
    changes : Tensor, optional
        Filled with the change of the margin of each pair that is evaluated; shape (K, N).

    Attributes
    ----------
    lost, changed, near : Tensor
        Right images lost, net; images that became right or wrong; images that rounding may
        decide; int64, shape (K,).
    margin : Tensor
        Sum of the changes of the margin; float64, shape (K,).
    evaluated : int
        Pairs that went through the network.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        candidates: Sequence[Candidate],
        device: torch.device,
        changes: Tensor | None = None,
    ) -> None:
        self._evaluator = evaluator
        self._units = torch.tensor([c.unit for c in candidates], device=device)
        self._groups = torch.tensor([c.group for c in candidates], device=device)
        self._changes = changes
        self.lost = torch.zeros(len(candidates), dtype=torch.int64, device=device)
        self.changed = torch.zeros_like(self.lost)
        self.near = torch.zeros_like(self.lost)
        self.margin = torch.zeros(len(candidates), dtype=torch.float64, device=device)
        self.evaluated = 0

    def enter(self, batch: Batch, which: Tensor) -> Tensor:
        """Let some candidates see the images that they cannot change.

        Returns
        -------
        Tensor
            The others, which are still unseen; bool of shape (len(which), n).
        """
        unseen = torch.zeros(len(which), len(batch.images), dtype=torch.bool, device=which.device)
        for group, places in self._by_group(which):
            active = batch.whole.active(group)[self._units[which[places]]]
            unseen[places] = active[:, batch.rows]
        self.near.index_add_(0, which, (~unseen & batch.before.near).sum(1))
        return unseen

    def see(self, batch: Batch, which: Tensor, wanted: Tensor) -> None:
        """Let some candidates see some images each; `wanted` is of shape (len(which), n).

        Of processes that work together each evaluates a part, and all count all.
        """
        seen: list[_Seen] = []
        with agreed():
            for group, places in self._by_group(which):
                chosen, images = wanted[places].nonzero(as_tuple=True)
                mine = torch.tensor_split(torch.arange(len(chosen)), size())[rank()]
                if len(mine):
                    mine = mine.to(which.device)
                    seen += self._evaluated(batch, group, which[places], chosen[mine], images[mine])
        for part in (part for parts in gathered(seen) for part in parts):
            self._add(batch, part)

    def _evaluated(
        self, batch: Batch, group: int, owners: Tensor, chosen: Tensor, images: Tensor
    ) -> Iterator[_Seen]:
        """Judge pairs of a candidate, by its place among the owners, and an image of a batch."""
        units = self._units[owners]
        owner_of = owners.new_full((int(units.max()) + 1,), -1)
        owner_of[units] = owners
        row_of = torch.full((int(batch.rows.max()) + 1,), -1, device=owners.device)
        row_of[batch.rows] = torch.arange(len(batch.rows), device=owners.device)
        pairs = Pairs(units[chosen], batch.rows[images])
        for part, logits in self._evaluator.without(batch.whole, group, pairs):
            owner, image = owner_of[part.units], row_of[part.images]
            after, before = judge(logits, batch.labels[image]), batch.before[image]
            lost = before.right.long() - after.right.long()
            yield _Seen(owner, image, lost, after.near, after.margin - before.margin)

    def _add(self, batch: Batch, seen: _Seen) -> None:
        owner, images, lost, near, change = (part.to(self.lost.device) for part in seen)
        self.lost.index_add_(0, owner, lost)
        self.changed.index_add_(0, owner, lost.abs())
        self.near.index_add_(0, owner, near.long())
        self.margin.index_add_(0, owner, change)
        self.evaluated += len(owner)
        if self._changes is not None:
            self._changes[owner, batch.images[images]] = change.to(self._changes.dtype)

    def _by_group(self, which: Tensor) -> list[tuple[int, Tensor]]:
        groups = self._groups[which]
        return [(g, (groups == g).nonzero().flatten()) for g in sorted(set(groups.tolist()))]

    def first(self, which: Tensor, images: int) -> int:
        """Return the candidate that goes first, of those that have seen the same images."""
        steps = (self.margin[which] / (TIE * images)).round()
        rows = zip(self.lost[which].tolist(), (-steps).tolist(), which.tolist(), strict=True)
        return int(min(rows)[2])

    def found(self, winner: int, wrong: int, seen: int, total: int, certainty: float) -> Found:
        """Tell of the winner; the whole network gets `wrong` of the images that were seen."""
        return Found(
            winner,
            wrong + int(self.lost[winner]),
            seen,
            int(self.near[winner]),
            self.evaluated,
            len(self.lost) * total,
            certainty,
        )
