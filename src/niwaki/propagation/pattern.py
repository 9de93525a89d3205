"""PatternNet and PatternAttribution: a backward pass through patterns in place of weights.

A pattern is the direction in which a unit's signal lies (Kindermans et al. 2018); how it is
estimated from data is no concern of this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from niwaki.errors import PropagationError
from niwaki.propagation.composites import Assign, Composite
from niwaki.propagation.operation import Operation, Rule, Signals
from niwaki.propagation.rules import Gradient

__all__ = ["Pattern", "pattern_attribution", "pattern_net"]


@dataclass(frozen=True, eq=False)
class Pattern(Rule):
    """The derivative of a layer whose weight is replaced by its pattern.

    Parameters
    ----------
    patterns : mapping of str to Tensor
        Layer name to a tensor of the weight's shape.
    attribution : bool
        Whether the pattern is multiplied by the weight (PatternAttribution) or taken alone
        (PatternNet).
    """

    patterns: Mapping[str, Tensor] = field(repr=False)
    attribution: bool = False

    needs_inputs = False

    def relevance(self, operation: Operation, inputs: Signals, relevance: Tensor) -> Signals:
        """See `Rule.relevance`."""
        weight, _ = operation.parameters()
        pattern = self._of(operation, weight).to(relevance)
        if self.attribution:
            assert weight is not None
            pattern = pattern * weight
        with torch.enable_grad():  # a linear map has the same derivative everywhere, also at zero
            zeros = relevance.new_zeros(operation.input_shape).requires_grad_()
            output = operation.function((zeros,), pattern, None)
        return torch.autograd.grad(output, zeros, relevance)

    def _of(self, operation: Operation, weight: Tensor | None) -> Tensor:
        pattern = self.patterns.get(operation.layer)
        if pattern is None:
            raise PropagationError(
                f"{operation} has no pattern; there are patterns for: "
                f"{', '.join(self.patterns) or 'no layer'}. Fit them on this network, all layers"
            )
        if weight is None or pattern.shape != weight.shape:
            shape = None if weight is None else tuple(weight.shape)
            raise PropagationError(
                f"{operation} has a weight of shape {shape} and a pattern of shape "
                f"{tuple(pattern.shape)}: the patterns are of another network"
            )
        return pattern

    def __str__(self) -> str:
        times = "weight times pattern" if self.attribution else "pattern"
        return f"Pattern({times}, {len(self.patterns)} layers)"


def pattern_net(patterns: Mapping[str, Tensor]) -> Composite:
    """Patterns in place of the weights, everything else by its derivative.

    So a ReLU gates by its input, max pooling gives all to the winner, and sums and averages are
    what they are. Biases play no role. A batch norm behind a layer is part of that layer's
    pattern; one that stands alone is a scaling, with its derivative.
    """
    return _composite("PatternNet", Pattern(patterns))


def pattern_attribution(patterns: Mapping[str, Tensor]) -> Composite:
    """Weights times patterns in place of the weights, else like `pattern_net`."""
    return _composite("PatternAttribution", Pattern(patterns, attribution=True))


def _composite(name: str, rule: Pattern) -> Composite:
    return Composite(name, (Assign(rule, kind=("convolution", "linear")), Assign(Gradient())))
