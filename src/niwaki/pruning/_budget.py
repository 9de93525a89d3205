"""What a network will cost when units go, counted without touching it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from niwaki.propagation import Layer
from niwaki.pruning._coupling import Group

__all__ = ["Budget", "Of"]

Of = Literal["units", "params", "macs"]


@dataclass
class _Module:
    """A module's width, and its cost as ``full * outputs * inputs + line * outputs``."""

    outputs: int
    inputs: int
    full: float
    line: float

    def cost(self) -> float:
        return self.full * self.outputs * self.inputs + self.line * self.outputs


class Budget:
    """Cost of a network, kept up to date while units are taken out on paper.

    Parameters
    ----------
    model : nn.Module
        The network as it stands.
    layers : sequence of Layer
        Its hidden and output layers, from `trace`.
    groups : sequence of Group
        From `couple`.
    of : {"units", "params", "macs"}
        What to count.
    """

    def __init__(
        self, model: nn.Module, layers: Sequence[Layer], groups: Sequence[Group], of: Of
    ) -> None:
        known = {layer.name: layer for layer in layers}
        self._groups = groups
        self._modules: dict[str, _Module] = {}
        concerned = {member.layer for group in groups for member in group.members}
        total = 0.0
        for name, module in model.named_modules():
            entry = _describe(module, known.get(name), of)
            if name in concerned and entry is not None:
                self._modules[name] = entry
            else:
                total += _constant(module, known.get(name), of)
        self._constant = total

    def total(self) -> float:
        """Return the cost of the network as it would be now."""
        return self._constant + sum(module.cost() for module in self._modules.values())

    def remove(self, group: int, unit: int) -> float:
        """Take out a unit and return how much is saved."""
        saved = 0.0
        touched: dict[str, tuple[int, int]] = {}
        for member in self._groups[group].members:
            count = len(member.channels[unit])
            outputs, inputs = touched.get(member.layer, (0, 0))
            touched[member.layer] = (
                (outputs + count, inputs) if member.output else (outputs, inputs + count)
            )
        for name, (outputs, inputs) in touched.items():
            module = self._modules[name]
            saved += module.cost()
            module.outputs -= outputs
            module.inputs -= inputs
            saved -= module.cost()
        return saved


def _describe(module: nn.Module, layer: Layer | None, of: Of) -> _Module | None:
    """Describe how a module's cost depends on its width, for modules that can be pruned."""
    parameters = sum(p.numel() for p in module.parameters(recurse=False))
    if isinstance(module, nn.modules.conv._ConvNd):
        outputs, inputs = module.out_channels, module.in_channels
        depthwise = module.groups == outputs == inputs
    elif isinstance(module, nn.Linear):
        outputs, inputs, depthwise = module.out_features, module.in_features, False
    else:  # norms and the like: some parameters per channel
        width = next((len(p) for p in module.parameters(recurse=False)), 0)
        if width == 0:
            return None
        return _Module(width, 1, 0.0, parameters / width if of == "params" else 0.0)
    weights = module.weight.numel()
    bias = 0 if module.bias is None else 1
    if of == "units":
        hidden = layer is not None and not layer.last
        return _Module(outputs, inputs, 0.0, float(hidden))
    factor = float(layer.positions if layer else 0) if of == "macs" else 1.0
    line = float(bias) if of == "params" else 0.0
    if depthwise:
        return _Module(outputs, inputs, 0.0, factor * weights / outputs + line)
    return _Module(outputs, inputs, factor * weights / (outputs * inputs), line)


def _constant(module: nn.Module, layer: Layer | None, of: Of) -> float:
    """Cost of a module that no group touches."""
    if of == "params":
        return float(sum(p.numel() for p in module.parameters(recurse=False)))
    if layer is None:
        return 0.0
    if of == "units":
        return 0.0 if layer.last else float(layer.units)
    assert layer.operation.weight is not None
    return float(layer.positions * layer.operation.weight.numel())
