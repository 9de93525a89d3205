"""What a network will cost without some units, counted without touching it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from math import isfinite
from typing import Literal

from torch import nn

from niwaki.propagation import Layer
from niwaki.pruning.units._coupling import Group
from niwaki.pruning.units._variables import loses_groups

__all__ = ["ROUNDING", "Budget", "Of", "relative_prices"]

Of = Literal["units", "params", "macs"]

#: Costs are whole numbers, so a small addition to a target only mends rounding: 0.29 * 100 < 29.
ROUNDING = 1e-3


@dataclass
class _Module:
    """A module's width and its cost: per pair of output and input in a group, and per output.

    The price is what one of them costs.
    """

    outputs: int
    inputs: int
    pair: int = 0
    line: int = 0
    groups: int = 1
    price: float = 1

    def cost(self, fewer_outputs: int = 0, fewer_inputs: int = 0) -> float:
        outputs, inputs = self.outputs - fewer_outputs, self.inputs - fewer_inputs
        return (self.pair * outputs * inputs // self.groups + self.line * outputs) * self.price


class Budget:
    """Cost of a network, kept up to date while units are taken out on paper.

    Parameters
    ----------
    model : nn.Module
        The current network.
    layers : sequence of Layer
        Its hidden and output layers, from `trace`.
    groups : sequence of Group
        From `couple`.
    of : {"units", "params", "macs"}
        What to count.
    prices : mapping of str to float, optional
        What one of them costs in a layer; 1 where nothing is said.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[Layer],
        groups: Sequence[Group],
        of: Of,
        prices: Mapping[str, float] | None = None,
    ) -> None:
        prices = prices or {}
        known = {layer.name: layer for layer in layers}
        self._groups, self._of = groups, of
        self._modules: dict[str, _Module] = {}
        concerned = {member.layer for group in groups for member in group.members}
        total: float = 0
        counted: set[int] = set()
        for name, module in model.named_modules():
            layer = known.pop(name, None)
            entry = _describe(module, layer, of)
            price = prices.get(name, 1)
            weight = getattr(module, "weight", None)
            if of == "params" and entry is not None and id(weight) in counted:
                entry.pair = 0  # it is another layer's, too
            if name in concerned and entry is not None:
                entry.price = price
                self._modules[name] = entry
            else:
                count = _parameters(module, counted) if of == "params" else _constant(layer, of)
                total += count * price
            counted |= {id(p) for p in module.parameters(recurse=False)}
        if of != "params":  # layers that are no modules: F.conv2d with a parameter
            total += sum(_constant(rest, of) * prices.get(n, 1) for n, rest in known.items())
        self._constant = total

    def total(self) -> float:
        """Return the cost of the network as it would be now."""
        return self._constant + sum(module.cost() for module in self._modules.values())

    def saving(self, group: int, unit: int) -> float:
        """Return how much the network would save if a unit went now."""
        saved: float = 0
        for name, (outputs, inputs) in self._touched(group, unit).items():
            module = self._modules[name]
            saved += module.cost() - module.cost(outputs, inputs)
        loose = self._groups[group].loose
        return saved + (loose[unit] if loose and self._of == "params" else 0)

    def remove(self, group: int, unit: int) -> float:
        """Take out a unit and return how much is saved."""
        saved = self.saving(group, unit)
        for name, (outputs, inputs) in self._touched(group, unit).items():
            self._modules[name].outputs -= outputs
            self._modules[name].inputs -= inputs
        loose = self._groups[group].loose
        if loose and self._of == "params":
            self._constant -= loose[unit]
        return saved

    def neighbours(self) -> list[list[int]]:
        """List, for each group, the groups whose savings change when it loses a unit."""
        users: dict[str, list[int]] = {}
        for index, group in enumerate(self._groups):
            for layer in {member.layer for member in group.members} & self._modules.keys():
                users.setdefault(layer, []).append(index)
        return [
            sorted({i for member in group.members for i in users.get(member.layer, ())} | {index})
            for index, group in enumerate(self._groups)
        ]

    def _touched(self, group: int, unit: int) -> dict[str, tuple[int, int]]:
        """Count the outputs and inputs that each layer loses with a unit."""
        touched: dict[str, tuple[int, int]] = {}
        for member in self._groups[group].members:
            if member.layer not in self._modules:
                continue  # it costs the same for any number of channels
            count = len(member.channels[unit])
            outputs, inputs = touched.get(member.layer, (0, 0))
            touched[member.layer] = (
                (outputs + count, inputs) if member.output else (outputs, inputs + count)
            )
        return touched


def _describe(module: nn.Module, layer: Layer | None, of: Of) -> _Module | None:
    """Describe how a module's cost depends on its width, for modules that can be pruned."""
    if isinstance(module, nn.modules.conv._ConvNd):
        outputs, inputs, groups = module.out_channels, module.in_channels, module.groups
        depthwise = loses_groups(groups, outputs, inputs)
    elif isinstance(module, nn.Linear):
        outputs, inputs, groups, depthwise = module.out_features, module.in_features, 1, False
    else:  # norms and the like: some parameters per channel
        width = next((len(p) for p in module.parameters(recurse=False) if p.dim()), 0)
        if width == 0 or (isinstance(module, nn.PReLU) and width == 1):
            return None
        return _Module(width, 1, line=_parameters(module) // width if of == "params" else 0)
    if of == "units":
        return _Module(outputs, inputs, line=int(layer is not None and not layer.last))
    bias = int(of == "params" and module.bias is not None)
    factor = 1 if of == "params" else layer.positions if layer else 0
    weights = factor * module.weight.numel()
    if depthwise:
        return _Module(outputs, inputs, line=weights // outputs + bias)
    return _Module(outputs, inputs, weights * groups // (outputs * inputs), bias, groups)


def _parameters(module: nn.Module, counted: Set[int] = frozenset()) -> int:
    own = module.parameters(recurse=False)
    return sum(p.numel() for p in own if id(p) not in counted)


def _constant(layer: Layer | None, of: Of) -> int:
    """Units or MACs of a layer that no group touches."""
    if layer is None:
        return 0
    if of == "units":
        return 0 if layer.last else layer.units
    assert layer.operation.weight is not None
    return layer.positions * layer.operation.weight.numel()


def relative_prices(prices: Mapping[str, float], layers: Sequence[Layer]) -> dict[str, float]:
    """Scale prices so that the layers that are named cost as many MACs as they have.

    Then a network costs about its number of MACs, and a layer without a price has the mean one.

    Parameters
    ----------
    prices : mapping of str to float
        Layer name to the price of a MAC, in any unit.
    layers : sequence of Layer
        Those of the network as it is before anything is removed.

    Raises
    ------
    ValueError
        For layers that do not exist, and for prices that are not positive.
    """
    macs = {layer.name: layer.macs for layer in layers}
    strangers = [name for name in prices if name not in macs]
    if strangers:
        raise ValueError(
            f"prices: there is no layer {strangers[0]!r}; layers: {', '.join(list(macs)[:20])}"
        )
    wrong = [name for name, price in prices.items() if not (isfinite(price) and price > 0)]
    if wrong:
        raise ValueError(f"prices: that of {wrong[0]!r} is {prices[wrong[0]]}, not positive")
    plain = sum(macs[name] for name in prices)
    priced = sum(macs[name] * price for name, price in prices.items())
    return {name: price * plain / priced for name, price in prices.items()}
