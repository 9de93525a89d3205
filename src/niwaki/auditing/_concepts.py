"""Concepts: what a handful of images have in common inside a network, and which others have it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from niwaki.arrays import LABELS, Array, Shaped, shaped
from niwaki.auditing._latent import Latent
from niwaki.errors import DataError

FEWEST = 3  # images that say what they have in common
_HELD_OUT = 12  # images that are left out in turn
_NOISE = 2.0  # standard errors below which a channel's difference counts as none


@dataclass(frozen=True, eq=False)
class Concept:
    """What some images have in common.

    Attributes
    ----------
    layer : str
        Where it shows best.
    kind : str
        In what: "activity", "peak" or "relevance", see `Latent`.
    weights : ndarray
        Weights of the layer's channels, in units of their spread, of length 1.
    scores : ndarray
        Scores of all images, shape (N,): more has more of it. Those of images that it was found on
        are held out, so that they can be compared with the others'.
    auc : float
        How well these scores tell the images that it was found on from the others of their class.
    """

    layer: str
    kind: str
    weights: Array
    scores: Array
    auc: float


@shaped(labels=LABELS, accepted=Shaped("_", "whole", low=0))
def concept_of(latent: Latent, labels: Array, accepted: Array) -> Concept:
    """Find what images have in common that others of their class lack.

    A concept vector as in Reveal to Revise (Pahde et al. 2023), by the difference of means (the
    pattern of Haufe et al. 2014), which needs a handful of images only: channels whose difference
    is within its noise count as none. The layer, and whether activity or relevance is compared, are
    those that tell held-out images best.

    Parameters
    ----------
    latent : Latent
        The latent relevance of all images.
    labels : ndarray
        Classes, shape (N,). What differs between classes is no part of the concept.
    accepted : ndarray
        Positions of images that have it, three at the least.

    Raises
    ------
    DataError
        Fewer than three images, or all of a class.
    """
    chosen = np.unique(accepted)
    if len(chosen) < FEWEST:
        raise DataError(
            f"{len(chosen)} images do not say what they have in common; accept {FEWEST} or more"
        )
    is_chosen = np.isin(np.arange(len(labels)), chosen)
    rest = ~is_chosen & np.isin(labels, labels[chosen])
    if rest.sum() < 2:
        raise DataError("all images of the class are accepted, and none are left to compare with")
    found = [
        _concept(values, labels, chosen, rest, layer, kind)
        for kind in ("activity", "peak", "relevance")
        for layer, values in getattr(latent, kind).items()
    ]
    return max(found, key=lambda concept: concept.auc)


def _concept(
    values: Array, labels: Array, chosen: Array, rest: Array, layer: str, kind: str
) -> Concept:
    centre = np.zeros_like(values)
    for label in np.unique(labels):
        own = labels == label
        base = own & rest if (own & rest).any() else own
        centre[own] = values[base].mean(0)
    spread = (values - centre)[rest].std(0)
    standard = (values - centre) / np.where(spread > 1e-9 * np.abs(values).max(), spread, np.inf)
    weights = _direction(standard[chosen])
    scores = standard @ weights
    folds = np.array_split(
        np.random.default_rng(0).permutation(chosen), min(len(chosen), _HELD_OUT)
    )
    for fold in folds:
        scores[fold] = standard[fold] @ _direction(standard[np.setdiff1d(chosen, fold)])
    return Concept(layer, kind, weights, scores, separation(scores[chosen], scores[rest]))


def _direction(standard: Array) -> Array:
    mean = standard.mean(0)
    noise = _NOISE / len(standard) ** 0.5
    kept = np.sign(mean) * (np.abs(mean) - noise).clip(0)
    if not kept.any():
        kept = mean
    found: Array = kept / max(float(np.linalg.norm(kept)), 1e-12)
    return found


def separation(inside: Array, outside: Array) -> float:
    """Return the area under the ROC curve of scores: .5 by guessing."""
    from scipy.stats import mannwhitneyu

    return float(mannwhitneyu(inside, outside).statistic / (len(inside) * len(outside)))
