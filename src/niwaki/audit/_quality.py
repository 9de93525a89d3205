"""What, of the whole image: are there images of a class whose sharpness, compression or tint the
other classes hardly ever have, and does the network go by that?
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from torch import Tensor

from niwaki.audit._causal import Cause
from niwaki.audit._chance import DRAWS, Exchange, sign_test
from niwaki.audit._finding import Finding
from niwaki.audit._material import Material, margins
from niwaki.audit._properties import PROPERTIES, Property

__all__ = ["ask_quality", "lean_of", "share_beyond"]

Array = NDArray[Any]
SMALLEST = 3.5
FEWEST = 5  # images that make a group
_RARE = 0.02  # share of the other classes' images that count as rare
_MOVED = 0.1  # fall of the margin that counts, in its standard deviations
_NEIGHBOURS = 5
_LOOKED = 50
_FEW_DRAWS = 499

#: From which images are of other classes, shape (N,), to how far each image is off them, (N,).
Lean = Callable[[Array], Array]


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
        lean = lean_of(quality.measure(material.pixels))
        for label in classes:
            found.append(_ask(material, name, quality, lean, label, exchange, rng))
    return found


def lean_of(values: Array) -> Lean:
    """Return what says how far images are off those of other classes.

    Parameters
    ----------
    values : ndarray
        Shape (N,): more is farther off. Or (N, features): the distance to the 5th nearest image of
        other classes, other than itself.
    """
    if values.ndim == 1:
        return lambda others: values
    distances = cdist(values, values)
    np.fill_diagonal(distances, np.inf)
    order = np.argsort(distances, axis=1)
    ranked = np.take_along_axis(distances, order, axis=1)

    def lean(others: Array) -> Array:
        nearest = min(_NEIGHBOURS, int(others.sum()) - 1)
        found = np.empty(len(ranked))
        left = np.arange(len(ranked))
        # Nearly always they are among the nearest few; all of them are looked at where not.
        for width in (_LOOKED, len(ranked)):
            count = np.cumsum(others[order[left, :width]], axis=1, dtype=np.int32)
            known = count[:, -1] >= nearest
            place = (count[known] >= nearest).argmax(1)
            found[left[known]] = ranked[left[known], place]
            left = left[~known]
        return found

    return lean


def share_beyond(lean: Lean, is_class: Array) -> tuple[float, Array]:
    """Return the share of a class that is farther off than 98 % of the others, and which it is.

    Parameters
    ----------
    lean : callable
        See `lean_of`.
    is_class : ndarray
        Shape (N,), bool.
    """
    away = lean(~is_class)
    others = away[~is_class]
    place = int(np.ceil((1 - _RARE) * (len(others) - 1)))
    beyond: Array = is_class & (away > np.partition(others, place)[place])
    return float(beyond.sum() / is_class.sum()), beyond


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
    effect = share / _RARE
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
        # What is too small for an alarm needs no precise p-value.
        p_seen=_chance(lean, label, share, exchange, rng, DRAWS if large else _FEW_DRAWS),
        examples=tuple(_by_lean(lean, is_class, beyond)[:-9:-1]),
        ordinary=tuple(_by_lean(lean, is_class, is_class & ~beyond)[:8]),
        numbers={"images_with_it": float(beyond.sum()), "share_of_class": share},
    )
    if not (large and finding.suspicious()):
        return finding
    having = material.pixels[torch.as_tensor(beyond)]
    alike = _reference(material, quality, having, is_class, beyond)
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
    material: Material, quality: Property, having: Tensor, is_class: Array, beyond: Array
) -> Tensor | None:
    """Return images without the property to compare with, or None if what lies between is another
    thing: the rest of the class, which shows the same, or the other classes, where most have it.
    """
    groups = [(is_class & ~beyond, True)]
    if beyond.sum() >= is_class.sum() / 2:
        groups.append((~is_class, False))
    for group, same in groups:
        if group.sum() >= FEWEST:
            rest = material.pixels[torch.as_tensor(group)]
            if quality.fits(having, rest, same):
                return rest
    return None


def _chance(
    lean: Lean,
    label: int,
    share: float,
    exchange: Exchange,
    rng: np.random.Generator,
    draws: int,
) -> float:
    """Return how often exchanged labels give the class as large a share."""
    if share == 0:
        return 1.0
    as_large = 0
    for _ in range(draws):
        is_class = exchange.draw(rng) == label
        as_large += share_beyond(lean, is_class)[0] >= share - 1e-12
    return (1 + as_large) / (1 + draws)


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
    without = material.select(others)
    given, unrelated = quality.give(*examples, without.pixels, rng)
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
