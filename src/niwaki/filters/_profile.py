"""What is known of the filters of a network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from niwaki.filters._classes_served import Served
from niwaki.filters._diversity import Diversity, diversity, twins
from niwaki.filters._fields import Field
from niwaki.filters._strongest import Strongest
from niwaki.ranges import CORRELATION, checked


@dataclass(frozen=True, eq=False)
class LayerProfile:
    """What the filters of a layer respond to.

    The activation of a filter is what it sends on: behind the activation function that directly
    follows, else (as before a residual sum) its output. All shares and means are of the positive
    part.

    Attributes
    ----------
    name : str
        Name of the layer.
    field : Field
        What the filters see of the image.
    first : bool
        Whether the layer reads the image itself.
    weights : Tensor or None
        For a first layer: its weights, shape (filters, channels, height, width).
    active : Tensor
        Share of all positions of all images at which each filter is above zero; shape (filters,),
        as all that follows unless told.
    active_images : Tensor
        Share of the images that have such a position.
    class_means : Tensor
        Mean activation on the images of each class, shape (filters, classes); NaN without images.
    class_relevance : Tensor
        Mean relevance of the filter for the true class, over the images of each class, likewise.
    class_selectivity : Tensor
        See `class_selectivity`; over the classes that have images.
    colour : Tensor
        Colour selectivity (Rafegas & Vanrell 2018): 1 - (sum of the activations on the filter's
        strongest patches in grey) / (sum on the same patches in colour). 0: colour does not matter,
        1: without colour there is no activation; below 0: grey is better. NaN where there is no
        colour or no activation.
    orientation, angle : Tensor or None
        For a first layer: see `orientation`.
    correlation : Tensor
        Correlation of the activations over images and positions, shape (filters, filters).
    by_activation, by_relevance : Strongest
        The strongest patches, one per image.
    served : Served or None
        What each class loses without each filter, where it was computed.
    """

    name: str
    field: Field
    first: bool
    weights: Tensor | None
    active: Tensor
    active_images: Tensor
    class_means: Tensor
    class_relevance: Tensor
    class_selectivity: Tensor
    colour: Tensor
    orientation: Tensor | None
    angle: Tensor | None
    correlation: Tensor
    by_activation: Strongest
    by_relevance: Strongest
    served: Served | None = None

    def __len__(self) -> int:
        return len(self.active)

    @checked(threshold=CORRELATION)
    def twins(self, threshold: float = 0.9) -> list[list[int]]:
        """List for each filter those whose activations correlate above a threshold."""
        return twins(self.correlation, threshold)

    @property
    def diversity(self) -> Diversity:
        """How different the filters are."""
        return diversity(self.correlation)

    def __repr__(self) -> str:
        height, width = self.field.size
        return f"LayerProfile({self.name}: {len(self)} filters that see {height} x {width} pixels)"


@dataclass(frozen=True, eq=False)
class Profile(Mapping[str, LayerProfile]):
    """Layer name to what its filters respond to, in the order in which the signal meets them.

    Attributes
    ----------
    by_layer : dict of str to LayerProfile
        The layers.
    samples : tuple of int
        Images of each class.
    patches : int
        How many of the strongest patches the colour selectivity is computed on.
    method : str
        What the relevance is.
    fingerprint : str
        Fingerprint of the network's weights.
    """

    by_layer: dict[str, LayerProfile]
    samples: tuple[int, ...]
    patches: int
    method: str
    fingerprint: str

    def __getitem__(self, layer: str) -> LayerProfile:
        return self.by_layer[layer]

    def __iter__(self) -> Iterator[str]:
        return iter(self.by_layer)

    def __len__(self) -> int:
        return len(self.by_layer)

    def rows(self, names: Mapping[int, str] | None = None) -> list[dict[str, Any]]:
        """Return one row of plain numbers per filter; None where a number does not exist.

        Parameters
        ----------
        names : mapping of int to str, optional
            Name of each class; default: its number.
        """
        known = names or {}
        told = [known.get(c, str(c)) for c in range(len(self.samples))]
        return [row for layer in self.values() for row in _rows(layer, told)]

    def __repr__(self) -> str:
        filters = sum(map(len, self.values()))
        return f"Profile({filters} filters in {len(self)} layers, {sum(self.samples)} images)"


def _rows(layer: LayerProfile, names: list[str]) -> list[dict[str, Any]]:
    close = layer.twins()
    rows = []
    for unit in range(len(layer)):
        row: dict[str, Any] = {
            "layer": layer.name,
            "filter": unit,
            "field": "x".join(map(str, layer.field.size)),
            "active": _number(layer.active[unit]),
            "active_images": _number(layer.active_images[unit]),
            "colour": _number(layer.colour[unit]),
            "orientation": _number(None if layer.orientation is None else layer.orientation[unit]),
            "angle": _number(None if layer.angle is None else layer.angle[unit]),
            "class_selectivity": _number(layer.class_selectivity[unit]),
            "most_active_class": _name(layer.class_means[unit], names),
            "most_relevant_class": _name(layer.class_relevance[unit], names),
            "twins": " ".join(map(str, close[unit])),
            "strongest": _number(layer.by_activation.values[unit, 0]),
            "car": None,
        }
        if layer.served is not None:
            row["car"] = _number(layer.served.total[unit])
            for label, name in enumerate(names):
                for key in ("change", "low", "high"):
                    value = _number(getattr(layer.served, key)[unit, label])
                    if value is not None:
                        row[f"car_{name}" + ("" if key == "change" else f"_{key}")] = value
        rows.append(row)
    return rows


def _number(value: Tensor | None) -> float | None:
    if value is None or not torch.isfinite(value):
        return None
    return round(float(value), 6)


def _name(values: Tensor, names: list[str]) -> str | None:
    known = values.nan_to_num(-torch.inf)
    best = int(known.argmax()) if len(known) else 0
    return names[best] if len(known) and known[best] > 0 else None
