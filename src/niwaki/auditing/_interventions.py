"""Does it matter? Images are changed, and the change of the output is measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from niwaki.arrays import MASKS, Array, Shaped, shaped
from niwaki.auditing._material import Material, margins
from niwaki.auditing._power import ANSWERS, Tries
from niwaki.auditing._statistics import sign_test
from niwaki.ranges import FEW, checked

TRIED = 1000  # images that are changed to see what that does
_UNRELATED = 100  # images of a class that are changed to see what any change does


@dataclass(frozen=True)
class Cause:
    """What a change of the images does to the output.

    Attributes
    ----------
    drop : float
        By how much the margin of the class falls, mean over images, when the thing changes.
    control : float
        The same for an unrelated change of the same size.
    flips, control_flips : float
        Share of the images that were right and are wrong now.
    p : float
        One-sided, of ``drop`` above ``control``, by random signs of the images' differences.
    count : int
        Number of images.
    """

    drop: float
    control: float
    flips: float
    control_flips: float
    p: float
    count: int
    kind: ClassVar[str] = "change"

    @property
    def ratio(self) -> float:
        """How many times the control's effect this one is; at most 99."""
        if self.drop <= 0:
            return 0.0
        return min(self.drop / max(self.control, 1e-9), 99.0)

    @property
    def changed(self) -> float:
        """Share of the images whose prediction changes, beyond that of the unrelated change."""
        return self.flips - self.control_flips

    def evidence(self, least: float) -> list[tuple[str, str]]:
        """Return this in words: what was measured, and how it came out.

        Parameters
        ----------
        least : float
            The drop that is worth an alarm.
        """
        worth = f", worth an alarm from {least:.2f}" if least > 0 else ""
        return [
            (
                "Change of the network's output, in its own units, when the thing is changed",
                f"{self.drop:.2f}; by an unrelated change of the same size {self.control:.2f} "
                f"(mean of {self.count} images, p = {self.p:.2g} before correction{worth})",
            ),
            (
                "Images whose prediction changes with it",
                f"{self.flips:.1%}; by the unrelated change {self.control_flips:.1%} (worth an "
                f"alarm from {ANSWERS:.0%} more)",
            ),
        ]

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {"kind": self.kind, **vars(self), "ratio": self.ratio}


@dataclass(frozen=True)
class ErrorRates(Cause):
    """Nothing is changed: how often the network is wrong on images that have the thing.

    ``drop`` and ``flips`` are the share of errors on these images, ``control`` and
    ``control_flips`` that on others.
    """

    kind: ClassVar[str] = "errors"

    def evidence(self, least: float) -> list[tuple[str, str]]:
        """Return this in words; see `Cause.evidence`."""
        return [
            (
                "Share of these images that the network gets wrong",
                f"{self.flips:.1%}; of the others {self.control_flips:.1%} (p = {self.p:.2g} "
                f"before correction, worth an alarm from {least:.1%})",
            )
        ]


@checked(controls=FEW)
def compare_spread(
    material: Material,
    donors: Array,
    masks: Array,
    recipients: Array,
    rng: np.random.Generator,
    controls: int = 3,
) -> Cause:
    """Put a region of some images on others, then other regions of the same images, and compare.

    An image that belongs to its class for other reasons as well keeps its class without the thing.
    Images of other classes tell whether the thing alone changes predictions.

    Parameters
    ----------
    material : Material
        The audit's.
    donors : ndarray
        Which images have the thing, shape (N,).
    masks : ndarray
        Where it is, shape (N, H, W), bool.
    recipients : ndarray
        Which images get it, each from a random donor, at the same place.
    rng : numpy.random.Generator
        Draws donors and other regions.
    controls : int
        Other regions per image.
    """
    part = material.select(some(recipients, rng))
    drawn = rng.integers(0, len(donors), len(part))
    sources, where = material.pixels[torch.as_tensor(donors[drawn])], masks[drawn]
    regions = chain([where], (rolled(where, rng) for _ in range(controls)))
    plain = part.pixels[:]
    changes = (transplanted(plain, sources, region) for region in regions)
    return compare_changes(part, changes, rng)


@checked(controls=FEW)
def compare_regions(
    material: Material,
    positions: Array,
    masks: Array,
    how: str,
    rng: np.random.Generator,
    controls: int = 3,
) -> Cause:
    """Change a region of images, and the same region at random places, and compare.

    Parameters
    ----------
    material : Material
        The audit's.
    positions : ndarray
        Which images, shape (N,).
    masks : ndarray
        Shape (H, W) or (N, H, W), bool.
    how : {"transplant", "inpaint", "blur"}
        What replaces the region: the same region of a random image of another class, the
        surroundings, or the region out of focus.
    rng : numpy.random.Generator
        Draws places and donors.
    controls : int
        Random places per image.
    """
    masks = np.broadcast_to(masks, (len(positions), *material.relevance.shape[1:]))
    tried = some(np.arange(len(positions)), rng)
    part, masks = material.select(positions[tried]), masks[tried]
    plain = part.pixels[:]
    others = [np.flatnonzero(material.labels != label) for label in part.labels]

    def changed(where: Array) -> Tensor:
        if how == "transplant":
            donors = np.array([rng.choice(o) if len(o) else 0 for o in others])
            return transplanted(plain, material.pixels[torch.as_tensor(donors)], where)
        if how == "inpaint":
            return filled(plain, where)
        return transplanted(plain, blurred(plain), where)

    random = (changed(rolled(masks, rng)) for _ in range(controls))
    return compare_changes(part, chain([changed(masks)], random), rng)


def compare_changes(
    material: Material,
    changes: Iterable[Tensor],
    rng: np.random.Generator,
    *,
    worst: bool = False,
) -> Cause:
    """Compare what a change of images does to the margin of their class with what others do.

    Parameters
    ----------
    material : Material
        The images.
    changes : iterable of Tensor
        The changed pixels of all images, shape (N, C, H, W): first with the change in question,
        then with unrelated ones.
    rng : numpy.random.Generator
        The generator of the test.
    worst : bool
        Compare with the unrelated change that does most to each image, not with their mean.
    """
    after = np.stack([material.ask(made) for made in changes])
    return compare_outputs(material, after, rng, worst=worst)


def compare_outputs(
    material: Material,
    outputs: Array,
    rng: np.random.Generator,
    *,
    worst: bool = False,
    slides: bool = False,
) -> Cause:
    """Compare what a change does to the margin of images' classes, given the outputs behind it.

    Parameters
    ----------
    material : Material
        The images as they are.
    outputs : ndarray
        Shape (changes, N, classes): first those of the change in question.
    rng, worst
        As for `compare_changes`.
    slides : bool
        Whether all images of a slide get the same random sign, as they answer alike.
    """
    before = margins(material.outputs, material.labels)
    after = np.stack([margins(said, material.labels) for said in outputs])
    drops = before - after
    mine, control = drops[0], drops[1:].max(0) if worst else drops[1:].mean(0)
    flips = control_flips = 0.0
    if (was_right := before > 0).any():
        wrong = (after < 0)[:, was_right]
        flips = float(wrong[0].mean())
        control_flips = float(wrong[1:].mean(1).max() if worst else wrong[1:].mean())
    gaps = mine - control
    if slides:
        gaps = np.bincount(np.unique(material.groups, return_inverse=True)[1].ravel(), gaps)
    p = sign_test(gaps, rng, material.draws)
    return Cause(float(mine.mean()), float(control.mean()), flips, control_flips, p, len(material))


def some(positions: Array, rng: np.random.Generator) -> Array:
    """Return all positions, or a thousand of very many at random, which is enough for the test."""
    if len(positions) <= TRIED:
        return positions
    return np.sort(rng.choice(positions, TRIED, replace=False))


def tries_of(material: Material, positions: Array, rng: np.random.Generator) -> Tries:
    """Change images where nothing is suspected, which says how small an effect would stand out.

    A ninth of each image, at a random place, is taken from an image of another class; four times.

    Parameters
    ----------
    material : Material
        The audit's.
    positions : ndarray
        Which images, shape (N,); of many a hundred are changed.
    rng : numpy.random.Generator
        Draws images, places and donors.
    """
    few = rng.permutation(positions)[:_UNRELATED]
    part = material.select(few)
    height, width = part.relevance.shape[1:]
    window = np.zeros((len(few), height, width), bool)
    window[:, : max(1, height // 3), : max(1, width // 3)] = True
    others = [np.flatnonzero(material.labels != label) for label in part.labels]
    before, falls = margins(part.outputs, part.labels), []
    for _ in range(4):
        donors = torch.as_tensor([int(rng.choice(o)) if len(o) else 0 for o in others])
        changed = transplanted(part.pixels[:], material.pixels[donors], rolled(window, rng))
        falls.append(before - margins(part.ask(changed), part.labels))
    changes = np.stack([falls[0], np.mean(falls[1:], axis=0)], 1)
    own = margins(material.outputs[positions], material.labels[positions])
    return Tries(own, changes, material.draws)


def transplanted(pixels: Tensor, donors: Tensor, masks: Array) -> Tensor:
    """Return images (N, C, H, W) with the masked pixels (N, H, W) taken from others."""
    return torch.where(torch.tensor(masks)[:, None], donors, pixels)


@shaped(pixels=Shaped("N C H W"), masks=MASKS)
def filled(pixels: Tensor, masks: Array) -> Tensor:
    """Return images (N, C, H, W) whose masked pixels (N, H, W) continue their surroundings.

    Each masked pixel gets the mean of the known pixels around it, near ones first: by normalised
    convolution with a Gaussian that widens until all pixels are known.
    """
    known = 1.0 - np.asarray(masks, dtype=np.float64)[:, None]
    values = pixels.double().numpy() * known
    result, missing = values.copy(), np.broadcast_to(known == 0, values.shape).copy()
    longest = max(values.shape[-2:])
    sigma = 1.5
    while missing.any() and sigma <= 2 * longest:
        blur = (0, 0, sigma, sigma)
        weight = gaussian_filter(known, blur, mode="constant", truncate=3)
        mean = gaussian_filter(values, blur, mode="constant", truncate=3) / weight.clip(1e-12)
        ready = missing & (weight > 0.05)
        result[ready] = np.broadcast_to(mean, values.shape)[ready]
        missing &= ~ready
        sigma *= 2
    if missing.any():  # the whole image is masked
        result = np.where(missing, pixels.double().mean((-1, -2), keepdim=True).numpy(), result)
    return torch.from_numpy(result).to(pixels)


def blurred(pixels: Tensor, sigma: float | None = None) -> Tensor:
    """Return images out of focus; `sigma` in pixels, by default a 16th of the side."""
    width = pixels.shape[-1] / 16 if sigma is None else sigma
    soft = gaussian_filter(pixels.numpy(), (0, 0, width, width), mode="nearest")
    return torch.from_numpy(soft)


def rolled(masks: Array, rng: np.random.Generator) -> Array:
    """Return each mask (N, H, W) at a random place, as on a torus."""
    count, height, width = masks.shape
    steps = rng.integers(0, (height, width), (count, 2))
    rows = (np.arange(height) - steps[:, :1]) % height
    columns = (np.arange(width) - steps[:, 1:]) % width
    moved: Array = masks[np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return moved
