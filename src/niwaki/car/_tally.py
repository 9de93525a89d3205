"""What is known so far of the network without each of some candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from niwaki.car._evaluator import Evaluator
from niwaki.car._look import Look
from niwaki.car._outcome import TIE, Outcome, judge
from niwaki.car._pairs import Pairs
from niwaki.car._pool import Pool

__all__ = ["Block", "Candidate", "Found", "Looks", "Tally"]


@dataclass(frozen=True)
class Candidate:
    """A unit that may be the one: number of its group, and its own number there."""

    group: int
    unit: int


@dataclass(frozen=True)
class Found:
    """The unit that goes first.

    Attributes
    ----------
    candidate : int
        Its number among the candidates.
    errors, images : int
        Images that are wrong without it, of how many that were looked at.
    near_ties : int
        Of these, those without it that rounding may decide.
    evaluated, pairs : int
        Pairs of a unit and an image that went through the network, of how many.
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
class Block:
    """Some images as the whole network sees them.

    Attributes
    ----------
    images : Tensor
        Their numbers in the pool; shape (n,).
    rows : Tensor
        Their rows in the look.
    look : Look
        The pass.
    before : Outcome
        What the network says about each.
    labels : Tensor
        Their classes.
    """

    images: Tensor
    rows: Tensor
    look: Look
    before: Outcome
    labels: Tensor


class Looks:
    """The images in blocks, looked at when they are needed.

    Parameters
    ----------
    evaluator, pool
        The network and the images.
    blocks : sequence of Tensor
        Numbers of images.
    whole : Look, optional
        A look at the whole pool, where that fits into memory.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        pool: Pool,
        blocks: Sequence[Tensor],
        whole: Look | None = None,
    ) -> None:
        self._evaluator = evaluator
        self._pool = pool
        self.blocks = blocks
        self._whole = whole
        self._last: tuple[int, Block] | None = None

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, number: int) -> Block:
        if self._last is None or self._last[0] != number:
            self._last = None
            self._last = number, self._block(self.blocks[number])
        return self._last[1]

    def _block(self, images: Tensor) -> Block:
        labels = self._pool.labels[images]
        if self._whole is not None:
            before = judge(self._whole.logits[images], labels)
            return Block(images, images, self._whole, before, labels)
        look = self._evaluator.look(self._pool.read(images))
        rows = torch.arange(len(images), device=images.device)
        return Block(images, rows, look, judge(look.logits, labels), labels)


class Tally:
    """Counts for each candidate, over the images that it has seen.

    Parameters
    ----------
    evaluator : Evaluator
        Of the network.
    candidates : sequence of Candidate
        In the order that decides between equals.
    device : torch.device
        Where the counts are.
    changes : Tensor, optional
        Filled with the change of the margin of each pair that is evaluated; shape (K, N).

    Attributes
    ----------
    lost : Tensor
        Right images lost, net; int64, shape (K,).
    changed : Tensor
        Images that became right or wrong; int64, shape (K,).
    margin : Tensor
        Sum of the changes of the margin; float64, shape (K,).
    near : Tensor
        Images that rounding may decide; int64, shape (K,).
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
        count = len(candidates)
        self.lost = torch.zeros(count, dtype=torch.int64, device=device)
        self.changed = torch.zeros_like(self.lost)
        self.near = torch.zeros_like(self.lost)
        self.margin = torch.zeros(count, dtype=torch.float64, device=device)
        self.evaluated = 0

    def enter(self, block: Block, which: Tensor) -> Tensor:
        """Let some candidates see the images that they cannot change.

        Returns
        -------
        Tensor
            The others, which are still unseen; bool of shape (len(which), n).
        """
        open_ = torch.zeros(len(which), len(block.images), dtype=torch.bool, device=which.device)
        for group, places in self._by_group(which):
            active = block.look.active(group)[self._units[which[places]]]
            open_[places] = active[:, block.rows]
        self.near.index_add_(0, which, (~open_ & block.before.near).sum(1))
        return open_

    def see(self, block: Block, which: Tensor, wanted: Tensor) -> None:
        """Let some candidates see some images each; `wanted` is of shape (len(which), n)."""
        for group, places in self._by_group(which):
            units, owners = self._units[which[places]], which[places]
            chosen, images = wanted[places].nonzero(as_tuple=True)
            if not len(chosen):
                continue
            owner_of = owners.new_full((int(units.max()) + 1,), -1)
            owner_of[units] = owners
            row_of = torch.full((int(block.rows.max()) + 1,), -1, device=which.device)
            row_of[block.rows] = torch.arange(len(block.rows), device=which.device)
            pairs = Pairs(units[chosen], block.rows[images])
            for part, logits in self._evaluator.without(block.look, group, pairs):
                self._add(block, owner_of[part.units], row_of[part.images], logits)

    def _add(self, block: Block, owner: Tensor, images: Tensor, logits: Tensor) -> None:
        after, old = judge(logits, block.labels[images]), block.before[images]
        lost, change = old.right.long() - after.right.long(), after.margin - old.margin
        self.lost.index_add_(0, owner, lost)
        self.changed.index_add_(0, owner, lost.abs())
        self.near.index_add_(0, owner, after.near.long())
        self.margin.index_add_(0, owner, change)
        self.evaluated += len(owner)
        if self._changes is not None:
            self._changes[owner, block.images[images]] = change.to(self._changes.dtype)

    def _by_group(self, which: Tensor) -> list[tuple[int, Tensor]]:
        groups = self._groups[which]
        return [(g, (groups == g).nonzero().flatten()) for g in sorted(set(groups.tolist()))]

    def first(self, which: Tensor, images: int) -> int:
        """Return the candidate that goes first, of those that have seen the same images."""
        steps = (self.margin[which] / (TIE * images)).round()
        rows = zip(self.lost[which].tolist(), (-steps).tolist(), which.tolist(), strict=True)
        return int(min(rows)[2])
