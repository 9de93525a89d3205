"""The unit of the lowest classification accuracy reduction, without computing the others.

Whoever may be lowest is not out, so that the answer is that of computing all:

* An image that a candidate has not seen can lower its count of errors by one at most, and only if
  the network gets it wrong now and the candidate's unit is active on it.
* A candidate is out when its errors so far, less all such images, are more than those of another
  that has seen every image. It cannot win then, whatever the rest says.
* All that are not out see every image, and the order of the whole index decides between them.

How soon a candidate is out depends on which images it sees first: those that it is expected to get
wrong, from the change of the margin that it made when it was last looked at.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from niwaki.car._evaluator import Evaluator
from niwaki.car._tally import Candidate, Found, Looks, Tally

__all__ = ["lowest"]

_GLIMPSE = 32  # images that all see where nothing is known of any
_FEWEST = 8  # images of a round: fewer cost as much


def lowest(
    evaluator: Evaluator,
    candidates: Sequence[Candidate],
    looks: Looks,
    images: int,
    changes: Tensor | None,
) -> Found:
    """Find the candidate of the lowest reduction, exactly.

    The order is that of the whole index: accuracy without the unit, then the mean margin without
    it in steps of 1e-4, then the candidates' order.

    Parameters
    ----------
    evaluator, candidates, looks
        See `Tally`; images that flip most easily should come first.
    images : int
        How many there are.
    changes : Tensor, optional
        By how much each image's margin changed without each candidate when that was last looked
        at, zero where it never was; shape (K, N). Brought up to date.
    """
    return _Search(evaluator, candidates, looks, images, changes).run()


class _Search:
    def __init__(
        self,
        evaluator: Evaluator,
        candidates: Sequence[Candidate],
        looks: Looks,
        images: int,
        changes: Tensor | None,
    ) -> None:
        self._looks = looks
        self._images = images
        self._changes = changes
        device = looks.blocks[0].device
        self._tally = Tally(evaluator, candidates, device, changes)
        self._count = len(candidates)
        self._alive = torch.arange(self._count, device=device)
        self._done: list[int] = []
        self._best = -1
        self._track: list[int] = []  # what the best had lost after each block
        self._wrong = [0] * len(looks)

    def run(self) -> Found:
        for block in range(len(self._looks)):
            self._enter(block)
            if block == 0:
                self._begin()
            self._narrow()
            if not len(self._alive):
                break
        tally = self._tally
        finished = torch.tensor([*self._done, *self._alive.tolist()], device=self._alive.device)
        winner = tally.first(finished, self._images)
        return Found(
            winner,
            sum(self._wrong) + int(tally.lost[winner]),
            self._images,
            int(tally.near[winner]),
            tally.evaluated,
            self._count * self._images,
            1.0,
        )

    def _enter(self, number: int) -> None:
        """Let all that are alive begin with a block."""
        self._number = number
        self._unseen = self._tally.enter(self._looks[number], self._alive)

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
        """Let those that are alive see more of the block until they are out or through."""
        size = _FEWEST
        while len(self._alive):
            promising = self._predicted()
            place = int(promising.argmin())
            if int(promising[place]) < self._track[self._number]:
                self._finish(place)
                continue
            slack = self._may_mend() + sum(self._wrong[self._number + 1 :])
            # With so many errors more, a candidate is out.
            needed = int(self._tally.lost[self._best]) + slack - self._tally.lost[self._alive] + 1
            self._keep(needed > 0)
            needed = needed[needed > 0]
            if not bool(self._unseen.any()):
                break
            self._round(needed.clamp(min=size))
            size *= 2

    def _may_mend(self) -> Tensor:
        """Count the images of this block that each may still mend; shape (alive,)."""
        wrong = ~self._looks[self._number].before.right
        return (self._unseen & wrong).sum(1)

    def _expected(self) -> Tensor:
        """Guess the margins without each candidate that is alive; shape (alive, n)."""
        block = self._looks[self._number]
        margin = block.before.margin.float().expand(len(self._alive), -1)
        if self._changes is None:
            return margin
        return margin + self._changes[self._alive][:, block.images]

    def _predicted(self) -> Tensor:
        """Guess what each candidate will have lost after this block; shape (alive,)."""
        right = self._looks[self._number].before.right
        change = right.long() - (self._expected() > 0).long()
        return self._tally.lost[self._alive] + (change * self._unseen).sum(1)

    def _round(self, sizes: Tensor) -> None:
        """Let each see so many more images of this block, the likely errors first."""
        if not self._unseen.shape[1] or not len(self._alive):
            return
        most = min(int(sizes.max()), self._unseen.shape[1])
        keys = self._expected().masked_fill(~self._unseen, torch.inf)
        order = keys.topk(most, largest=False).indices
        early = torch.arange(most, device=order.device) < sizes.unsqueeze(1)
        wanted = torch.zeros_like(self._unseen).scatter_(1, order, early) & self._unseen
        self._tally.see(self._looks[self._number], self._alive, wanted)
        self._unseen &= ~wanted

    def _finish(self, place: int) -> None:
        """Let a candidate see all images, and measure the others by it if it is the best."""
        one, tally = self._alive[place : place + 1], self._tally
        unseen, track = self._unseen[place : place + 1], [0] * self._number
        self._keep(self._alive != one)
        for number in range(self._number, len(self._looks)):
            block = self._looks[number]
            if number > self._number:
                unseen = tally.enter(block, one)
            tally.see(block, one, unseen)
            track.append(int(tally.lost[one]))
            self._wrong[number] = int((~block.before.right).sum())
        self._done.append(int(one))
        best = tally.first(torch.tensor(self._done, device=one.device), self._images)
        if best == int(one):
            self._best, self._track = best, track

    def _keep(self, which: Tensor) -> None:
        self._alive, self._unseen = self._alive[which], self._unseen[which]
