"""Which channels can only go together, and what each layer loses with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import torch
from torch import Tensor, nn

from niwaki.criteria import Scores
from niwaki.models.zoo import ShortcutA
from niwaki.pruning.units._removal_trials import try_out
from niwaki.pruning.units._tracing import NORM_MODULES, OUTPUTS, Followed, follow
from niwaki.pruning.units._union_find import FIXED

__all__ = ["Coupling", "Group", "Member", "couple"]

_LAYERS = (nn.modules.conv._ConvNd, nn.Linear)


@dataclass(frozen=True)
class Member:
    """A layer that loses channels with a group.

    Attributes
    ----------
    layer : str
        Its name.
    output : bool
        Whether the channels are outputs or inputs of it.
    channels : tuple of tuple of int
        For each unit of the group, the layer's channels that go with it.
    """

    layer: str
    output: bool
    channels: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Group:
    """Units of the same kind: each takes as many channels of the same layers.

    A unit is all that can only go together, through residual sums, gates, depthwise and grouped
    convolutions, concatenations and the like, followed to the end.

    Attributes
    ----------
    root : str
        Name of the first layer that loses output channels.
    units : tuple of tuple of int
        Output channels of the root that belong to each unit.
    members : tuple of Member
        All layers and norms that lose channels, the root among them.
    layers : tuple of str
        The convolutions and linear layers that lose outputs.
    loose : tuple of int
        For each unit, the number of parameters that go with it and are in none of the members: such
        as a scale that a block multiplies its channels by.
    """

    root: str
    units: tuple[tuple[int, ...], ...]
    members: tuple[Member, ...]
    layers: tuple[str, ...] = ()
    loose: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.units)

    def scores(self, scores: Scores) -> Tensor:
        """Score the units: the sum over all members that have scores; shape (units,)."""
        total = torch.zeros(len(self), dtype=torch.float64)
        for member in self.members:
            if member.output and member.layer in scores:
                values = scores[member.layer]
                total += torch.stack([values[list(channels)].sum() for channels in member.channels])
        return total

    def __repr__(self) -> str:
        outputs = [m.layer for m in self.members if m.output]
        return f"Group({len(self)} units of {self.root}: {', '.join(outputs)})"


@dataclass(frozen=True)
class Coupling(Sequence[Group]):
    """The groups of a network, in the order of their roots.

    Attributes
    ----------
    groups : tuple of Group
        What may be removed.
    kept : dict of str to str
        The layers of which some units or all must stay, and why; those that are the network's
        outputs, or are to be ignored, are not listed.
    followed : Followed or None
        The channels that the groups are made of, for surgery on the network or a copy of it.
    """

    groups: tuple[Group, ...]
    kept: dict[str, str] = field(default_factory=dict)
    followed: Followed | None = field(default=None, repr=False, compare=False)

    @overload
    def __getitem__(self, index: int) -> Group: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Group, ...]: ...
    def __getitem__(self, index: Any) -> Any:
        return self.groups[index]

    def __len__(self) -> int:
        return len(self.groups)


def couple(
    model: nn.Module, example: Tensor, scored: Sequence[str], ignore: Sequence[str] = ()
) -> Coupling:
    """Find the groups of channels that may be removed.

    Parameters
    ----------
    model : nn.Module
        A network that is ours to work on: tracing sets hooks for a moment.
    example : Tensor
        Inputs to trace it with.
    scored : sequence of str
        The layers whose units may be judged; units that take outputs of another convolution or
        linear layer (the network's output) are left out.
    ignore : sequence of str
        Layers whose units must stay, and with them all that is coupled to them.
    """
    followed = follow(model, example)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, _LAYERS)}
    for name, module in layers.items():
        outputs, _ = followed.sides(name, module)
        known = {name, followed.name_of(name, "weight").rpartition(".")[0]}  # tied weights
        if outputs is not None and (not known & set(scored) or name in ignore):
            followed.units.fix(outputs, OUTPUTS)
    try_out(model, example, followed, _kinds(_channels(model, followed, scored)))
    table = _channels(model, followed, scored)
    groups = _groups(model, followed, table, scored, layers)
    return Coupling(groups, _kept(layers, followed, scored, ignore), followed)


Table = dict[int, dict[tuple[str, bool], list[int]]]


def _channels(model: nn.Module, followed: Followed, scored: Sequence[str]) -> Table:
    """List, for each unit, what each module loses with it: (name, output) to its channels."""
    table: Table = {}
    seen = set()
    for name, module in model.named_modules():
        if not isinstance(module, (*_LAYERS, *NORM_MODULES, ShortcutA)):
            continue
        sides = followed.sides(name, module)
        depthwise = sides[0] is not None and sides[0] is sides[1]
        for side, output in zip(sides, (True, False), strict=True):
            if side is None or (depthwise and not output):
                continue
            found = followed.units.find(side).tolist()
            for channel, unit in enumerate(found):
                if unit != FIXED:
                    table.setdefault(unit, {}).setdefault((name, output), []).append(channel)
            if output and name in scored and isinstance(module, _LAYERS):
                seen.update(found)
    return {unit: places for unit, places in table.items() if unit in seen}


def _kinds(table: Table) -> list[list[int]]:
    """Sort the units by what they take: as many channels of the same modules."""
    kinds: dict[tuple[Any, ...], list[int]] = {}
    for unit, places in table.items():
        kind = tuple((place, len(channels)) for place, channels in places.items())
        kinds.setdefault(kind, []).append(unit)
    return list(kinds.values())


def _groups(
    model: nn.Module,
    followed: Followed,
    table: Table,
    scored: Sequence[str],
    layers: Mapping[str, nn.Module],
) -> tuple[Group, ...]:
    """Sort the units by what they take."""
    order = {name: i for i, name in enumerate(scored)}
    loose = _loose(model, followed)
    groups = []
    for units in _kinds(table):
        places = list(table[units[0]])
        root = min((n for n, output in places if output and n in order), key=order.__getitem__)
        units.sort(key=lambda unit: table[unit][root, True])
        members = tuple(
            Member(name, output, tuple(tuple(table[unit][name, output]) for unit in units))
            for name, output in places
        )
        groups.append(
            Group(
                root,
                tuple(tuple(table[unit][root, True]) for unit in units),
                members,
                tuple(n for n, output in places if output and n in layers),
                tuple(loose.get(unit, 0) for unit in units),
            )
        )
    return tuple(sorted(groups, key=lambda group: (order[group.root], group.units)))


def _loose(model: nn.Module, followed: Followed) -> dict[int, int]:
    """Count, for each unit, the parameters that lie in no layer or norm."""
    counts: dict[int, int] = {}
    for prefix, module in model.named_modules():
        if isinstance(module, (*_LAYERS, *NORM_MODULES)):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            for variables in followed.tensors.get(followed.name_of(prefix, name), ()):
                if variables is not None:
                    each = parameter.numel() // len(variables)
                    for unit in followed.units.find(variables).tolist():
                        counts[unit] = counts.get(unit, 0) + each
    return counts


def _kept(
    layers: Mapping[str, nn.Module],
    followed: Followed,
    scored: Sequence[str],
    ignore: Sequence[str],
) -> dict[str, str]:
    """Say why layers keep units."""
    kept = {}
    for name in scored:
        outputs = followed.sides(name, layers[name])[0] if name in layers else None
        if outputs is None or name in ignore:
            continue
        stays = followed.units.find(outputs) == FIXED
        reasons = [w for w in followed.units.why(outputs[stays]) if w != OUTPUTS]
        if reasons:
            share = "all" if bool(stays.all()) else f"{int(stays.sum())} of {len(stays)}"
            kept[name] = f"{share} units stay: {reasons[0]}"
        elif not bool(stays.any()) and len(set(followed.units.find(outputs).tolist())) == 1:
            kept[name] = "all units stay: each can only go with all the others"
    return kept
