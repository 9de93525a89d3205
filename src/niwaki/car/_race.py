"""The unit of about the lowest reduction, from as few images as a stated confidence needs."""

from __future__ import annotations

from collections.abc import Sequence
from math import log

import torch
from torch import Tensor

from niwaki.car._evaluator import Evaluator
from niwaki.car._pool import Pool
from niwaki.car._search import Candidate, Found, Looks, State

__all__ = ["race"]


def race(
    evaluator: Evaluator,
    pool: Pool,
    candidates: Sequence[Candidate],
    looks: Looks,
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
    evaluator, pool, candidates, looks
        See `State`; the order of the images must be random.
    confidence : float
        Probability, between 0 and 1, that the answer holds.
    tolerance : float
        Difference in accuracy over all images that does not matter.
    """
    state = State(evaluator, pool, looks, candidates)
    alive = torch.arange(len(candidates), device=state.lost.device)
    seen, total = 0, len(pool)
    spent = (1 - confidence) / (2 * len(candidates) * len(looks))
    wrong, certainty = 0, confidence
    for chunk in range(len(looks)):
        state.advance(alive, chunk)
        seen += len(looks.chunks[chunk])
        wrong += int((~looks.known(chunk).right).sum())
        if seen == total:
            certainty = 1.0 if len(alive) == len(candidates) else confidence
            break
        mean, radius = _interval(state, alive, seen, total, spent)
        still = mean - radius <= (mean + radius).min()
        alive, mean, radius = alive[still], mean[still], radius[still]
        leads = alive == state.first(alive, seen)
        others = (mean - radius)[~leads]
        if not len(others) or float((mean + radius)[leads] - others.min()) <= tolerance:
            break
    winner = state.first(alive, seen)
    return Found(
        winner,
        wrong + int(state.lost[winner]),
        seen,
        int(state.near[winner]),
        state.evaluated,
        len(candidates) * total,
        certainty,
        state.lost.cpu().double() / seen,
        looks.margins(),
    )


def _interval(
    state: State, which: Tensor, seen: int, total: int, spent: float
) -> tuple[Tensor, Tensor]:
    """Mean number of images lost per image, and how far it may be off; shape (len(which),)."""
    mean = state.lost[which].double() / seen
    variance = (state.changed[which].double() / seen - mean.square()).clamp(min=0)
    share = 1 - (seen - 1) / total if 2 * seen <= total else (1 - seen / total) * (1 + 1 / seen)
    size = log(5 / spent) / seen
    range_, kappa = 2.0, 7 / 3 + 3 / 2**0.5  # an image is lost, kept or won
    return mean, (2 * share * variance * size).sqrt() + kappa * range_ * size
