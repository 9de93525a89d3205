"""What all rules of layer-wise relevance propagation have in common.

For a linear operation every rule has one form. Its output is rebuilt as a sum of *terms*, each a
modified input sent through modified parameters; an output's relevance is divided by that sum and
carried back to the inputs, each multiplied by the input it came from. A rule only says which terms.
See Montavon et al., "Layer-wise relevance propagation: an overview" (2019), section 10.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from niwaki.propagation.operation import Operation, Signals

__all__ = [
    "STABILIZER",
    "Term",
    "activating",
    "inhibiting",
    "negative_part",
    "positive_part",
    "transport",
]

STABILIZER = 1e-6
FEW_CHANNELS = 16


class Term(NamedTuple):
    """A modified input through modified parameters: one summand of a rule's denominator."""

    inputs: Signals
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
) -> Signals:
    """Carry `relevance` back through the sum of `terms`.

    With z the signed sum over the terms, an input of a term gets itself times the derivative of z
    in the direction ``relevance / (z + epsilon * sign(z))``, sign(0) being 1. What epsilon keeps
    back is noted by ``operation.lose``: all of it where nothing contributes.

    Parameters
    ----------
    positive : bool
        The sum cannot be negative: saves the sign.
    weigh : bool
        Multiply by the input; without it, the share of an input does not depend on its value.
    """
    halves = _side_by_side(operation, terms)
    if halves is not None:
        (share,) = transport(
            operation, [halves], relevance, epsilon, positive=positive, weigh=weigh
        )
        first, second = share.chunk(2, dim=_channels(operation))
        return (first + second,)
    with torch.enable_grad():
        leaves = [tuple(x.detach().requires_grad_() for x in term.inputs) for term in terms]
        own = [_own_weight(operation, term) for term in terms]
        outputs = [
            operation.function(xs, weight, term.bias)
            for xs, weight, term in zip(leaves, own, terms, strict=True)
        ]
        weights = [w for w in own if w is not None] if operation.wants_weights else []
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
        kept = z * epsilon
        operation.lose(kept if negative is None else kept.where(~negative, -kept), relevance)

    flat = [x for xs in leaves for x in xs]
    directions = [z if term.sign > 0 else -z for term in terms]
    gradients = torch.autograd.grad(outputs, [*flat, *weights], directions, materialize_grads=True)
    del outputs, directions, z
    if weights:
        shares_of_weights = map(torch.mul, weights, gradients[len(flat) :])
        operation.note_weights(torch.stack([w.detach() for w in shares_of_weights]).sum(0))
    shares = list(gradients[: len(flat)])
    if weigh:
        # A fresh tensor behind a layer; elsewhere it may be expanded, or shared between inputs.
        fresh = operation.kind in ("convolution", "linear")
        multiply = torch.Tensor.mul_ if fresh else torch.mul
        shares = [multiply(share, x.detach()) for share, x in zip(shares, flat, strict=True)]
    count = len(terms[0].inputs)
    for position, share in enumerate(shares[count:]):
        shares[position % count] = shares[position % count] + share
    return tuple(shares[:count])


def _side_by_side(operation: Operation, terms: Sequence[Term]) -> Term | None:
    """Join two terms of a plain convolution into one with twice the input channels.

    The first layer's few channels are what convolutions are slowest at: one of six channels costs
    less than two of three.
    """
    if len(terms) != 2 or operation.kind != "convolution" or operation.wants_weights:
        return None
    one, other = terms
    few = operation.input_shape[_channels(operation)] <= FEW_CHANNELS
    if not few or operation.channel_dim or operation.groups > 1 or one.sign != other.sign:
        return None
    if one.weight is None or other.weight is None or other.bias is not None or one.sign < 0:
        return None
    inputs = torch.cat([one.inputs[0], other.inputs[0]], dim=_channels(operation))
    return Term((inputs,), torch.cat([one.weight, other.weight], dim=1), one.bias)


def _channels(operation: Operation) -> int:
    """Dimension of a convolution's channels from the last, as an image may have no batch."""
    assert operation.weight is not None
    return 1 - operation.weight.dim()


def _own_weight(operation: Operation, term: Term) -> Tensor | None:
    """Return a term's weight, as a leaf where its relevance is wanted."""
    if term.weight is None or not operation.wants_weights:
        return term.weight
    return term.weight.detach().requires_grad_()


def positive_part(x: Tensor | None) -> Tensor | None:
    """Keep what is above zero."""
    return None if x is None else x.clamp(min=0)


def negative_part(x: Tensor | None) -> Tensor | None:
    """Keep what is below zero."""
    return None if x is None else x.clamp(max=0)


def activating(
    operation: Operation, inputs: Signals, weight: Tensor | None, bias: Tensor | None
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
    operation: Operation, inputs: Signals, weight: Tensor | None, bias: Tensor | None
) -> list[Term]:
    """Return the terms whose every contribution is negative, the negative bias among them."""
    terms = []
    if weight is not None:
        above = inputs if operation.nonnegative else tuple(x.clamp(min=0) for x in inputs)
        terms.append(Term(above, negative_part(weight), negative_part(bias)))
    if not operation.nonnegative:
        terms.append(Term(tuple(x.clamp(max=0) for x in inputs), positive_part(weight), None))
    return terms
