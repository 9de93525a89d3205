"""Criteria made of the derivative at a unit's output: gradient, Taylor, integrated gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from niwaki.accumulation import Totals
from niwaki.criteria._catalogue import register
from niwaki.criteria._criterion import ByLayer, Criterion, UnitSums, per_sample, per_unit, sums_of
from niwaki.criteria._starts import cross_entropy, one_hot
from niwaki.errors import DataError
from niwaki.propagation import Layer, Operation, gradient, propagate
from niwaki.ranges import PIXELS, STEPS, checked


class _GradientSums(UnitSums):
    """Observer that sums the derivative at each unit's output."""

    def relevance(self, operation: Operation, relevance: Tensor) -> None:
        """Add a layer's derivative."""
        self.add(operation, per_unit(operation, relevance))


class _TaylorSums(UnitSums):
    """Observer that sums output times derivative of each unit."""

    _sum = staticmethod(per_unit)

    def __init__(self) -> None:
        super().__init__()
        self._outputs: dict[Operation, Tensor] = {}

    def output(self, operation: Operation, output: Tensor) -> None:
        """Keep a copy: an activation in place may overwrite it."""
        self._outputs[operation] = output.detach().clone()

    def relevance(self, operation: Operation, relevance: Tensor) -> None:
        """Add the product."""
        self.add(operation, self._sum(operation, self._outputs.pop(operation) * relevance))


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

    def scores(self, totals: Totals, layers: Sequence[Layer], model: nn.Module) -> ByLayer:
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


class _GateDerivatives(_TaylorSums):
    """Observer of the loss's derivative by each sample's gates; shape (N, units).

    A gate multiplies all of a unit's output by one number, 1. The derivative by it is the sum over
    space of the output times the derivative there.
    """

    _sum = staticmethod(per_sample)


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

    def scores(self, totals: Totals, layers: Sequence[Layer], model: nn.Module) -> ByLayer:
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


Use = tuple[str, int]  # a layer, and which of its uses in a pass


class _PathSums(UnitSums):
    """Observer of one pass after the other along a path; sums of shape (N, units).

    Between two points, an output's change times the mean of the derivatives at both ends is added.
    """

    def __init__(self) -> None:
        super().__init__()
        self._before: dict[Use, tuple[Tensor, Tensor]] = {}
        self._now: dict[Use, tuple[Tensor, Tensor]] = {}
        self._outputs: dict[Operation, tuple[Use, Tensor]] = {}

    def advance(self) -> None:
        """Begin the pass at the next point."""
        self._before, self._now, self._outputs = self._now, {}, {}

    def output(self, operation: Operation, output: Tensor) -> None:
        """Keep a copy: an activation in place may overwrite it."""
        if operation in self._outputs:  # a norm follows
            use = self._outputs[operation][0]
        else:
            uses = (other.layer == operation.layer for other in self._outputs)
            use = operation.layer, sum(uses)
        self._outputs[operation] = use, output.detach().clone()

    def relevance(self, operation: Operation, relevance: Tensor) -> None:
        """Add what the way from the last point has brought."""
        use, output = self._outputs[operation]
        self._now[use] = output, relevance.clone()
        if use in self._before:
            start, slope = self._before[use]
            product = (output - start) * (relevance + slope) / 2
            self.add(operation, per_sample(operation, product))


@checked(steps=STEPS, baseline=PIXELS)
@register("integrated_gradients")
class Conductance(Criterion):
    """Mean over samples of |integrated gradients through a unit| (Dhamdhere et al. 2019).

    The unit's conductance: along the straight path from a baseline to the image, the integral of
    the true class's logit's derivative by the unit's output times the change of that output, summed
    over space. The conductances of a layer that all of the signal passes add up to the difference
    of the logits at both ends (Sundararajan et al. 2017 for pixels, Leino et al. 2018 for units),
    so that scores need no normalisation.

    Parameters
    ----------
    steps : int
        Number of pieces that the path is cut into (the trapezoidal rule of Shrikumar et al. 2018);
        it takes one pass more than that.
    baseline : float or Tensor
        Where the path begins: a number, or a tensor that broadcasts to the images.
    normalise : str, optional
        See `Scores.normalised`; default ``"none"``.
    """

    def __init__(
        self, *, steps: int = 16, baseline: float | Tensor = 0.0, normalise: str | None = None
    ) -> None:
        super().__init__(normalise=normalise)
        self.steps = steps
        self.baseline = baseline

    def batch(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Mapping[str, Tensor]:
        """See `Criterion.batch`."""
        baseline = self._baseline(inputs)
        sums = _PathSums()
        for step in range(self.steps + 1):
            point = torch.lerp(baseline, inputs, step / self.steps)
            sums.advance()
            propagate(
                model, point, gradient(), one_hot(labels), [sums], to_input=False, max_loss=None
            )
        return {layer: values.abs().sum(0) for layer, values in sums.sums.items()}

    def scores(self, totals: Totals, layers: Sequence[Layer], model: nn.Module) -> ByLayer:
        """See `Criterion.scores`."""
        return {layer.name: sums_of(totals, layer) / totals.samples for layer in layers}

    def _baseline(self, inputs: Tensor) -> Tensor:
        baseline = torch.as_tensor(self.baseline).to(inputs)
        try:
            return baseline.expand_as(inputs)
        except RuntimeError:
            raise DataError(
                f"a baseline of shape {tuple(baseline.shape)} does not broadcast to images of "
                f"shape {tuple(inputs.shape)}"
            ) from None
