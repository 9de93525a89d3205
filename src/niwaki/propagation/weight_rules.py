"""Rules that change the weights: w-square and gamma; and the norm rule, which has none."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from niwaki.propagation.operation import Operation, Rule, Signals
from niwaki.propagation.transport import (
    STABILIZER,
    Term,
    negative_part,
    positive_part,
    transport,
)
from niwaki.ranges import FACTOR, SMALL, checked

__all__ = ["Gamma", "Norm", "WSquare"]


@checked(stabilizer=SMALL)
@dataclass(frozen=True)
class WSquare(Rule):
    """Shares in proportion to the squared weights, whatever the inputs (Montavon et al. 2017).

    Parameters
    ----------
    stabilizer : float
        Added to the denominator.
    bias : bool
        Whether the squared bias takes its share, as in zennit; iNNvestigate leaves it out.
    """

    stabilizer: float = STABILIZER
    bias: bool = True

    def relevance(self, operation: Operation, inputs: Signals, relevance: Tensor) -> Signals:
        """See `Rule.relevance`."""
        weight, bias = operation.parameters()
        bias = None if bias is None or not self.bias else bias.square()
        ones = tuple(operation.varying(x) for x in inputs)
        term = Term(ones, None if weight is None else weight.square(), bias)
        return transport(operation, [term], relevance, self.stabilizer, positive=True, weigh=False)


@checked(gamma=FACTOR, stabilizer=SMALL)
@dataclass(frozen=True)
class Gamma(Rule):
    """Contributions of the output's own sign count more (Montavon et al. 2019).

    In the generalised form of Andeol et al. (2021): outputs above zero favour contributions above
    zero, outputs below zero those below. For non-negative inputs and outputs it is the original.

    Parameters
    ----------
    gamma : float
        By how much they count more; 0 gives LRP-epsilon, a large gamma z-plus.
    stabilizer : float
        Added to the denominators with their sign.
    bias : bool
        Whether the bias takes its share. The output's sign is that with the bias, as in zennit.

    """

    gamma: float = 0.25
    stabilizer: float = STABILIZER
    bias: bool = True

    def relevance(self, operation: Operation, inputs: Signals, relevance: Tensor) -> Signals:
        """See `Rule.relevance`."""
        weight, bias = operation.parameters()
        with torch.no_grad():
            output = operation.function(inputs, weight, bias)
        # Where the output has no sign, nobody takes the relevance.
        operation.lose(relevance.where(output == 0, 0.0), relevance)
        bias = bias if self.bias else None
        shares = None
        for sign in (1, -1):
            # Behind a ReLU no relevance is on outputs below zero: the second round is for others.
            concerned = torch.where(sign * output > 0, relevance, relevance.new_zeros(()))
            if sign < 0 and not concerned.any():
                break
            terms = self._terms(operation, inputs, weight, bias, sign)
            more = transport(operation, terms, concerned, self.stabilizer)
            shares = more if shares is None else tuple(map(torch.add, shares, more))
        assert shares is not None
        return shares

    def _terms(
        self,
        operation: Operation,
        inputs: Signals,
        weight: Tensor | None,
        bias: Tensor | None,
        sign: int,
    ) -> list[Term]:
        """Return the terms for outputs of one sign."""
        same, other = positive_part, negative_part
        if sign < 0:
            same, other = other, same
        if weight is None:  # weights of one: favour the inputs themselves
            favoured = tuple(x + self.gamma * _part(same, x) for x in inputs)
            return [Term(favoured, None, None)]
        above = inputs if operation.nonnegative else tuple(x.clamp(min=0) for x in inputs)
        terms = [Term(above, self._favour(same, weight), self._favour(same, bias))]
        if not operation.nonnegative:
            below = tuple(x.clamp(max=0) for x in inputs)
            terms.append(Term(below, self._favour(other, weight), None))
        return terms

    def _favour(self, part: object, value: Tensor | None) -> Tensor | None:
        return None if value is None else value + self.gamma * _part(part, value)


def _part(part: object, value: Tensor) -> Tensor:
    assert callable(part)
    found: Tensor = part(value)
    return found


@checked(stabilizer=SMALL)
@dataclass(frozen=True)
class Norm(Rule):
    """Shares in proportion to the inputs, for operations without parameters (zennit's ``Norm``).

    Parameters
    ----------
    stabilizer : float
        Added to the denominator with its sign.
    """

    stabilizer: float = STABILIZER

    def relevance(self, operation: Operation, inputs: Signals, relevance: Tensor) -> Signals:
        """See `Rule.relevance`."""
        weight, _ = operation.parameters()
        return transport(operation, [Term(inputs, weight, None)], relevance, self.stabilizer)
