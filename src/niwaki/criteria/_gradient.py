"""Criteria made of the loss's derivative at a unit's output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor, nn

from niwaki.accumulation import Totals
from niwaki.criteria._criterion import Criterion, UnitSums, per_unit, sums_of
from niwaki.criteria._registry import register
from niwaki.criteria._starts import cross_entropy
from niwaki.propagation import Layer, Operation, gradient, propagate

__all__ = ["GradientCriterion", "Taylor"]


class _GradientSums(UnitSums):
    """Observer that sums the derivative at each unit's output."""

    def relevance(self, operation: Operation, relevance: Tensor) -> None:
        """Add a layer's derivative."""
        self.add(operation, per_unit(operation, relevance))


class _TaylorSums(UnitSums):
    """Observer that sums output times derivative of each unit."""

    def __init__(self) -> None:
        super().__init__()
        self._outputs: dict[Operation, Tensor] = {}

    def output(self, operation: Operation, output: Tensor) -> None:
        """Keep a copy: an activation in place may overwrite it."""
        self._outputs[operation] = output.detach().clone()

    def relevance(self, operation: Operation, relevance: Tensor) -> None:
        """Add the product."""
        self.add(operation, per_unit(operation, self._outputs.pop(operation) * relevance))


@register("gradient")
class GradientCriterion(Criterion):
    """Absolute mean derivative of the loss by a unit's output (as in Yeom et al. 2021).

    The loss is the cross-entropy of the true class; the mean is over samples and space. A unit's
    output is taken behind the batch norm that follows it.

    Parameters
    ----------
    normalise : str, optional
        See `Scores.normalised`; default ``"l2"``.
    """

    default_normalise: ClassVar[str] = "l2"
    _sums: ClassVar[type[UnitSums]] = _GradientSums

    def batch(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Mapping[str, Tensor]:
        """See `Criterion.batch`."""
        sums = self._sums()
        propagate(model, inputs, gradient(), cross_entropy(labels), [sums], to_input=False)
        return sums.sums

    def scores(
        self, totals: Totals, layers: Sequence[Layer], model: nn.Module
    ) -> dict[str, Tensor]:
        """See `Criterion.scores`."""
        return {
            layer.name: sums_of(totals, layer).abs() / (totals.samples * layer.positions)
            for layer in layers
        }


@register("taylor")
class Taylor(GradientCriterion):
    """Absolute mean of a unit's output times the loss's derivative (as in Yeom et al. 2021).

    The first-order change of the loss when the unit's output is set to zero. The mean is over
    samples and space, so that samples of opposite signs cancel; Molchanov et al. (2017), who
    introduced it, take the absolute value of each sample, see `TaylorGates`.

    Parameters
    ----------
    normalise : str, optional
        See `Scores.normalised`; default ``"l2"``.
    """

    _sums: ClassVar[type[UnitSums]] = _TaylorSums
