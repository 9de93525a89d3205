"""Outliers: images farther from the others than nearly all, and how many are so by chance."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.spatial.distance import cdist

from niwaki.arrays import Array
from niwaki.auditing._on_disk import blocks
from niwaki.auditing._statistics import DRAWS, Exchange

RARE = 0.02  # share of the other images that count as rare
SMALLEST = 3.5  # times that share is worth an alarm
FEWEST = 5  # images that make a group
_NEIGHBOURS = 5
_LOOKED = 50
_FEW_DRAWS = 499
_ROWS = 256  # images whose distances to all others are held at a time

#: From which images are the others, shape (N,), to how far each image is off them, (N,).
OutlierScore = Callable[[Array], Array]


def outlier_score(values: Array, groups: Array | None = None) -> OutlierScore:
    """Return a function that scores how far images are from others.

    Parameters
    ----------
    values : ndarray
        Shape (N,): more is farther off. Or (N, features): the distance to the 5th nearest of the
        others, other than itself.
    groups : ndarray, optional
        The number of each image's group, shape (N,): nearest are those of other groups.
    """
    if values.ndim == 1:
        return lambda others: values

    def distances(rows: Array) -> Array:
        found: Array = cdist(values[rows], values)
        found[np.arange(len(rows)), rows] = np.inf
        if groups is not None:
            found[groups[rows, None] == groups] = np.inf
        return found

    order, ranked = _nearest(distances, len(values))

    def score(others: Array) -> Array:
        nearest = min(_NEIGHBOURS, int(others.sum()) - 1)
        found = np.empty(len(ranked))
        # Nearly always they are among the nearest few; all of them are looked at where not.
        count = np.cumsum(others[order], axis=1, dtype=np.int32)
        known = count[:, -1] >= nearest
        place = (count[known] >= nearest).argmax(1)
        found[known] = ranked[known, place]
        for rows in blocks(np.flatnonzero(~known), _ROWS):
            every = np.where(others, distances(rows), np.inf)
            found[rows] = np.partition(every, nearest - 1, axis=1)[:, nearest - 1]
        return found

    return score


def _nearest(distances: Callable[[Array], Array], count: int) -> tuple[Array, Array]:
    """Return for each image the few nearest, nearest first, and how far off they are."""
    orders, ranks = [], []
    for rows in blocks(count, _ROWS):
        found = distances(rows)
        order = np.argsort(found, axis=1)[:, :_LOOKED]
        orders.append(order.astype(np.int32))
        ranks.append(np.take_along_axis(found, order, axis=1))
    return np.concatenate(orders), np.concatenate(ranks)


def share_of_outliers(score: OutlierScore, is_class: Array) -> tuple[float, Array]:
    """Return the share of a class that is farther off than 98 % of the others, and its images.

    Parameters
    ----------
    score : callable
        See `outlier_score`.
    is_class : ndarray
        Shape (N,), bool.
    """
    away = score(~is_class)
    others = away[~is_class]
    place = int(np.ceil((1 - RARE) * (len(others) - 1)))
    beyond: Array = is_class & (away > np.partition(others, place)[place])
    return float(beyond.sum() / is_class.sum()), beyond


def chance_of_outliers(
    score: OutlierScore,
    label: int,
    share: float,
    exchange: Exchange,
    rng: np.random.Generator,
    large: bool,
    most: int = DRAWS,
) -> float:
    """Return how often exchanged labels give a class as large a share of images that are far off.

    Parameters
    ----------
    score : callable
        See `outlier_score`.
    label : int
        The class.
    share : float
        See `share_of_outliers`.
    exchange : Exchange
        Exchanges the labels.
    rng : numpy.random.Generator
        Draws the exchanges.
    large : bool
        Whether the share is worth an alarm; one that is not needs no precise p-value.
    most : int
        How many exchanges, if it is.
    """
    if share == 0:
        return 1.0
    as_large, draws = 0, most if large else _FEW_DRAWS
    for _ in range(draws):
        is_class = exchange.draw(rng) == label
        as_large += share_of_outliers(score, is_class)[0] >= share - 1e-12
    return (1 + as_large) / (1 + draws)
