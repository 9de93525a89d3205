"""Which classes a filter serves: the accuracy they lose without it, with a confidence interval."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from niwaki.car import CarIndex, LayerCar

_Z = 1.959964  # of 95 %


@dataclass(frozen=True, eq=False)
class Served:
    """What each class loses without each filter of a layer.

    Attributes
    ----------
    change : Tensor
        Accuracy on the class before minus after the filter is removed (CAR^c), NaN for a class
        without images; shape (units, classes). Where several channels can only be removed together,
        each has the value of all.
    low, high : Tensor
        95 % confidence interval for the difference of two paired shares (Bonett & Price 2012): with
        b images broken and m mended of n, ``(b - m) / (n + 2)`` and plus or minus 1.96 standard
        errors of shares with one image more each, ``(b + 1) / (n + 2)`` and ``(m + 1) / (n + 2)``.
    total : Tensor
        Over all images (CAR); shape (units,).
    together : tuple of str
        The layers that lose their filters of the same number with it.
    """

    change: Tensor
    low: Tensor
    high: Tensor
    total: Tensor
    together: tuple[str, ...]


def served(index: CarIndex, layer: str, units: int) -> Served | None:
    """Read what a layer's filters are worth to each class from the index.

    Parameters
    ----------
    index : CarIndex
        From `niwaki.car.index`.
    layer : str
        The layer, or one that is coupled to the layer the index names and has as many filters.
    units : int
        How many filters it has.

    Returns
    -------
    Served or None
        None if the index does not cover the layer. Filters that cannot be removed are NaN.
    """
    found = _entry(index, layer, units)
    if found is None:
        return None
    change, low, high = interval(found)
    of_unit = torch.full((units,), -1)
    for number, channels in enumerate(found.units):
        of_unit[list(channels)] = number
    missing = of_unit < 0

    def spread(values: Tensor) -> Tensor:
        chosen = values[of_unit].clone()
        chosen[missing] = torch.nan
        return chosen

    together = tuple(name for name in found.layers if name != layer)
    return Served(spread(change), spread(low), spread(high), spread(found.car), together)


def interval(layer: LayerCar) -> tuple[Tensor, Tensor, Tensor]:
    """Return CAR^c and both ends of its confidence interval, each of shape (units, classes)."""
    samples = torch.tensor(layer.baseline.samples, dtype=torch.float64)
    broken, mended = (
        (counts.double() + 1) / (samples + 2) for counts in (layer.broken, layer.mended)
    )
    centre = broken - mended
    reach = _Z * ((broken + mended - centre.square()) / (samples + 2)).sqrt()
    nothing = samples == 0
    low, high = (
        (centre + side * reach).clamp(-1, 1).masked_fill(nothing, torch.nan) for side in (-1, 1)
    )
    return layer.by_class, low, high


def _entry(index: CarIndex, layer: str, units: int) -> LayerCar | None:
    if layer in index:
        return index[layer]
    for entry in index.values():
        channels = {channel for unit in entry.units for channel in unit}
        if layer in entry.layers and len(channels) == units:
            return entry
    return None
