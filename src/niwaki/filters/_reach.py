"""A forward pass that ends as soon as the layers of interest have been seen."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from niwaki.propagation import Composite, Observer, Operation, gradient
from niwaki.propagation.watch import Watch

__all__ = ["Places", "reach"]


class _ReachedError(Exception):
    """All layers of interest have been seen; it ends the forward pass."""


class _Stop:
    """Observer that ends the pass at the first layer behind the last wanted one."""

    def __init__(self, wanted: Collection[str]) -> None:
        self._missing = set(wanted)
        self._seen: set[Operation] = set()

    def output(self, operation: Operation, output: Tensor) -> None:
        """Strike a layer off the list; its norm and activation may still follow."""
        if not self._missing and operation not in self._seen:
            raise _ReachedError
        self._missing.discard(operation.layer)
        self._seen.add(operation)

    def activation(self, operation: Operation, output: Tensor) -> None:
        """Nothing to do."""

    def relevance(self, operation: Operation, relevance: Tensor) -> None:
        """Nothing to do."""


def reach(
    model: nn.Module,
    signal: Tensor,
    layers: Collection[str],
    observers: list[Observer],
    composite: Composite | None = None,
) -> None:
    """Run the network from `signal`, whose gradient can be taken, to the last of `layers`.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode; not changed.
    signal : Tensor
        Inputs that require a gradient. Unlike elsewhere, they may hold NaN.
    layers : collection of str
        Where the pass may end; what follows does not run.
    observers : list of Observer
        Told about each layer.
    composite : Composite, optional
        Rules for the way back; default: the gradient.
    """
    watch = Watch(model, composite or gradient(), [*observers, _Stop(layers)])
    with torch.inference_mode(False), torch.enable_grad():
        # A copy, so that the model may overwrite its input.
        begun = watch.begin(signal.clone())
        try:
            with watch:
                model(begun)
        except _ReachedError:
            pass
    watch.release()


class Places:
    """Observer of what units answer at single places, before their activation.

    Parameters
    ----------
    layer : str
        The layer.
    units, positions : Tensor
        Which unit of it, and where, in each sample of the batch; shape (N,).

    Attributes
    ----------
    values : Tensor or None
        What they answer, shape (N,), with its graph.
    """

    def __init__(self, layer: str, units: Tensor, positions: Tensor) -> None:
        self._layer, self._units, self._positions = layer, units, positions
        self.values: Tensor | None = None

    def output(self, operation: Operation, output: Tensor) -> None:
        """Read it right away; an activation may overwrite it in place."""
        if operation.layer == self._layer:
            if operation.kind == "linear":
                output = output.movedim(-1, 1)
            flat = output.reshape(*output.shape[:2], -1)
            samples = torch.arange(len(flat), device=flat.device)
            units, positions = self._units.to(flat.device), self._positions.to(flat.device)
            self.values = flat[samples, units, positions]

    def activation(self, operation: Operation, output: Tensor) -> None:
        """Not read: behind a ReLU a unit that does not answer has no gradient."""

    def relevance(self, operation: Operation, relevance: Tensor) -> None:
        """There is none."""
