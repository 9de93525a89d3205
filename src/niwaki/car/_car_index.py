"""The index as it is read: what the network loses with each single unit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from niwaki.car._images import TIE
from niwaki.criteria import Scores
from niwaki.errors import DataError
from niwaki.files import read_layers, write_layers
from niwaki.schema import Anything, Form, ListOf, MapOf, Record, Text, Whole, rebuild

_LAYER = Record(
    {"units": ListOf(ListOf(Whole())), "layers": ListOf(Text()), "paths": ListOf(Text())}
)
_SCALE = 1e3  # steps of the margin at which half of the room between two whole numbers is used
COUNTS, MEANS = ("broken", "mended", "near_ties"), ("loss_change", "margin_change")


@dataclass(frozen=True)
class Baseline:
    """The network as it is, on the images of the index.

    Attributes
    ----------
    samples : tuple of int
        Images of each class.
    right : tuple of int
        Those that the network gets right, for each class.
    loss, margin : float
        Mean over all images, see `LayerCar`.
    near_ties : int
        Images whose two largest outputs differ by less than 1e-4.
    """

    samples: tuple[int, ...]
    right: tuple[int, ...]
    loss: float
    margin: float
    near_ties: int

    @property
    def total(self) -> int:
        """Number of images."""
        return sum(self.samples)

    @property
    def accuracy(self) -> float:
        """Share of the images that the network gets right."""
        return sum(self.right) / self.total


@dataclass(frozen=True, eq=False)
class LayerCar:
    """What the network loses with each unit of a layer, and of all that is coupled to it.

    Attributes
    ----------
    units : tuple of tuple of int
        The layer's output channels that make up each unit.
    layers : tuple of str
        The layers that lose outputs with it, this one among them.
    paths : tuple of str
        For each unit, how it was computed: ``"spliced"``, what follows the unit was computed anew;
        ``"removed"``, whole passes of a physically pruned network; ``"cut"``, whole passes of a
        network without the unit, which pruning would refuse to make; these are exact.
        ``"masked"``: the layer cannot lose a unit, and its channel is zero instead, behind its
        norm and activation.
    baseline : Baseline
        The network as it is.
    broken, mended : Tensor
        Images of each class that the network gets right only with the unit, and only without it;
        int64, shape (units, classes).
    loss_change : Tensor
        By how much the mean cross-entropy grows without the unit; float64, shape (units,).
    margin_change : Tensor
        By how much the mean margin (output of the true class minus the largest of the others)
        grows without the unit, mostly negative; float64, shape (units,).
    near_ties : Tensor
        Images on which the network without the unit has two largest outputs that differ by less
        than 1e-4, so that rounding may decide between them; int64, shape (units,).
    """

    units: tuple[tuple[int, ...], ...]
    layers: tuple[str, ...]
    paths: tuple[str, ...]
    baseline: Baseline
    broken: Tensor
    mended: Tensor
    loss_change: Tensor
    margin_change: Tensor
    near_ties: Tensor

    @property
    def lost(self) -> Tensor:
        """Right images that are lost with each unit, net; int64, shape (units,)."""
        return (self.broken - self.mended).sum(1)

    @property
    def car(self) -> Tensor:
        """Classification accuracy reduction of each unit; float64, shape (units,)."""
        return self.lost.double() / self.baseline.total

    @property
    def by_class(self) -> Tensor:
        """The same within each class, NaN for a class without images; shape (units, classes)."""
        return (self.broken - self.mended).double() / torch.tensor(self.baseline.samples)

    @property
    def path(self) -> str:
        """How the units were computed, ``"mixed"`` if not all in the same way."""
        return self.paths[0] if len(set(self.paths)) == 1 else "mixed"

    def __len__(self) -> int:
        return len(self.units)

    def __repr__(self) -> str:
        low, high = (float(f(self.car)) for f in (torch.min, torch.max))
        return f"LayerCar({len(self)} units, CAR {low:+.2%} to {high:+.2%}, {self.path})"


@dataclass(frozen=True, eq=False)
class CarIndex(Mapping[str, LayerCar]):
    """Layer name to the classification accuracy reduction of its units.

    Coupled layers stand under the name of the first of them.

    Attributes
    ----------
    by_layer : dict of str to LayerCar
        In the order in which the signal meets the layers.
    baseline : Baseline
        The network as it is.
    fingerprint : str
        Fingerprint of its weights, see `niwaki.models.fingerprint`.
    """

    by_layer: dict[str, LayerCar]
    baseline: Baseline
    fingerprint: str = ""

    def __getitem__(self, layer: str) -> LayerCar:
        return self.by_layer[layer]

    def __iter__(self) -> Iterator[str]:
        return iter(self.by_layer)

    def __len__(self) -> int:
        return len(self.by_layer)

    def ranking(self) -> list[tuple[str, int]]:
        """List layer and number of all units, the one to be removed first being the first.

        The lowest accuracy reduction comes first; ties are broken by the mean margin that is left,
        compared in steps of 1e-4, the largest first; then by the order of layers and units.
        """
        rows = [
            (int(lost), -round(float(change) / TIE), order, unit, name)
            for order, (name, layer) in enumerate(self.by_layer.items())
            for unit, (lost, change) in enumerate(zip(layer.lost, layer.margin_change, strict=True))
        ]
        return [(name, unit) for *_, unit, name in sorted(rows)]

    def to_scores(self) -> Scores:
        """Return one score per channel: the number of images lost, ties broken by the margin.

        A unit that is made up of several channels gives its score to the first of them.
        """
        values = {}
        for name, layer in self.by_layer.items():
            width = 1 + max(channel for unit in layer.units for channel in unit)
            values[name] = torch.zeros(width, dtype=torch.float64)
            first = [unit[0] for unit in layer.units]
            values[name][first] = scores_of(layer.lost.double(), layer.margin_change)
        return Scores(values, "car", self.baseline.total, self.fingerprint)

    def save(self, path: str | Path) -> None:
        """Write a safetensors file; what is no tensor is JSON in its head."""
        told = {
            name: {"units": layer.units, "layers": layer.layers, "paths": layer.paths}
            for name, layer in self.by_layer.items()
        }
        tensors = {
            f"{kind}/{name}": getattr(layer, kind)
            for name, layer in self.by_layer.items()
            for kind in (*COUNTS, *MEANS)
        }
        baseline = asdict(self.baseline)
        write_layers(path, tensors, car=told, baseline=baseline, fingerprint=self.fingerprint)

    @classmethod
    def load(cls, path: str | Path) -> CarIndex:
        """Read what `save` wrote.

        Raises
        ------
        DataError
            If the file is missing, holds no index, or has changed since it was written.
        """

        def make(
            tensors: Mapping[str, Tensor], car: Mapping[str, Any], baseline: Any, fingerprint: str
        ) -> CarIndex:
            found = rebuild(Baseline, baseline, "the baseline")
            layers = {
                name: LayerCar(
                    tuple(map(tuple, told["units"])),
                    tuple(told["layers"]),
                    tuple(told["paths"]),
                    found,
                    **{kind: tensors[f"{kind}/{name}"] for kind in (*COUNTS, *MEANS)},
                )
                for name, told in car.items()
            }
            for name, layer in layers.items():
                _check_shapes(name, layer)
            return cls(layers, found, fingerprint)

        about: dict[str, Form] = {
            "car": MapOf(_LAYER),
            "baseline": Anything(),
            "fingerprint": Text(),
        }
        return read_layers(path, make, "index", about)

    def __repr__(self) -> str:
        units = sum(map(len, self.by_layer.values()))
        return (
            f"CarIndex({units} units in {len(self)} layers, {self.baseline.total} images, accuracy "
            f"{self.baseline.accuracy:.2%})"
        )


def scores_of(lost: Tensor, margin_change: Tensor) -> Tensor:
    """Put two orders into one number: images lost, then margin, in steps, between 0 and 1."""
    steps = (margin_change / TIE).round()
    return lost + 0.5 - 0.5 * steps / (steps.abs() + _SCALE)


def _check_shapes(name: str, layer: LayerCar) -> None:
    by_class = (len(layer.units), len(layer.baseline.samples))
    for kind in (*COUNTS, *MEANS):
        expected = by_class if kind in ("broken", "mended") else by_class[:1]
        if getattr(layer, kind).shape != expected:
            raise DataError(f"{kind} of {name!r} has another shape than {expected}")
