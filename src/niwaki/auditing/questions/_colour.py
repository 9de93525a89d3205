"""Colour: does relevance gather on colours that only one class has?"""

from __future__ import annotations

import colorsys
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt, gaussian_filter, mean, uniform_filter
from scipy.ndimage import label as connected
from torch import Tensor

from niwaki.arrays import LABELS, Array, Shaped, shaped
from niwaki.auditing._finding import Finding
from niwaki.auditing._interventions import TRIED, compare_regions, compare_spread, some
from niwaki.auditing._material import Material
from niwaki.auditing._on_disk import blocks
from niwaki.auditing._power import of_mark
from niwaki.auditing._question import Evidence, question
from niwaki.auditing._statistics import shift_test
from niwaki.errors import DataError
from niwaki.ranges import INDEX, checked

SMALLEST = 2.0
_LEVELS = 16
_RARE = 5e-4  # share of the other classes' own pixels that count as rare
_FAR = 2.0  # cells between a foreign colour and the nearest that is not rare
_AREA = 0.003  # share of an image below which a foreign area is a speck


@question("colour", "Does relevance gather on colours that only one class has?")
def find_colours(evidence: Evidence, rng: np.random.Generator) -> Iterator[Finding]:
    """Ask for each class whether relevance gathers on colours that other classes do not have.

    The null is that of places: the same heatmap at random places of the same image. A suspicion is
    tried by painting these pixels over from their surroundings, against equally large areas, and by
    putting them on images of other classes, against other parts of the same images.
    """
    material = evidence.material
    if material.pixels.shape[1] != 3:
        return
    cells = np.concatenate([_cells(material.pixels[part]) for part in blocks(len(material))])
    for label in material.classes():
        who, members = material.class_names[label], material.members(label)
        masks = _foreign(cells, material.labels, label)
        has = masks.mean((1, 2)) >= _AREA
        with_it, areas = members[has], masks[has]
        share, expected, p = 0.0, 1.0, 1.0
        # Less than a handful of images is no habit of the network.
        fewest = max(5, 0.02 * len(members))
        if len(with_it) >= fewest:
            strength = material.strength(with_it)
            share, expected, p = shift_test(strength, areas.astype(float), rng, material.draws)
        order = np.argsort(-(material.strength(with_it) * areas).sum((1, 2)))[:8]
        finding = Finding(
            key=f"colour/{who}/foreign",
            title=f"colours of its own (class {who})",
            question=f"Does the network look at colours that only images of class {who!r} have?",
            label=label,
            effect=share / expected,
            effect_name="relevance on these pixels, in multiples of their share of the area",
            smallest=SMALLEST,
            p_seen=p,
            examples=tuple(with_it[order]),
            having=tuple(with_it.tolist()),
            outlines=_grown(areas[order]),
            power=of_mark(len(members), fewest, evidence.tries[label], TRIED),
            numbers={
                "images_with_it": float(len(with_it)),
                "share_of_class": len(with_it) / len(members),
                "area": float(areas.mean()) if len(areas) else 0.0,
                "share": share,
            },
        )
        yield _tried(finding, material, with_it, areas, rng) if finding.suspicious() else finding


def _tried(
    finding: Finding, material: Material, with_it: Array, areas: Array, rng: np.random.Generator
) -> Finding:
    who, n = material.class_names[finding.label], finding.numbers
    grown, others = _grown(areas), np.flatnonzero(material.labels != finding.label)
    cause = compare_regions(material, with_it, grown, "inpaint", rng)
    spread = compare_spread(material, with_it, grown, others, rng)
    tried = some(np.arange(len(with_it)), rng)
    colour = _mean_colour(material.pixels[torch.as_tensor(with_it[tried])], areas[tried])
    return replace(
        finding,
        cause=cause,
        spread=spread,
        sentence=f"{n['share_of_class']:.0%} of the images of class {who!r} have an area of a "
        f"colour that no other class has (on average {colour}). It is {n['area']:.1%} of their "
        f"area and gets {n['share']:.0%} of the relevance. Painted over, it turns "
        f"{cause.flips:.0%} of them wrong; an equally large area elsewhere, "
        f"{cause.control_flips:.0%}. Put on images of other classes, it turns {spread.flips:.0%} "
        f"of them wrong; other parts of the same images, {spread.control_flips:.0%}.",
        advice="Look at these pixels: if they are ink, a mark or a stamp, mask or inpaint them, or "
        "put the same on images of all classes, and train again.",
    )


@checked(label=INDEX)
@shaped(pixels=Shaped("N 3 H W", low=0, high=1), labels=LABELS)
def foreign(pixels: Tensor, labels: Array, label: int) -> Array:
    """Find the pixels of a class's images whose colour the other classes hardly ever have.

    Parameters
    ----------
    pixels : Tensor
        Shape (N, 3, H, W), from 0 to 1.
    labels : ndarray
        Shape (N,).
    label : int
        The class.

    Returns
    -------
    ndarray
        Shape (members, H, W), bool. Colours are compared as 16 x 16 x 16 cells, smoothed; rare is
        what only 1 in 2000 pixels of the other classes has, or is rarer than. Single pixels are
        left out, and so are areas whose colours lie, on average, less than two cells from one that
        is not rare: of what all classes have, one class often has the palest or the reddest.

    Raises
    ------
    DataError
        If all images are of this class, or none is, or their values are not those of pixels.
    """
    if not 0 < (labels == label).sum() < len(labels):
        raise DataError(f"label = {label}: there must be images of that class, and of others")
    return _foreign(_cells(pixels), labels, label)


def _cells(pixels: Tensor) -> Array:
    """Return the number of each pixel's cell of colours, shape (N, H, W)."""
    cells = (pixels.numpy() * (_LEVELS - 1e-6)).astype(np.int16)
    flat: Array = (cells[:, 0] * _LEVELS + cells[:, 1]) * _LEVELS + cells[:, 2]
    return flat


def _foreign(cells: Array, labels: Array, label: int) -> Array:
    own, others = np.flatnonzero(labels == label), np.flatnonzero(labels != label)
    if not len(others):
        return np.zeros((len(own), *cells.shape[1:]), bool)
    counts = np.zeros(_LEVELS**3, np.int64)
    for part in blocks(others):
        counts += np.bincount(cells[part].ravel(), minlength=_LEVELS**3)
    density = gaussian_filter(counts.reshape((_LEVELS,) * 3).astype(float), 0.7, mode="constant")
    is_rare = density < _quantile(density.ravel(), counts, _RARE)
    distance = distance_transform_edt(is_rare).ravel()
    found = []
    for part in blocks(own):
        rare = is_rare.ravel()[cells[part]]
        dense: Array = rare & (uniform_filter(rare.astype(float), (0, 3, 3)) > 0.5)
        found.append(_far(dense, distance[cells[part]]))
    return np.concatenate(found)


def _quantile(values: Array, counts: Array, share: float) -> float:
    """Return a quantile of values that occur so many times, as `numpy.quantile` does."""
    order = np.argsort(values)
    reached = np.cumsum(counts[order])
    place = share * (reached[-1] - 1)
    low, high = (
        values[order[np.searchsorted(reached, step, side="right")]]
        for step in (np.floor(place), np.ceil(place))
    )
    return float(low + (high - low) * (place - np.floor(place)))


def _far(masks: Array, away: Array) -> Array:
    """Keep those connected areas of each mask that are far off on average."""
    kept = np.zeros_like(masks)
    for index in np.flatnonzero(masks.any((1, 2))):
        areas, count = connected(masks[index])
        numbers = np.arange(1, count + 1)
        far = numbers[np.asarray(mean(away[index], areas, numbers)) >= _FAR]
        kept[index] = np.isin(areas, far)
    return kept


def _grown(masks: Array) -> Array:
    """Take the rim along, where colours mix."""
    grown: Array = uniform_filter(masks.astype(float), (0, 5, 5)) > 1e-6
    return grown


def _mean_colour(pixels: Tensor, masks: Array) -> str:
    rgb = pixels.permute(0, 2, 3, 1).numpy()[masks].mean(0)
    return "{}, rgb({}, {}, {})".format(_hue(rgb), *(255 * rgb).round().astype(int))


def _hue(rgb: Array) -> str:
    """Name a colour, roughly."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(float(part) for part in rgb))
    if value < 0.2:
        return "black"
    if saturation < 0.12:
        return "white" if value > 0.85 else "grey"
    names = ("red", "orange", "yellow", "green", "turquoise", "blue", "violet", "pink")
    bounds = (15, 40, 70, 160, 195, 255, 290, 340)
    place = int(np.searchsorted(bounds, 360 * hue))
    return names[place % len(names)]
