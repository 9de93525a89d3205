"""Where activations are flat, so that nothing behind them can tell one input from another."""

from __future__ import annotations

from math import inf
from typing import Any, TypeAlias

import torch
from torch import fx, nn
from torch.nn import functional as F

__all__ = ["Ends", "ends_of"]

#: An activation is constant up to the first and from the second.
Ends: TypeAlias = tuple[float, float]

_RELU, _RELU6, _HARDSWISH, _HARDSIGMOID = (0.0, inf), (0.0, 6.0), (-3.0, inf), (-3.0, 3.0)
_MODULES: dict[type[nn.Module], Ends] = {
    nn.ReLU: _RELU,
    nn.ReLU6: _RELU6,
    nn.Hardswish: _HARDSWISH,
    nn.Hardsigmoid: _HARDSIGMOID,
}
_FUNCTIONS: dict[Any, Ends] = {
    torch.relu: _RELU,
    torch.relu_: _RELU,
    F.relu: _RELU,
    F.relu_: _RELU,
    F.relu6: _RELU6,
    F.hardswish: _HARDSWISH,
    F.hardsigmoid: _HARDSIGMOID,
    "relu": _RELU,
    "relu_": _RELU,
}


def ends_of(module: nn.Module | None, node: fx.Node) -> Ends | None:
    """Say where an activation is flat.

    Parameters
    ----------
    module : nn.Module or None
        That the operation calls.
    node : fx.Node
        The operation.

    Returns
    -------
    pair of float or None
        None for every other operation.
    """
    if isinstance(module, nn.Hardtanh) and not isinstance(module, nn.ReLU6):
        return float(module.min_val), float(module.max_val)
    if module is not None:
        return _MODULES.get(type(module))
    return _FUNCTIONS.get(node.target) if node.op != "get_attr" else None
