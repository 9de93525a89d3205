"""What a network costs: units, parameters, multiply-accumulates, seconds."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn

from niwaki.propagation import trace

__all__ = ["Cost", "cost", "latency"]


@dataclass(frozen=True)
class Cost:
    """Cost of a network as it stands.

    Attributes
    ----------
    units : int
        Filters and neurons of hidden layers.
    params : int
        Parameters.
    macs : int
        Multiply-accumulates of one sample in convolutions and linear layers.
    """

    units: int
    params: int
    macs: int

    def __str__(self) -> str:
        return f"{self.units} units, {self.params:,} parameters, {self.macs:,} MACs"


def cost(model: nn.Module, inputs: Tensor) -> Cost:
    """Count what a network costs for inputs of this size.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode; not changed.
    inputs : Tensor
        Batch of shape (N, ...); the first sample is used.
    """
    layers = trace(model, inputs[:1])
    macs = 0
    for layer in layers:
        assert layer.operation.weight is not None
        macs += layer.positions * layer.operation.weight.numel()
    units = sum(layer.units for layer in layers if not layer.last)
    return Cost(units, sum(p.numel() for p in model.parameters()), macs)


def latency(model: nn.Module, inputs: Tensor, *, repeats: int = 20, warm_up: int = 3) -> float:
    """Median seconds of a forward pass on these inputs, with the threads that torch is set to.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode.
    inputs : Tensor
        The whole batch is used.
    repeats, warm_up : int
        Measured passes, and passes before them that do not count.
    """
    seconds = []
    with torch.no_grad():
        for _ in range(warm_up + repeats):
            if inputs.is_cuda:
                torch.cuda.synchronize()
            before = time.perf_counter()
            model(inputs)
            if inputs.is_cuda:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - before)
    return median(seconds[warm_up:])
