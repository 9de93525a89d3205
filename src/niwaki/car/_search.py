"""The search for the unit of the lowest reduction: exact, or by looking at a sample of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

import torch
from torch import Tensor

from niwaki.car._counts import Batches, Candidate, Counts, Found
from niwaki.car._evaluator import Evaluator
from niwaki.ranges import FRACTION, INSIDE, SEED, checked

_GLIMPSE = 32  # images that all see where nothing is known of any
_FEWEST = 8  # images of a round: fewer cost as much


class ExactSearch:
    """Finds the candidate of the lowest reduction, without computing the others.

    The order is that of the whole index: accuracy without the unit, then the mean margin without
    it in steps of 1e-4, then the candidates' order. Whoever may be lowest is not out, so that the
    answer is that of computing all:

    * An image that a candidate has not seen can lower its count of errors by one at most, and only
      if the network gets it wrong now and the candidate's unit is active on it.
    * A candidate is out when its errors so far, less all such images, are more than those of
      another that has seen every image. It cannot win then, whatever the rest says.
    * All that are not out see every image, and the order of the whole index decides between them.

    How soon a candidate is out depends on which images it sees first: those that it is expected to
    get wrong, from the change of the margin that it made when it was last looked at.

    Parameters
    ----------
    evaluator, candidates, batches
        See `Counts`; images that flip most easily should come first.
    changes : Tensor, optional
        By how much each image's margin changed without each candidate when that was last looked
        at, zero where it never was; shape (K, N). Brought up to date.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        candidates: Sequence[Candidate],
        batches: Batches,
        changes: Tensor | None,
    ) -> None:
        self._batches = batches
        self._changes = changes
        self._counts = Counts(evaluator, candidates, batches.device, changes)
        self._alive = torch.arange(len(candidates), device=batches.device)
        self._done: list[int] = []
        self._best = -1
        self._track: list[int] = []  # what the best had lost after each batch
        self._wrong = [0] * len(batches)

    def run(self) -> Found:
        """Let the candidates see batch after batch until all are out or through."""
        for number in range(len(self._batches)):
            self._number = number
            self._unseen = self._counts.enter(self._batches[number], self._alive)
            if number == 0:
                self._begin()
            self._narrow()
            if not len(self._alive):
                break
        finished = torch.tensor([*self._done, *self._alive.tolist()], device=self._alive.device)
        images = self._batches.images
        winner = self._counts.first(finished, images)
        return self._counts.found(winner, sum(self._wrong), images, images, 1.0)

    def _begin(self) -> None:
        """Choose by whom the others are measured, and let it see all images."""
        if self._changes is None or not bool(self._changes.any()):
            self._round(torch.full_like(self._alive, _GLIMPSE))
        predicted = self._predicted().double()
        if self._changes is not None:  # of equals, the one with the largest margins
            gain = self._changes[self._alive].double().mean(1)
            predicted -= gain / (gain.abs().max() * 4 + 1e-9)
        self._finish(int(predicted.argmin()))

    def _narrow(self) -> None:
        """Let those that are alive see more of the batch until they are out or through."""
        size = _FEWEST
        while len(self._alive):
            promising = self._predicted()
            place = int(promising.argmin())
            if int(promising[place]) < self._track[self._number]:
                self._finish(place)
                continue
            slack = self._may_mend() + sum(self._wrong[self._number + 1 :])
            # With so many errors more, a candidate is out.
            needed = int(self._counts.lost[self._best]) + slack - self._counts.lost[self._alive] + 1
            self._keep(needed > 0)
            needed = needed[needed > 0]
            if not bool(self._unseen.any()):
                break
            self._round(needed.clamp(min=size))
            size *= 2

    def _may_mend(self) -> Tensor:
        """Count the images of this batch that each may still mend; shape (alive,)."""
        wrong = ~self._batches[self._number].before.right
        return (self._unseen & wrong).sum(1)

    def _expected(self) -> Tensor:
        """Guess the margins without each candidate that is alive; shape (alive, n)."""
        batch = self._batches[self._number]
        margin = batch.before.margin.float().expand(len(self._alive), -1)
        if self._changes is None:
            return margin
        return margin + self._changes[self._alive][:, batch.images]

    def _predicted(self) -> Tensor:
        """Guess what each candidate will have lost after this batch; shape (alive,)."""
        right = self._batches[self._number].before.right
        change = right.long() - (self._expected() > 0).long()
        return self._counts.lost[self._alive] + (change * self._unseen).sum(1)

    def _round(self, sizes: Tensor) -> None:
        """Let each see so many more images of this batch, the likely errors first."""
        if not self._unseen.shape[1] or not len(self._alive):
            return
        most = min(int(sizes.max()), self._unseen.shape[1])
        keys = self._expected().masked_fill(~self._unseen, torch.inf)
        order = keys.topk(most, largest=False).indices
        early = torch.arange(most, device=order.device) < sizes.unsqueeze(1)
        wanted = torch.zeros_like(self._unseen).scatter_(1, order, early) & self._unseen
        self._counts.see(self._batches[self._number], self._alive, wanted)
        self._unseen &= ~wanted

    def _finish(self, place: int) -> None:
        """Let a candidate see all images, and measure the others by it if it is the best."""
        one, counts = self._alive[place : place + 1], self._counts
        unseen, track = self._unseen[place : place + 1], [0] * self._number
        self._keep(self._alive != one)
        for number in range(self._number, len(self._batches)):
            batch = self._batches[number]
            if number > self._number:
                unseen = counts.enter(batch, one)
            counts.see(batch, one, unseen)
            track.append(int(counts.lost[one]))
            self._wrong[number] = int((~batch.before.right).sum())
        self._done.append(int(one))
        best = counts.first(torch.tensor(self._done, device=one.device), self._batches.images)
        if best == int(one):
            self._best, self._track = best, track

    def _keep(self, which: Tensor) -> None:
        self._alive, self._unseen = self._alive[which], self._unseen[which]


@checked(confidence=INSIDE, tolerance=FRACTION, seed=SEED)
@dataclass(frozen=True)
class Sampling:
    """A search that looks at random images only.

    Attributes
    ----------
    confidence : float
        Probability, between 0 and 1, that the unit is the right one.
    tolerance : float
        Difference in accuracy over all images that does not matter.
    seed : int
        Seed of the order of the images.
    """

    confidence: float = 0.95
    tolerance: float = 0.0
    seed: int = 0


def sampled_search(
    evaluator: Evaluator,
    candidates: Sequence[Candidate],
    batches: Batches,
    sampling: Sampling,
) -> Found:
    """Find a candidate that no other beats by more than a tolerance, with some confidence.

    All candidates see the same random images, batch by batch. After each, one is out when its
    reduction is above that of another with certainty enough; the race ends when one is left, when
    those left differ by less than the tolerance, or when all images are seen, which is exact. The
    bounds are the empirical Bernstein-Serfling inequality (Bardenet & Maillard 2015), for images
    that are drawn without being put back, shared out over all candidates and batches.

    Parameters
    ----------
    evaluator, candidates, batches
        See `Counts`; the order of the images must be random.
    sampling : Sampling
        How certain the answer has to be.
    """
    counts = Counts(evaluator, candidates, batches.device)
    alive = torch.arange(len(candidates), device=batches.device)
    total, seen = batches.images, 0
    spent = (1 - sampling.confidence) / (2 * len(candidates) * len(batches))
    wrong, certainty = 0, sampling.confidence
    for number in range(len(batches)):
        batch = batches[number]
        counts.see(batch, alive, counts.enter(batch, alive))
        seen += len(batch.images)
        wrong += int((~batch.before.right).sum())
        if seen == total:
            certainty = 1.0 if len(alive) == len(candidates) else certainty
            break
        mean, radius = _interval(counts, alive, seen, total, spent)
        still = mean - radius <= (mean + radius).min()
        alive, mean, radius = alive[still], mean[still], radius[still]
        leads = alive == counts.first(alive, seen)
        others = (mean - radius)[~leads]
        if not len(others) or float((mean + radius)[leads] - others.min()) <= sampling.tolerance:
            break
    return counts.found(counts.first(alive, seen), wrong, seen, total, certainty)


def _interval(
    counts: Counts, which: Tensor, seen: int, total: int, spent: float
) -> tuple[Tensor, Tensor]:
    """Mean number of images lost per image, and how far it may be off; shape (len(which),)."""
    mean = counts.lost[which].double() / seen
    variance = (counts.changed[which].double() / seen - mean.square()).clamp(min=0)
    share = 1 - (seen - 1) / total if 2 * seen <= total else (1 - seen / total) * (1 + 1 / seen)
    size = log(5 / spent) / seen
    range_, kappa = 2.0, 7 / 3 + 3 / 2**0.5  # an image is lost, kept or won
    return mean, (2 * share * variance * size).sqrt() + kappa * range_ * size
