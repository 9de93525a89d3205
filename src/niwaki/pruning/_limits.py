"""Limits: which layers keep their units, and how many at the least."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import ceil, gcd

from torch import nn

from niwaki.pruning.units._coupling import Group
from niwaki.ranges import FRACTION, UNITS, checked

__all__ = ["LayerLimits", "Limits"]


@checked(min_units=UNITS, round_to=UNITS, ceilings=FRACTION)
@dataclass(frozen=True)
class Limits:
    """What pruning may not do.

    Attributes
    ----------
    ignore : str or sequence of str
        Layers whose units stay; the name of a module stands for all layers in it, and patterns
        such as ``"*.downsample.0"`` for all that fit.
    min_units : int
        Units that each layer keeps at the least.
    round_to : int
        Layers that lose units are left with a multiple of so many, such as 8.
    ceilings : float or mapping of str to float, optional
        Largest share of its original units that a layer may lose: one for all, or by name (as in
        `ignore`; the last entry that fits counts).

    Raises
    ------
    ValueError
        For numbers out of range.
    """

    ignore: str | Sequence[str] = ()
    min_units: int = 1
    round_to: int = 1
    ceilings: float | Mapping[str, float] | None = None

    def of(self, model: nn.Module) -> LayerLimits:
        """Say what they mean for the layers of a network that is not yet pruned.

        Raises
        ------
        ValueError
            For names that fit no layer.
        """
        names = [self.ignore] if isinstance(self.ignore, str) else self.ignore
        widths = _widths(model)
        ignored = [layer for name in names for layer in _matching(widths, name, "ignore", model)]
        shares = {} if self.ceilings is None else self.ceilings
        channels: dict[str, int] = {}
        for name, share in (shares if isinstance(shares, Mapping) else {"*": shares}).items():
            for layer in _matching(widths, name, "ceilings", model):
                # The small subtraction only mends rounding: 0.1 * 30 > 3.
                channels[layer] = ceil((1 - share) * widths[layer] - 1e-9)
        return LayerLimits(tuple(ignored), self.min_units, self.round_to, channels)


@dataclass(frozen=True)
class LayerLimits:
    """What pruning may not do in the layers of one network.

    Attributes
    ----------
    ignore : tuple of str
        Layers whose units stay.
    min_units, multiple : int
        Units that every layer keeps, and of which the width of a layer that loses is a multiple.
    channels : dict of str to int
        Channels that a layer keeps at the least, because of its ceiling.
    """

    ignore: tuple[str, ...]
    min_units: int
    multiple: int
    channels: dict[str, int]

    def least(self, groups: Sequence[Group]) -> list[int]:
        """Return the units that each group keeps at the least."""
        return [self._least(group) for group in groups]

    def lowest(self, groups: Sequence[Group]) -> list[int]:
        """Return the units that each group is left with when all that may go is gone."""
        left = []
        for group in groups:
            multiple = self.multiple // gcd(self.multiple, len(group.units[0]))
            left.append(min(len(group), ceil(self._least(group) / multiple) * multiple))
        return left

    def _least(self, group: Group) -> int:
        least = self.min_units
        for member in group.members:
            if member.output and member.layer in self.channels:
                each = max(len(member.channels[0]), 1)
                least = max(least, ceil(self.channels[member.layer] / each))
        return least


def _widths(model: nn.Module) -> dict[str, int]:
    """Return the output channels of each convolution and linear layer."""
    widths = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.conv._ConvNd):
            widths[name] = module.out_channels
        elif isinstance(module, nn.Linear):
            widths[name] = module.out_features
    return widths


def _matching(widths: Mapping[str, int], name: str, option: str, model: nn.Module) -> list[str]:
    """List the layers that are named, lie in a module that is, or fit a pattern."""
    found = [
        layer for layer in widths if f"{layer}.".startswith(f"{name}.") or fnmatchcase(layer, name)
    ]
    if not found:
        raise ValueError(
            f"{option}: there is no convolution or linear layer {name!r} in "
            f"{type(model).__name__}, nor one inside a module of that name"
        )
    return found
