"""Rules: how relevance flows back through one operation.

Every rule of layer-wise relevance propagation for a linear operation has one form. Its output is
rebuilt as a sum of *terms*, each a modified input sent through modified parameters; an output's
relevance is divided by that sum and carried back to the inputs, each multiplied by the input it
came from. A rule only says which terms. See Montavon et al., "Layer-wise relevance propagation:
an overview" (2019), section 10.2.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from niwaki.errors import PropagationError
from niwaki.propagation.operation import Operation

__all__ = [
    "AlphaBeta",
    "Deconvnet",
    "Epsilon",
    "Flat",
    "Gradient",
    "Guided",
    "Pass",
    "Rule",
    "Term",
    "ZBox",
    "ZPlus",
    "transport",
]

STABILIZER = 1e-6


class Rule(ABC):
    """How relevance flows back through one operation.

    A new rule is a frozen dataclass with a `relevance` method.
    """

    #: Whether `relevance` reads the operation's inputs; if not, they are not kept in memory.
    needs_inputs: bool = True

    @abstractmethod
    def relevance(
        self, operation: Operation, inputs: tuple[Tensor, ...], relevance: Tensor
    ) -> tuple[Tensor, ...]:
        """Relevance of each input.

        Parameters
        ----------
        operation : Operation
            What was done, with its parameters.
        inputs : tuple of Tensor
            The signals that went in; empty where `needs_inputs` is false.
        relevance : Tensor
            Relevance of the output, of the output's shape. Not to be changed.

        Returns
        -------
        tuple of Tensor
            One per input, of that input's shape.
        """

    def __str__(self) -> str:
        values = ", ".join(
            f"{f.name}={getattr(self, f.name)!r}"
            for f in fields(self)  # type: ignore[arg-type]
        )
        return f"{type(self).__name__}({values})"


class Term(NamedTuple):
    """A modified input through modified parameters: one summand of a rule's denominator."""

    inputs: tuple[Tensor, ...]
    weight: Tensor | None
    bias: Tensor | None
    sign: int = 1


def transport(
    operation: Operation,
    terms: Sequence[Term],
    relevance: Tensor,
    epsilon: float,
    *,
    positive: bool = False,
    weigh: bool = True,
) -> tuple[Tensor, ...]:
    """Carry `relevance` back through the sum of `terms`.

    With z the signed sum over the terms, an input of a term gets itself times the derivative of z
    in the direction ``relevance / (z + epsilon * sign(z))``, sign(0) being 1. What epsilon keeps
    back is noted in ``operation.lost``: all of it where nothing contributes.

    Parameters
    ----------
    positive : bool
        The sum cannot be negative: saves the sign.
    weigh : bool
        Multiply by the input; without it, the share of an input does not depend on its value.
    """
    with torch.enable_grad():
        leaves = [tuple(x.detach().requires_grad_() for x in term.inputs) for term in terms]
        outputs = [
            operation.function(xs, term.weight, term.bias)
            for xs, term in zip(leaves, terms, strict=True)
        ]
    # In place from here on: these are our own tensors, and memory traffic is what a rule costs.
    z = outputs[0].detach()
    if any(z.data_ptr() == x.data_ptr() for x in leaves[0]):
        z = z.clone()  # an operation that hands on its input as it is
    for output, term in zip(outputs[1:], terms[1:], strict=True):
        z.add_(output.detach(), alpha=term.sign)
    negative = None if positive else z < 0
    z.add_(epsilon)
    if negative is not None:
        z.add_(negative, alpha=-2 * epsilon)
    z = torch.div(relevance, z, out=z)
    if epsilon <= STABILIZER:  # a larger one is there to absorb
        lost = z.sum()
        if negative is not None:
            lost -= 2 * torch.sum(z * negative)
        operation.lost = operation.lost + lost * epsilon

    flat = [x for xs in leaves for x in xs]
    gradients = torch.autograd.grad(
        outputs, flat, [z if term.sign > 0 else -z for term in terms], materialize_grads=True
    )
    del outputs, z
    shares = [g.mul(x.detach()) if weigh else g for g, x in zip(gradients, flat, strict=True)]
    count = len(terms[0].inputs)
    result = list(shares[:count])
    for position, share in enumerate(shares[count:]):
        result[position % count] = result[position % count] + share
    return tuple(result)


def positive_part(x: Tensor | None) -> Tensor | None:
    """Keep what is above zero."""
    return None if x is None else x.clamp(min=0)


def negative_part(x: Tensor | None) -> Tensor | None:
    """Keep what is below zero."""
    return None if x is None else x.clamp(max=0)


def activating(
    operation: Operation, inputs: tuple[Tensor, ...], weight: Tensor | None, bias: Tensor | None
) -> list[Term]:
    """Return the terms whose every contribution is positive, the positive bias among them."""
    if operation.nonnegative:
        return [Term(inputs, positive_part(weight), positive_part(bias))]
    terms = [
        Term(tuple(x.clamp(min=0) for x in inputs), positive_part(weight), positive_part(bias))
    ]
    if weight is not None:  # an operation without parameters has weights above zero only
        terms.append(Term(tuple(x.clamp(max=0) for x in inputs), negative_part(weight), None))
    return terms


def inhibiting(
    operation: Operation, inputs: tuple[Tensor, ...], weight: Tensor | None, bias: Tensor | None
) -> list[Term]:
    """Return the terms whose every contribution is negative, the negative bias among them."""
    terms = []
    if weight is not None:
        above = inputs if operation.nonnegative else tuple(x.clamp(min=0) for x in inputs)
        terms.append(Term(above, negative_part(weight), negative_part(bias)))
    if not operation.nonnegative:
        terms.append(Term(tuple(x.clamp(max=0) for x in inputs), positive_part(weight), None))
    return terms


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

    def relevance(
        self, operation: Operation, inputs: tuple[Tensor, ...], relevance: Tensor
    ) -> tuple[Tensor, ...]:
        """See `Rule.relevance`."""
        weight, bias = operation.parameters()
        term = Term(inputs, weight, bias if self.bias else None)
        positive = operation.nonnegative and weight is None
        return transport(operation, [term], relevance, self.epsilon, positive=positive)


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

    def relevance(
        self, operation: Operation, inputs: tuple[Tensor, ...], relevance: Tensor
    ) -> tuple[Tensor, ...]:
        """See `Rule.relevance`."""
        weight, bias = operation.parameters()
        terms = activating(operation, inputs, weight, bias if self.bias else None)
        return transport(operation, terms, relevance, self.stabilizer, positive=True)


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
        if self.alpha < 0 or self.beta < 0 or abs(self.alpha - self.beta - 1) > 1e-9:
            raise ValueError(
                f"alpha = {self.alpha} and beta = {self.beta}: both must be non-negative and "
                "alpha - beta = 1"
            )

    def relevance(
        self, operation: Operation, inputs: tuple[Tensor, ...], relevance: Tensor
    ) -> tuple[Tensor, ...]:
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
            operation.lost = operation.lost - self.beta * relevance.sum()
            return shares
        less = transport(operation, terms, relevance * -self.beta, self.stabilizer)
        return tuple(share.add_(other) for share, other in zip(shares, less, strict=True))


@dataclass(frozen=True)
class ZBox(Rule):
    """For an input that lives in a box, such as pixels (Montavon et al. 2017, section 4.2).

    Parameters
    ----------
    low, high : float or tuple of float
        Smallest and largest possible value; a tuple gives one value per input channel.
    stabilizer : float
        Added to the denominator with its sign.
    """

    low: float | tuple[float, ...]
    high: float | tuple[float, ...]
    stabilizer: float = STABILIZER

    def relevance(
        self, operation: Operation, inputs: tuple[Tensor, ...], relevance: Tensor
    ) -> tuple[Tensor, ...]:
        """See `Rule.relevance`."""
        if operation.kind == "sum":
            raise PropagationError(f"{operation}: {self} needs one input, whose box it describes")
        weight, _ = operation.parameters()  # the three shares of the bias cancel
        terms = [
            Term(inputs, weight, None),
            Term(_fill(inputs, self.low), positive_part(weight), None, sign=-1),
        ]
        if weight is not None:  # an operation without parameters has weights above zero only
            high = _fill(inputs, self.high)
            terms.append(Term(high, negative_part(weight), None, sign=-1))
        return transport(operation, terms, relevance, self.stabilizer)


def _fill(inputs: tuple[Tensor, ...], value: float | tuple[float, ...]) -> tuple[Tensor, ...]:
    if isinstance(value, tuple):
        per_channel = inputs[0].new_tensor(value)
        return tuple(
            per_channel.view(-1, *[1] * (x.dim() - 2)).expand_as(x).contiguous() for x in inputs
        )
    return tuple(torch.full_like(x, value) for x in inputs)


@dataclass(frozen=True)
class Flat(Rule):
    """Every input that reaches an output gets the same share (Lapuschkin et al. 2019).

    Parameters
    ----------
    stabilizer : float
        Added to the denominator.
    """

    stabilizer: float = STABILIZER

    def relevance(
        self, operation: Operation, inputs: tuple[Tensor, ...], relevance: Tensor
    ) -> tuple[Tensor, ...]:
        """See `Rule.relevance`."""
        ones = tuple(torch.ones_like(x) for x in inputs)
        weight = None if operation.weight is None else torch.ones_like(operation.weight)
        term = Term(ones, weight, None)
        return transport(operation, [term], relevance, self.stabilizer, positive=True, weigh=False)


@dataclass(frozen=True)
class Pass(Rule):
    """Relevance passes through unchanged: activations, scaling and shifting by a constant."""

    needs_inputs = False

    def relevance(
        self, operation: Operation, inputs: tuple[Tensor, ...], relevance: Tensor
    ) -> tuple[Tensor, ...]:
        """See `Rule.relevance`."""
        return (relevance,)


@dataclass(frozen=True)
class Gradient(Rule):
    """The derivative of the operation itself."""

    def relevance(
        self, operation: Operation, inputs: tuple[Tensor, ...], relevance: Tensor
    ) -> tuple[Tensor, ...]:
        """See `Rule.relevance`."""
        return operation.derivative(inputs, relevance)


@dataclass(frozen=True)
class Guided(Rule):
    """Guided backprop's gate: positive gradients of active units (Springenberg et al. 2014)."""

    def relevance(
        self, operation: Operation, inputs: tuple[Tensor, ...], relevance: Tensor
    ) -> tuple[Tensor, ...]:
        """See `Rule.relevance`."""
        (gradient,) = operation.derivative(inputs, relevance.clamp(min=0))
        return (gradient,)


@dataclass(frozen=True)
class Deconvnet(Rule):
    """The deconvolutional network's gate: only positive gradients (Zeiler and Fergus 2014)."""

    needs_inputs = False

    def relevance(
        self, operation: Operation, inputs: tuple[Tensor, ...], relevance: Tensor
    ) -> tuple[Tensor, ...]:
        """See `Rule.relevance`."""
        return (relevance.clamp(min=0),)
