"""Quality: are there images of a class whose sharpness, compression or tint the
other classes hardly ever have, and does the network go by that?
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from niwaki.arrays import Array
from niwaki.auditing._finding import Finding
from niwaki.auditing._image_properties import PROPERTIES, Property
from niwaki.auditing._interventions import TRIED, Cause, compare_changes, some
from niwaki.auditing._material import Material, margins
from niwaki.auditing._on_disk import blocks
from niwaki.auditing._outliers import (
    FEWEST,
    RARE,
    SMALLEST,
    OutlierScore,
    chance_of_outliers,
    outlier_score,
    share_of_outliers,
)
from niwaki.auditing._power import Exchanged, Power, of_property
from niwaki.auditing._question import Evidence, question
from niwaki.auditing._statistics import Exchange

_MOVED = 0.1  # fall of the margin that counts, in its standard deviations


@question(
    "quality",
    "Does the network recognise a class by the sharpness, compression or tint of its images?",
)
def find_qualities(evidence: Evidence, rng: np.random.Generator) -> Iterator[Finding]:
    """Ask for each class and each property of whole images whether the network goes by it.

    Seen: so many of the class's images have more of the property than 98 % of the other classes'
    images, more than exchanged labels give. That finds a tenth of a class as well as all of it.
    Cause: the other classes' images get the property, as strongly as these have it, and the margin
    of their own class falls by more than under an unrelated change of equal size.
    """
    material = evidence.material
    classes = material.classes()
    if len(classes) < 2:  # nothing to tell apart
        return
    exchange = Exchange(material.labels, material.groups)
    powers = {label: _power(evidence, label) for label in classes}
    for name, quality in PROPERTIES.items():
        if quality.coloured and material.pixels.shape[1] != 3:
            continue
        score = outlier_score(
            np.concatenate([quality.measure(material.pixels[b]) for b in blocks(len(material))])
        )
        for label in classes:
            finding = _find(material, name, score, label, exchange, rng)
            yield replace(finding, power=powers[label])


def _power(evidence: Evidence, label: int) -> Power:
    """Return what could have been found of a class, whichever property it is."""
    material = evidence.material
    exchanged = Exchanged(material.labels == label, material.groups, material.draws)
    return of_property(exchanged, evidence.tries_of_others(label), TRIED)


def _find(
    material: Material,
    name: str,
    score: OutlierScore,
    label: int,
    exchange: Exchange,
    rng: np.random.Generator,
) -> Finding:
    quality, is_class = PROPERTIES[name], material.labels == label
    if min(is_class.sum(), (~is_class).sum()) < 2:  # of one image nothing is rare
        share, beyond = 0.0, np.zeros(len(is_class), bool)
    else:
        share, beyond = share_of_outliers(score, is_class)
    effect = share / RARE
    large = effect >= SMALLEST and beyond.sum() >= FEWEST
    who = material.class_names[label]
    finding = Finding(
        key=f"quality/{who}/{name}",
        title=f"{name} of the whole image (class {who})",
        question=f"Does the network know images of class {who!r} by the {name} of the whole image?",
        label=label,
        effect=effect,
        effect_name="images as far off as the farthest 2 % of the other classes, in multiples "
        "of these 2 %",
        smallest=SMALLEST,
        p_seen=chance_of_outliers(score, label, share, exchange, rng, large, material.draws),
        examples=tuple(_by_score(score, is_class, beyond)[:-9:-1]),
        having=tuple(np.flatnonzero(beyond).tolist()),
        ordinary=tuple(_by_score(score, is_class, is_class & ~beyond)[:8]),
        numbers={"images_with_it": float(beyond.sum()), "share_of_class": share},
    )
    if not (large and finding.suspicious()):
        return finding
    having = material.pixels[torch.as_tensor(some(np.flatnonzero(beyond), rng))]
    alike = _reference(material, quality, having, is_class, beyond, rng)
    if alike is None:
        return replace(finding, note=quality.otherwise)
    cause = _cause(material, quality, (having, alike), np.flatnonzero(~is_class), rng)
    return replace(
        finding,
        cause=cause,
        smallest_drop=_MOVED * float(margins(material.outputs, label).std()),
        sentence=f"{share:.0%} of the images of class {who!r} {quality.has}. Given to the other "
        f"classes' images, as strongly, it turns {cause.flips:.0%} of them wrong; an unrelated "
        f"change of the same size, {cause.control_flips:.0%}.",
        advice=quality.advice,
    )


def _reference(
    material: Material,
    quality: Property,
    having: Tensor,
    is_class: Array,
    beyond: Array,
    rng: np.random.Generator,
) -> Tensor | None:
    """Return images without the property to compare with, or None if what lies between is another
    thing: the rest of the class, which shows the same, or the other classes, where most have it.
    """
    groups = [(is_class & ~beyond, True)]
    if beyond.sum() >= is_class.sum() / 2:
        groups.append((~is_class, False))
    for group, same in groups:
        if group.sum() >= FEWEST:
            rest = material.pixels[torch.as_tensor(some(np.flatnonzero(group), rng))]
            if quality.fits(having, rest, same):
                return rest
    return None


def _by_score(score: OutlierScore, is_class: Array, chosen: Array) -> Array:
    """Return the positions of images, the farthest off last."""
    places = np.flatnonzero(chosen)
    ordered: Array = places[np.argsort(score(~is_class)[places], kind="stable")]
    return ordered


def _cause(
    material: Material,
    quality: Property,
    examples: tuple[Tensor, Tensor],
    others: Array,
    rng: np.random.Generator,
) -> Cause:
    """Give the property to the other classes' images, as images that have it and images that show
    the same without it say.
    """
    without = material.select(some(others, rng))
    given, unrelated = quality.give(*examples, without.pixels[:], rng)
    return compare_changes(without, (given, *unrelated), rng, worst=True)
