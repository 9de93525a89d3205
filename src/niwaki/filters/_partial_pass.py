"""Passes that end as soon as the layers of interest are seen, and what is read there."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from niwaki.criteria import hidden_layers
from niwaki.errors import DataError
from niwaki.propagation import Composite, Layer, Observer, Operation, gradient
from niwaki.propagation.watch import Watch


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
    """Observer of the outputs of units at single places, before their activation function.

    Parameters
    ----------
    layer : str
        The layer.
    units, positions : Tensor
        The unit of it, and its position, in each sample of the batch; shape (N,).

    Attributes
    ----------
    values : Tensor or None
        Their outputs, shape (N,), with its graph, until they are taken.
    """

    def __init__(self, layer: str, units: Tensor, positions: Tensor) -> None:
        self._layer, self._units, self._positions = layer, units, positions
        self.values: Tensor | None = None

    def taken(self) -> Tensor:
        """Return the values, and forget them.

        The graph holds the observers of its hooks. One that held the graph in turn would never be
        freed, because the garbage collector does not see this circle.
        """
        values, self.values = self.values, None
        assert values is not None
        return values

    def output(self, operation: Operation, output: Tensor) -> None:
        """Read it right away; an activation may overwrite it in place."""
        if operation.layer == self._layer:
            if operation.kind == "linear":
                output = output.movedim(-1, 1)
            flat = output.reshape(*output.shape[:2], -1)
            samples = torch.arange(len(flat), device=flat.device)
            # Copies, as what was made in inference mode cannot be kept for the way back.
            units, positions = (v.to(flat.device).clone() for v in (self._units, self._positions))
            self.values = flat[samples, units, positions]

    def activation(self, operation: Operation, output: Tensor) -> None:
        """Not read: behind a ReLU an inactive unit has no gradient."""

    def relevance(self, operation: Operation, relevance: Tensor) -> None:
        """There is none."""


class Responses:
    """Observer that keeps the activations and the relevance of layers, for one batch.

    The activation of a unit is what it sends on: behind the activation function that directly
    follows its layer, else (as before a residual sum) its output, which may be negative. Of a layer
    that is used several times, the last use counts.

    Parameters
    ----------
    layers : collection of str
        The layers to keep.

    Attributes
    ----------
    activations, relevances : dict of str to Tensor
        By layer, shape (N, units, positions).
    """

    def __init__(self, layers: Collection[str]) -> None:
        self._layers = layers
        self.activations: dict[str, Tensor] = {}
        self.relevances: dict[str, Tensor] = {}

    def output(self, operation: Operation, output: Tensor) -> None:
        """Keep a copy: what follows may overwrite the output."""
        if operation.layer in self._layers:
            self.activations[operation.layer] = _positions(operation, output)

    activation = output

    def relevance(self, operation: Operation, relevance: Tensor) -> None:
        """Keep a copy of the first that comes, which is that of the last use."""
        if operation.layer in self._layers and operation.layer not in self.relevances:
            self.relevances[operation.layer] = _positions(operation, relevance)


def _positions(operation: Operation, values: Tensor) -> Tensor:
    """Bring a layer's values into the shape (N, units, positions)."""
    values = values.detach().clone()
    if operation.kind == "linear":
        values = values.movedim(-1, 1)
    return values.reshape(len(values), values.shape[1], -1)


def products(activations: Tensor) -> dict[str, Tensor]:
    """Sum activations of shape (N, units, positions), and the products of each two units."""
    flat = activations.double().transpose(0, 1).flatten(1)
    return {
        "positions": torch.tensor(float(flat.shape[1])),
        "sum": flat.sum(1),
        "products": flat @ flat.T,
    }


def chosen_layers(model: nn.Module, inputs: Tensor, names: Sequence[str] | None) -> list[Layer]:
    """List the hidden layers that are meant, in the order of the signal.

    Raises
    ------
    DataError
        For a name that stands for no layer.
    """
    known = hidden_layers(model, inputs[:1])
    convolutions = [layer for layer in known if layer.kind == "convolution"]
    if names is None:
        return convolutions or known
    chosen: set[str] = set()
    for name in names:
        within = [c.name for c in convolutions if c.name.startswith(f"{name}.")]
        fitting = [layer.name for layer in known if layer.name == name] or within
        if not fitting:
            there = ", ".join(layer.name for layer in known[:20])
            raise DataError(f"there is no hidden layer {name!r}; layers: {there}")
        chosen.update(fitting)
    return [layer for layer in known if layer.name in chosen]
