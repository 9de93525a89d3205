"""Properties of whole images: how much of them an image has, and how they are given to others."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor

from niwaki.arrays import Array
from niwaki.auditing._interventions import blurred

# The images after the change, and after unrelated changes of the same size.
Given = tuple[Tensor, list[Tensor]]

_SIGMAS = (0.4, 0.55, 0.7, 0.9, 1.1, 1.4, 1.8, 2.4, 3.2)
_JPEG_QUALITIES = (5, 10, 15, 20, 30, 45, 60, 75, 90)
_TRIED = 50  # images by which the strength of a change is chosen
_DARK, _LIGHT = (0.85, 1.0), (0.1, 0.6)  # quantiles of an image's optical densities
# How far factors of dark and light pixels may differ, as a share of the dark ones': between images
# that show the same, and between those of several classes, where part of it is what they show. At 1
# the light pixels need not differ at all.
_UNEVEN, _UNEVEN_ELSE = 0.5, 0.8


@dataclass(frozen=True)
class Property:
    """A property of whole images.

    Attributes
    ----------
    measure : callable
        From pixels (N, C, H, W) to values: (N,), where more is more of it, or (N, features), where
        having it means to be far from all others.
    give : callable
        From images that have it, images that show the same and have it not, images that shall get
        it, and a generator, to these with it and to unrelated changes of theirs of the same size.
    has : str
        What is said of images that have it.
    advice : str
        What to do.
    coloured : bool
        Whether images need three channels.
    fits : callable
        Says of images that have it and others that have it not whether what lies between them is
        of the property's kind; the last argument is whether these show the same.
    otherwise : str
        What is said if it is not.
    """

    measure: Callable[[Tensor], Array]
    give: Callable[[Tensor, Tensor, Tensor, np.random.Generator], Given]
    has: str
    advice: str
    coloured: bool = False
    fits: Callable[[Tensor, Tensor, bool], bool] = lambda having, rest, same: True
    otherwise: str = ""


def sharpness(pixels: Tensor) -> Array:
    """Return how much of the finest detail is there beside the next finer, as a logarithm.

    Measured in blocks of 8 pixels, of which the quarter with the least counts: there, it is the
    grain of the image that is seen, and not how many edges the thing shown has.
    """
    grey = pixels.double().mean(1).numpy()
    fine = gaussian_filter(grey, (0, 0.7, 0.7), mode="nearest")
    coarse = gaussian_filter(grey, (0, 1.6, 1.6), mode="nearest")
    ratio = (_blocks((grey - fine) ** 2) + 1e-8) / (_blocks((fine - coarse) ** 2) + 1e-8)
    found: Array = np.quantile(np.log(ratio), 0.25, axis=1)
    return found


def blockiness(pixels: Tensor) -> Array:
    """Return how much larger steps are on a grid of 8 pixels than off it, as a logarithm."""
    grey = pixels.double().mean(1).numpy()
    if min(grey.shape[1:]) <= 8:  # a single block has no grid
        return np.zeros(len(grey))
    ratios = []
    for axis in (1, 2):
        # A step beside the steps next to it: what an edge of the image would do to both.
        steps = np.abs(np.diff(grey, n=1, axis=axis)).mean(3 - axis)
        on = np.arange(steps.shape[1]) % 8 == 7
        ratios.append(np.log(steps[:, on].mean(1) + 1e-6) - np.log(steps[:, ~on].mean(1) + 1e-6))
    mean: Array = np.mean(ratios, axis=0)
    return mean


def tint(pixels: Tensor) -> Array:
    """Return the hue of what is dark: logarithms of red and of blue beside green, shape (N, 2).

    Optical densities are compared, in those pixels of an image that are the darkest in all three
    channels; the median counts. How much there is of each stain changes with what is shown; of
    what colour the dark things are, cell nuclei in stained tissue, is for the dye and the scanner
    to say. Ink and other bright colours are light in one channel and do not take part.
    """
    density = _density(pixels).clip(1e-3)
    hue = np.log(density[..., ::2] / density[..., 1:2])
    is_dark = _between(density, _DARK)
    return np.stack([np.median(h[d], axis=0) for h, d in zip(hue, is_dark, strict=True)])


def _blocks(maps: Array, side: int = 8) -> Array:
    """Average maps (N, H, W) over blocks, shape (N, blocks), without what is left at the edge."""
    side = min(side, *maps.shape[1:])
    count, down, across = len(maps), maps.shape[1] // side, maps.shape[2] // side
    cut = maps[:, : down * side, : across * side]
    means: Array = cut.reshape(count, down, side, across, side).mean((2, 4)).reshape(count, -1)
    return means


def _density(pixels: Tensor) -> Array:
    """Return optical densities, shape (N, H, W, 3)."""
    light = pixels.permute(0, 2, 3, 1).double().numpy()
    density: Array = -np.log(light.clip(1 / 255, 1))
    return density


def _between(density: Array, quantiles: tuple[float, float]) -> Array:
    """Say which pixels are so dark in all channels, shape (N, H, W)."""
    least = density.min(-1)
    low, high = np.quantile(least, quantiles, axis=(1, 2))[..., None, None]
    found: Array = (least >= low) & (least <= high)
    return found


def dye_factors(having: Tensor, rest: Tensor, quantiles: tuple[float, float] = _DARK) -> Array:
    """Return by how much densities differ between images, in pixels of some darkness: a factor
    for each channel, 1 in the geometric mean, as another colour need not be a darker one.
    """
    means = []
    for pixels in (having, rest):
        density = _density(pixels)
        chosen = _between(density, quantiles)[..., None]
        means.append(((density * chosen).sum((1, 2)) / chosen.sum((1, 2))).mean(0).clip(1e-6))
    ratio = means[0] / means[1]
    found: Array = ratio / np.exp(np.log(ratio).mean())
    return found


def is_even(having: Tensor, rest: Tensor, most: float) -> bool:
    """Say whether light pixels differ between images as dark ones do, up to a share of that.

    By the law of Beer and Lambert a dye or scanner multiplies all densities by the same factors;
    where images show other things, other factors part the dark ones and the light ones.
    """
    dark, light = (np.log(dye_factors(having, rest, part)) for part in (_DARK, _LIGHT))
    return bool(np.linalg.norm(light - dark) <= most * np.linalg.norm(dark))


def _is_of_dye(having: Tensor, rest: Tensor, same: bool) -> bool:
    return is_even(having, rest, _UNEVEN if same else _UNEVEN_ELSE)


def _blur_alike(having: Tensor, _: Tensor, without: Tensor, rng: np.random.Generator) -> Given:
    """Blur images until they are as soft as others."""
    sigma = _nearest(sharpness, having, without, _SIGMAS, blurred)
    given = blurred(without, sigma)
    return given, [_elsewhere(given, without, rng)]


def _compress_alike(having: Tensor, _: Tensor, without: Tensor, rng: np.random.Generator) -> Given:
    """Compress images until they are as blocky as others."""
    quality = _nearest(blockiness, having, without, _JPEG_QUALITIES, _compressed)
    given = _compressed(without, quality)
    return given, [_elsewhere(given, without, rng)]


def _nearest(
    measure: Callable[[Tensor], Array],
    having: Tensor,
    without: Tensor,
    strengths: Sequence[float],
    change: Callable[[Tensor, float], Tensor],
) -> float:
    """Return the strength that brings images nearest to others, by their medians."""
    goal = np.median(measure(having))
    off = [abs(np.median(measure(change(without[:_TRIED], s))) - goal) for s in strengths]
    return strengths[int(np.argmin(off))]


def _compressed(pixels: Tensor, quality: float) -> Tensor:
    return torch.stack([_jpeg(image, int(quality)) for image in pixels])


def _jpeg(image: Tensor, quality: int) -> Tensor:
    array = (image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(array.squeeze()).save(buffer, "JPEG", quality=quality)
    back = np.asarray(Image.open(buffer), dtype=np.float32).reshape(array.shape) / 255
    return torch.from_numpy(back).permute(2, 0, 1)


def _elsewhere(given: Tensor, without: Tensor, rng: np.random.Generator) -> Tensor:
    """Do to each image what was done to another one, and at another place."""
    change = given - without
    order = torch.as_tensor(rng.permutation(len(change)))
    steps = tuple(int(step) for step in rng.integers(1, change.shape[-1], 2))
    return (without + torch.roll(change[order], steps, (-2, -1))).clamp(0, 1)


def _tint_alike(having: Tensor, rest: Tensor, without: Tensor, _: np.random.Generator) -> Given:
    """Multiply the channels' densities by what lies between images that show the same.

    The same factors on other channels are another tint of the same strength.
    """
    factors = dye_factors(having, rest)
    own = _density(without)
    made = [
        torch.from_numpy(np.exp(-own * np.roll(factors, by)).transpose(0, 3, 1, 2)).to(without)
        for by in range(3)
    ]
    return made[0], made[1:]


PROPERTIES = {
    "sharpness": Property(
        lambda pixels: -sharpness(pixels),
        _blur_alike,
        "are less sharp than 98% of the other classes' images",
        "Compare how the classes' images were focused, resized and saved; blur images at random "
        "while training.",
    ),
    "compression": Property(
        blockiness,
        _compress_alike,
        "show the 8-pixel grid of JPEG compression more strongly than 98% of the other classes' "
        "images",
        "Compare how the classes' images were saved; compress images at random while training.",
    ),
    "tint": Property(
        tint,
        _tint_alike,
        "have a tint, the hue of what is dark in them, that hardly any image of the other classes "
        "comes near",
        "Compare scanners and stains of the classes; normalise colours, or vary them at random "
        "while training.",
        coloured=True,
        fits=_is_of_dye,
        otherwise="Not tried: light and dark pixels differ by other factors, as they do where "
        "images show other things, and not where a dye or scanner differs.",
    ),
}
