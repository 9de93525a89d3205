"""A rule that reads, on the way back, what each layer's weights contribute to the derivative."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from niwaki.criteria._starts import cross_entropy
from niwaki.propagation import Assign, Composite, Gradient, Operation, Rule, propagate

__all__ = ["WeightProducts"]


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

    def relevance(
        self, operation: Operation, inputs: tuple[Tensor, ...], relevance: Tensor
    ) -> tuple[Tensor, ...]:
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
