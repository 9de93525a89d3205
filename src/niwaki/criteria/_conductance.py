"""Integrated gradients at units: how much of the output flows through each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from niwaki.accumulation import Totals
from niwaki.criteria._criterion import Criterion, UnitSums, per_sample, sums_of
from niwaki.criteria._registry import register
from niwaki.criteria._starts import one_hot
from niwaki.errors import DataError
from niwaki.propagation import Layer, Operation, gradient, propagate
from niwaki.ranges import PIXELS, STEPS, checked

__all__ = ["Conductance"]

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

    The unit's conductance: along the straight way from a baseline to the image, the integral of the
    true class's logit's derivative by the unit's output times the change of that output, summed
    over space. The conductances of a layer that all of the signal passes add up to the difference
    of the logits at both ends (Sundararajan et al. 2017 for pixels, Leino et al. 2018 for units),
    so that scores need no normalisation.

    Parameters
    ----------
    steps : int
        Number of pieces that the way is cut into (the trapezoidal rule of Shrikumar et al. 2018);
        it takes one pass more than that.
    baseline : float or Tensor
        Where the way begins: a number, or a tensor that broadcasts to the images.
    normalise : str, optional
        See `Scores.normalised`; default ``"none"``.
    """

    def __init__(
        self, *, steps: int = 16, baseline: float | Tensor = 0.0, normalise: str | None = None
    ) -> None:
        super().__init__(normalise=normalise)
        if steps < 1:
            raise ValueError(f"steps = {steps}: must be at least 1")
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

    def scores(
        self, totals: Totals, layers: Sequence[Layer], model: nn.Module
    ) -> dict[str, Tensor]:
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
