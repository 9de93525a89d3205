"""Which images have the artefact: ranked by what an audit knows, beside the truth."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from sklearn.metrics import average_precision_score, roc_auc_score

from niwaki.auditing import Audit, concept_of, find_strategies, foreign, latent_of

Array = NDArray[Any]
Row = dict[str, Any]
SHOWN = 6  # images that a person has pointed at
FEWEST = 6  # images beside these that have the artefact


def retrieval(found: Audit, has: Array, seed: int) -> Row:
    """Rank the images of the tumour class by several methods; AUROC and average precision.

    Parameters
    ----------
    found : Audit
        Of images a part of which has the artefact.
    has : ndarray
        Which images of the data set have it, bool.
    seed : int
        Seed of the images that are pointed at.
    """
    material = found.material
    has = has[material.indices]
    members = material.members(1)
    planted = members[has[members]]
    if len(planted) < SHOWN + FEWEST:
        return {}
    shown = np.random.default_rng(seed).permutation(planted)[:SHOWN]
    rest = np.setdiff1d(members, shown)
    latent = latent_of(material)
    concept = concept_of(latent, material.labels, shown)
    layer = latent.layers[-1]
    channels = _unit(latent.relevance[layer])
    scores = {
        "concept vector of 6 images": concept.scores[rest],
        "nearest of the 6 images, by channel relevance": -cdist(
            channels[rest], channels[shown]
        ).min(1),
        "outliers of channel relevance": np.sort(cdist(channels[rest], channels[members]))[:, 5],
    }
    for strategies in find_strategies(material, seed=seed):
        if strategies.label == 1:
            odd = np.isin(rest, strategies.clusters[0].positions)
            scores[f"SpRAy, oddest group by {strategies.features}"] = odd
    return {
        name: [
            round(float(roc_auc_score(has[rest], values)), 4),
            round(float(average_precision_score(has[rest], values)), 4),
        ]
        for name, values in scores.items()
    }


def overlap(found: Audit, has: Array, masks: Array) -> float:
    """Return the mean IoU of the pixels of foreign colours with the artefact's, over its images.

    Parameters
    ----------
    found : Audit
        Of images a part of which has the artefact.
    has : ndarray
        Which images of the data set have it, bool.
    masks : ndarray
        Where it is, shape (N, H, W), bool.
    """
    material = found.material
    members = material.members(1)
    said = foreign(material.pixels[:], material.labels, 1)
    true, said = masks[material.indices[members]], said[has[material.indices[members]]]
    true = true[has[material.indices[members]]]
    both = (said & true).sum((1, 2)) / np.maximum((said | true).sum((1, 2)), 1)
    return float(both.mean())


def _unit(values: Array) -> Array:
    found: Array = values / np.linalg.norm(values, axis=1, keepdims=True).clip(1e-12)
    return found
