"""Observers: they read what passes through a layer, and keep only what is needed."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from niwaki.propagation.operation import Operation

__all__ = ["Maps", "Observer", "Onlooker"]


@runtime_checkable
class Observer(Protocol):
    """What is called about the layers of a pass (convolutions and linear layers).

    The output of a layer is what its unit sends on: behind the batch norm that follows it.
    Tensors are those of the running network: read them, keep copies, change nothing.
    """

    def output(self, operation: Operation, output: Tensor) -> None:
        """Read a layer's output; called again with the output of the norm that follows it."""

    def activation(self, operation: Operation, output: Tensor) -> None:
        """Read a layer's output behind the activation that directly follows it, if one does."""

    def relevance(self, operation: Operation, relevance: Tensor) -> None:
        """Read the relevance (or gradient) that reaches a layer's output; same shape."""


@runtime_checkable
class Onlooker(Protocol):
    """Is told about whatever operations make of the signal, beside the layers."""

    def made(self, output: Tensor) -> None:
        """Read what an operation returned, before a layer's output is announced."""


class Maps:
    """Keeps the relevance that reaches each layer, as whole maps.

    Parameters
    ----------
    layers : set of str, optional
        Names of the layers to keep; default: all.

    Attributes
    ----------
    relevances : dict of str to Tensor
        By layer name; a layer that is used twice gets the sum.
    """

    def __init__(self, layers: set[str] | None = None) -> None:
        self.layers = layers
        self.relevances: dict[str, Tensor] = {}

    def output(self, operation: Operation, output: Tensor) -> None:
        """Nothing is kept of the forward pass."""

    def activation(self, operation: Operation, output: Tensor) -> None:
        """Nothing is kept of the forward pass."""

    def relevance(self, operation: Operation, relevance: Tensor) -> None:
        """Keep a copy."""
        name = operation.layer
        if self.layers is None or name in self.layers:
            before = self.relevances.get(name)
            self.relevances[name] = relevance.clone() if before is None else before + relevance
