"""What, of the whole image: are there images of a class whose sharpness, compression or tint the
other classes hardly ever have, and does the network go by that?
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from niwaki.audit._beyond import FEWEST, RARE, SMALLEST, Lean, chance_of, lean_of, share_beyond
from niwaki.audit._causal import Cause, some
from niwaki.audit._chance import Exchange, sign_test
from niwaki.audit._finding import Finding
from niwaki.audit._material import Material, margins
from niwaki.audit._properties import PROPERTIES, Property
from niwaki.audit._rows import blocks

__all__ = ["ask_quality"]

Array = NDArray[Any]
_MOVED = 0.1  # fall of the margin that counts, in its standard deviations


def ask_quality(material: Material, rng: np.random.Generator) -> list[Finding]:
    """Ask for each class and each property of whole images whether the network goes by it.

    Seen: so many of the class's images have more of the property than 98 % of the other classes'
    images, more than exchanged labels give. That finds a tenth of a class as well as all of it.
    Cause: the other classes' images get the property, as strongly as these have it, and the margin
    of their own class falls by more than under an unrelated change of equal size.
    """
    found: list[Finding] = []
    classes = material.classes()
    if len(classes) < 2:  # nothing to tell apart
        return found
    exchange = Exchange(material.labels, material.groups)
    for name, quality in PROPERTIES.items():
        if quality.coloured and material.pixels.shape[1] != 3:
            continue
        lean = lean_of(
            np.concatenate([quality.measure(material.pixels[b]) for b in blocks(len(material))])
        )
        for label in classes:
            found.append(_ask(material, name, quality, lean, label, exchange, rng))
    return found


def _ask(
    material: Material,
    name: str,
    quality: Property,
    lean: Lean,
    label: int,
    exchange: Exchange,
    rng: np.random.Generator,
) -> Finding:
    is_class = material.labels == label
    if min(is_class.sum(), (~is_class).sum()) < 2:  # of one image nothing is rare
        share, beyond = 0.0, np.zeros(len(is_class), bool)
    else:
        share, beyond = share_beyond(lean, is_class)
    effect = share / RARE
    large = effect >= SMALLEST and beyond.sum() >= FEWEST
    who = material.class_names[label]
    finding = Finding(
        key=f"quality/{who}/{name}",
        question=f"Does the network know images of class {who!r} by the {name} of the whole image?",
        label=label,
        effect=effect,
        effect_name="images as far off as the farthest 2 % of the other classes, in multiples "
        "of these 2 %",
        smallest=SMALLEST,
        p_seen=chance_of(lean, label, share, exchange, rng, large),
        examples=tuple(_by_lean(lean, is_class, beyond)[:-9:-1]),
        ordinary=tuple(_by_lean(lean, is_class, is_class & ~beyond)[:8]),
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


def _by_lean(lean: Lean, is_class: Array, chosen: Array) -> Array:
    """Return the positions of images, the farthest off last."""
    places = np.flatnonzero(chosen)
    ordered: Array = places[np.argsort(lean(~is_class)[places], kind="stable")]
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
    before = margins(without.outputs, without.labels)
    after = np.stack([margins(material.ask(p), without.labels) for p in (given, *unrelated)])
    drops = before - after
    mine, control = drops[0], drops[1:].max(0)  # more than any unrelated change
    was_right = before > 0
    wrong = (after < 0)[:, was_right]
    return Cause(
        float(mine.mean()),
        float(control.mean()),
        float(wrong[0].mean()) if was_right.any() else 0.0,
        float(wrong[1:].mean(1).max()) if was_right.any() else 0.0,
        sign_test(mine - control, rng),
        len(without),
    )
