"""What the units of a layer answer to a batch, and the relevance that reaches them."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from niwaki.propagation import Operation

__all__ = ["Responses", "products"]


class Responses:
    """Observer that keeps the answers and the relevance of layers, for one batch.

    The answer of a unit is what it sends on: behind the activation that directly follows its layer,
    else (as before a residual sum) its output, which may be negative. Of a layer that is used
    several times, the last use counts.

    Parameters
    ----------
    layers : collection of str
        Which to keep.

    Attributes
    ----------
    answers, relevances : dict of str to Tensor
        By layer, shape (N, units, positions).
    """

    def __init__(self, layers: Collection[str]) -> None:
        self._layers = layers
        self.answers: dict[str, Tensor] = {}
        self.relevances: dict[str, Tensor] = {}

    def output(self, operation: Operation, output: Tensor) -> None:
        """Keep a copy: what follows may overwrite the output."""
        if operation.layer in self._layers:
            self.answers[operation.layer] = _positions(operation, output)

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


def products(answers: Tensor) -> dict[str, Tensor]:
    """Sum answers of shape (N, units, positions), and products of two units, as for correlation."""
    flat = answers.double().transpose(0, 1).flatten(1)
    return {
        "positions": torch.tensor(float(flat.shape[1])),
        "sum": flat.sum(1),
        "products": flat @ flat.T,
    }
