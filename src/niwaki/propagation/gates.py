"""Gates: what activations let through in the backward pass, for methods that change gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from niwaki.errors import PropagationError
from niwaki.propagation.operation import Operation, Rule, Signals
from niwaki.ranges import FACTOR, checked

__all__ = ["BetaSmooth", "Rescale"]


@checked(beta=FACTOR.but(open_low=True))
@dataclass(frozen=True)
class BetaSmooth(Rule):
    """The derivative of a softplus in place of the ReLU's (Dombrowski et al. 2019).

    Parameters
    ----------
    beta : float
        Steepness; the larger, the closer to the ReLU.
    """

    beta: float = 10.0

    def relevance(self, operation: Operation, inputs: Signals, relevance: Tensor) -> Signals:
        """See `Rule.relevance`."""
        return (relevance * torch.sigmoid(self.beta * inputs[0]),)


@dataclass(frozen=True)
class Rescale(Rule):
    """DeepLIFT's rescale rule: slopes between each input and its reference (Shrikumar et al. 2017).

    The batch holds the inputs, and then as many references. For max pooling the change of an
    output is shared between the input's winner and the reference's, as in Captum.

    Parameters
    ----------
    smallest : float
        Differences below it count as zero, and get the derivative.
    """

    smallest: float = 1e-10

    def relevance(self, operation: Operation, inputs: Signals, relevance: Tensor) -> Signals:
        """See `Rule.relevance`."""
        (x,) = inputs
        if len(x) % operation.samples:  # frames may be folded into the samples, one after the other
            raise PropagationError(
                f"{operation} reads a tensor of shape {tuple(x.shape)} for {operation.samples} "
                f"samples (inputs and references): {self} cannot tell which belong together where "
                "the network loops over its samples or folds others into their dimension. "
                "integrated_gradients can"
            )
        with torch.no_grad():
            y = operation.function((x,), None, None)
        before, after = _difference(x), _difference(y)
        (plain,) = operation.derivative((x,), relevance)
        if operation.kind == "max_pool":
            most = torch.maximum(*y.chunk(2))
            there = torch.cat([most - y.chunk(2)[1], y.chunk(2)[0] - most])
            (shared,) = operation.derivative((x,), relevance.chunk(2)[0].repeat(_twice(y)) * there)
            change = shared.chunk(2)[0] + shared.chunk(2)[1]
            slopes = change.repeat(_twice(x)) / before
        else:
            slopes = relevance * after / before
        return (torch.where(before.abs() < self.smallest, plain, slopes),)


def _difference(values: Tensor) -> Tensor:
    """Difference of each sample to its reference, for both halves of the batch."""
    sample, reference = values.chunk(2)
    return (sample - reference).repeat(_twice(values))


def _twice(values: Tensor) -> tuple[int, ...]:
    return (2, *[1] * (values.dim() - 1))
