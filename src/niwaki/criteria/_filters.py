"""The weights of each filter or neuron as a row, however the layer lays them out."""

from __future__ import annotations

from torch import Tensor

from niwaki.propagation import Layer, Operation

__all__ = ["filters", "weights_by_filter"]


def weights_by_filter(layer: Layer) -> Tensor:
    """Return a layer's weights, without biases, in double precision; shape (units, weights)."""
    assert layer.operation.weight is not None
    return filters(layer.operation, layer.operation.weight.detach().double())


def filters(operation: Operation, values: Tensor) -> Tensor:
    """Reshape values of the shape of a layer's weight to (units, weights of a unit)."""
    if operation.channel_dim == 0:
        return values.flatten(1)
    # Transposed: (in, out / groups, ...), the input channels ordered by group.
    by_group = values.view(operation.groups, -1, *values.shape[1:])
    return by_group.transpose(1, 2).reshape(operation.units, -1)
