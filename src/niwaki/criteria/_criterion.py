"""What every criterion is: sums over batches, and scores made of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from niwaki.accumulation import Totals
from niwaki.criteria._scores import NORMALISATIONS
from niwaki.data import Data
from niwaki.errors import ModelError
from niwaki.propagation import Layer, Operation, per_class, unit_dimension
from niwaki.ranges import SEED, checked

__all__ = [
    "ByLayer",
    "Criterion",
    "Granularity",
    "UnitSums",
    "filters",
    "other_dimensions",
    "per_sample",
    "per_unit",
    "per_unit_size",
    "sums_of",
    "weights_by_filter",
    "weights_of",
]

Granularity = Literal["unit", "weight"]
ByLayer = dict[str, Tensor]  # layer name to a value per unit or weight


class Criterion(ABC):
    """How much each unit, or each weight, matters.

    Attributes
    ----------
    name : str
        In the catalogue; a variant such as ``"lrp.signed"`` bears its own.
    normalise : str
        How scores of different layers are made comparable, see `Scores.normalised`; each
        criterion's default is the published one.
    """

    name: str
    #: What gets a score: a filter or neuron, or a single weight (in the shape of the layer's).
    granularity: Granularity = "unit"
    default_normalise: ClassVar[str] = "none"
    #: Whether it looks at data at all.
    needs_data: ClassVar[bool] = True

    def __init__(self, *, normalise: str | None = None) -> None:
        self.normalise = self.default_normalise if normalise is None else normalise
        if self.normalise not in NORMALISATIONS:
            raise ValueError(
                f"normalise = {normalise!r} is not one of {', '.join(map(repr, NORMALISATIONS))}"
            )

    def prepared(self, model: nn.Module, data: Data, batch_size: int) -> Criterion:
        """Return the criterion ready for this network and these reference samples.

        Called once before the batches; itself, for all that have nothing to learn beforehand.

        Parameters
        ----------
        model : nn.Module
            In evaluation mode; not changed.
        data : DataLoader, Dataset or pair of tensors
            The reference samples, which `batch` will get.
        batch_size : int
            For a data set or tensors; a loader has its own.
        """
        return self

    @property
    def draws(self) -> bool:
        """Whether it draws random numbers by a seed that nobody has given."""
        return False

    @checked(seed=SEED)
    def seeded(self, seed: int) -> Criterion:
        """Return the same with this seed, if it `draws`; else itself."""
        return self

    def network(self, model: nn.Module, inputs: Tensor) -> nn.Module:
        """Return the network that `batch` gets: one with an output per class, see `per_class`.

        A criterion of weights gets the network itself, as its last layer is scored too.

        Parameters
        ----------
        model : nn.Module
            In evaluation mode; not changed.
        inputs : Tensor
            Shape (N, ...): the first batch.
        """
        return per_class(model, inputs) if self.granularity == "unit" else model

    def batch(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Mapping[str, Tensor]:
        """Compute a batch's own sums: layer name to a tensor of one value per unit or weight.

        Parameters
        ----------
        model : nn.Module
            In evaluation mode; not changed.
        inputs : Tensor
            Shape (N, ...).
        labels : Tensor
            True classes, shape (N,).
        """
        raise TypeError(f"the criterion {self.name!r} does not look at data")

    @abstractmethod
    def scores(self, totals: Totals, layers: Sequence[Layer], model: nn.Module) -> ByLayer:
        """Compute the scores from the sums over all batches.

        Parameters
        ----------
        totals : Totals
            The sums of `batch`.
        layers : sequence of Layer
            The layers to score.
        model : nn.Module
            The network.
        """

    def check_comparable(self, scores: Mapping[str, Tensor]) -> None:  # noqa: B027 - few have anything to say
        """Warn if scores cannot be ranked over all layers as they are; by default nothing is said.

        Parameters
        ----------
        scores : mapping of str to Tensor
            Layer name to one value per unit.
        """

    def fallbacks(self) -> list[Criterion]:
        """List the criteria to take, in turn, where this one loses too much relevance."""
        return []

    def __repr__(self) -> str:
        options = {k: v for k, v in vars(self).items() if k[0] != "_" and k not in self._untold}
        told = ", ".join(f"{name}={value!r}" for name, value in options.items())
        return f"{type(self).__name__}({told})"

    #: Attributes that are no options.
    _untold: ClassVar[tuple[str, ...]] = ("name",)


def weights_by_filter(layer: Layer) -> Tensor:
    """Return a layer's weights, without biases, in double precision; shape (units, weights)."""
    return filters(layer.operation, weights_of(layer))


def filters(operation: Operation, values: Tensor) -> Tensor:
    """Reshape values of the shape of a layer's weight to (units, weights of a unit)."""
    if operation.channel_dim == 0:
        return values.flatten(1)
    # Transposed: (in, out / groups, ...), the input channels ordered by group.
    by_group = values.view(operation.groups, -1, *values.shape[1:])
    return by_group.transpose(1, 2).reshape(operation.units, -1)


def weights_of(layer: Layer) -> Tensor:
    """Return a layer's weights in double precision, in their own shape."""
    assert layer.operation.weight is not None
    return layer.operation.weight.detach().double()


def sums_of(totals: Totals, layer: Layer) -> Tensor:
    """Return a layer's sums: zeros where nothing came, as its output is not used."""
    return totals.sums.get(layer.name, torch.zeros(layer.units, dtype=torch.float64))


def per_unit(operation: Operation, values: Tensor) -> Tensor:
    """Sum a layer's values over everything but its units; shape (units,)."""
    # In double precision: what cancels in single would leave what the batches are made of.
    others = other_dimensions(operation, values)  # no dimensions would mean all
    return values.sum(others, dtype=torch.float64) if others else values.double()


def per_unit_size(operation: Operation, values: Tensor) -> Tensor:
    """Sum absolute values in the same way, without a copy of them, which would be expensive."""
    others = other_dimensions(operation, values)
    found: Tensor = torch.linalg.vector_norm(values, 1, dim=others) if others else values.abs()
    return found


def per_sample(operation: Operation, values: Tensor) -> Tensor:
    """Sum a layer's values over everything but samples and units; shape (N, units).

    Raises
    ------
    ModelError
        If the network has folded other dimensions into that of the samples.
    """
    if operation.samples == 1:
        return per_unit(operation, values)[None]
    if len(values) != operation.samples or unit_dimension(operation) == -values.dim():
        raise ModelError(
            f"{operation}: its output has shape {tuple(values.shape)} for {operation.samples} "
            "samples, so that a criterion of values per sample cannot tell them apart. Use one of "
            "sums, such as 'lrp' or 'taylor'"
        )
    space = [d for d in other_dimensions(operation, values) if d != 0]
    return values.sum(space) if space else values


def other_dimensions(operation: Operation, values: Tensor) -> list[int]:
    """List the dimensions of a layer's values that are not that of its units."""
    dimension = unit_dimension(operation) % values.dim()
    return [d for d in range(values.dim()) if d != dimension]


class UnitSums:
    """Observer that adds up numbers per unit; the base of what criteria read in a pass."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    def add(self, operation: Operation, values: Tensor) -> None:
        """Add values of a layer's units; a layer that is used twice gets the sum."""
        before = self.sums.get(operation.layer)
        self.sums[operation.layer] = values if before is None else before + values

    def output(self, operation: Operation, output: Tensor) -> None:
        """Nothing is read here."""

    def activation(self, operation: Operation, output: Tensor) -> None:
        """Nothing is read here."""

    def relevance(self, operation: Operation, relevance: Tensor) -> None:
        """Nothing is read here."""
