"""Statistics: permutation tests, the correction for many questions, bootstrap, ROC, components."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from niwaki.arrays import LABELS, NUMBERS, TRUTHS, Array, Shaped, shaped
from niwaki.errors import DataError
from niwaki.ranges import FRACTION, ROUNDS, SEED, checked

DRAWS = 4999
DIMENSIONS = 10
_ROUNDING = 1e-6
_QUESTIONS = 15  # of a class, besides those about regions
_MAPS = 64  # maps transformed at a time
_MOVED = 1024  # maps whose steps are drawn at a time, a multiple of these
_DRAWS_AT_ONCE = 250


def enough_draws(classes: int, regions: int = 0) -> int:
    """Return how many random arrangements leave a p-value below 5 % when it is corrected.

    Parameters
    ----------
    classes : int
        Number of classes that are asked about.
    regions : int
        Number of regions that are marked.
    """
    return max(DRAWS, 40 * classes * (_QUESTIONS + regions) - 1)


@dataclass(frozen=True)
class Interval:
    """A mean and where it may lie.

    Attributes
    ----------
    mean, low, high : float
        The mean and its 95 % interval.
    count : int
        Number of values that are exchanged.
    """

    mean: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def finite(value: float) -> float | None:
    """Return a number as JSON has it: None for one that is not finite."""
    return float(value) if np.isfinite(value) else None


class Exchange:
    """Labels as chance might have given them, to images that come in groups.

    Images of a slide are alike because they are of one slide. So labels are exchanged among images
    of the same group; and of groups that have one class only, whole groups exchange theirs. Where
    neither can be, as with one slide per class, nothing is exchanged: a property of the slide
    cannot be told from one of the class.

    Parameters
    ----------
    labels : ndarray
        Shape (N,).
    groups : ndarray
        The number of each image's group, shape (N,); all different, if images are
        independent.
    """

    def __init__(self, labels: Array, groups: Array) -> None:
        self._labels = labels
        self._groups = np.unique(groups, return_inverse=True)[1]
        self._order = np.argsort(self._groups, kind="stable")
        starts = np.unique(self._groups[self._order], return_index=True)[1]
        ordered = labels[self._order]
        lowest, highest = (f.reduceat(ordered, starts) for f in (np.minimum, np.maximum))
        self._is_pure = lowest == highest
        self._classes = lowest

    def draw(self, rng: np.random.Generator) -> Array:
        """Return labels, shape (N,)."""
        shuffled = np.lexsort((rng.random(len(self._labels)), self._groups))
        drawn = np.empty_like(self._labels)
        drawn[shuffled] = self._labels[self._order]
        of_group = self._classes.copy()
        of_group[self._is_pure] = rng.permutation(of_group[self._is_pure])
        found: Array = np.where(self._is_pure[self._groups], of_group[self._groups], drawn)
        return found


@dataclass(frozen=True, eq=False)
class Shifts:
    """Maps in a zone, and the same maps at random places.

    Attributes
    ----------
    share : float
        Share of the maps' sum inside the zone, mean over images.
    expected : float
        The same for random places: the zone's share of the area, as far as maps are not empty.
    random : ndarray
        The sum over images of the share inside, for each random arrangement, shape (draws,).
    count : int
        Number of images.
    """

    share: float
    expected: float
    random: Array
    count: int

    @property
    def p(self) -> float:
        """One-sided: how often random places give as much."""
        # Rounding of the transforms must not make equal values unequal.
        least = self.count * (self.share - 1e-12)
        return (1 + int((self.random >= least).sum())) / (1 + len(self.random))


def shifted(maps: Array, zone: Array, rng: np.random.Generator, draws: int = DRAWS) -> Shifts:
    """Move maps around as on a torus, each by its own random steps; see `shift_test`."""
    count, height, width = maps.shape
    random, observed, expected, empty = np.zeros(draws), 0.0, 0.0, True
    for start in range(0, count, _MAPS):
        if start % _MOVED == 0:
            shape = (draws, min(_MOVED, count - start))
            steps = rng.integers(0, height * width, shape, dtype=np.uint32)
        part = slice(start, start + _MAPS)
        total = maps[part].sum((1, 2), keepdims=True)
        empty &= not total.any()
        shares = maps[part] / np.where(total > 0, total, 1)
        there = np.fft.rfft2(zone if zone.ndim == 2 else zone[part])
        # Entry (i, s) is the share of map i inside the zone after a step s.
        moved = np.fft.irfft2(np.fft.rfft2(shares) * np.conj(there), (height, width))
        moved = moved.reshape(len(moved), -1)
        random += moved[np.arange(len(moved)), steps[:, start % _MOVED :][:, :_MAPS]].sum(1)
        observed += float(moved[:, 0].sum())
        expected += float(moved.mean(1).sum())
    # Of maps that are all empty, as where the output explained is constant, nothing is anywhere.
    by_chance = float(zone.mean()) if empty else expected / count
    return Shifts(observed / count, by_chance, random, count)


@checked(draws=ROUNDS)
@shaped(maps=Shaped("N H W", low=0), zone=Shaped("H W | N H W", low=0))
def shift_test(
    maps: Array, zone: Array, rng: np.random.Generator, draws: int = DRAWS
) -> tuple[float, float, float]:
    """Test whether maps lie in a zone more than the same maps at random places do.

    Each map is moved around the image as on a torus, by its own random step, so that its own
    structure stays and only its position is left to chance.

    Parameters
    ----------
    maps : ndarray
        Shape (N, H, W), not negative.
    zone : ndarray
        Shape (H, W) or (N, H, W): weights, 1 inside.
    rng : numpy.random.Generator
        Draws the steps.
    draws : int
        Number of random arrangements.

    Returns
    -------
    share : float
        Share of the maps' sum inside the zone, mean over images.
    expected : float
        The same for random places: the zone's share of the area, as far as maps are not empty.
    p : float
        One-sided.
    """
    found = shifted(maps, zone, rng, draws)
    return found.share, found.expected, found.p


@checked(draws=ROUNDS)
@shaped(differences=NUMBERS)
def sign_test(differences: Array, rng: np.random.Generator, draws: int = DRAWS) -> float:
    """Test one-sided whether paired differences lie above zero, by random signs."""
    values = np.asarray(differences, dtype=np.float64)
    if len(values) == 0:
        return 1.0
    least = values.sum() - 1e-12 * np.abs(values).sum()
    as_large = 0
    for start in range(0, draws, DRAWS):
        signs = rng.integers(0, 2, (min(DRAWS, draws - start), len(values))) * 2 - 1
        as_large += int((signs @ values >= least).sum())
    return (1 + as_large) / (1 + draws)


@checked(draws=ROUNDS)
@shaped(values=NUMBERS, members=TRUTHS)
def group_test(
    values: Array, members: Array, rng: np.random.Generator, draws: int = DRAWS
) -> float:
    """Test one-sided whether the members' mean lies above that of the rest, by exchanging them.

    Parameters
    ----------
    values : ndarray
        Shape (N,).
    members : ndarray
        Shape (N,), bool.
    rng : numpy.random.Generator
        Draws the exchanges.
    draws : int
        Number of exchanges.
    """
    count = int(members.sum())
    if count == 0 or count == len(values):
        return 1.0
    # Rounding of the means must not make equal values unequal.
    least = values[members].mean() - 1e-12 * np.abs(values).mean()
    as_large = 0
    for start in range(0, draws, _DRAWS_AT_ONCE):  # the same numbers as all at once
        size = (min(_DRAWS_AT_ONCE, draws - start), len(values))
        order = rng.random(size).argpartition(count - 1, 1)[:, :count]
        as_large += int((values[order].mean(1) >= least).sum())
    return (1 + as_large) / (1 + draws)


@checked(ps=FRACTION)
def holm(ps: Sequence[float]) -> list[float]:
    """Correct p-values for their number (Holm 1979): the chance of one false alarm stays below.

    Parameters
    ----------
    ps : sequence of float
        One for each question asked.

    Returns
    -------
    list of float
        In the same order.
    """
    order = np.argsort(ps, kind="stable")
    adjusted, largest = [0.0] * len(ps), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[index]))
        adjusted[index] = largest
    return adjusted


@checked(seed=SEED, draws=ROUNDS)
@shaped(values=NUMBERS.but(missing=True))
def bootstrap(values: Array, seed: int = 0, draws: int = 2000) -> Interval:
    """Give the mean over images and its 95 % interval; NaN values are left out.

    Parameters
    ----------
    values : ndarray
        One for each image.
    seed : int
        Seed of the resampling of images.
    draws : int
        Number of resamples.
    """
    known = np.asarray(values, dtype=np.float64)
    known = known[np.isfinite(known)]
    if len(known) == 0:
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    rng = np.random.default_rng(seed)
    means = known[rng.integers(0, len(known), (draws, len(known)))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(known.mean()), float(low), float(high), len(known))


@shaped(outputs=Shaped("N classes"), labels=LABELS)
def auc(outputs: NDArray[Any], labels: NDArray[Any]) -> float:
    """Area under the ROC curve: the mean over the classes that occur, each against all others.

    Parameters
    ----------
    outputs : ndarray
        Shape (N, classes).
    labels : ndarray
        Shape (N,).

    Returns
    -------
    float
        NaN where only one class occurs.
    """
    from sklearn.metrics import roc_auc_score

    present = sorted(set(labels.tolist()))
    if present and present[-1] >= outputs.shape[1]:
        raise DataError(f"label {present[-1]} of outputs for {outputs.shape[1]} classes")
    if len(present) < 2:
        return float("nan")
    values = []
    for label in present[-1:] if len(present) == 2 else present:
        others = np.delete(outputs, label, axis=1).max(1)
        values.append(roc_auc_score(labels == label, outputs[:, label] - others))
    return float(np.mean(values))


def components(features: Array) -> Array:
    """Return the first principal components of standardised features, all of variance 1."""
    spread = features.std(0)
    standard = ((features - features.mean(0)) / np.where(spread > 0, spread, 1)).astype(float)
    values, vectors = np.linalg.eigh(standard @ standard.T)
    # Of few features there are few components; the rest is rounding.
    kept = vectors[:, -DIMENSIONS:][:, values[-DIMENSIONS:] > _ROUNDING * max(values[-1], 1e-300)]
    found: Array = kept * len(features) ** 0.5
    return found
