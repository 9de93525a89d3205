"""Does it matter? Regions are removed or replaced, and the change of the output is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor

from niwaki.audit._chance import sign_test
from niwaki.audit._material import Material, margins
from niwaki.ranges import FEW, checked

__all__ = ["Cause", "blurred", "compare_regions", "filled", "rolled", "some", "transplanted"]

Array = NDArray[Any]
_TRIED = 1000  # images that are changed to see what that does


@dataclass(frozen=True)
class Cause:
    """What a change of the images does to the output.

    Attributes
    ----------
    drop : float
        By how much the margin of the class falls, mean over images, when the region changes.
    control : float
        The same for equally large regions at random places.
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

    @property
    def ratio(self) -> float:
        """How many times the random regions' effect the region's is; at most 99."""
        if self.drop <= 0:
            return 0.0
        return min(self.drop / max(self.control, 1e-9), 99.0)


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
        What stands there afterwards: the same place of a random image of another class, the
        surroundings, or the region out of focus.
    rng : numpy.random.Generator
        Of places and donors.
    controls : int
        Random places per image.
    """
    masks = np.broadcast_to(masks, (len(positions), *material.relevance.shape[1:]))
    tried = some(np.arange(len(positions)), rng)
    part, masks = material.select(positions[tried]), masks[tried]
    plain = part.pixels[:]
    others = [np.flatnonzero(material.labels != label) for label in part.labels]

    def changed(where: Array) -> Array:
        if how == "transplant":
            donors = np.array([rng.choice(o) if len(o) else 0 for o in others])
            pixels = transplanted(plain, material.pixels[torch.as_tensor(donors)], where)
        elif how == "inpaint":
            pixels = filled(plain, where)
        else:
            pixels = transplanted(plain, blurred(plain), where)
        return material.ask(pixels)

    before = margins(part.outputs, part.labels)
    after = [margins(changed(masks), part.labels)]
    after += [margins(changed(rolled(masks, rng)), part.labels) for _ in range(controls)]
    drops = np.stack([before - values for values in after])
    mine, random = drops[0], drops[1:].mean(0)
    was_right = before > 0
    wrong = np.stack([values < 0 for values in after])[:, was_right]
    return Cause(
        float(mine.mean()),
        float(random.mean()),
        float(wrong[0].mean()) if was_right.any() else 0.0,
        float(wrong[1:].mean()) if was_right.any() else 0.0,
        sign_test(mine - random, rng),
        len(part),
    )


def some(positions: Array, rng: np.random.Generator) -> Array:
    """Return all positions, or of many a thousand at random: these tell how much it matters."""
    if len(positions) <= _TRIED:
        return positions
    return np.sort(rng.choice(positions, _TRIED, replace=False))


def transplanted(pixels: Tensor, donors: Tensor, masks: Array) -> Tensor:
    """Return images (N, C, H, W) with the masked pixels (N, H, W) taken from others."""
    return torch.where(torch.tensor(masks)[:, None], donors, pixels)


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
