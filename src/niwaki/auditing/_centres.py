"""Centres: whether a network's inside tells where an image comes from, and what chance gives."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.spatial.distance import cdist
from scipy.special import gammaln

from niwaki.arrays import Array, Shaped, shaped
from niwaki.auditing._statistics import DRAWS, components
from niwaki.ranges import FEW, SEED, checked

_AT_ONCE = 250
_BALANCED = 10  # samples with as many images of each class and centre
_NEIGHBOURS = (1, 3, 5, 7, 9, 11, 21, 31, 41, 51)


class CentreExchange:
    """Centres as chance might have given them to slides.

    The images of a slide are of one centre and alike because they are of one slide, so that it is
    whole slides that exchange their centres. They do so with slides that show mostly the same
    class, as what goes with the class is no sign that a network knows the centre.

    Parameters
    ----------
    centres : ndarray
        The centre of each image, shape (N,).
    groups : ndarray
        The slide of each image, shape (N,); all different, if images are independent.
    labels : ndarray, optional
        Classes, shape (N,); without, all slides exchange their centres.
    """

    def __init__(self, centres: Array, groups: Array, labels: Array | None = None) -> None:
        slide = np.unique(groups, return_inverse=True)[1].ravel()
        number = np.unique(centres, return_inverse=True)[1].ravel()
        pairs = slide * (number.max() + 1) + number
        _, first, unit = np.unique(pairs, return_index=True, return_inverse=True)
        #: Of each image the number of its slide, and of each slide its centre and its class.
        self.unit: Array = unit.ravel()
        self.centre: Array = centres[first]
        self.stratum = np.zeros(len(first), int)
        if labels is not None:
            classes = np.unique(labels)
            votes = [np.bincount(self.unit, labels == label, len(first)) for label in classes]
            self.stratum = np.argmax(votes, axis=0)

    def blocks(self, rng: np.random.Generator, draws: int = DRAWS) -> Iterator[Array]:
        """Yield the slides' centres by chance, shape (up to 250, slides), so many in all."""
        ordered = np.argsort(self.stratum, kind="stable")
        for start in range(0, draws, _AT_ONCE):
            shape = (min(_AT_ONCE, draws - start), len(self.centre))
            order = np.lexsort((rng.random(shape), np.broadcast_to(self.stratum, shape)), axis=1)
            drawn = np.empty(shape, self.centre.dtype)
            np.put_along_axis(drawn, order, np.broadcast_to(self.centre[ordered], shape), 1)
            yield drawn

    def arrangements(self, centre: object) -> float:
        """Return the logarithm of how many ways there are to give a centre its slides."""
        ways = 0.0
        for stratum in np.unique(self.stratum):
            inside = self.centre[self.stratum == stratum]
            count, own = len(inside), int((inside == centre).sum())
            ways += gammaln(count + 1) - gammaln(own + 1) - gammaln(count - own + 1)
        return ways

    def means(self, values: Array) -> Array:
        """Return the mean of each slide, shape (slides, ...)."""
        sums = np.zeros((len(self.centre), values.shape[1]))
        np.add.at(sums, self.unit, values)
        found: Array = sums / np.bincount(self.unit)[:, None]
        return found


def told_by(
    features: Array, labels: Array, exchange: CentreExchange, centre: object, drawn: Iterator[Array]
) -> tuple[float, float]:
    """Say how well features tell a centre from the others among slides of the same class.

    Parameters
    ----------
    features : ndarray
        Shape (N, features); what differs between classes is taken off.
    labels : ndarray
        Classes, shape (N,).
    exchange : CentreExchange
        The exchange of these images, which knows their slides.
    centre : object
        The centre.
    drawn : iterator of ndarray
        Centres of the slides by chance, see `CentreExchange.blocks`.

    Returns
    -------
    effect : float
        The sum over features of the squared difference between the centre's slides and the others,
        in units of the spread between slides, and in multiples of what chance gives (an analysis
        of variance by permutation, Anderson 2001).
    p : float
        One-sided.
    """
    slides = centred(exchange.means(centred(features, labels)), exchange.stratum)
    spread = slides.std(0)
    standard = slides / np.where(spread > 1e-12, spread, np.inf)
    observed = _between((exchange.centre == centre)[None], standard, exchange.stratum)[0]
    null = np.concatenate([_between(part == centre, standard, exchange.stratum) for part in drawn])
    p = (1 + int((null >= observed * (1 - 1e-9)).sum())) / (1 + len(null))
    return float(observed / max(null.mean(), 1e-12)), p


def _between(indicators: Array, slides: Array, strata: Array) -> Array:
    """Return the sum of squares between a centre and the rest, shape (draws,)."""
    within = indicators.astype(float)
    for stratum in np.unique(strata):
        within[:, strata == stratum] -= within[:, strata == stratum].mean(1, keepdims=True)
    found: Array = ((within @ slides) ** 2).sum(1)
    return found


def centred(values: Array, labels: Array) -> Array:
    """Return values less the mean of their class."""
    found: Array = np.asarray(values, dtype=float).copy()
    for label in np.unique(labels):
        found[labels == label] -= found[labels == label].mean(0)
    return found


def accuracy_of_telling(features: Array, labels: Array, centres: Array, groups: Array) -> float:
    """Return how well a linear model tells the centres of images that it has not learned from.

    Five folds, which keep slides together; what differs between classes is taken off. The accuracy
    is balanced over centres; NaN where no slides are left to learn from.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.model_selection import StratifiedGroupKFold

    slides = [len(np.unique(groups[centres == centre])) for centre in np.unique(centres)]
    if min(slides) < 2:
        return float("nan")
    values = components(centred(features, labels))
    names = np.unique(centres, return_inverse=True)[1].ravel()
    predicted = np.full(len(names), -1)
    folds = StratifiedGroupKFold(min(5, *slides), shuffle=True, random_state=0)
    for learned, held in folds.split(values, names, groups):
        if len(np.unique(names[learned])) < 2:
            return float("nan")
        model = LogisticRegression(max_iter=1000, class_weight="balanced")
        predicted[held] = model.fit(values[learned], names[learned]).predict(values[held])
    return float(balanced_accuracy_score(names, predicted))


@checked(neighbours=FEW, seed=SEED)
@shaped(
    features=Shaped("N features"),
    labels=Shaped("N", "name"),
    centres=Shaped("N", "name"),
    groups=Shaped("N", "name"),
)
def robustness_index(
    features: Array,
    labels: Array,
    centres: Array,
    groups: Array | None = None,
    *,
    neighbours: int | None = None,
    seed: int = 0,
) -> float:
    """Say whether the nearest neighbours of an image share its class or its centre.

    The robustness index of PathoROB (Koemen et al. 2025, "Towards robust foundation models for
    digital pathology"; de Jong et al. 2025): of the nearest neighbours that share the class but not
    the centre, or the centre but not the class, the share of the first kind. 1 is a space that is
    arranged by class alone, 0 one that is arranged by centre alone, and .5 is where both weigh the
    same. As there, vectors have length 1, and images of the same slide are no neighbours.

    Parameters
    ----------
    features : ndarray
        What the network makes of each image, shape (N, features).
    labels, centres : ndarray
        Shape (N,).
    groups : ndarray, optional
        The slide of each image, shape (N,).
    neighbours : int, optional
        How many; default: as many as tell the classes best.
    seed : int
        Seed of the samples, each with as many images of every class and centre; the index is
        the mean over ten.

    Returns
    -------
    float
        NaN where some class has fewer than two images of some centre.

    Raises
    ------
    DataError
        Arrays of different length, or NaN.
    """
    slides = np.arange(len(labels)) if groups is None else np.unique(groups, return_inverse=True)[1]
    cells = [
        np.flatnonzero((labels == label) & (centres == centre))
        for label in np.unique(labels)
        for centre in np.unique(centres)
    ]
    fewest = min(len(cell) for cell in cells)
    if fewest < 2 or len(np.unique(centres)) < 2 or len(np.unique(labels)) < 2:
        return float("nan")
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(_BALANCED):
        chosen = np.concatenate([rng.permutation(cell)[:fewest] for cell in cells])
        found.append(
            _index(
                features[chosen],
                labels[chosen],
                centres[chosen],
                slides.ravel()[chosen],
                neighbours,
            )
        )
    return float(np.mean(found))


def _index(
    features: Array, labels: Array, centres: Array, slides: Array, neighbours: int | None
) -> float:
    unit = features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
    distance = cdist(unit, unit)
    distance[slides[:, None] == slides] = np.inf
    order = np.argsort(distance, axis=1, kind="stable")
    most = int(np.isfinite(distance).sum(1).min())
    if most == 0:
        return float("nan")
    same_class = labels[order] == labels[:, None]
    same_centre = centres[order] == centres[:, None]
    count = neighbours or _best_count(labels[order], labels, most)
    count = min(count, most)
    right = (same_class & ~same_centre)[:, :count].sum()
    confounded = (~same_class & same_centre)[:, :count].sum()
    total = right + confounded
    return float(right / total) if total else float("nan")


def _best_count(near: Array, labels: Array, most: int) -> int:
    """Return how many neighbours tell the classes best."""
    classes = np.unique(labels)
    scores = {}
    for count in [k for k in _NEIGHBOURS if k <= most] or [1]:
        votes = np.stack([(near[:, :count] == label).sum(1) for label in classes], 1)
        voted = classes[votes.argmax(1)]
        scores[count] = np.mean([(voted == label)[labels == label].mean() for label in classes])
    return max(scores, key=lambda count: scores[count])
