"""Confirmed: do predictions depend on what a person found that should not decide?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from niwaki.arrays import Array
from niwaki.auditing._centres import centred
from niwaki.auditing._concepts import FEWEST, Concept, concept_of, separation
from niwaki.auditing._feature_swap import (
    layer_means,
    outputs_changed,
    outputs_moved,
    random_step,
)
from niwaki.auditing._finding import Finding
from niwaki.auditing._interventions import TRIED, Cause, compare_outputs, some
from niwaki.auditing._material import Material
from niwaki.auditing._outliers import RARE
from niwaki.auditing._power import of_mark
from niwaki.auditing._question import Evidence, question
from niwaki.auditing._statistics import group_test

SMALLEST = 1.5
_CONTROLS = 5


@question(
    "confirmed", "If images are confirmed: do predictions depend on what they have in common?"
)
def find_confirmed(evidence: Evidence, rng: np.random.Generator) -> Iterator[Finding]:
    """Ask for each set of images that a person accepted whether predictions depend on the thing.

    Seen: what one half of the accepted images have in common inside the network tells the other
    half from the rest of their class. Cause: its direction is taken out of the layer's channels, or
    added to those of images of other classes, and predictions become wrong more often than by as
    much along random directions.
    """
    for name, accepted in evidence.confirmed.items():
        yield _find(evidence, name, accepted, rng)


def _find(evidence: Evidence, name: str, accepted: Array, rng: np.random.Generator) -> Finding:
    material = evidence.material
    label = int(np.bincount(material.labels[accepted]).argmax())
    who, members = material.class_names[label], material.members(label)
    accepted = accepted[material.labels[accepted] == label]
    finding = Finding(
        key=f"confirmed/{who}/{name}",
        title=f"what was confirmed as {name} (class {who})",
        question=f"Do predictions depend on what images of class {who!r}, confirmed as {name!r}, "
        "have in common?",
        label=label,
        effect=0.0,
        effect_name="how well half of the images tell the others, in multiples of guessing",
        smallest=SMALLEST,
        p_seen=1.0,
        examples=tuple(accepted[:8].tolist()),
        having=tuple(accepted.tolist()),
        power=of_mark(len(members), 2 * FEWEST, evidence.tries[label], TRIED),
        numbers={"images_confirmed": float(len(accepted))},
    )
    if len(accepted) < 2 * FEWEST:
        return replace(finding, note=f"Accept {2 * FEWEST} images or more: halves are compared.")
    half = rng.permutation(accepted)[: len(accepted) // 2]
    held = np.setdiff1d(accepted, half)
    scores = concept_of(evidence.latent, material.labels, half).scores
    compared = np.union1d(np.setdiff1d(members, half), held)
    inside = np.isin(compared, held)
    effect = 2 * separation(scores[compared][inside], scores[compared][~inside])
    ranks = scores[compared].argsort().argsort().astype(float)
    p = group_test(ranks, inside, rng, material.draws)
    finding = replace(finding, effect=effect, p_seen=p)
    if not finding.suspicious():
        return finding
    concept = concept_of(evidence.latent, material.labels, accepted)
    return _tried(evidence, finding, name, accepted, concept, rng)


def _tried(
    evidence: Evidence,
    finding: Finding,
    name: str,
    accepted: Array,
    concept: Concept,
    rng: np.random.Generator,
) -> Finding:
    material, members = evidence.material, evidence.material.members(finding.label)
    least = _least_score(concept.scores, accepted, members)
    retrieved = np.setdiff1d(members[concept.scores[members] >= least], accepted)
    having = np.concatenate([accepted, retrieved[np.argsort(-concept.scores[retrieved])]])
    rest = np.setdiff1d(members, having)
    means = layer_means(material, concept.layer)
    if means is None or len(rest) < FEWEST:
        return replace(finding, note="Not tried: its direction cannot be taken out of the layer.")
    difference = means[having].mean(0) - means[rest].mean(0)
    within = centred(means, material.labels)
    part = material.select(some(having, rng))
    usual = means[rest].mean(0)
    cause = _taken_out(part, concept.layer, (usual, difference), within, rng)
    others = np.flatnonzero(material.labels != finding.label)
    spread = _put_on(material.select(some(others, rng)), concept.layer, difference, within, rng)
    who = material.class_names[finding.label]
    return replace(
        finding,
        cause=cause,
        spread=spread,
        examples=tuple(having[:8].tolist()),
        having=tuple(having.tolist()),
        ordinary=tuple(rest[np.argsort(concept.scores[rest])][:8].tolist()),
        numbers={
            **finding.numbers,
            "images_retrieved": float(len(retrieved)),
            "auc_of_retrieval": concept.auc,
        },
        sentence=f"{len(having)} images of class {who!r} have what was confirmed as {name!r} "
        f"({len(accepted)} accepted, {len(retrieved)} retrieved by it). Taken out of the channels "
        f"of {concept.layer!r}, it turns {cause.flips:.0%} of them wrong; as much along random "
        f"directions, {cause.control_flips:.0%}. Added to images of other classes, it turns "
        f"{spread.flips:.0%} of them wrong; random directions, {spread.control_flips:.0%}.",
        advice="Look at the retrieved images too. Then repair: mask or spread the thing and train "
        "again, or take its direction out for good (`niwaki.auditing.project_out`).",
    )


def _least_score(scores: Array, accepted: Array, members: Array) -> float:
    """Return the score from which on an image of the class is taken to have the thing.

    It is nearer to the accepted images than to the middle of the others, and more than what 98 % of
    the other classes' images have.
    """
    middle = (np.median(scores[accepted]) + np.median(scores[np.setdiff1d(members, accepted)])) / 2
    others = np.setdiff1d(np.arange(len(scores)), members)
    rare = np.quantile(scores[others], 1 - RARE) if len(others) else middle
    return float(max(middle, rare))


def _taken_out(
    part: Material,
    layer: str,
    between: tuple[Array, Array],
    within: Array,
    rng: np.random.Generator,
) -> Cause:
    """Set the direction between images with and without a thing to what those without have."""
    usual, difference = between
    direction = difference / max(float(np.linalg.norm(difference)), 1e-12)
    middle, along = torch.from_numpy(usual), torch.from_numpy(direction)

    def outputs(step: Array) -> Array:
        move = torch.from_numpy(step)

        def change(output: Tensor, _: Array) -> Tensor:
            last = output.movedim(1, -1)
            amount = (last - middle.to(output)) @ along.to(output)
            return (last - amount[..., None] * move.to(output)).movedim(-1, 1)

        return outputs_changed(part, layer, change)

    steps = [direction, *(random_step(within, 1.0, rng) for _ in range(_CONTROLS))]
    return compare_outputs(part, np.stack([outputs(step) for step in steps]), rng, slides=True)


def _put_on(
    part: Material, layer: str, difference: Array, within: Array, rng: np.random.Generator
) -> Cause:
    """Give images what those with a thing have more of than those without."""
    size = float(np.linalg.norm(difference))
    steps = [difference, *(random_step(within, size, rng) for _ in range(_CONTROLS))]
    said = [outputs_moved(part, layer, np.tile(step, (len(part), 1))) for step in steps]
    return compare_outputs(part, np.stack(said), rng, slides=True)
