"""What, of the whole image: does sharpness, compression or a tint tell the class?"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.stats import mannwhitneyu
from torch import Tensor

from niwaki.audit._causal import Cause, blurred
from niwaki.audit._chance import sign_test
from niwaki.audit._finding import Finding
from niwaki.audit._material import Material, margins

__all__ = ["ask_quality", "blockiness", "sharpness", "tint"]

Array = NDArray[Any]
SMALLEST = 0.25


def ask_quality(material: Material, rng: np.random.Generator) -> list[Finding]:
    """Ask for each class and each property of whole images whether the network goes by it.

    Seen: how well the property alone tells the class (Mann-Whitney). Cause: the images that do not
    have it get it, and the margin of their own class falls by more than under a change of equal
    size that belongs to another image. With two classes the question is the same for both and is
    asked once.
    """
    found: list[Finding] = []
    classes = material.classes()
    if len(classes) < 2:  # nothing to tell apart
        return found
    for name, quality in _QUALITIES.items():
        if name == "tint" and material.pixels.shape[1] != 3:
            continue
        values = quality.measure(material.pixels)
        for label in classes[-1:] if len(classes) == 2 else classes:
            found.append(_ask(material, name, quality, values, label, rng))
    return found


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


def _blocks(maps: Array, side: int = 8) -> Array:
    """Average maps (N, H, W) over blocks, shape (N, blocks), without what is left at the edge."""
    side = min(side, *maps.shape[1:])
    count, down, across = len(maps), maps.shape[1] // side, maps.shape[2] // side
    cut = maps[:, : down * side, : across * side]
    means: Array = cut.reshape(count, down, side, across, side).mean((2, 4)).reshape(count, -1)
    return means


def blockiness(pixels: Tensor) -> Array:
    """Return how much larger steps are on a grid of 8 pixels than off it, as a logarithm."""
    grey = pixels.double().mean(1).numpy()
    ratios = []
    for axis in (1, 2):
        # A step beside the steps next to it: what an edge of the image would do to both.
        steps = np.abs(np.diff(grey, n=1, axis=axis)).mean(3 - axis)
        on = np.arange(steps.shape[1]) % 8 == 7
        ratios.append(np.log(steps[:, on].mean(1) + 1e-6) - np.log(steps[:, ~on].mean(1) + 1e-6))
    mean: Array = np.mean(ratios, axis=0)
    return mean


def tint(pixels: Tensor, axis: Array | None = None) -> Array:
    """Return how far an image's colours are off the plane of colours of all images.

    Two stains span a plane of optical densities; how much of each is there moves an image within
    the plane, another scanner or dye moves it out of it.

    Parameters
    ----------
    pixels : Tensor
        Shape (N, 3, H, W), from 0 to 1.
    axis : ndarray, optional
        The normal of the plane; default: fitted to these images.
    """
    density = _density(pixels)
    normal = _normal(density) if axis is None else axis
    amount = np.linalg.norm(density, axis=-1).mean((1, 2))
    found: Array = (density @ normal).mean((1, 2)) / amount.clip(1e-6)
    return found


@dataclass(frozen=True)
class _Quality:
    """A property, what gives it to an image, and the words for it."""

    measure: Callable[[Tensor], Array]
    # (images with most of it, with least of it of the same group, images without) -> images
    give: Callable[[Tensor, Tensor, Tensor], Tensor]
    higher: bool  # whether having it means a higher value
    has: str
    advice: str
    either_way: bool = False  # as a tint may be off on either side: the more extreme class has it


def _ask(
    material: Material,
    name: str,
    quality: _Quality,
    values: Array,
    label: int,
    rng: np.random.Generator,
) -> Finding:
    is_class = material.labels == label
    test = mannwhitneyu(values[is_class], values[~is_class])
    auc = float(test.statistic) / (is_class.sum() * (~is_class).sum())
    group, lean = _having(values, is_class, quality, auc)
    class_has_it = bool(group[is_class].all())
    who = material.class_names[label]
    finding = Finding(
        key=f"quality/{who}/{name}",
        question=f"Does the network tell class {who!r} by the {name} of the whole image?",
        label=label,
        effect=2 * abs(auc - 0.5),
        effect_name=f"how well {name} alone tells the class, from 0 to 1",
        smallest=SMALLEST,
        p_seen=float(test.pvalue),
        examples=tuple(np.flatnonzero(group)[np.argsort(-lean[group])][:8]),
        numbers={"auc_of_property": auc},
    )
    if not finding.suspicious():
        return finding
    cause = _cause(material, quality, group, lean, rng)
    others = f"Images of class {who!r}" if class_has_it else f"Images not of class {who!r}"
    return replace(
        finding,
        cause=cause,
        sentence=f"{others} {quality.has}: this alone tells the class with an AUC of "
        f"{max(auc, 1 - auc):.2f}. Given to the other images, it turns {cause.flips:.0%} of them "
        f"wrong; an unrelated change of the same size, {cause.control_flips:.0%}.",
        advice=quality.advice,
    )


def _having(values: Array, is_class: Array, quality: _Quality, auc: float) -> tuple[Array, Array]:
    """Say which group of images has a property, and how much more of it each image has.

    Where a property may be off on either side, the group has it whose quarter that is most unlike
    the others is the farther from them: the odd one out.
    """
    if not quality.either_way:
        group = is_class if (auc > 0.5) == quality.higher else ~is_class
        away = values - np.median(values[~group])
        return group, away if quality.higher else -away
    found = []
    for group in (is_class, ~is_class):
        away = values - np.median(values[~group])
        lean = away if np.median(away[group]) >= 0 else -away
        found.append((float(np.quantile(lean[group], 0.75)), group, lean))
    _, group, lean = max(found, key=lambda one: one[0])
    return group, lean


def _cause(
    material: Material, quality: _Quality, group: Array, lean: Array, rng: np.random.Generator
) -> Cause:
    """Give the property, as the quarter that has most of it has it, to the images without it."""
    most = group & (lean >= np.quantile(lean[group], 0.75))
    least = group & (lean <= np.quantile(lean[group], 0.25))
    without = material.select(np.flatnonzero(~group))
    given = quality.give(
        material.pixels[torch.as_tensor(most)],
        material.pixels[torch.as_tensor(least)],
        without.pixels,
    )
    change = given - without.pixels
    order = torch.as_tensor(rng.permutation(len(change)))
    steps = tuple(int(s) for s in rng.integers(1, change.shape[-1], 2))
    # Elsewhere in the image; and what has a colour but no place, in another colour.
    foreign = torch.roll(change[order], (int(quality.either_way), *steps), (-3, -2, -1))
    before = margins(without.outputs, without.labels)
    drops, wrong = [], []
    for pixels in (given, (without.pixels + foreign).clamp(0, 1)):
        after = margins(material.ask(pixels), without.labels)
        drops.append(before - after)
        wrong.append(float((after < 0)[before > 0].mean()) if (before > 0).any() else 0.0)
    return Cause(
        float(drops[0].mean()),
        float(drops[1].mean()),
        wrong[0],
        wrong[1],
        sign_test(drops[0] - drops[1], rng),
        len(without),
    )


def _soft(_: Tensor, __: Tensor, without: Tensor) -> Tensor:
    return blurred(without, 0.9)


def _compressed(_: Tensor, __: Tensor, without: Tensor) -> Tensor:
    return torch.stack([_jpeg(image) for image in without])


def _jpeg(image: Tensor) -> Tensor:
    array = (image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(array.squeeze()).save(buffer, "JPEG", quality=20)
    back = np.asarray(Image.open(buffer), dtype=np.float32).reshape(array.shape) / 255
    return torch.from_numpy(back).permute(2, 0, 1)


def _tinted(most: Tensor, least: Tensor, without: Tensor) -> Tensor:
    """Give images the colours of others, and leave them what they show.

    First each channel's optical density changes by the factor that lies between images of the same
    group with most and with least of the tint: they show the same, so that what differs is the
    dye or the scanner. What is missing then, as where all of a group have it, is a step out of the
    plane of colours.
    """
    own = _density(without)
    there, here = (_density(images).mean((0, 1, 2)).clip(1e-6) for images in (most, least))
    factors = there / here
    own = own * factors / factors.mean()
    normal = _normal(_density(torch.cat([most, without])))
    amount = np.linalg.norm(own, axis=-1, keepdims=True)
    lean = float((own @ normal).mean() / amount.mean().clip(1e-6))
    moved = own + amount * (float(tint(most, normal).mean()) - lean) * normal
    pixels = np.exp(-moved).clip(0, 1).transpose(0, 3, 1, 2)
    return torch.from_numpy(pixels).to(without)


def _density(pixels: Tensor) -> Array:
    light = pixels.permute(0, 2, 3, 1).double().numpy()
    density: Array = -np.log(light.clip(1 / 255, 1))
    return density


def _normal(density: Array) -> Array:
    flat = density.reshape(-1, 3)
    normal: Array = np.linalg.eigh(flat.T @ flat)[1][:, 0]
    return normal * (1 if normal[2] >= 0 else -1)


_QUALITIES = {
    "sharpness": _Quality(
        sharpness,
        _soft,
        False,
        "tend to be less sharp",
        "Compare how the classes' images were focused, resized and saved; blur images at random "
        "while training.",
    ),
    "compression": _Quality(
        blockiness,
        _compressed,
        True,
        "tend to show the 8-pixel grid of strong JPEG compression",
        "Compare how the classes' images were saved; compress images at random while training.",
    ),
    "tint": _Quality(
        tint,
        _tinted,
        True,
        "tend to have another tint",
        "Compare scanners and stains of the classes; normalise colours, or vary them at random "
        "while training.",
        either_way=True,
    ),
}
