"""The rules of layer-wise relevance propagation, and those of the gradient methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from niwaki.errors import PropagationError
from niwaki.propagation.operation import Operation, Rule, Signals
from niwaki.propagation.transport import (
    STABILIZER,
    Term,
    activating,
    inhibiting,
    negative_part,
    positive_part,
    transport,
)
from niwaki.ranges import FACTOR, PIXELS, SMALL, checked

__all__ = [
    "AlphaBeta",
    "Deconvnet",
    "Epsilon",
    "Flat",
    "Gradient",
    "Guided",
    "Pass",
    "Ratio",
    "ZBox",
    "ZPlus",
]


@checked(epsilon=SMALL)
@dataclass(frozen=True)
class Epsilon(Rule):
    """LRP-epsilon: shares in proportion to the contributions (Bach et al. 2015, eq. 58).

    Parameters
    ----------
    epsilon : float
        Added to the denominator with its sign. Absorbs relevance where contributions cancel.
    bias : bool
        Whether the bias takes its share (which is then lost).
    """

    epsilon: float = STABILIZER
    bias: bool = True

    def relevance(self, operation: Operation, inputs: Signals, relevance: Tensor) -> Signals:
        """See `Rule.relevance`."""
        weight, bias = operation.parameters()
        term = Term(inputs, weight, bias if self.bias else None)
        positive = operation.nonnegative and weight is None
        return transport(operation, [term], relevance, self.epsilon, positive=positive)


@checked(stabilizer=SMALL)
@dataclass(frozen=True)
class ZPlus(Rule):
    """Only contributions above zero count (Montavon et al. 2017; alpha 1, beta 0).

    Negative inputs through negative weights contribute too; the positive bias takes its share.

    Parameters
    ----------
    stabilizer : float
        Added to the denominator.
    bias : bool
        Whether the positive bias takes its share (which is then lost).
    """

    stabilizer: float = STABILIZER
    bias: bool = True

    def relevance(self, operation: Operation, inputs: Signals, relevance: Tensor) -> Signals:
        """See `Rule.relevance`."""
        weight, bias = operation.parameters()
        terms = activating(operation, inputs, weight, bias if self.bias else None)
        return transport(operation, terms, relevance, self.stabilizer, positive=True)


@checked(alpha=FACTOR, beta=FACTOR, stabilizer=SMALL)
@dataclass(frozen=True)
class AlphaBeta(Rule):
    """Contributions above and below zero, weighted by alpha and -beta (Bach et al. 2015, eq. 60).

    The positive bias takes its share among the positive contributions, the negative bias among the
    negative ones.

    Parameters
    ----------
    alpha, beta : float
        Non-negative, with ``alpha - beta = 1``, else relevance is not conserved.
    stabilizer : float
        Added to both denominators with their sign.
    bias : bool or "both"
        Whether the biases take their shares (which are then lost). ``"both"``: both signs of the
        bias in both denominators, as in iNNvestigate.

    Raises
    ------
    ValueError
        If alpha or beta is negative or their difference is not 1.
    """

    alpha: float = 2.0
    beta: float = 1.0
    stabilizer: float = STABILIZER
    bias: bool | Literal["both"] = True

    def __post_init__(self) -> None:
        if abs(self.alpha - self.beta - 1) > 1e-9:
            raise ValueError(
                f"alpha = {self.alpha} and beta = {self.beta}: both must be non-negative and "
                "alpha - beta = 1"
            )

    def relevance(self, operation: Operation, inputs: Signals, relevance: Tensor) -> Signals:
        """See `Rule.relevance`."""
        weight, bias = operation.parameters()
        bias = bias if self.bias else None
        both = self.bias == "both" and bias is not None
        terms = activating(operation, inputs, weight, bias)
        terms = [terms[0]._replace(bias=bias), *terms[1:]] if both else terms
        scaled = relevance if self.alpha == 1 else relevance * self.alpha
        shares = transport(operation, terms, scaled, self.stabilizer, positive=not both)
        if not self.beta:
            return shares
        terms = inhibiting(operation, inputs, weight, bias)
        terms = [terms[0]._replace(bias=bias), *terms[1:]] if both else terms
        if not terms:  # an average of inputs above zero: nothing inhibits
            operation.lose(-self.beta * relevance, self.beta * relevance)
            return shares
        less = transport(operation, terms, relevance * -self.beta, self.stabilizer)
        return tuple(share.add_(other) for share, other in zip(shares, less, strict=True))


@checked(low=PIXELS, high=PIXELS, stabilizer=SMALL)
@dataclass(frozen=True)
class ZBox(Rule):
    """For an input that lives in a box, such as pixels (Montavon et al. 2017, section 4.2).

    Parameters
    ----------
    low, high : float or tuple of float
        Smallest and largest possible value; a tuple gives one value per input channel. In a first
        layer they are those of the network's input, and are carried through what is done to it
        before (a normalisation, padding, a resize).
    stabilizer : float
        Added to the denominator with its sign.
    """

    low: float | tuple[float, ...]
    high: float | tuple[float, ...]
    stabilizer: float = STABILIZER

    def relevance(self, operation: Operation, inputs: Signals, relevance: Tensor) -> Signals:
        """See `Rule.relevance`."""
        if operation.kind == "sum":
            raise PropagationError(f"{operation}: {self} needs one input, whose box it describes")
        (x,) = inputs
        low, high = (bound.to(x) for bound in self._bounds(operation, x))
        weight, _ = operation.parameters()  # the three shares of the bias cancel
        terms = [
            Term(inputs, weight, None),
            Term((low,), positive_part(weight), None, sign=-1),
        ]
        if weight is not None:  # an operation without parameters has weights above zero only
            terms.append(Term((high,), negative_part(weight), None, sign=-1))
        return transport(operation, terms, relevance, self.stabilizer)

    def _bounds(self, operation: Operation, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the bounds of what the operation reads, of its shape."""
        low, high = (x.new_tensor(v).view(-1) for v in (self.low, self.high))
        if not operation.first:
            shape = (-1, *[1] * (x.dim() - 2))
            return low.view(shape).expand_as(x).clone(), high.view(shape).expand_as(x).clone()
        if operation.bounds is None:
            raise PropagationError(
                f"{operation}: {self} gives the bounds of the network's input, and what is done to "
                "it before this layer does not say which bounds come out. Take it out of the "
                "network, or choose another rule for the first layer (Flat, WSquare)"
            )
        try:
            return operation.bounds(low, high)
        except RuntimeError:
            raise PropagationError(
                f"{operation}: the bounds of {self} do not fit the channels of the input"
            ) from None


@checked(stabilizer=SMALL)
@dataclass(frozen=True)
class Flat(Rule):
    """Every input that reaches an output gets the same share (Lapuschkin et al. 2019).

    Parameters
    ----------
    stabilizer : float
        Added to the denominator.
    """

    stabilizer: float = STABILIZER

    def relevance(self, operation: Operation, inputs: Signals, relevance: Tensor) -> Signals:
        """See `Rule.relevance`."""
        ones = tuple(operation.varying(x) for x in inputs)
        weight, _ = operation.parameters()
        weight = None if weight is None else torch.ones_like(weight)
        term = Term(ones, weight, None)
        return transport(operation, [term], relevance, self.stabilizer, positive=True, weigh=False)


@checked(stabilizer=SMALL)
@dataclass(frozen=True)
class Ratio(Rule):
    """Shares in proportion to the sizes of the contributions (Otsuki et al. 2024, for shortcuts).

    Nothing cancels, so that relevance neither grows, as by `Epsilon`, nor is lost where no
    contribution is above zero, as by `ZPlus`: made for sums of branches of both signs.

    Parameters
    ----------
    stabilizer : float
        Added to the denominator.
    bias : bool
        Whether the bias takes its share (which is then lost).
    """

    stabilizer: float = STABILIZER
    bias: bool = True

    def relevance(self, operation: Operation, inputs: Signals, relevance: Tensor) -> Signals:
        """See `Rule.relevance`."""
        weight, bias = (None if p is None else p.abs() for p in operation.parameters())
        sizes = inputs if operation.nonnegative else tuple(x.abs() for x in inputs)
        term = Term(sizes, weight, bias if self.bias else None)
        return transport(operation, [term], relevance, self.stabilizer, positive=True)


@dataclass(frozen=True)
class Pass(Rule):
    """Relevance passes through unchanged: activations, scaling and shifting by a constant."""

    needs_inputs = False

    def relevance(self, operation: Operation, inputs: Signals, relevance: Tensor) -> Signals:
        """See `Rule.relevance`."""
        return (relevance,)


@dataclass(frozen=True)
class Gradient(Rule):
    """The derivative of the operation itself."""

    def relevance(self, operation: Operation, inputs: Signals, relevance: Tensor) -> Signals:
        """See `Rule.relevance`."""
        return operation.derivative(inputs, relevance)


@dataclass(frozen=True)
class Guided(Rule):
    """Guided backprop's gate: positive gradients of active units (Springenberg et al. 2014)."""

    def relevance(self, operation: Operation, inputs: Signals, relevance: Tensor) -> Signals:
        """See `Rule.relevance`."""
        (gradient,) = operation.derivative(inputs, relevance.clamp(min=0))
        return (gradient,)


@dataclass(frozen=True)
class Deconvnet(Rule):
    """The deconvolutional network's gate: only positive gradients (Zeiler and Fergus 2014)."""

    needs_inputs = False

    def relevance(self, operation: Operation, inputs: Signals, relevance: Tensor) -> Signals:
        """See `Rule.relevance`."""
        return (relevance.clamp(min=0),)
