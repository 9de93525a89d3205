"""Training: are there images of a class unlike any that the network learned from, on which it
fails?
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from niwaki.arrays import Array
from niwaki.auditing._finding import Finding
from niwaki.auditing._interventions import ErrorRates
from niwaki.auditing._material import Material
from niwaki.auditing._outliers import (
    FEWEST,
    RARE,
    SMALLEST,
    chance_of_outliers,
    outlier_score,
    share_of_outliers,
)
from niwaki.auditing._power import Exchanged, Power, of_errors
from niwaki.auditing._question import Evidence, question
from niwaki.auditing._statistics import DIMENSIONS, Exchange, components, group_test
from niwaki.auditing._training import Training, statistics_of

_MORE_ERRORS = 0.05  # share of the unlike images, above that of the others, that is worth an alarm


@question("training", "If training is known: is a part of a class unlike all of it?")
def find_missing(evidence: Evidence, rng: np.random.Generator) -> Iterator[Finding]:
    """Ask for each class whether a part of its images is unlike the training images of the class.

    Seen: so many images are farther from the nearest training images than 98 % of the training
    images are from each other, more than if images for training were drawn from all of them. Of
    slides, whole ones are drawn. What follows: the network is wrong on them more often than on the
    class's other images or, where hardly any others are left, than on those of training.
    """
    material, training = evidence.material, evidence.training
    if training is None:
        return
    features = statistics_of(material, training.layers)
    for label in material.classes():
        yield _find(material, training, features, label, rng)


def _find(
    material: Material, training: Training, features: Array, label: int, rng: np.random.Generator
) -> Finding:
    mine, learned = material.members(label), np.flatnonzero(training.labels == label)
    is_new = np.arange(len(learned) + len(mine)) >= len(learned)
    groups = np.concatenate([training.groups[learned], training.audited[mine]])
    who = material.class_names[label]
    finding = Finding(
        key=f"training/{who}/unlike",
        title=f"images unlike any in training (class {who})",
        question=f"Are there images of class {who!r} unlike any that the network learned from, on "
        "which it fails?",
        label=label,
        effect=0.0,
        effect_name="images as far from those of training as the farthest 2 % of training are "
        "from each other, in multiples of these 2 %",
        smallest=SMALLEST,
        p_seen=1.0,
        power=Power(len(mine), lambda *_: 0.0),
    )
    if min(len(mine), len(learned)) <= DIMENSIONS:
        return replace(finding, note="Of so few images it cannot be told.")
    if len(set(training.groups[learned].tolist())) < 2:
        return replace(finding, note="Of training images of one slide it cannot be told.")
    score = outlier_score(
        components(np.concatenate([training.features[learned], features[mine]])), groups
    )
    share, beyond = share_of_outliers(score, is_new)
    effect = share / RARE
    large = effect >= SMALLEST and beyond.sum() >= FEWEST
    unlike = beyond[is_new]
    far = score(~is_new)[is_new]
    exchange = Exchange(is_new.astype(int), groups)
    wrong = ~material.right[mine]
    ordered = mine[np.lexsort((-far, ~wrong, ~unlike))]
    finding = replace(
        finding,
        effect=effect,
        p_seen=chance_of_outliers(score, 1, share, exchange, rng, large, material.draws),
        examples=tuple(ordered[: min(8, unlike.sum())].tolist()),
        ordinary=tuple(mine[np.argsort(far, kind="stable")][: min(8, (~unlike).sum())].tolist()),
        having=tuple(mine[unlike].tolist()),
        power=of_errors(
            Exchanged(is_new, groups, material.draws),
            float(wrong[~unlike].mean()) if not unlike.all() else 0.0,
            len(learned),
            float(1 - training.right[learned].mean()),
        ),
        numbers={"images_unlike": float(unlike.sum()), "share_of_class": share},
    )
    if not (large and finding.suspicious()):
        return finding
    errors = wrong[unlike], wrong[~unlike], ~training.right[learned]
    return _compared(finding, errors, who, material.draws, rng)


def _compared(
    finding: Finding,
    wrong: tuple[Array, Array, Array],
    who: str,
    draws: int,
    rng: np.random.Generator,
) -> Finding:
    """Compare errors on images that are unlike training with those on the others of the class.

    Which are wrong is given for the unlike, for the others, and for the training images.
    """
    unlike, rest, learned = wrong
    # Where a whole data set is of another kind, there are no others to compare with.
    others = rest if len(rest) >= FEWEST else learned
    whose = "of the class's other images" if others is rest else "of the class's training images"
    here, elsewhere = float(unlike.mean()), float(others.mean())
    together = np.concatenate([unlike, others]).astype(float)
    p = group_test(together, np.arange(len(together)) < len(unlike), rng, draws)
    share = finding.numbers["share_of_class"]
    return replace(
        finding,
        cause=ErrorRates(here, elsewhere, here, elsewhere, p, len(together)),
        smallest_drop=elsewhere + _MORE_ERRORS,
        note=f"There are such images, {share:.0%} of the class, but it does not fail on them "
        f"clearly more often: {here:.0%} are wrong, {whose} {elsewhere:.0%}.",
        sentence=f"{share:.0%} of the images of class {who!r} are unlike any that the network "
        f"learned from. It gets {here:.0%} of them wrong; {whose}, {elsewhere:.0%}.",
        advice="See what they have in common: it is a kind of image that training lacks. Add such "
        "images to training (`niwaki.auditing.balanced` draws few of them more often) and audit "
        "again; until then the network's answers to them cannot be trusted.",
    )
