"""The second-order change of the loss as a criterion: optimal brain damage of whole filters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from niwaki.accumulation import Totals
from niwaki.criteria._criterion import Criterion, sums_of
from niwaki.criteria._filters import filters
from niwaki.criteria._registry import register
from niwaki.criteria._weight_products import WeightProducts
from niwaki.propagation import Layer, Operation

__all__ = ["Hessian"]


class _PerWeight(WeightProducts):
    """Weight times derivative of every weight, a row per unit; of a single sample."""

    def read(
        self,
        operation: Operation,
        leaves: tuple[Tensor, Tensor],
        output: Tensor,
        derivative: Tensor,
    ) -> Tensor:
        """See `WeightProducts.read`."""
        weight = leaves[1]
        (gradient,) = torch.autograd.grad(output, weight, derivative, retain_graph=True)
        return filters(operation, weight.detach() * gradient)


@register("hessian")
class Hessian(Criterion):
    """Sum over a unit's weights of w^2 H / 2 (optimal brain damage, LeCun et al. 1990; OBD-C).

    H is the Hessian's diagonal in the Fisher approximation: the mean over samples of the squared
    derivative of the sample's cross-entropy (Wang et al. 2019). It is the second-order change of
    the loss when the unit's weights are set to zero, one independent of the other. Every sample
    takes a pass of its own. Biases and batch norms do not count.

    Parameters
    ----------
    normalise : str, optional
        See `Scores.normalised`; default ``"none"``.
    """

    def batch(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Mapping[str, Tensor]:
        """See `Criterion.batch`."""
        totals: dict[str, Tensor] = {}
        for k in range(len(inputs)):
            found = _PerWeight().run(model, inputs[k : k + 1], labels[k : k + 1])
            for layer, products in found.items():
                more = products.double().square().sum(1)
                totals[layer] = more + totals.get(layer, 0)
        return totals

    def scores(
        self, totals: Totals, layers: Sequence[Layer], model: nn.Module
    ) -> dict[str, Tensor]:
        """See `Criterion.scores`."""
        return {layer.name: sums_of(totals, layer) / (2 * totals.samples) for layer in layers}
