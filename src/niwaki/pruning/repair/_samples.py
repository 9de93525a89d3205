"""The reference samples that closed forms look at, and at how many of their places."""

from __future__ import annotations

from heapq import heappush, heappushpop
from operator import itemgetter

import torch
from torch import Tensor

from niwaki.data import Data, batches

__all__ = ["FEWEST_ROWS", "ROWS", "drawn", "mirrored"]

ROWS = 20  # for each feature of a regression: beyond that, places are left out
FEWEST_ROWS = 5_000
_MOST = 1_000  # samples; beyond these, places would be left out anyway


def drawn(data: Data, place: Tensor | None) -> Tensor:
    """Read the reference samples, in their order; of very many a random part, always the same."""
    generator = torch.Generator().manual_seed(0)
    drawn: list[tuple[float, int, Tensor]] = []
    number = 0
    for some, _ in batches(data, 64, place):
        for sample in some:
            entry = (float(torch.rand((), generator=generator)), number, sample.clone())
            if len(drawn) < _MOST:
                heappush(drawn, entry)
            else:
                heappushpop(drawn, entry)
            number += 1
    return torch.stack([sample for _, _, sample in sorted(drawn, key=itemgetter(1))])


def mirrored(samples: Tensor) -> Tensor:
    """Put the mirror image behind each image, left for right; anything else stays as it is.

    So do very many images, which tell enough by themselves.
    """
    if samples.dim() < 4 or 2 * len(samples) > _MOST:
        return samples
    return torch.stack([samples, samples.flip(-1)], 1).flatten(0, 1)
