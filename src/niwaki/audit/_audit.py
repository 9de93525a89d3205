"""The audit: all questions to one network and one data set, and their answers."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import Dataset

from niwaki.audit._colours import ask_colours, by_stain
from niwaki.audit._finding import ALPHA, Finding, decide
from niwaki.audit._material import Material, gather
from niwaki.audit._measures import auc
from niwaki.audit._portable import ask_strategies
from niwaki.audit._quality import ask_quality
from niwaki.audit._regions import Regions, ask_regions
from niwaki.audit._strategies import Strategies, find_strategies
from niwaki.audit._training import Training, ask_training, look_over
from niwaki.audit._where import ask_where, mean_maps
from niwaki.data import Preprocessing, check_same_classes
from niwaki.errors import DataError, NearChanceWarning
from niwaki.evaluation import near_chance
from niwaki.files import write_json
from niwaki.progress import track
from niwaki.ranges import BATCH, SEED, SOME, checked
from niwaki.runs import Folder, within

__all__ = ["Audit", "audit", "examine"]


@dataclass(frozen=True, eq=False)
class Audit:
    """What an audit found.

    Attributes
    ----------
    findings : tuple of Finding
        All questions with their answers; the flagged come first.
    strategies : tuple of Strategies
        Clusters of heatmaps, by class and kind of features.
    maps : dict of int to ndarray
        Each class's mean map of relevance, (H, W), 1 where it is as strong as on average.
    stains : dict
        By class and stain, the share of area and of relevance; empty unless the images are H&E.
    accuracy, auc : float
        Of the network on the audit's images; the AUC is the mean over classes, one against all.
    material : Material
        The images and heatmaps, for pictures.
    seconds : float
        How long it took.
    """

    findings: tuple[Finding, ...]
    strategies: tuple[Strategies, ...]
    maps: dict[int, NDArray[Any]]
    stains: dict[str, dict[str, dict[str, float]]]
    accuracy: float
    auc: float
    material: Material
    seconds: float

    @property
    def caution(self) -> str | None:
        """What makes all answers doubtful: a network that is hardly better than guessing."""
        return near_chance(self.material.outputs.argmax(1), self.material.labels)

    @property
    def flagged(self) -> tuple[Finding, ...]:
        """The questions answered by yes, strongest first."""
        return tuple(finding for finding in self.findings if finding.flagged)

    def get(self, key: str) -> Finding:
        """Return the question of that key; KeyError names those there are."""
        for finding in self.findings:
            if finding.key == key:
                return finding
        raise KeyError(f"no question {key!r}; there are {[f.key for f in self.findings]}")

    def to_json(self) -> dict[str, Any]:
        """Return plain data, without images."""
        return {
            "images": len(self.material),
            "groups": len(set(self.material.groups.tolist())),
            "classes": list(self.material.class_names),
            "method": self.material.method,
            "accuracy": self.accuracy,
            "auc": self.auc,
            "caution": self.caution,
            "alpha": ALPHA,
            "correction": "Holm",
            "questions": len(self.findings),
            "flagged": [finding.key for finding in self.flagged],
            "findings": [finding.to_json() for finding in self.findings],
            "stains": self.stains,
            "strategies": [
                {
                    "class": self.material.class_names[found.label],
                    "features": found.features,
                    "eigenvalues": [round(float(v), 6) for v in found.eigenvalues],
                    "clusters": [
                        {
                            "number": cluster.number,
                            "images": len(cluster),
                            "separate": cluster.separate,
                            "consistent": cluster.consistent,
                            "class_bound": cluster.class_bound,
                        }
                        for cluster in found.clusters
                    ],
                }
                for found in self.strategies
            ],
            "seconds": round(self.seconds, 1),
        }

    def save(self, path: str | Path) -> None:
        """Write `to_json` to a file."""
        write_json(path, self.to_json())

    def __str__(self) -> str:
        head = (
            f"{len(self.findings)} questions to {len(self.material)} images (accuracy "
            f"{self.accuracy:.1%}, AUC {self.auc:.3f}): {len(self.flagged)} answered by yes"
        )
        doubt = [f"CAUTION: {self.caution}."] if self.caution else []
        return "\n".join([*doubt, head, *(f"* {f.sentence} (p = {f.p:.2g})" for f in self.flagged)])

    def __repr__(self) -> str:
        return f"Audit({len(self.flagged)} of {len(self.findings)} questions flagged)"


@checked(limit=SOME, batch_size=BATCH, seed=SEED)
def audit(
    model: nn.Module,
    data: Dataset[Any],
    *,
    method: str = "lrp.epsilon_plus",
    target: str = "predicted",
    limit: int | None = 1000,
    batch_size: int = 64,
    seed: int = 0,
    tissue: bool = False,
    regions: Regions | None = None,
    preprocessing: Preprocessing | None = None,
    class_names: Sequence[str] | None = None,
    groups: Sequence[Any] | NDArray[Any] | None = None,
    training: Dataset[Any] | None = None,
    training_groups: Sequence[Any] | NDArray[Any] | None = None,
    folder: Folder = None,
    **options: Any,
) -> Audit:
    """Look for what a network should not be looking at, over a data set.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode, returning shape (N, classes). Never changed.
    data : Dataset
        Of pairs (input of shape (C, H, W), label): the data the network was trained on, or held
        back from them, as a bias lives in both.
    method : str
        One of `niwaki.attribution.names`.
    target : {"predicted", "true"}
        The class that is explained.
    limit : int, optional
        Largest number of images, as many of each class as possible; None: all.
    batch_size : int
        For the network.
    seed : int
        Of everything that is drawn: the sample, the permutations, places and donors.
    tissue : bool
        The images are H&E stained tissue: relevance is also sorted by stain.
    regions : mapping of str to ndarray or sequence of ndarray, optional
        Regions to ask about as well, by name. For each image of `data` a mask of the inputs' size,
        (N, H, W), bool; or its points, rows and columns of shape (points, 2), which count as discs
        of a 16th of the side.
    preprocessing, class_names
        See `gather`; by default the data set's own.
    groups : sequence, optional
        Of each image of `data` the slide, patient or source it was cut from. Images of a slide are
        alike, and with this what is a slide's is not taken for its class's: see `ask_quality`.
    training : Dataset, optional
        The images that the network learned from, if `data` are others: asks as well whether some of
        `data` are unlike any of them, a kind of image that training lacks: see `ask_training`.
    training_groups : sequence, optional
        Of each image of `training` its slide, patient or source, named as in `groups`.
    folder : str or Path, optional
        Keeps finished batches; the same call goes on from there.
    **options
        Of the method.

    Returns
    -------
    Audit
        The questions asked, with effect sizes, corrected p-values, examples and sentences.

    Raises
    ------
    ModelError, DataError
        For a network or data that cannot be audited.
    """
    started = time.perf_counter()
    if training is not None:
        _check_alike(training, data)
    _check_classes(getattr(data, "targets", ()))
    material = gather(
        model,
        data,
        method=method,
        target=target,
        limit=limit,
        batch_size=batch_size,
        seed=seed,
        preprocessing=preprocessing,
        class_names=class_names,
        groups=groups,
        folder=within(folder, "audited"),
        **options,
    )
    _check_classes(material.labels)
    learned = None
    if training is not None:
        learned = look_over(
            material,
            training,
            limit=limit,
            seed=seed,
            groups=training_groups,
            audited=groups,
            folder=within(folder, "training"),
        )
    return examine(
        material, seed=seed, tissue=tissue, regions=regions, training=learned, started=started
    )


def _check_classes(labels: Sequence[int] | NDArray[Any]) -> None:
    """Refuse a data set of one class, if its labels are known before anything is computed."""
    if len(labels) > 0 and len({int(label) for label in labels}) == 1:
        raise DataError(
            f"all {len(labels)} images are of one class, and an audit compares classes: add images "
            "of other classes"
        )


def _check_alike(training: Dataset[Any], data: Dataset[Any]) -> None:
    """Refuse training images that would be unlike all others by how they were read."""
    check_same_classes(training, data, "the training images and the audited ones")
    ways = [getattr(images, "preprocessing", None) for images in (training, data)]
    if None not in ways and ways[0] != ways[1]:
        raise DataError(
            f"training images are prepared by {ways[0]}, the audited ones by {ways[1]}: prepare "
            "both in the same way, or all of them are unlike"
        )


@checked(seed=SEED)
def examine(
    material: Material,
    *,
    seed: int = 0,
    tissue: bool = False,
    regions: Regions | None = None,
    training: Training | None = None,
    started: float | None = None,
) -> Audit:
    """Ask all questions to images and heatmaps that are there already; see `audit`.

    Of the images that the network learned from, `look_over` knows what is needed.
    """
    began = time.perf_counter() if started is None else started
    if said := near_chance(material.outputs.argmax(1), material.labels):
        warnings.warn(f"audit: {said}", NearChanceWarning, stacklevel=2)
    rng = np.random.default_rng(seed)
    strategies = find_strategies(material, seed=seed)
    families = (ask_where, ask_colours, ask_quality)
    findings = [f for ask in track(families, "asking") for f in ask(material, rng)]
    findings += ask_strategies(material, strategies, rng)
    findings += ask_regions(material, regions or {}, rng)
    findings += ask_training(material, training, rng)
    return Audit(
        tuple(decide(findings)),
        tuple(strategies),
        mean_maps(material),
        by_stain(material) if tissue else {},
        float(material.right.mean()),
        auc(material.outputs, material.labels),
        material,
        time.perf_counter() - began,
    )
