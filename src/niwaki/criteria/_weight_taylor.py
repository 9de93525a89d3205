"""The Taylor criterion over a unit's weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from niwaki.accumulation import Totals
from niwaki.criteria._criterion import Criterion, per_sample, sums_of
from niwaki.criteria._registry import register
from niwaki.criteria._weight_products import WeightProducts
from niwaki.propagation import Layer, Operation

__all__ = ["TaylorWeights"]


class _PerSample(WeightProducts):
    """Sums over each unit's weights of weight times derivative; shape (N, units).

    The sum over a unit's weights is the sum over space of its output without the bias times the
    derivative there, as the output is linear in the weights.
    """

    def read(
        self,
        operation: Operation,
        leaves: tuple[Tensor, Tensor],
        output: Tensor,
        derivative: Tensor,
    ) -> Tensor:
        """See `WeightProducts.read`."""
        return per_sample(operation, output.detach() * derivative)


@register("taylor_weights")
class TaylorWeights(Criterion):
    """Mean over samples of (sum of weight times derivative)^2 of a unit (Molchanov et al. 2019).

    The squared first-order change of each sample's loss when all of the unit's weights are set to
    zero: their joint score of a set of weights. Biases and batch norms do not count. The loss is
    the cross-entropy of the true class.

    Parameters
    ----------
    normalise : str, optional
        See `Scores.normalised`; default ``"none"``.
    """

    def batch(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Mapping[str, Tensor]:
        """See `Criterion.batch`."""
        sums = _PerSample().run(model, inputs, labels)
        return {layer: values.square().sum(0) for layer, values in sums.items()}

    def scores(
        self, totals: Totals, layers: Sequence[Layer], model: nn.Module
    ) -> dict[str, Tensor]:
        """See `Criterion.scores`."""
        return {layer.name: sums_of(totals, layer) / totals.samples for layer in layers}
