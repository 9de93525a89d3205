"""What is usual: a Gaussian mixture of vectors, with likelihoods of others to compare with."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
FEWEST = 40  # images of a class: half to learn from, half to compare with
_COMPONENTS = 10
_PER_COMPONENT = 4  # images for each principal component
_MIXED = 4
_LEAST_SPREAD = 0.05  # of the logarithm of a distance: less than that is rounding


@dataclass(frozen=True, eq=False)
class Usual:
    """What is usual of some images.

    Attributes
    ----------
    centre, basis : ndarray
        Mean and principal components, scaled to variance 1, of those that were learned from.
    off : tuple of float
        Mean and spread of the logarithm of the distance from the space of these components.
    mixture : GaussianMixture
        The mixture over the components and that distance.
    learned : int
        Number of images that were learned from.
    held_out : ndarray
        Log-likelihoods of the others, ascending.
    """

    centre: Array
    basis: Array
    off: tuple[float, float]
    mixture: Any
    learned: int
    held_out: Array

    def likelihood(self, values: Array) -> Array:
        """Return the logarithm of the likelihood of vectors, shape (N,)."""
        found: Array = self.mixture.score_samples(_described(self, values))
        return found

    def judge(self, values: Array) -> tuple[Array, Array]:
        """Return log-likelihoods and their p-values: the share held out that is as unlikely."""
        found = self.likelihood(values)
        below = np.searchsorted(self.held_out, found, side="right")
        return found, (1 + below) / (1 + len(self.held_out))


def usual_of(values: Array, slides: Array, seed: int = 0) -> Usual | None:
    """Learn from half of the slides what is usual, and hold the others out.

    Parameters
    ----------
    values : ndarray
        Shape (N, features).
    slides : ndarray
        Shape (N,).
    seed : int
        Seed of the halves and of the mixture.

    Returns
    -------
    Usual or None
        None where one of the halves has fewer than ten images.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    rng = np.random.default_rng(seed)
    names = rng.permutation(np.unique(slides))
    is_learned = np.isin(slides, names[::2])
    if min(is_learned.sum(), (~is_learned).sum()) < FEWEST // 4:
        return None
    learned = values[is_learned]
    centre = learned.mean(0)
    few = max(1, min(_COMPONENTS, len(learned) // _PER_COMPONENT))
    _, sizes, rows = np.linalg.svd(learned - centre, full_matrices=False)
    kept = sizes[:few] > 1e-9 * max(float(sizes[0]), 1e-300)
    basis = rows[:few][kept].T / (sizes[:few][kept] / len(learned) ** 0.5)
    plain = Usual(centre, basis, (0.0, 1.0), None, len(learned), np.zeros(0))
    distance = _described(plain, learned)[:, -1]
    off = float(distance.mean()), max(float(distance.std()), _LEAST_SPREAD)
    described = _described(Usual(centre, basis, off, None, 0, np.zeros(0)), learned)
    most = max(1, min(_MIXED, len(learned) // (2 * described.shape[1])))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # it is none the worse
        mixtures = [
            GaussianMixture(k, reg_covar=1e-2, random_state=seed).fit(described)
            for k in range(1, most + 1)
        ]
    mixture = min(mixtures, key=lambda one: one.bic(described))
    found = Usual(centre, basis, off, mixture, len(learned), np.zeros(0))
    held = np.sort(found.likelihood(values[~is_learned]))
    return Usual(centre, basis, off, mixture, len(learned), held)


def _described(usual: Usual, values: Array) -> Array:
    """Return the components of vectors, and how far they are off the space of these."""
    away = values - usual.centre
    inside = away @ usual.basis
    unit = usual.basis / np.linalg.norm(usual.basis, axis=0).clip(1e-300)
    left = np.linalg.norm(away - (away @ unit) @ unit.T, axis=1)
    mean, spread = usual.off
    return np.column_stack([inside, (np.log(left + 1e-9) - mean) / spread])
