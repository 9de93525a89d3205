"""The signature of a centre: how its stain and its sharpness differ from another's, and how it is
put on images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from niwaki.arrays import Array
from niwaki.auditing._image_properties import dye_factors, is_even
from niwaki.auditing._material import Material, margins
from niwaki.auditing._on_disk import blocks

FEWEST = 5  # images of a class and a centre that say how they look
_BANDS = 12  # of spatial frequency, up to the finest
_MOST_GAIN = 4.0
_DARKEST = 1 / 255
# How far factors of dark and light pixels may differ, as a share of the dark ones'. Where classes
# of real tissue differ by what they show alone it is above 2, where a dye differs as well below .9.
_UNEVEN = 1.2


@dataclass(frozen=True, eq=False)
class Look:
    """Statistics of images, one row for each.

    Attributes
    ----------
    mean, spread : ndarray
        Mean and spread of the optical density of each channel, shape (N, C): Reinhard's statistics
        (Reinhard et al. 2001), of densities in place of colours, as dyes multiply light
        (Beer-Lambert).
    power : ndarray
        Logarithm of the radial power spectrum of the density, in units of all of its power, shape
        (N, bands).
    """

    mean: Array
    spread: Array
    power: Array

    @property
    def table(self) -> Array:
        """All of it side by side, shape (N, values); of the spread, its logarithm."""
        return np.concatenate([self.mean, np.log(self.spread), self.power], 1)

    def of(self, chosen: Array) -> tuple[Array, Array, Array]:
        """Return the means over some images; of the spread, in its logarithm."""
        return (
            self.mean[chosen].mean(0),
            np.log(self.spread[chosen]).mean(0),
            self.power[chosen].mean(0),
        )


@dataclass(frozen=True, eq=False)
class Signature:
    """What turns the look of one centre's images into that of another's.

    Attributes
    ----------
    ratio : ndarray
        Ratio of the spreads of densities, for each channel, as a logarithm, shape (C,).
    shift : ndarray
        Difference of the mean densities, for each channel, shape (C,).
    pivot : ndarray
        The mean density of the images that are changed, shape (C,).
    power : ndarray
        Difference of the logarithm of the power spectrum, shape (bands,).
    """

    ratio: Array
    shift: Array
    pivot: Array
    power: Array

    def put_on(self, pixels: Tensor) -> Tensor:
        """Return images (N, C, H, W), from 0 to 1, with the signature."""
        density = -np.log(pixels.double().numpy().clip(_DARKEST, 1))
        scale, shift, pivot = (v[:, None, None] for v in (self.ratio, self.shift, self.pivot))
        changed = (density - pivot) * np.exp(scale) + pivot + shift
        spectrum = np.fft.rfft2(changed)
        height, width = density.shape[-2:]
        spectrum *= _interpolated(self.power, height, width)
        sharpened = np.fft.irfft2(spectrum, (height, width))
        return torch.from_numpy(np.exp(-sharpened.clip(0))).to(pixels)

    def turned(self, rng: np.random.Generator) -> Signature:
        """Return one of the same size in a random direction: other colours, other frequencies."""
        basis, triangle = np.linalg.qr(rng.normal(size=(len(self.ratio),) * 2))
        basis = basis * np.sign(np.diag(triangle))
        # Neighbouring bands stay neighbours, so that a smooth gain stays one.
        power = np.roll(self.power, int(rng.integers(len(self.power)))) * rng.choice([-1, 1])
        return Signature(basis @ self.ratio, basis @ self.shift, self.pivot, power)


def looks(pixels: Any) -> Look:
    """Measure images (N, C, H, W), from 0 to 1, a part at a time."""
    parts = [_measured(pixels[block]) for block in blocks(len(pixels))]
    mean, spread, power = (np.concatenate(values) for values in zip(*parts, strict=True))
    return Look(mean, spread, power)


def signature_between(look: Look, labels: Array, source: Array, target: Array) -> Signature | None:
    """Return the difference between the images of two centres that show the same things.

    Parameters
    ----------
    look : Look
        The look of all images.
    labels : ndarray
        Their classes, shape (N,).
    source, target : ndarray
        Which are of the centre that is changed and of the one that it shall look like, shape (N,),
        bool.

    Returns
    -------
    Signature or None
        The mean over the classes that both have, each with the weight of its images; None where
        there is no such class.
    """
    parts, weights = [], []
    for label in np.unique(labels):
        have, want = (group & (labels == label) for group in (source, target))
        if min(have.sum(), want.sum()) >= FEWEST:
            before, after = look.of(have), look.of(want)
            parts.append([b - a for a, b in zip(before, after, strict=True)])
            weights.append(1 / (1 / have.sum() + 1 / want.sum()))
    if not parts:
        return None
    shift, ratio, power = (
        np.average([part[k] for part in parts], axis=0, weights=weights) for k in range(3)
    )
    return Signature(ratio, shift, look.mean[source].mean(0), power)


def response(material: Material, look: Look, steps: Array) -> Array:
    """Return by how much the margins of images fall with each value of their look, shape (values,).

    Parameters
    ----------
    material : Material
        The images that are changed.
    look : Look
        Of these images.
    steps : ndarray
        How far each value of `Look.table` is changed, to both sides; 0: not at all.
    """
    channels, pixels = look.mean.shape[1], material.pixels[:]
    parts = np.split(np.diag(steps), [channels, 2 * channels], axis=1)
    found = np.zeros(len(steps))
    for value in np.flatnonzero(steps):
        shift, ratio, power = (part[value] for part in parts)
        there, back = (
            Signature(sign * ratio, sign * shift, look.mean.mean(0), sign * power)
            for sign in (1, -1)
        )
        said = [
            margins(material.ask(made.put_on(pixels)), material.labels) for made in (there, back)
        ]
        found[value] = (said[1] - said[0]).mean() / (2 * steps[value])
    return found


def signature_of_dye(pixels: tuple[Tensor, Tensor], look: tuple[Look, Look]) -> Signature:
    """Return what of the difference between images is of a dye and of the optics.

    Where each centre has classes of its own, most of what lies between them is what they show. Of a
    dye is the hue of what is dark, as a factor of each density, unless light pixels differ by quite
    other factors; of the optics is the shape of the spectrum without its lowest third, which is
    that of the things shown.

    Parameters
    ----------
    pixels : tuple of Tensor
        Images of the centre that is changed, and of the one that it shall look like.
    look : tuple of Look
        Looks of the same images.
    """
    ratio = np.zeros(pixels[0].shape[1])
    if len(ratio) == 3 and is_even(pixels[1], pixels[0], _UNEVEN):
        ratio = np.log(dye_factors(pixels[1], pixels[0]))
    # Densities are multiplied, which leaves what is white as it is.
    pivot = np.zeros(len(ratio))
    power = look[1].power.mean(0) - look[0].power.mean(0)
    power[: _BANDS // 3] = 0
    return Signature(ratio, pivot, pivot, power)


def _measured(pixels: Tensor) -> tuple[Array, Array, Array]:
    density = -np.log(pixels.double().numpy().clip(_DARKEST, 1))
    grey = density.mean(1)
    spectrum = np.abs(np.fft.rfft2(grey - grey.mean((1, 2), keepdims=True))) ** 2
    # What there is of all frequencies together is the spread's to say.
    spectrum /= spectrum.mean((1, 2), keepdims=True).clip(1e-12)
    band = _band(*grey.shape[1:])
    bands = [spectrum[:, band == k] for k in range(_BANDS)]
    # Small images lack some of the bands, and nothing is changed there.
    power = np.stack([p.mean(1) if p.size else np.ones(len(grey)) for p in bands], 1)
    return density.mean((2, 3)), density.std((2, 3)).clip(1e-4), np.log(power + 1e-6)


def _radius(height: int, width: int) -> Array:
    """Return the spatial frequency of each coefficient of a real transform, 1 the finest."""
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)
    found: Array = np.hypot(rows, columns) * 2
    return found


def _band(height: int, width: int) -> Array:
    found: Array = (_radius(height, width) * _BANDS).astype(int).clip(0, _BANDS - 1)
    return found


def _interpolated(power: Array, height: int, width: int) -> Array:
    """Return the gain of each coefficient; the mean density stays as it is."""
    middles = (np.arange(_BANDS) + 0.5) / _BANDS
    logarithm = np.interp(_radius(height, width), middles, power / 2)
    gain: Array = np.exp(logarithm).clip(1 / _MOST_GAIN, _MOST_GAIN)
    gain[0, 0] = 1.0
    return gain
