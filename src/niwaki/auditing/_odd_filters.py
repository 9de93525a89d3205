"""Odd filters: units that carry the answers of other images than the units beside them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from niwaki.auditing._latent import Latent
from niwaki.criteria import Scores
from niwaki.ranges import FEW, checked

Array = NDArray[Any]


@checked(neighbours=FEW)
def odd_filters(latent: Latent, neighbours: int = 3) -> Scores:
    """Say of each unit how unlike its layer's other units it is, by the images that it serves.

    After DORA (Bykov et al. 2023, "DORA: Exploring outlier representations in deep neural
    networks"): units are compared by the cosine of what they say of the same images, and units far
    from all others often stand for artefacts. Here it is the cosine of their relevances.

    Parameters
    ----------
    latent : Latent
        The latent relevance of the images.
    neighbours : int
        The mean distance to so many nearest units counts.

    Returns
    -------
    Scores
        By layer, shape (units,): the distance, less the layer's median, in units of its median
        absolute deviation. `prune_artefact` takes it as its order. Units without relevance get the
        lowest score: nothing hangs on them.
    """
    scores = {}
    for layer in latent.layers:
        relevance = latent.relevance[layer].T
        length = np.linalg.norm(relevance, axis=1, keepdims=True)
        alive = length[:, 0] > 1e-9
        distance = _distances(relevance[alive] / length[alive], neighbours)
        values = np.full(len(relevance), -np.inf)
        values[alive] = distance
        known = values[alive]
        if len(known):
            off = known - np.median(known)
            values[alive] = off / max(float(np.median(np.abs(off))), 1e-9)
        values[~alive] = values[alive].min() if alive.any() else 0.0
        scores[layer] = torch.from_numpy(values)
    count = len(latent.outputs)
    return Scores(scores, "oddness of filters", count, "")


def _distances(unit: Array, neighbours: int) -> Array:
    """Return the mean cosine distance of each row to the nearest others, shape (n,)."""
    if len(unit) < 2:
        return np.zeros(len(unit))
    distance = 1 - unit @ unit.T
    np.fill_diagonal(distance, np.inf)
    count = min(neighbours, len(unit) - 1)
    found: Array = np.sort(distance, axis=1)[:, :count].mean(1)
    return found
