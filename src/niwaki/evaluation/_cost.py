"""What a network costs: units, parameters, multiply-accumulates, seconds, and where they go."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from niwaki.propagation import trace
from niwaki.ranges import ROUNDS, checked

__all__ = ["Cost", "cost", "latency", "seconds_per_mac"]


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
    units = sum(layer.units for layer in layers if not layer.last)
    params = sum(p.numel() for p in model.parameters())
    return Cost(units, params, sum(layer.macs for layer in layers))


@checked(repeats=ROUNDS, warm_up=ROUNDS.but(low=0))
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
            before = _now(inputs)
            model(inputs)
            seconds.append(_now(inputs) - before)
    return median(seconds[warm_up:])


@checked(repeats=ROUNDS, warm_up=ROUNDS.but(low=0))
def seconds_per_mac(
    model: nn.Module, inputs: Tensor, *, repeats: int = 20, warm_up: int = 3
) -> dict[str, float]:
    """Measure what a multiply-accumulate costs in each layer, here and now.

    A MAC is dear in a layer of few channels and many positions, or of a depthwise kernel. The time
    from the beginning of a layer to that of the next is the layer's, so that what follows it (its
    norm, its activation) counts for it, and all together come to the whole forward pass.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode; not changed: a copy is measured.
    inputs : Tensor
        The whole batch is used: take one of the size that is to be fast.
    repeats, warm_up : int
        Measured passes, of which the median counts, and passes before them that do not.

    Returns
    -------
    dict of str to float
        Layer name to seconds per MAC; for `prices` of `niwaki.prune`. Layers whose module is not
        called, such as functional ones, are left out.
    """
    macs = {layer.name: layer.macs for layer in trace(model, inputs[:1])}
    own = copy.deepcopy(model)
    begun: list[tuple[str, float]] = []
    for name, module in own.named_modules():
        if name in macs:
            module.register_forward_pre_hook(_noting(begun, name, inputs))
    seen: dict[str, list[float]] = {}
    with torch.no_grad():
        for _ in range(warm_up + repeats):
            begun.clear()
            own(inputs)
            spent: dict[str, float] = {}
            ends = [since for _, since in begun[1:]] + [_now(inputs)]
            for (name, since), end in zip(begun, ends, strict=False):  # none, if none is a module
                spent[name] = spent.get(name, 0.0) + end - since
            for name, seconds in spent.items():
                seen.setdefault(name, []).append(seconds)
    per_pass = {name: median(seconds[warm_up:]) for name, seconds in seen.items()}
    return {name: per_pass[name] / (macs[name] * len(inputs)) for name in per_pass}


def _noting(
    begun: list[tuple[str, float]], name: str, where: Tensor
) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        begun.append((name, _now(where)))

    return note


def _now(tensor: Tensor) -> float:
    """Read the clock when the device has done all that was asked of it."""
    if tensor.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()
