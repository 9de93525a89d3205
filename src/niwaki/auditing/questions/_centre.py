"""Centre: does the network go by the hospital, laboratory or scanner that an image is from?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from niwaki.arrays import Array
from niwaki.auditing._centres import CentreExchange, centred, told_by
from niwaki.auditing._feature_swap import layer_means, outputs_moved, random_step, step_between
from niwaki.auditing._finding import Finding
from niwaki.auditing._interventions import (
    TRIED,
    Cause,
    ErrorRates,
    compare_outputs,
    some,
)
from niwaki.auditing._material import Material, margins
from niwaki.auditing._power import Power, of_centre, of_centre_errors
from niwaki.auditing._question import Evidence, question
from niwaki.auditing._signature import (
    FEWEST,
    Look,
    looks,
    response,
    signature_between,
    signature_of_dye,
)

SMALLEST = 1.5
IMAGES = 10  # of a centre that is asked about
_CONTROLS = 5
_MORE_ERRORS = 0.05
_PUSHED = 100  # images that tell what a network answers to
_PUSH = 0.25  # how far their look is changed, in units of the spread between slides


@question("centre", "If centres are known: does the network go by where an image comes from?")
def find_centres(evidence: Evidence, rng: np.random.Generator) -> Iterator[Finding]:
    """Ask for each class whether images are taken for it because of their centre.

    Seen: among images of the same class, the stain and sharpness that the network answers to, or
    the channels that carry the prediction, tell the centre from the others better than if whole
    slides exchanged their centres; where no class has images of both, the centre goes with the
    class. Cause: images of other classes and centres get the centre's stain and sharpness, or its
    features in the last hidden layer, and their predictions become wrong more often than by
    changes of the same size in random directions.

    It also asks for each class whether the network fails on the images of one centre more often
    than on others.
    """
    centres = evidence.material.centres
    if centres is None:
        return
    names, counts = np.unique(centres, return_counts=True)
    kept = np.flatnonzero(np.isin(centres, names[counts >= IMAGES]))
    if len(names[counts >= IMAGES]) < 2 or len(evidence.material.classes()) < 2:
        return
    case = _Case(evidence, kept)
    for label in case.material.classes():
        yield from _of_class(case, label, rng)
        yield _errors(case, label, rng)


@dataclass(frozen=True, eq=False)
class _Case:
    """Images of the centres that are asked about, and what is known of them."""

    evidence: Evidence
    kept: Array

    @cached_property
    def material(self) -> Material:
        return self.evidence.material.select(self.kept)

    @cached_property
    def centres(self) -> Array:
        assert self.material.centres is not None
        return self.material.centres

    @cached_property
    def exchange(self) -> CentreExchange:
        return CentreExchange(self.centres, self.material.groups, self.material.labels)

    @cached_property
    def relevance(self) -> Array:
        """Relevance of the channels of all layers."""
        found = self.evidence.latent.relevance.values()
        return np.concatenate([part[self.kept] for part in found], 1)

    @cached_property
    def look(self) -> Look:
        return looks(self.material.pixels)

    @cached_property
    def layer(self) -> str:
        return self.evidence.latent.layers[-1]

    @cached_property
    def means(self) -> Array | None:
        return layer_means(self.material, self.layer)

    def overlap(self, is_centre: Array) -> bool:
        """Say whether some class has images of the centre and of others."""
        return any(
            min((is_centre & own).sum(), (~is_centre & own).sum()) >= FEWEST
            for own in (self.material.labels == label for label in self.material.classes())
        )


def _of_class(case: _Case, label: int, rng: np.random.Generator) -> Iterator[Finding]:
    """Ask about the centre whose images the network takes for the class most."""
    material = case.material
    toward = margins(material.outputs, label)
    names = np.unique(case.centres)
    centre = max(names, key=lambda name: toward[case.centres == name].mean())
    is_centre = case.centres == centre
    own = np.flatnonzero(is_centre & (material.labels == label))
    recipients = np.flatnonzero(~is_centre & (material.labels != label))
    who = material.class_names[label]
    exchanged = int((case.exchange.centre == centre).sum()), len(case.exchange.centre)
    slides = len(np.unique(material.groups[recipients]))
    tries = case.evidence.tries_of_others(label)
    for thing, what in (("look", "stain and sharpness"), ("features", "features")):
        effect, effect_name, p = _seen(case, label, thing, centre, rng)
        finding = Finding(
            key=f"centre/{who}/{thing}",
            title=f"{what} of centre {centre} (class {who})",
            question=f"Does the network take images for class {who!r} by the {what} of the centre "
            f"{centre!s}?",
            label=label,
            effect=effect,
            effect_name=effect_name,
            smallest=SMALLEST,
            p_seen=p,
            examples=tuple(case.kept[own[np.argsort(-toward[own])[:8]]].tolist()),
            having=tuple(case.kept[own].tolist()),
            power=of_centre(len(recipients), slides, tries, exchanged, TRIED),
            numbers={"images_of_centre": float(is_centre.sum())},
        )
        if finding.suspicious() and len(recipients) >= FEWEST:
            tried = some(recipients, rng)
            given = _look_given if thing == "look" else _features_given
            yield _tried(case, finding, str(centre), tried, given(case, is_centre, tried, rng))
        else:
            yield finding


def _seen(
    case: _Case, label: int, thing: str, centre: object, rng: np.random.Generator
) -> tuple[float, str, float]:
    """Say how the centre shows, or else how it goes with the class."""
    is_centre, draws = case.centres == centre, case.material.draws
    if case.overlap(is_centre):
        if thing == "look":
            values, tells = _pull(case, label, rng), "stain and sharpness that answers go by tell"
        else:
            values, tells = case.relevance, "channels' relevance tells"
        drawn = case.exchange.blocks(rng, draws)
        effect, p = told_by(values, case.material.labels, case.exchange, centre, drawn)
        if thing == "look":
            # Both directions count for `told_by`; the centre is the one of all that pulls most.
            p = min(1.0, p * len(np.unique(case.centres)) / 2)
        return effect, f"how well {tells} the centre, in multiples of chance", p
    whole = CentreExchange(case.centres, case.material.groups)
    has = (case.material.labels == label).astype(float)
    share, size = whole.means(has[:, None])[:, 0], np.bincount(whole.unit)
    null = np.concatenate(
        [
            ((part == centre) @ (share * size)) / ((part == centre) @ size)
            for part in whole.blocks(rng, draws)
        ]
    )
    observed = has[is_centre].mean()
    p = (1 + int((null >= observed - 1e-12).sum())) / (1 + len(null))
    name = "share of the class among the centre's images, in multiples of its share of all"
    return float(observed / has.mean()), name, p


def _pull(case: _Case, label: int, rng: np.random.Generator) -> Array:
    """Say how far the stain and sharpness of each image pull answers toward a class, shape (N, 1).

    Slides look different anyway. What counts is the part of their look that changes answers, and
    the images that say so are of all centres alike.
    """
    table = case.look.table
    slides = centred(
        case.exchange.means(centred(table, case.material.labels)), case.exchange.stratum
    )
    others = rng.permutation(np.flatnonzero(case.material.labels != label))[:_PUSHED]
    look = Look(*(values[others] for values in (case.look.mean, case.look.spread, case.look.power)))
    pushed = response(case.material.select(others), look, _PUSH * slides.std(0))
    found: Array = (table @ pushed)[:, None]
    return found


def _tried(
    case: _Case, finding: Finding, centre: str, tried: Array, cause: Cause | None
) -> Finding:
    if cause is None:
        return replace(
            finding,
            power=Power(len(tried), _never),
            note="Not tried: each class comes from centres of its own, so that features of the "
            "centre cannot be told from those of the class.",
        )
    who = case.material.class_names[finding.label]
    changed = finding.key.endswith("features")
    what = "features that tell the centre" if changed else "stain and sharpness"
    return replace(
        finding,
        cause=cause,
        sentence=f"The network takes images for class {who!r} because they look as if they came "
        f"from centre {centre}. Given its {what}, {cause.flips:.0%} of the other classes' images "
        f"from elsewhere turn wrong; by changes of the same size in random directions, "
        f"{cause.control_flips:.0%}.",
        advice="See that every centre has images of all classes, normalise or vary colours and "
        "sharpness while training, and test on a centre that training lacks.",
    )


def _look_given(case: _Case, is_centre: Array, tried: Array, rng: np.random.Generator) -> Cause:
    """Put the centre's stain and sharpness on images, and as large changes at random."""
    material = case.material
    plain = material.pixels[torch.as_tensor(tried)]
    changes = [plain.clone() for _ in range(1 + _CONTROLS)]
    for source in np.unique(case.centres[tried]):
        of_source = case.centres == source
        mine = torch.as_tensor(np.flatnonzero(of_source[tried]))
        found = signature_between(case.look, material.labels, of_source, is_centre)
        if found is None:
            two = [some(np.flatnonzero(group), rng) for group in (of_source, is_centre)]
            first, second = (material.pixels[torch.as_tensor(places)] for places in two)
            found = signature_of_dye((first, second), (looks(first), looks(second)))
        own = plain[mine]
        given = found.put_on(own)
        changes[0][mine] = given
        for change in changes[1:]:
            change[mine] = _as_large(own, found.turned(rng).put_on(own), given)
    part = material.select(tried)
    outputs = np.stack([part.ask(change) for change in changes])
    return compare_outputs(part, outputs, rng, slides=True)


def _as_large(own: Tensor, changed: Tensor, given: Tensor) -> Tensor:
    """Return a change of images as large as another one of the same images."""
    sizes = [(after - own).flatten(1).norm(dim=1).clamp_min(1e-6) for after in (given, changed)]
    factor = (sizes[0] / sizes[1])[:, None, None, None]
    scaled: Tensor = own + (changed - own) * factor
    return scaled.clamp(0, 1)


def _features_given(
    case: _Case, is_centre: Array, tried: Array, rng: np.random.Generator
) -> Cause | None:
    """Move the last hidden layer's channels to the centre, and as far in random directions."""
    material, means = case.material, case.means
    if means is None:
        return None
    cells = np.unique(case.centres, return_inverse=True)[1] * 1000 + material.labels
    within = centred(means, cells)
    steps = np.zeros((1 + _CONTROLS, len(tried), means.shape[1]))
    for source in np.unique(case.centres[tried]):
        of_source = case.centres == source
        step = step_between(means, material.labels, of_source, is_centre)
        if step is None:
            return None
        length = float(np.linalg.norm(step))
        steps[:, of_source[tried]] = np.stack(
            [step, *(random_step(within, length, rng) for _ in range(_CONTROLS))]
        )[:, None]
    part = material.select(tried)
    outputs = np.stack([outputs_moved(part, case.layer, step) for step in steps])
    return compare_outputs(part, outputs, rng, slides=True)


def _errors(case: _Case, label: int, rng: np.random.Generator) -> Finding:
    """Ask whether the network fails on the class's images of one centre more than on others."""
    material, mine = case.material, case.material.members(label)
    wrong, centres = ~material.right[mine], case.centres[mine]
    who = material.class_names[label]
    names, counts = np.unique(centres, return_counts=True)
    names = names[(counts >= FEWEST) & (len(mine) - counts >= FEWEST)]
    finding = Finding(
        key=f"centre/{who}/errors",
        title=f"errors by centre (class {who})",
        question=f"Does the network fail on images of class {who!r} of one centre more often than "
        "on those of others?",
        label=label,
        effect=0.0,
        effect_name="share of errors on the centre's images, in multiples of that on others",
        smallest=SMALLEST,
        p_seen=1.0,
    )
    if len(names) == 0:
        none = Power(len(mine), _never)
        return replace(finding, power=none, note="All images of the class are of one centre.")
    exchange = CentreExchange(centres, material.groups[mine])
    observed = _more_errors(centres[None], wrong, names)[0]
    drawn = (part[:, exchange.unit] for part in exchange.blocks(rng, material.draws))
    null = np.concatenate([_more_errors(part, wrong, names).max(1) for part in drawn])
    worst = int(observed.argmax())
    p = (1 + int((null >= observed[worst] - 1e-12).sum())) / (1 + len(null))
    inside = centres == names[worst]
    here, elsewhere = float(wrong[inside].mean()), float(wrong[~inside].mean())
    ways = exchange.arrangements(names[worst])
    places = case.kept[mine]
    finding = replace(
        finding,
        title=f"errors on images of centre {names[worst]} (class {who})",
        effect=min(here / max(elsewhere, 1e-9), 99.0),
        p_seen=p,
        examples=tuple(places[inside & wrong][:8].tolist()),
        having=tuple(places[inside].tolist()),
        ordinary=tuple(places[~inside & ~wrong][:8].tolist()),
        power=of_centre_errors(
            int(inside.sum()), int((~inside).sum()), elsewhere, ways, material.draws
        ),
    )
    if not finding.suspicious():
        return finding
    return replace(
        finding,
        cause=ErrorRates(here, elsewhere, here, elsewhere, p, len(mine)),
        smallest_drop=elsewhere + _MORE_ERRORS,
        sentence=f"Of the images of class {who!r} from centre {names[worst]}, the network gets "
        f"{here:.0%} wrong; of those from elsewhere, {elsewhere:.0%}.",
        advice="See what differs at this centre (scanner, stain, patients), and add its images of "
        "this class to training.",
    )


def _more_errors(centres: Array, wrong: Array, names: Array) -> Array:
    """Return by how much the share of errors is higher at each centre, shape (draws, centres)."""
    found = []
    for name in names:
        inside = centres == name
        here = (inside & wrong).sum(1) / np.maximum(inside.sum(1), 1)
        others = (~inside & wrong).sum(1) / np.maximum((~inside).sum(1), 1)
        found.append(here - others)
    return np.stack(found, 1)


def _never(having: int, level: float) -> float:
    """Return the power of what cannot be tried."""
    return 0.0
