"""Power: how small a thing the images at hand could have shown, by simulation of the tests.

The planted thing is the strongest possible, on a part of a class: the network judges these images
by it alone. All of their relevance lies on it, and when it changes, the margin of their class is
gone. The power is the smallest part that the tests find in 8 of 10 samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.special import gammaln
from scipy.stats import binom, hypergeom

from niwaki.arrays import Array
from niwaki.auditing._outliers import FEWEST, RARE, SMALLEST
from niwaki.auditing._statistics import DRAWS, Exchange, Shifts
from niwaki.ranges import FRACTION, checked

POWER = 0.8
ANSWERS = 0.05  # share of the images whose answer has to change, beyond that of the control
RATIO = 1.5  # times the control's effect
_REPEATS = 100  # samples that are simulated
_EXCHANGES = 5 * 10**7  # labels that are drawn, at the most
_BETWEEN = 24  # numbers of images that are looked at, between too few and certainly enough

#: From a number of images that have the thing, and a level, to the probability of a yes.
Chance = Callable[[int, float], float]


@dataclass(frozen=True, eq=False)
class Power:
    """What a question could have found.

    Attributes
    ----------
    images : int
        How many images there are that could have the thing: those of the class.
    chance : callable
        From how many of them have it, and the level that the question's p-value has to stay below,
        to the probability that the answer is yes. It does not fall with the number.
    """

    images: int
    chance: Chance
    _known: dict[float, Array] = field(default_factory=dict, repr=False)

    @checked(share=FRACTION, level=FRACTION)
    def at(self, share: float, level: float) -> float:
        """Return the probability of a yes, if an image of the class has the thing so often."""
        counts = np.arange(self.images + 1)
        return float(binom.pmf(counts, self.images, share) @ self._by_count(level))

    @checked(level=FRACTION)
    def smallest(self, level: float) -> float | None:
        """Return the smallest share of a class's images that is found with 80 % power.

        Parameters
        ----------
        level : float
            The 5 % of the audit, divided by the number of questions.

        Returns
        -------
        float or None
            None where not even a thing on all images is found.
        """
        if self.images == 0:
            return None
        chances = self._by_count(level)
        shares = np.linspace(0, 1, 401)
        found = binom.pmf(np.arange(self.images + 1), self.images, shares[:, None]) @ chances
        enough = np.flatnonzero(found >= POWER)
        if not len(enough):
            return None
        last = int(enough[0])
        before, after = found[last - 1], found[last]
        step = (POWER - before) / (after - before)
        return float(shares[last - 1] + step * (shares[last] - shares[last - 1]))

    def _by_count(self, level: float) -> Array:
        """Return the probability of a yes for 0, 1, ... images, shape (images + 1,)."""
        if level in self._known:
            return self._known[level]
        low = self._first(lambda chance: chance > 0.02, level)
        high = self._first(lambda chance: chance > 0.98, level)
        looked = np.unique(np.linspace(low, min(high, self.images), _BETWEEN).round().astype(int))
        known = {0: 0.0, max(low - 1, 0): 0.0}
        known |= {int(k): self.chance(int(k), level) for k in looked if 0 < k <= self.images}
        counts = sorted(known)
        values = np.maximum.accumulate([known[count] for count in counts])
        self._known[level] = np.interp(np.arange(self.images + 1), counts, values)
        return self._known[level]

    def _first(self, enough: Callable[[float], bool], level: float) -> int:
        """Return the smallest number of images with enough of a chance, or one more than all."""
        low, high = 1, self.images + 1
        while low < high:
            middle = (low + high) // 2
            if enough(self.chance(middle, level)):
                high = middle
            else:
                low = middle + 1
        return low


@dataclass(frozen=True, eq=False)
class Tries:
    """What trying a thing by a change of the images could have shown.

    Attributes
    ----------
    margins : ndarray
        Margins of the images' own class, shape (N,).
    changed : ndarray
        Fall of the margin by unrelated changes: a first one, and the mean of three more of the same
        image; shape (M, 2).
    draws : int
        Random arrangements of the test.
    """

    margins: Array
    changed: Array
    draws: int = DRAWS
    _known: dict[tuple[int, int, float], float] = field(default_factory=dict, repr=False)

    def chance(self, tried: int, having: int, level: float) -> float:
        """Return the probability that a change of images is found to matter.

        Parameters
        ----------
        tried : int
            How many images are changed.
        having : int
            How many of them owe their class to what is changed.
        level : float
            That the p-value has to stay below.
        """
        key = (tried, having, level)
        if key not in self._known:
            self._known[key] = self._simulated(*key) if 0 < having <= tried else 0.0
        return self._known[key]

    def _simulated(self, tried: int, having: int, level: float) -> float:
        if level <= 1 / (1 + self.draws):
            return 0.0
        rng = np.random.default_rng([tried, having])
        shape = (_REPEATS, tried)
        own = self.margins[rng.integers(0, len(self.margins), shape)]
        first, rest = np.moveaxis(self.changed[rng.integers(0, len(self.changed), shape)], -1, 0)
        has = rng.random(shape).argsort(1) < having
        fall = np.where(has, np.abs(own), first)
        gap = fall - rest
        least, as_large = gap.sum(1) - 1e-5 * np.abs(gap).sum(1), np.zeros(_REPEATS, int)
        for start in range(0, self.draws, DRAWS):
            some = (min(DRAWS, self.draws - start), tried)
            signs = (2 * rng.integers(0, 2, some, dtype=np.int8) - 1).astype(np.float32)
            as_large += (signs @ gap.T.astype(np.float32) >= least).sum(0)
        right = own > 0
        flips = (has & right).sum(1) / np.maximum(right.sum(1), 1)
        large = fall.mean(1) >= RATIO * np.maximum(rest.mean(1), 1e-9)
        found = ((1 + as_large) / (1 + self.draws) < level) & large & (flips >= ANSWERS)
        return float(found.mean())


def of_place(shifts: Shifts, least: float, tries: Tries, most: int) -> Power:
    """Return the power of asking whether relevance gathers at a place.

    Parameters
    ----------
    shifts : Shifts
        The images' heatmaps at random places, which are the null distribution.
    least : float
        The effect that is worth an alarm.
    tries : Tries
        Tries on images of the same class.
    most : int
        How many images are tried at the most.
    """
    count = shifts.count

    def chance(having: int, level: float) -> float:
        tried = min(count, most)
        matters = tries.chance(tried, round(having * tried / count), level)
        return matters * _seen(shifts, having, least, level) if matters else 0.0

    return Power(count, chance)


def _seen(shifts: Shifts, having: int, least: float, level: float) -> float:
    """Return the probability that relevance is seen to gather, if all of some images' does."""
    rng = np.random.default_rng(having)
    draws, rest = len(shifts.random), 1 - having / shifts.count
    allowed = int(np.ceil(level * (1 + draws) - 1)) - 1  # of the draws may give as much
    if allowed < 0:
        return 0.0
    mean = shifts.random.mean()
    others = rest * mean + rest**0.5 * (shifts.random - mean)
    null = rng.permutation(others) + rng.binomial(having, min(shifts.expected, 1.0), draws)
    limit = np.partition(null, draws - 1 - allowed)[draws - 1 - allowed]
    found = others + having
    large = found / shifts.count >= least * shifts.expected
    return float(((found > limit) & large).mean())


def of_mark(images: int, fewest: float, tries: Tries, most: int) -> Power:
    """Return the power of asking whether relevance gathers on a mark, looked at where it is only.

    Parameters
    ----------
    images : int
        Number of images of the class.
    fewest : float
        Images with a mark that are no chance.
    tries, most
        As for `of_place`.
    """

    def chance(having: int, level: float) -> float:
        # All of the relevance on a small mark is what random places never give.
        return tries.chance(min(having, most), min(having, most), level) * (having >= fewest)

    return Power(images, chance)


def of_group(images: int, rest: int, draws: int = DRAWS) -> Power:
    """Return the power of asking whether a group of a class's images shares a thing.

    Parameters
    ----------
    images : int
        Number of images of the class.
    rest : int
        Images that have to be left beside the group.
    draws : int
        Random arrangements of the test.
    """

    def chance(having: int, level: float) -> float:
        size = min(having, images - rest)
        if size < FEWEST or size < ANSWERS * images:
            return 0.0
        return float(np.exp(-_ways(images, size)) + 1 / (1 + draws) < level)

    return Power(images, chance)


class Exchanged:
    """How many images of a class are far off, if labels are exchanged.

    Parameters
    ----------
    is_class : ndarray
        Shape (N,), bool.
    groups : ndarray
        See `Exchange`.
    draws : int
        Random arrangements of the test.
    """

    def __init__(self, is_class: Array, groups: Array, draws: int = DRAWS) -> None:
        self.draws = draws
        self.images, self._all = int(is_class.sum()), len(is_class)
        others = self._all - self.images
        self._passed = others - int(np.ceil((1 - RARE) * (others - 1)))
        self._labels = None
        if len(np.unique(groups)) < len(groups):
            rng, exchange = np.random.default_rng(0), Exchange(is_class.astype(int), groups)
            few = max(99, min(draws, _EXCHANGES // self._all))
            self._labels = np.stack([exchange.draw(rng) == 1 for _ in range(few)])
            self._is_class = is_class

    def chance(self, having: int, level: float) -> float:
        """Return the probability that so many images of a class, far off, are found to be many."""
        if min(self.images, self._all - self.images) < 2 or level <= 1 / (1 + self.draws):
            return 0.0
        more = np.arange(self.images - having + 1)
        total = having + more
        large = (total >= FEWEST) & (total / self.images >= RARE * SMALLEST)
        found = (self._exceeded(having, total) + 1 / (1 + self.draws) < level) & large
        far = _before(self._all - having, self.images - having, self._passed)
        return float(far[found].sum())

    def _exceeded(self, having: int, counts: Array) -> Array:
        """Return how often exchanged labels give as many images that are far off."""
        if self._labels is None:
            null = _before(self._all, self.images, self._passed)
            found: Array = null[::-1].cumsum()[::-1][counts]
            return found
        rng = np.random.default_rng(having)
        marked = rng.permutation(np.flatnonzero(self._is_class))[:having]
        rest = np.setdiff1d(np.arange(self._all), marked)
        others = ~self._labels[:, np.concatenate([marked, rng.permutation(rest)])]
        passed = others.cumsum(1, dtype=np.int32) >= self._passed
        null_counts = np.sort(passed.argmax(1) - (self._passed - 1))
        above: Array = len(null_counts) - np.searchsorted(null_counts, counts)
        return above / len(null_counts)


def _before(total: int, members: int, passed: int) -> Array:
    """Return how probable it is that 0, 1, ... members come before so many others, at random.

    That is the negative hypergeometric distribution, shape (members + 1,).
    """
    count = np.arange(members + 1)
    ways = _ways(count + passed - 1, count) + _ways(total - passed - count, members - count)
    found: Array = np.exp(ways - _ways(total, members))
    return found


def _ways(many: Any, few: Any) -> Any:
    """Return the logarithm of a binomial coefficient."""
    return gammaln(many + 1) - gammaln(few + 1) - gammaln(many - few + 1)


def of_property(exchanged: Exchanged, tries: Tries, most: int) -> Power:
    """Return the power of asking whether a property of whole images is a class's.

    Parameters
    ----------
    exchanged : Exchanged
        Exchanged labels of the class.
    tries : Tries
        Tries on the other classes, whose images get the property.
    most : int
        How many images are tried at the most.
    """
    tried = min(len(tries.margins), most)

    def chance(having: int, level: float) -> float:
        seen = exchanged.chance(having, level)
        return seen * tries.chance(tried, tried, level) if seen else 0.0

    return Power(exchanged.images, chance)


def of_errors(exchanged: Exchanged, wrong: float, learned: int, learned_wrong: float) -> Power:
    """Return the power of asking whether the network fails on images unlike those of training.

    Parameters
    ----------
    exchanged : Exchanged
        Exchanges of the class, between training and the audit's images.
    wrong : float
        Share of the class's images that are wrong, as long as none is unlike.
    learned : int
        Number of training images.
    learned_wrong : float
        Share of these that are wrong.
    """
    images = exchanged.images

    def chance(having: int, level: float) -> float:
        rest, rate = images - having, wrong
        if rest < FEWEST:
            rest, rate = learned, learned_wrong
        failed = having + round(rate * rest)
        p = float(hypergeom.sf(having - 1, having + rest, failed, having))
        if p + 1 / (1 + exchanged.draws) >= level or rate > min(1 / RATIO, 1 - ANSWERS):
            return 0.0
        return exchanged.chance(having, level)

    return Power(images, chance)


def of_centre(
    images: int, slides: int, tries: Tries, exchanged: tuple[int, int], most: int
) -> Power:
    """Return the power of asking whether the network goes by a centre.

    Parameters
    ----------
    images : int
        Number of images of other classes and centres, which get the centre's signature.
    slides : int
        Number of slides that these are of.
    tries : Tries
        Tries on the other classes.
    exchanged : tuple of int
        Number of the centre's slides, and of all slides that exchange centres. What is planted
        shows on the same share of the centre's slides as of the images, and on no other.
    most : int
        How many images are tried at the most.
    """
    own, every = exchanged

    def chance(having: int, level: float) -> float:
        if images == 0:
            return 0.0
        marked = round(own * having / images)
        seen = float(np.exp(_ways(own, marked) - _ways(every, marked)))
        if max(seen, 0.5**slides) + 1 / (1 + tries.draws) >= level:
            return 0.0
        tried = min(images, most)
        return tries.chance(tried, round(having * tried / images), level)

    return Power(images, chance)


def of_centre_errors(images: int, rest: int, wrong: float, ways: float, draws: int) -> Power:
    """Return the power of asking whether the network fails on a centre's images.

    Parameters
    ----------
    images, rest : int
        Number of the class's images that are of the centre, and of others.
    wrong : float
        Share of the others that are wrong.
    ways : float
        Logarithm of how many ways there are to exchange centres among slides.
    draws : int
        Random arrangements of the test.
    """

    def chance(having: int, level: float) -> float:
        failed = having + round(wrong * (images - having))
        share = failed / images
        if share < max(RATIO * wrong, wrong + ANSWERS):
            return 0.0
        p = float(hypergeom.sf(failed - 1, images + rest, failed + round(wrong * rest), images))
        return float(p + max(np.exp(-ways), 1 / (1 + draws)) < level)

    return Power(images, chance)
