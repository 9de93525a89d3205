"""A forward pass alone: which layers there are, in the order in which the signal meets them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor, nn

from niwaki.propagation.composites import Composite
from niwaki.propagation.observers import Observer
from niwaki.propagation.operation import Operation
from niwaki.propagation.presets import gradient
from niwaki.propagation.propagate import forward
from niwaki.propagation.watch import Watch

__all__ = ["Layer", "resolve", "observe", "trace", "unit_dimension"]


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer of a network.

    Attributes
    ----------
    name : str
        As in `nn.Module.named_modules`. A weight that is used in several forms, such as transposed
        or in parts, makes a layer of each, as ``"fc (form 2)"``.
    kind : str
        ``"convolution"`` or ``"linear"``.
    units : int
        Number of filters or neurons.
    positions : int
        How often its weights are applied to one sample, all uses together: its number of
        multiply-accumulate operations is this times its number of weights.
    last : bool
        Whether the output is reached from here without another layer, so that its units are the
        network's outputs.
    operation : Operation
        Its (latest) use, with its weight.
    """

    name: str
    kind: str
    units: int
    positions: int
    last: bool
    operation: Operation = field(repr=False)

    @property
    def macs(self) -> int:
        """Multiply-accumulate operations of one sample, all uses together."""
        assert self.operation.weight is not None
        return self.positions * self.operation.weight.numel()


class _Positions:
    """Observer of how many positions each layer's output has, for all samples together."""

    def __init__(self) -> None:
        self.seen: dict[Operation, tuple[int, int]] = {}

    def output(self, operation: Operation, output: Tensor) -> None:
        if operation not in self.seen:  # a norm may follow
            units = output.shape[unit_dimension(operation)]
            positions = output.numel() // units
            if operation.name.startswith("conv_transpose"):  # there, inputs meet the weights
                assert operation.weight is not None
                positions = prod(operation.input_shape) // operation.weight.shape[0]
            self.seen[operation] = units, positions

    def activation(self, operation: Operation, output: Tensor) -> None:
        pass

    def relevance(self, operation: Operation, relevance: Tensor) -> None:
        pass


def unit_dimension(operation: Operation) -> int:
    """Dimension of a layer's output in which its units lie, counted from the last.

    A convolution inside a network may be given single images, without a dimension of samples.
    """
    if operation.kind == "linear":
        return -1
    assert operation.weight is not None
    return 1 - operation.weight.dim()


def observe(model: nn.Module, inputs: Tensor, observers: Sequence[Observer]) -> None:
    """Run the forward pass alone and let `observers` read outputs and activations.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode; not changed.
    inputs : Tensor
        Batch of shape (N, ...).
    observers : sequence of Observer
        Called with each layer.

    Raises
    ------
    ModelError, DataError, PropagationError
        As `propagate` does.
    """
    watch = Watch(model, gradient(), observers)
    forward(model, inputs, watch)
    watch.release()


def trace(model: nn.Module, inputs: Tensor) -> list[Layer]:
    """List the layers that the signal passes.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode; not changed.
    inputs : Tensor
        Batch of shape (N, ...); one sample is enough.
    """
    positions = _Positions()
    observe(model, _two(inputs), [positions])
    layers: dict[str, Layer] = {}
    together: dict[str, int] = {}
    for operation, (units, count) in positions.seen.items():
        name = operation.layer
        before = layers.get(name)
        together[name] = count + together.get(name, 0)
        layers[name] = Layer(
            name,
            operation.kind,
            units,
            together[name] // operation.samples,
            operation.last or bool(before and before.last),
            operation,
        )
    return list(layers.values())


def resolve(model: nn.Module, inputs: Tensor, composite: Composite) -> str:
    """Show which rule each operation gets, as a table, before anything is explained.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode; not changed.
    inputs : Tensor
        Batch of shape (N, ...); the first sample is used.
    composite : Composite
        Gives each operation its rule.

    Returns
    -------
    str
        One line per operation that carries the signal: its layer, its name, its rule. Operations
        that only move values are left out.

    Raises
    ------
    ModelError, DataError, PropagationError
        As `propagate` does: an operation without a rule shows here already.
    """
    rows = [("layer", "operation", "rule")]
    found = resolve_operations(model, inputs, composite)
    rows += [(op.layer, op.name, _shown(op)) for op in found]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return "\n".join(f"{a:{widths[0]}}  {b:{widths[1]}}  {c}" for a, b, c in rows)


def resolve_operations(model: nn.Module, inputs: Tensor, composite: Composite) -> list[Operation]:
    """Return the operations that carry the signal, each with the rule it gets; see `resolve`."""
    watch = Watch(model, composite)
    forward(model, _two(inputs), watch)
    watch.release()
    return watch.operations


def _two(inputs: Tensor) -> Tensor:
    """Return two samples: of one, a network that calls ``squeeze()`` makes another shape."""
    return inputs[:2] if len(inputs) > 1 else torch.cat([inputs, inputs])


def _shown(operation: Operation) -> str:
    folded = ", batch norm absorbed" if operation.absorbed is not None else ""
    return f"{operation.rule}{folded}"
