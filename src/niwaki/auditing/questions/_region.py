"""Region: does relevance gather on regions that somebody has marked, and does it matter?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from niwaki.arrays import Array
from niwaki.auditing._annotations import discs
from niwaki.auditing._finding import Finding
from niwaki.auditing._interventions import TRIED, compare_regions, compare_spread
from niwaki.auditing._material import Material
from niwaki.auditing._power import Power, of_place
from niwaki.auditing._question import Evidence, question
from niwaki.auditing._statistics import shifted
from niwaki.errors import DataError

SMALLEST = 1.5
FEWEST = 5  # images of a class that have the region
_POINT = 1 / 16  # radius of a point's disc, as a share of the image's side


@question("region", "If regions are marked: does relevance gather there?")
def find_regions(evidence: Evidence, rng: np.random.Generator) -> Iterator[Finding]:
    """Ask for each class and each marked region whether relevance gathers there.

    The null is that of places: the same heatmap at random places of the same image. A suspicion is
    tried by painting the region over from its surroundings, against the same shape at random
    places of the same image, and by putting it on images of other classes, against other parts of
    the same images.

    Raises
    ------
    DataError
        Masks of another size than the inputs, or too few masks or points for the data set.
    """
    material = evidence.material
    for name, given in material.regions.items():
        masks = _masks(material, name, given)
        for label in material.classes():
            members = material.members(label)
            with_it = members[masks[members].any((1, 2))]
            yield _find(evidence, name, label, with_it, masks[with_it], rng)


def _find(
    evidence: Evidence,
    name: str,
    label: int,
    with_it: Array,
    masks: Array,
    rng: np.random.Generator,
) -> Finding:
    material = evidence.material
    who = material.class_names[label]
    strength = material.strength(with_it)
    share, expected, p, power = 0.0, 1.0, 1.0, Power(len(with_it), lambda *_: 0.0)
    if len(with_it) >= FEWEST:
        shifts = shifted(strength, masks.astype(float), rng, material.draws)
        share, expected, p = shifts.share, shifts.expected, shifts.p
        power = of_place(shifts, SMALLEST, evidence.tries[label], TRIED)
    order = np.argsort(-(strength * masks).sum((1, 2)))[:8]
    finding = Finding(
        key=f"region/{who}/{name}",
        title=f"region {name!r} (class {who})",
        question=f"Does the network look at {name!r} in images of class {who!r}?",
        label=label,
        effect=share / expected,
        effect_name="relevance there, in multiples of the region's share of the area",
        smallest=SMALLEST,
        p_seen=p,
        examples=tuple(int(position) for position in with_it[order]),
        having=tuple(with_it.tolist()),
        outlines=masks[order],
        power=power,
        numbers={
            "images_with_it": float(len(with_it)),
            "share": share,
            "expected": expected if len(with_it) else 0.0,
        },
    )
    if not finding.suspicious():
        return finding
    cause = compare_regions(material, with_it, masks, "inpaint", rng)
    spread = compare_spread(material, with_it, masks, np.flatnonzero(material.labels != label), rng)
    return replace(
        finding,
        cause=cause,
        spread=spread,
        sentence=f"For class {who!r} the network looks at {name!r}: {share:.0%} of the relevance "
        f"lies there, on {expected:.0%} of the area ({len(with_it)} images have it). Painted over "
        f"from its surroundings, it turns {cause.flips:.0%} of these images wrong; the same shape "
        f"at a random place, {cause.control_flips:.0%}. Put on images of other classes, it turns "
        f"{spread.flips:.0%} of them wrong; other parts of the same images, "
        f"{spread.control_flips:.0%}.",
        advice=f"Decide whether {name!r} is a sign of class {who!r}. If it is not: paint it over, "
        "or have it on images of all classes alike, and train again.",
    )


def _masks(material: Material, name: str, given: Array | Sequence[Array]) -> Array:
    """Return the masks of the audit's sample, shape (N, H, W)."""
    height, width = material.relevance.shape[1:]
    if len(given) <= int(material.indices.max()):
        raise DataError(
            f"region {name!r} is given for {len(given)} images, but the data set has "
            f"{int(material.indices.max()) + 1} or more; give one mask, or one list of points, "
            "for each"
        )
    chosen = [np.asarray(given[int(index)]) for index in material.indices]
    if all(one.shape == (height, width) for one in chosen):
        return np.stack(chosen).astype(bool)
    if all(one.size == 0 or (one.ndim == 2 and one.shape[1] == 2) for one in chosen):
        points = [one.reshape(-1, 2) for one in chosen]
        return discs(points, height, width, _POINT * min(height, width)) > 0
    shapes = sorted({one.shape for one in chosen})
    raise DataError(
        f"region {name!r} has entries of shape {shapes[:3]}; masks must be of the inputs' size, "
        f"({height}, {width}), points of shape (points, 2)"
    )
