"""Criteria made of the loss's derivative by weights: Taylor and optimal brain damage."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from niwaki.accumulation import Totals
from niwaki.criteria._catalogue import register
from niwaki.criteria._criterion import ByLayer, Criterion, filters, per_sample, sums_of
from niwaki.criteria._starts import cross_entropy
from niwaki.propagation import Assign, Composite, Gradient, Layer, Operation, Rule, propagate
from niwaki.propagation.operation import Signals


class WeightProducts(Rule):
    """The derivative; on the way, each layer's inputs and the loss's derivative are read.

    Weights come with the batch norm behind the layer folded in. That does not change a weight times
    the loss's derivative by it: the one is multiplied by what the other is divided by.

    Attributes
    ----------
    sums : dict of str to Tensor
        By layer; one that is used twice gets the sum.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    def run(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Go once through the network and back, from the summed cross-entropy."""
        rows = (Assign(self, kind=("convolution", "linear")), Assign(Gradient()))
        propagate(model, inputs, Composite(str(self), rows), cross_entropy(labels))
        return self.sums

    def relevance(self, operation: Operation, inputs: Signals, relevance: Tensor) -> Signals:
        """See `Rule.relevance`."""
        weight, _ = operation.parameters()
        assert weight is not None
        with torch.enable_grad():
            leaves = inputs[0].detach().requires_grad_(), weight.detach().requires_grad_()
            output = operation.function(leaves[:1], leaves[1], None)
        products = self.read(operation, leaves, output, relevance)
        before = self.sums.get(operation.layer)
        self.sums[operation.layer] = products if before is None else before + products
        return torch.autograd.grad(output, leaves[:1], relevance)

    @abstractmethod
    def read(
        self,
        operation: Operation,
        leaves: tuple[Tensor, Tensor],
        output: Tensor,
        derivative: Tensor,
    ) -> Tensor:
        """Make what is summed.

        Parameters
        ----------
        operation : Operation
            The layer.
        leaves : pair of Tensor
            Its input and its weight, of which `output` was computed.
        output : Tensor
            Without the bias; its graph is needed once more.
        derivative : Tensor
            The loss's, by the output.
        """

    def __str__(self) -> str:
        return type(self).__name__


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

    def scores(self, totals: Totals, layers: Sequence[Layer], model: nn.Module) -> ByLayer:
        """See `Criterion.scores`."""
        return {layer.name: sums_of(totals, layer) / totals.samples for layer in layers}


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

    def scores(self, totals: Totals, layers: Sequence[Layer], model: nn.Module) -> ByLayer:
        """See `Criterion.scores`."""
        return {layer.name: sums_of(totals, layer) / (2 * totals.samples) for layer in layers}
