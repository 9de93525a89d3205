"""The unit of about the lowest reduction, from as few images as the confidence needs."""

from __future__ import annotations

from collections.abc import Sequence
from math import log

import torch
from torch import Tensor

from niwaki.car._evaluator import Evaluator
from niwaki.car._tally import Candidate, Found, Looks, Tally

__all__ = ["race"]


def race(
    evaluator: Evaluator,
    candidates: Sequence[Candidate],
    looks: Looks,
    total: int,
    confidence: float,
    tolerance: float,
) -> Found:
    """Find a candidate that, with some confidence, no other beats by more than a tolerance.

    All candidates see the same random images, chunk by chunk. After each, one is out when its
    reduction is above that of another with certainty enough; the race ends when one is left, when
    those left differ by less than the tolerance, or when all images are seen, which is exact. The
    bounds are the empirical Bernstein-Serfling inequality (Bardenet & Maillard 2015), for images
    that are drawn without being put back, shared out over all candidates and looks.

    Parameters
    ----------
    evaluator, candidates, looks
        See `Tally`; the order of the images must be random.
    total : int
        How many there are.
    confidence : float
        Probability, between 0 and 1, that the answer holds.
    tolerance : float
        Difference in accuracy over all images that does not matter.
    """
    device = looks.blocks[0].device
    tally = Tally(evaluator, candidates, device)
    alive = torch.arange(len(candidates), device=device)
    seen = 0
    spent = (1 - confidence) / (2 * len(candidates) * len(looks))
    wrong, certainty = 0, confidence
    for number in range(len(looks)):
        block = looks[number]
        tally.see(block, alive, tally.enter(block, alive))
        seen += len(block.images)
        wrong += int((~block.before.right).sum())
        if seen == total:
            certainty = 1.0 if len(alive) == len(candidates) else confidence
            break
        mean, radius = _interval(tally, alive, seen, total, spent)
        still = mean - radius <= (mean + radius).min()
        alive, mean, radius = alive[still], mean[still], radius[still]
        leads = alive == tally.first(alive, seen)
        others = (mean - radius)[~leads]
        if not len(others) or float((mean + radius)[leads] - others.min()) <= tolerance:
            break
    winner = tally.first(alive, seen)
    return Found(
        winner,
        wrong + int(tally.lost[winner]),
        seen,
        int(tally.near[winner]),
        tally.evaluated,
        len(candidates) * total,
        certainty,
    )


def _interval(
    tally: Tally, which: Tensor, seen: int, total: int, spent: float
) -> tuple[Tensor, Tensor]:
    """Mean number of images lost per image, and how far it may be off; shape (len(which),)."""
    mean = tally.lost[which].double() / seen
    variance = (tally.changed[which].double() / seen - mean.square()).clamp(min=0)
    share = 1 - (seen - 1) / total if 2 * seen <= total else (1 - seen / total) * (1 + 1 / seen)
    size = log(5 / spent) / seen
    range_, kappa = 2.0, 7 / 3 + 3 / 2**0.5  # an image is lost, kept or won
    return mean, (2 * share * variance * size).sqrt() + kappa * range_ * size
