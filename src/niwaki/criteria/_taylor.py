"""Taylor criteria of each sample: what changes when a unit's gate closes.

A gate multiplies all of a unit's output by one number, 1. The loss's derivative by it is the sum
over space of the output times the loss's derivative there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor, nn

from niwaki.accumulation import Totals
from niwaki.criteria._criterion import Criterion, UnitSums, per_sample, sums_of
from niwaki.criteria._registry import register
from niwaki.criteria._starts import cross_entropy
from niwaki.propagation import Layer, Operation, gradient, propagate

__all__ = ["TaylorGates", "TaylorSquared"]


class _GateDerivatives(UnitSums):
    """Observer of the loss's derivative by each sample's gates; shape (N, units)."""

    def __init__(self) -> None:
        super().__init__()
        self._outputs: dict[Operation, Tensor] = {}

    def output(self, operation: Operation, output: Tensor) -> None:
        """Keep a copy: an activation in place may overwrite it."""
        self._outputs[operation] = output.detach().clone()

    def relevance(self, operation: Operation, relevance: Tensor) -> None:
        """Add the product."""
        self.add(operation, per_sample(operation, self._outputs.pop(operation) * relevance))


@register("taylor_gates")
class TaylorGates(Criterion):
    """Mean over samples of the absolute derivative by a unit's gate (Molchanov et al. 2017).

    The first-order change of each sample's loss when the unit's output is set to zero. The loss is
    the cross-entropy of the true class; the output is taken behind the batch norm.

    Parameters
    ----------
    normalise : str, optional
        See `Scores.normalised`; default ``"l2"``.
    """

    default_normalise: ClassVar[str] = "l2"

    def batch(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Mapping[str, Tensor]:
        """See `Criterion.batch`."""
        gates = _GateDerivatives()
        propagate(model, inputs, gradient(), cross_entropy(labels), [gates], to_input=False)
        return {layer: self._size(values).sum(0) for layer, values in gates.sums.items()}

    def scores(
        self, totals: Totals, layers: Sequence[Layer], model: nn.Module
    ) -> dict[str, Tensor]:
        """See `Criterion.scores`."""
        return {layer.name: sums_of(totals, layer) / totals.samples for layer in layers}

    @staticmethod
    def _size(values: Tensor) -> Tensor:
        return values.abs()


@register("taylor_squared")
class TaylorSquared(TaylorGates):
    """Mean over samples of the squared derivative by a unit's gate (Molchanov et al. 2019).

    Their Taylor-FO behind batch norms.

    Parameters
    ----------
    normalise : str, optional
        See `Scores.normalised`; default ``"none"``.
    """

    default_normalise: ClassVar[str] = "none"

    @staticmethod
    def _size(values: Tensor) -> Tensor:
        return values.square()
