"""Limits: which layers keep their units, and how many at the least."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from math import ceil, gcd

from torch import nn

from niwaki.pruning.units._coupling import Group
from niwaki.ranges import FRACTION, UNITS, checked

__all__ = ["Limits"]


@dataclass(frozen=True)
class Limits:
    """What pruning may not do.

    Attributes
    ----------
    ignore : tuple of str
        Layers whose units stay.
    min_units : int
        Units that every layer keeps.
    multiple : int
        Layers that lose anything are left with a multiple of so many units.
    channels : dict of str to int
        Channels that a layer keeps at the least, because of its ceiling.
    """

    ignore: tuple[str, ...] = ()
    min_units: int = 1
    multiple: int = 1
    channels: dict[str, int] = field(default_factory=dict)

    @classmethod
    @checked(min_units=UNITS, round_to=UNITS, ceilings=FRACTION)
    def of(
        cls,
        model: nn.Module,
        ignore: Sequence[str] = (),
        min_units: int = 1,
        round_to: int = 1,
        ceilings: float | Mapping[str, float] | None = None,
    ) -> Limits:
        """Resolve names and shares for a network before it is pruned.

        Raises
        ------
        ValueError
            For numbers out of range, or names that fit no layer.
        """
        names = [ignore] if isinstance(ignore, str) else ignore
        widths = _widths(model)
        ignored = [layer for name in names for layer in _matching(widths, name, "ignore", model)]
        if ceilings is None:
            ceilings = {}
        elif not isinstance(ceilings, Mapping):
            ceilings = {"*": ceilings}
        channels: dict[str, int] = {}
        for name, share in ceilings.items():
            for layer in _matching(widths, name, "ceilings", model):
                # The small subtraction only mends rounding: 0.1 * 30 > 3.
                channels[layer] = ceil((1 - share) * widths[layer] - 1e-9)
        return cls(tuple(ignored), min_units, round_to, channels)

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
