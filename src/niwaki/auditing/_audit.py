"""The audit: all questions to one network and one data set."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import Dataset

from niwaki.auditing._annotations import by_stain
from niwaki.auditing._candidates import Candidate, find_candidates, places_of
from niwaki.auditing._centre_table import centres_of
from niwaki.auditing._finding import Finding, decide
from niwaki.auditing._material import Material, gather
from niwaki.auditing._question import Evidence, Question, choose, generator_of
from niwaki.auditing._result import Audit
from niwaki.auditing._spray import find_strategies
from niwaki.auditing._statistics import auc
from niwaki.auditing._training import Training, gather_training
from niwaki.contexts import undisturbed
from niwaki.data import check_same_classes, known_of
from niwaki.errors import (
    DataError,
    LeftOutWarning,
    NearChanceWarning,
    NiwakiError,
    NothingToPruneError,
)
from niwaki.evaluation import near_chance
from niwaki.progress import track
from niwaki.ranges import BATCH, SEED, SOME, checked
from niwaki.runs import Folder, within
from niwaki.stages import stage


@undisturbed
@checked(limit=SOME, batch_size=BATCH, seed=SEED)
def audit(
    model: nn.Module,
    data: Dataset[Any],
    *,
    method: str = "lrp.epsilon_plus",
    target: Literal["predicted", "true"] = "predicted",
    limit: int | None = 1000,
    batch_size: int = 64,
    seed: int = 0,
    tissue: bool = False,
    training: Dataset[Any] | None = None,
    confirmed: Mapping[str, Sequence[Any]] | None = None,
    questions: Sequence[str] | None = None,
    folder: Folder = None,
    **options: Any,
) -> Audit:
    """Look for what a network should not be looking at, over a data set.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode, returning shape (N, classes). Never changed.
    data : Dataset
        A data set of pairs (input of shape (C, H, W), label): the data that the network was trained
        on, or data held out from them, as both contain a bias. What else is known about the images
        comes with them, as attributes or by `niwaki.data.Described`: the preprocessing, the names
        of the classes, the slide or patient of each image (so that a property of a slide is not
        mistaken for one of its class), the hospital or scanner that it comes from, and regions to
        ask about.
    method : str
        One of `niwaki.attribution.names`.
    target : {"predicted", "true"}
        The class that is explained.
    limit : int, optional
        Largest number of images, as many of each class as possible; None: all.
    batch_size : int
        For the network.
    seed : int
        Seed of everything that is drawn: the sample, the permutations, positions and donors.
    tissue : bool
        The images are H&E stained tissue: relevance is also sorted by stain.
    training : Dataset, optional
        The images that the network learned from, if `data` are others. The audit then also asks
        whether some of `data` are of a kind that training lacks. If `data` come with groups, the
        training images need groups too, with the same names.
    confirmed : mapping of str to sequence, optional
        The name of something that should not decide, and the images in which a person has seen it:
        names of their files, or their indices in `data`. See `Audit.candidates` and
        `read_confirmed`.
    questions : sequence of str, optional
        Those to ask, of `niwaki.auditing.question_names`; default: all. Each has random numbers of
        its own, and p-values are corrected for all that are asked.
    folder : str or Path, optional
        Keeps finished batches; the same call resumes from there.
    **options
        Options of the method.

    Returns
    -------
    Audit
        The questions asked, with effect sizes, corrected p-values, examples and sentences.

    Raises
    ------
    ModelError, DataError
        For a network or data that cannot be audited.
    ValueError
        For a question that does not exist.

    Examples
    --------
    >>> found = niwaki.audit(model, test_set)
    """
    started = time.perf_counter()
    chosen = choose(questions)
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
        folder=within(folder, "audited"),
        **options,
    )
    _check_classes(material.labels)
    learned = None
    if training is not None:
        place = within(folder, "training")
        learned = gather_training(material, training, limit=limit, seed=seed, folder=place)
    return _examine(material, chosen, seed, tissue, learned, started, confirmed)


@checked(seed=SEED)
def examine(
    material: Material,
    *,
    seed: int = 0,
    tissue: bool = False,
    training: Training | None = None,
    confirmed: Mapping[str, Sequence[Any]] | None = None,
    questions: Sequence[str] | None = None,
) -> Audit:
    """Ask questions about images and heatmaps that exist already; see `audit`.

    `gather_training` makes what is needed of the images that the network learned from.
    """
    return _examine(
        material, choose(questions), seed, tissue, training, time.perf_counter(), confirmed
    )


@stage("asking")
def _examine(
    material: Material,
    questions: Sequence[Question],
    seed: int,
    tissue: bool,
    training: Training | None,
    started: float,
    confirmed: Mapping[str, Sequence[Any]] | None,
) -> Audit:
    said = near_chance(material.outputs.argmax(1), material.labels)
    if said:
        warnings.warn(f"audit: {said}", NearChanceWarning, stacklevel=3)
    strategies = tuple(find_strategies(material, seed=seed))
    evidence = Evidence(material, strategies, training, places_of(material, confirmed or {}))
    findings = [
        finding
        for asked in track(questions, "asking")
        for finding in asked.find(evidence, generator_of(asked.name, seed))
    ]
    return Audit(
        tuple(with_echoes(decide(findings, reliable=said is None))),
        strategies,
        material.mean_maps(),
        by_stain(material) if tissue else {},
        float(material.right.mean()),
        auc(material.outputs, material.labels),
        material,
        time.perf_counter() - started,
        seed,
        centres_of(evidence),
        _candidates(evidence, seed),
    )


def _candidates(evidence: Evidence, seed: int) -> tuple[Candidate, ...]:
    """Return groups of images for a person to judge; none where nothing is known of the inside.

    Networks without hidden layers have no inside. Any other reason is told.
    """
    try:
        return find_candidates(evidence.material, evidence.latent, seed)
    except NiwakiError as error:
        if not isinstance(error.__cause__, NothingToPruneError):
            warnings.warn(
                f"no candidates are shown for a person to judge: {error}",
                LeftOutWarning,
                stacklevel=3,
            )
        return ()


def _check_classes(labels: Sequence[int] | NDArray[Any]) -> None:
    """Refuse a data set of one class, if its labels are known before anything is computed."""
    if len(labels) > 0 and len({int(label) for label in labels}) == 1:
        raise DataError(
            f"all {len(labels)} images are of one class, and an audit compares classes: add images "
            "of other classes"
        )


def _check_alike(training: Dataset[Any], data: Dataset[Any]) -> None:
    """Refuse training images that would be unlike all others because of how they were read."""
    check_same_classes(training, data, "the training images and the audited ones")
    ways = [known_of(images, "preprocessing") for images in (training, data)]
    if None not in ways and ways[0] != ways[1]:
        raise DataError(
            f"training images are prepared by {ways[0]}, the audited ones by {ways[1]}: prepare "
            "both in the same way, or all of them are unlike"
        )


PIXELS = 0.5  # share of the smaller place that lies in the other, on average over examples
IMAGES = 0.5  # share of the images of both findings that have both


def with_echoes(findings: Sequence[Finding]) -> list[Finding]:
    """Say of each finding which stronger one it is an echo of.

    Two findings are of one cause if they are about the same pixels, whatever the class, or about
    the same images of a class. Answers do not change, nor does their order.

    Parameters
    ----------
    findings : sequence of Finding
        As `decide` returns them: the flagged first, strongest first.
    """
    heads: list[Finding] = []
    found = []
    for finding in findings:
        head = next((one for one in heads if _is_one_cause(one, finding)), None)
        if finding.flagged and head is None:
            heads.append(finding)
        found.append(replace(finding, echo_of=head.key if finding.flagged and head else ""))
    return found


def _is_one_cause(one: Finding, other: Finding) -> bool:
    return _same_pixels(one, other) or (one.label == other.label and _same_images(one, other))


def _same_pixels(one: Finding, other: Finding) -> bool:
    """Whether the places of both lie in each other, on the images that show them."""
    overlaps = []
    for first, second in ((one, other), (other, one)):
        for place, position in enumerate(first.examples):
            here = first.outline(place)
            if second.region is not None:
                there = second.region
            elif second.outlines is not None and position in second.examples:
                there = second.outlines[second.examples.index(position)]
            else:
                continue
            if here is not None and here.any() and there.any():
                overlaps.append((here & there).sum() / min(here.sum(), there.sum()))
    return bool(overlaps) and float(np.mean(overlaps)) >= PIXELS


def _same_images(one: Finding, other: Finding) -> bool:
    """Whether it is the same images that have both, as far as that is a part of the class."""
    first, second = set(one.having), set(other.having)
    both = first | second
    return bool(first and second) and len(first & second) >= IMAGES * len(both)
