"""Watch: which predictions on new images, without labels, are made in an unusual way."""

from __future__ import annotations

import csv
import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import binom
from torch import nn
from torch.utils.data import Dataset, Subset

from niwaki import models
from niwaki.arrays import Array
from niwaki.auditing._explaining import class_names_of, explaining, groups_of, names_of, sample
from niwaki.auditing._latent import Latent, channels_of, joined, look_inside
from niwaki.auditing._statistics import finite
from niwaki.contexts import undisturbed
from niwaki.data import batches, check_labels
from niwaki.errors import DataError
from niwaki.files import write_json, write_text
from niwaki.ranges import BATCH, INSIDE, SEED, SOME, checked

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


@dataclass(frozen=True, eq=False)
class Watched:
    """How usual the predictions on new images are.

    Attributes
    ----------
    names : tuple of str
        Names of the images: their files, or their numbers.
    predicted : ndarray
        The predicted class, shape (N,).
    likelihood : ndarray
        Logarithm of the likelihood of the channels' relevance under the mixture of this class,
        shape (N,); NaN where the reference has too few images of the class.
    p : ndarray
        Share of the held-out images of the reference, predicted to be of this class, that are as
        unlikely, shape (N,): for usual images it is distributed evenly between 0 and 1.
    level : float
        An image is odd if its p is at most this, so this share of usual images is called odd.
    class_names : tuple of str
        One per output.
    learned, held_out : dict of int to int
        By class how many images of the reference the mixture and the threshold are made of.
    """

    names: tuple[str, ...]
    predicted: Array
    likelihood: Array
    p: Array
    level: float
    class_names: tuple[str, ...]
    learned: dict[int, int]
    held_out: dict[int, int]

    @property
    def odd(self) -> Array:
        """Which predictions are made in an unusual way, shape (N,), bool."""
        found: Array = self.p <= self.level
        return found

    @property
    def judged(self) -> int:
        """Number of images that are judged."""
        return int(np.isfinite(self.p).sum())

    @property
    def p_more(self) -> float:
        """Probability that as many of usual images, which are independent, are called odd."""
        return float(binom.sf(int(self.odd.sum()) - 1, self.judged, self.level))

    def order(self) -> Array:
        """Return positions, the oddest first; those that nothing is known of come last."""
        found: Array = np.lexsort((np.nan_to_num(self.likelihood), np.nan_to_num(self.p, nan=2.0)))
        return found

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each image, the oddest first."""
        return [
            {
                "image": self.names[place],
                "prediction": self.class_names[self.predicted[place]],
                "log_likelihood": finite(self.likelihood[place]),
                "p": finite(self.p[place]),
                "odd": bool(self.odd[place]) if np.isfinite(self.p[place]) else None,
            }
            for place in self.order()
        ]

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "images": len(self.names),
            "judged": self.judged,
            "odd": int(self.odd.sum()),
            "level": self.level,
            "p_more": self.p_more,
            "reference": {
                self.class_names[label]: {"learned": n, "held_out": self.held_out[label]}
                for label, n in self.learned.items()
            },
            "rows": self.rows(),
        }

    def save(self, folder: str | Path) -> None:
        """Write ``watch.csv`` and ``watch.json`` into a folder."""
        lines = io.StringIO()
        table = csv.DictWriter(
            lines, ["image", "prediction", "log_likelihood", "p", "odd"], lineterminator="\n"
        )
        table.writeheader()
        table.writerows(self.rows())
        write_text(Path(folder) / "watch.csv", lines.getvalue())
        write_json(Path(folder) / "watch.json", self.to_json())

    def __str__(self) -> str:
        text = (
            f"{int(self.odd.sum())} of {self.judged} predictions are made in an unusual way; on "
            f"images like the reference, {self.level:.0%} would be"
        )
        text += f" (p = {self.p_more:.2g})." if self.judged else "."
        if missing := len(self.names) - self.judged:
            text += f" Nothing can be said of {missing}: the reference lacks images of their class."
        return text


@undisturbed
@checked(level=INSIDE, limit=SOME, batch_size=BATCH, seed=SEED)
def watch(
    model: nn.Module,
    reference: Dataset[Any],
    data: Dataset[Any],
    *,
    level: float = 0.05,
    limit: int | None = 2000,
    batch_size: int = 64,
    seed: int = 0,
) -> Watched:
    """Say for each new image whether the prediction is carried by the usual channels.

    For each predicted class, a Gaussian mixture describes which channels carry the prediction on a
    reference (PCX, Dreyer et al. 2024, "Understanding the (extra-)ordinary"); the likelihood of a
    new image is compared with those of other images of the reference, which the mixture has not
    seen. No labels of the new images are needed, and nothing is said about whether predictions are
    right.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode, returning shape (N, classes). Never changed.
    reference : Dataset
        Images on which the network is known to work, such as those that it was validated on; with
        labels only those that are right count. Images of a slide (`niwaki.data.Described`) are
        kept together: other slides are held out.
    data : Dataset
        New images. Labels are not used.
    level : float
        Share of usual images that are called odd.
    limit : int, optional
        Largest number of images of the reference; None: all.
    batch_size : int
        For the network.
    seed : int
        Seed of the sample, the halves and the mixtures.

    Returns
    -------
    Watched
        A likelihood, its p-value, and whether it is odd, for each image.

    Raises
    ------
    DataError
        A reference with fewer than 40 images of one predicted class.

    Examples
    --------
    >>> found = niwaki.auditing.watch(model, validation, new_images)
    >>> found.odd
    """
    models.check(model)
    chosen = sample(reference, limit, seed)
    subset = Subset(reference, chosen)
    judged, _ = explaining(model, reference, "gradient", "predicted", {})
    known, labels = _inside(judged, subset, batch_size, "looking at the reference")
    predicted = known.outputs.argmax(1)
    if (labels >= 0).all():
        check_labels(torch.from_numpy(labels), known.outputs.shape[1], reference)
        right = predicted == labels
    else:
        right = np.ones(len(predicted), bool)
    groups = groups_of(reference)
    slides = np.asarray(chosen) if groups is None else groups[chosen]
    values = relevance_of(known)
    mixtures = {}
    for label in np.unique(predicted):
        mine = right & (predicted == label)
        usual = usual_of(values[mine], slides[mine], seed) if mine.sum() >= FEWEST else None
        if usual is not None:
            mixtures[int(label)] = usual
    if not mixtures:
        raise DataError(
            f"the reference has no class of which the network gets {FEWEST} images right, from "
            "several slides; add images"
        )
    new, _ = _inside(judged, data, batch_size, "watching")
    return _compared(new, mixtures, level, data, class_names_of(reference, new.outputs.shape[1]))


def relevance_of(latent: Latent) -> Array:
    """Return the relevance of the channels of all layers, shape (N, channels)."""
    return np.concatenate([latent.relevance[layer] for layer in latent.layers], 1)


def _inside(
    model: nn.Module, data: Dataset[Any], batch_size: int, description: str
) -> tuple[Latent, Array]:
    parts, labels = [], []
    dimension: dict[str, int] = {}
    for inputs, truth in batches(data, batch_size, models.home(model), description=description):
        dimension = dimension or channels_of(model, inputs[:1])
        parts.append(look_inside(model, inputs, dimension))
        labels.append(truth.cpu().numpy())
    return joined(parts), np.concatenate(labels)


def _compared(
    new: Latent,
    mixtures: dict[int, Usual],
    level: float,
    data: Any,
    class_names: tuple[str, ...],
) -> Watched:
    predicted, values = new.outputs.argmax(1), relevance_of(new)
    likelihood, p = np.full(len(predicted), np.nan), np.full(len(predicted), np.nan)
    for label, usual in mixtures.items():
        mine = predicted == label
        if mine.any():
            likelihood[mine], p[mine] = usual.judge(values[mine])
    names = names_of(data) or tuple(str(number) for number in range(len(predicted)))
    return Watched(
        tuple(names),
        predicted,
        likelihood,
        p,
        level,
        class_names,
        {label: usual.learned for label, usual in mixtures.items()},
        {label: len(usual.held_out) for label, usual in mixtures.items()},
    )
