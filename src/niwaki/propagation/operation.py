"""One operation of the forward pass, and the rule by which relevance flows back through it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Literal

import torch
from torch import Tensor

__all__ = ["KINDS", "Kind", "Ledger", "Operation", "Rule", "Signals", "at_least_single"]

Kind = Literal[
    "convolution",  # conv1d ... conv_transpose3d
    "linear",  # linear, and a matrix product with a constant
    "norm",  # layer norm and its kin, over the values at hand
    "batch_norm",  # one that stands alone; behind a layer it is absorbed
    "sum",  # of several signals
    "average",  # pooling, mean, sum over dimensions, interpolation: positive weights, no parameters
    "max_pool",  # winner takes all
    "activation",  # element by element, no parameters that mix units
    "scale",  # times or plus a constant
    "product",  # of a signal and a gate
    "move",  # views, concatenation, slices, padding: values move and stay what they are
    "other",  # anything else; it has no rule unless a composite gives it one
]
KINDS: tuple[Kind, ...] = Kind.__args__  # type: ignore[attr-defined]

Signals = tuple[Tensor, ...]  # a tensor for each input that carries the signal
LinearMap = Callable[[Signals, "Tensor | None", "Tensor | None"], Tensor]


class Rule(ABC):
    """How relevance flows back through one operation.

    A new rule is a frozen dataclass with a `relevance` method.
    """

    #: Whether `relevance` reads the operation's inputs; if not, they are not kept in memory.
    needs_inputs: bool = True

    @abstractmethod
    def relevance(self, operation: Operation, inputs: Signals, relevance: Tensor) -> Signals:
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


@dataclass
class Ledger:
    """What a backward pass notes of one operation.

    Attributes
    ----------
    lost : Tensor or float
        How much relevance the stabilizer has kept back, of each sample, with its sign.
    lost_size : Tensor or float
        The same with the absolute value of each unit: losses of both signs do not cancel.
    arrived : Tensor or float
        All relevance that arrived, in absolute values: what the losses are measured by.
    weights : Tensor or None
        Relevance of the layer's weights, where `Operation.wants_weights`.
    """

    lost: Tensor | float = 0.0
    lost_size: Tensor | float = 0.0
    arrived: Tensor | float = 0.0
    weights: Tensor | None = None


@dataclass(eq=False)
class Operation:
    """One operation that carries the signal, as seen in a forward pass.

    Attributes
    ----------
    kind : Kind
        The family it belongs to; composites choose rules by it.
    name : str
        The function's name without underscores: ``"conv2d"``, ``"add"``.
    layer : str
        Name of the layer that owns the weight, or ``"after NAME"`` for an operation without one.
    function : callable
        The operation as a function of its signal inputs; for kinds that are linear
        ``function(inputs, weight, bias)``, else ``function(inputs, None, None)``.
    weight, bias : Tensor or None
        The parameters the rule uses, those of an absorbed batch norm folded in.
    channel_dim : int
        Dimension of the output channels in `weight` (1 for transposed convolutions).
    groups : int
        Groups of the convolution, else 1.
    input_shape : tuple of int
        Shape of the first signal that went in.
    first : bool
        Whether no convolution or linear layer lies between the input and this one.
    last : bool
        Whether the output is reached without another convolution or linear layer.
    nonnegative : bool
        Whether all inputs are known to be non-negative (they come from a ReLU, say).
    rule : Rule or None
        The one it got.
    samples : int
        Number of samples in the batch.
    wants_weights : bool
        Whether the relevance of the weights is to be noted.
    absorbed : pair of Tensor or None
        Scale and shift of the batch norm that follows this layer and is folded into it.
    bounds : callable or None
        For a first layer, where it can be said: turns the smallest and the largest value of the
        network's input, shape (1,) or (channels,), into those of what the layer reads.
    form : int
        Of a weight that is used in several forms, such as transposed or in parts: which of them
        this is; from 2 on the layer's name says so.
    ledger : Ledger
        What the backward pass notes.
    """

    kind: Kind
    name: str
    layer: str
    function: LinearMap
    weight: Tensor | None = None
    bias: Tensor | None = None
    channel_dim: int = 0
    groups: int = 1
    input_shape: tuple[int, ...] = ()
    first: bool = False
    last: bool = False
    nonnegative: bool = False
    rule: Rule | None = None
    samples: int = 1
    wants_weights: bool = False
    absorbed: tuple[Tensor, Tensor] | None = field(default=None, repr=False)
    bounds: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = field(
        default=None, repr=False
    )
    form: int = 1
    ledger: Ledger = field(default_factory=Ledger, repr=False)

    @property
    def units(self) -> int:
        """Number of filters or neurons of a layer."""
        assert self.weight is not None
        return self.weight.shape[self.channel_dim] * (self.groups if self.channel_dim else 1)

    def varying(self, x: Tensor) -> Tensor:
        """Return ones where an input can vary, zeros where it is a constant, as padding is."""
        ones = torch.ones_like(x)
        if self.bounds is None:
            return ones
        low, high = self.bounds(x.new_zeros(1), x.new_ones(1))
        varies = (low != high).to(x)
        return varies if varies.any() else ones

    def per_sample(self, values: Tensor) -> Tensor:
        """Sum over everything but the samples; where those are not known, shared out equally."""
        alone = (
            self.kind == "convolution"
            and self.weight is not None
            and values.dim() < self.weight.dim()
        )
        if values.dim() and len(values) == self.samples and not alone:
            return values.flatten(1).sum(1) if values.dim() > 1 else values.clone()
        return (values.sum() / self.samples).repeat(self.samples)

    def lose(self, relevance: Tensor, arrived: Tensor) -> None:
        """Note relevance of the output that does not reach the input, unit by unit.

        Parameters
        ----------
        relevance : Tensor
            What is lost.
        arrived : Tensor
            All relevance of the output.
        """
        ledger = self.ledger
        ledger.lost = ledger.lost + self.per_sample(relevance)
        ledger.lost_size = ledger.lost_size + self.per_sample(relevance.abs())
        ledger.arrived = ledger.arrived + self.per_sample(arrived.abs())

    def note_weights(self, relevance: Tensor) -> None:
        """Add to the relevance of the layer's weights."""
        before = self.ledger.weights
        self.ledger.weights = relevance if before is None else before + relevance

    def absorb(self, scale: Tensor, shift: Tensor) -> None:
        """Take in the batch norm ``y = scale * x + shift`` that follows this layer."""
        self.absorbed = (scale, shift)

    def parameters(self) -> tuple[Tensor | None, Tensor | None]:
        """Weight and bias as the rule must use them: detached, the absorbed norm folded in.

        Those of half precision are given in single, as the inputs of a rule are.
        """
        weight = None if self.weight is None else at_least_single(self.weight.detach())
        bias = None if self.bias is None else at_least_single(self.bias.detach())
        if self.absorbed is None or weight is None:
            return weight, bias
        scale, shift = self.absorbed
        bias = shift if bias is None else bias * scale + shift
        if self.channel_dim == 0:
            return weight * scale.view(-1, *[1] * (weight.dim() - 1)), bias
        # Transposed: the weight is (in, out / groups, ...), its input channels ordered by group.
        per_group = weight.view(self.groups, -1, *weight.shape[1:])
        per_group = per_group * scale.view(self.groups, 1, -1, *[1] * (weight.dim() - 2))
        return per_group.flatten(0, 1), bias

    def derivative(self, inputs: Signals, gradient: Tensor) -> Signals:
        """Vector-Jacobian product of the operation at `inputs`."""
        weight, bias = self.parameters()
        with torch.enable_grad():
            leaves = tuple(x.detach().requires_grad_() for x in inputs)
            output = self.function(leaves, weight, bias)
        return torch.autograd.grad(output, leaves, gradient)

    def __str__(self) -> str:
        return f"{self.name} ({self.layer})"


def at_least_single(values: Tensor) -> Tensor:
    """Return values in at least single precision, for sums of many small parts."""
    return values.float() if values.dtype.itemsize < 4 else values
