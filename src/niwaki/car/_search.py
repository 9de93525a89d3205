"""The unit of the lowest classification accuracy reduction, without computing the others.

A candidate is out as soon as the errors that it has made leave it no way to beat the best: images
that the network gets wrong, or nearly, come first, so that this is soon.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from niwaki.car._evaluator import Evaluator, Look
from niwaki.car._outcome import TIE, Outcome, judge
from niwaki.car._pairs import Pairs
from niwaki.car._pool import Pool

__all__ = ["Candidate", "Found", "Looks", "State", "lowest"]


_FIRST = 16  # images of the first chunk


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
    lost : Tensor
        Share of images lost with each candidate, net, as far as it was looked at; shape (K,).
    margins : Tensor
        The margin of each image of the network as it is, NaN where it was not looked at.
    """

    candidate: int
    errors: int
    images: int
    near_ties: int
    evaluated: int
    pairs: int
    certainty: float
    lost: Tensor
    margins: Tensor


class Looks:
    """Passes of the whole network over the images, in chunks; kept where memory allows."""

    def __init__(
        self, evaluator: Evaluator, pool: Pool, order: Tensor, size: int, memory: int
    ) -> None:
        self._evaluator = evaluator
        self._pool = pool
        self.chunks: list[Tensor] = []
        start, step = 0, min(_FIRST, size)
        while start < len(order):  # small at first: most candidates are out soon
            self.chunks.append(order[start : start + step])
            start, step = start + step, min(2 * step, size)
        self._keep = evaluator.image_bytes * len(order) <= memory
        self._looks: dict[int, Look] = {}
        self._outcomes: dict[int, Outcome] = {}

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, chunk: int) -> tuple[Look, Outcome]:
        images = self.chunks[chunk]
        if chunk not in self._looks:
            if not self._keep:
                self._looks.clear()
            self._looks[chunk] = self._evaluator.look(self._pool.read(images))
        look = self._looks[chunk]
        if chunk not in self._outcomes:
            self._outcomes[chunk] = judge(look.logits, self._pool.labels[images])
        return look, self._outcomes[chunk]

    def known(self, chunk: int) -> Outcome:
        """Return what the network says about a chunk that has been looked at."""
        return self._outcomes[chunk]

    def margins(self) -> Tensor:
        """Return the margin of each image, NaN where it was not looked at; shape (N,)."""
        found = torch.full((len(self._pool),), torch.nan, dtype=torch.float64)
        for chunk, outcome in self._outcomes.items():
            found[self.chunks[chunk].cpu()] = outcome.margin.cpu()
        return found


class State:
    """What is known so far of the network without each candidate.

    Parameters
    ----------
    evaluator : Evaluator
        Of the network.
    pool : Pool
        The images.
    looks : Looks
        The chunks of images in the order in which they are looked at.
    candidates : sequence of Candidate
        In the order that decides between equals.

    Attributes
    ----------
    lost : Tensor
        Right images lost, net, over the chunks that a candidate has seen; int64, shape (K,).
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
        self, evaluator: Evaluator, pool: Pool, looks: Looks, candidates: Sequence[Candidate]
    ) -> None:
        self._evaluator = evaluator
        self._pool = pool
        self._looks = looks
        device, count = pool.labels.device, len(candidates)
        self._units = torch.tensor([c.unit for c in candidates], device=device)
        self._groups = torch.tensor([c.group for c in candidates], device=device)
        self.lost = torch.zeros(count, dtype=torch.int64, device=device)
        self.changed = torch.zeros_like(self.lost)
        self.near = torch.zeros_like(self.lost)
        self.margin = torch.zeros(count, dtype=torch.float64, device=device)
        self.evaluated = 0

    def advance(self, which: Tensor, chunk: int) -> None:
        """Let some candidates see a chunk of images."""
        look, before = self._looks[chunk]
        labels = self._pool.labels[self._looks.chunks[chunk]]
        for group in sorted(set(self._groups[which].tolist())):
            members = which[self._groups[which] == group]
            units = self._units[members]
            active = look.active[group]
            asked = torch.zeros_like(active)
            asked[units] = active[units]
            place = torch.full((len(active),), -1, device=which.device)
            place[units] = members
            self.near.index_add_(0, members, (before.near & ~active[units]).sum(1))
            for pairs, logits in self._evaluator.without(look, group, Pairs.where(asked)):
                after, old = judge(logits, labels[pairs.images]), before[pairs.images]
                owner = place[pairs.units]
                change = old.right.long() - after.right.long()
                self.lost.index_add_(0, owner, change)
                self.changed.index_add_(0, owner, change.abs())
                self.near.index_add_(0, owner, after.near.long())
                self.margin.index_add_(0, owner, after.margin - old.margin)
                self.evaluated += len(pairs)

    def first(self, which: Tensor, images: int) -> int:
        """Return the candidate that goes first, of those that have seen the same images."""
        steps = (self.margin[which] / (TIE * images)).round()
        rows = zip(self.lost[which].tolist(), (-steps).tolist(), which.tolist(), strict=True)
        return int(min(rows)[2])


def lowest(
    evaluator: Evaluator,
    pool: Pool,
    candidates: Sequence[Candidate],
    looks: Looks,
    last: Tensor,
) -> Found:
    """Find the candidate of the lowest reduction, exactly.

    The order is that of the whole index: accuracy without the unit, then the mean margin without
    it in steps of 1e-4, then the candidates' order.

    Parameters
    ----------
    evaluator, pool, candidates, looks
        See `State`; the images that flip most easily should come first.
    last : Tensor
        What each candidate lost when it was looked at before, shape (K,): the most promising one
        is the first to see all images, and the others are measured by it.
    """
    state = State(evaluator, pool, looks, candidates)
    wrong = [0] * len(looks)
    device = state.lost.device
    alive = torch.arange(len(candidates), device=device)
    state.advance(alive, 0)
    tracks: dict[int, list[int]] = {}

    def finish(candidate: int, seen: int) -> None:
        """Let a candidate see all chunks; note what it had lost after each."""
        track = [int(state.lost[candidate])] * (seen + 1)
        for chunk in range(seen + 1, len(looks)):
            state.advance(torch.tensor([candidate], device=device), chunk)
            track.append(int(state.lost[candidate]))
        tracks[candidate] = track

    promising = state.lost.double() + last.to(device).clamp(-1, 1) / 4
    best = int(promising.argmin())
    finish(best, 0)
    for chunk in range(len(looks)):
        wrong[chunk] = int((~looks.known(chunk).right).sum())
    finished = torch.tensor([best], device=device)
    alive = alive[alive != best]
    for chunk in range(1, len(looks)):
        ahead = int(alive[state.lost[alive].argmin()]) if len(alive) else best
        if len(alive) and int(state.lost[ahead]) < tracks[best][chunk - 1]:
            finish(ahead, chunk - 1)
            finished = torch.cat([finished, torch.tensor([ahead], device=device)])
            alive = alive[alive != ahead]
            best = state.first(finished, len(pool))
        # Even if it got all wrong images right that it has not seen, it must not be worse.
        bound = int(state.lost[best]) + sum(wrong[chunk:])
        alive = alive[state.lost[alive] <= bound]
        if not len(alive):
            break
        state.advance(alive, chunk)
    finished = torch.cat([finished, alive])
    winner = state.first(finished, len(pool))
    return Found(
        winner,
        sum(wrong) + int(state.lost[winner]),
        len(pool),
        int(state.near[winner]),
        state.evaluated,
        len(candidates) * len(pool),
        1.0,
        state.lost.cpu().double() / len(pool),
        looks.margins(),
    )
