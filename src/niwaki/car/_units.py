"""How the units of groups share the layers of a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from niwaki.pruning import Group, Member

__all__ = [
    "Kind",
    "kind_of",
    "losing",
    "name_of",
    "numbers",
    "outputs",
    "single",
    "uncovered",
    "units_of",
]

Kind: TypeAlias = tuple[tuple[str, bool], ...]


def outputs(group: Group) -> dict[str, Member]:
    """Return the layers that lose outputs with a group."""
    return {member.layer: member for member in group.members if member.output}


def name_of(group: Group) -> str:
    """Return a name that no other group of the same network has."""
    return f"{group.root}/{group.units[0][0]}"


def kind_of(group: Group) -> Kind:
    """Tell groups of one layer apart, before and after units are gone."""
    return ((group.root, True), *((member.layer, member.output) for member in group.members))


def uncovered(groups: Sequence[Group], widths: Mapping[str, int]) -> dict[str, list[int]]:
    """List the channels of each layer that no group has."""
    left = {layer: set(range(width)) for layer, width in widths.items()}
    for group in groups:
        for layer, member in outputs(group).items():
            if layer in left:
                left[layer] -= {c for channels in member.channels for c in channels}
    return {layer: sorted(channels) for layer, channels in left.items()}


def units_of(groups: Sequence[Group], widths: Mapping[str, int]) -> dict[str, int]:
    """Count the units of each layer: those of groups, and each channel that no group has."""
    counts = {layer: len(channels) for layer, channels in uncovered(groups, widths).items()}
    for group in groups:
        for layer in outputs(group):
            if layer in counts:
                counts[layer] += len(group)
    return counts


def losing(groups: Sequence[Group], counts: Mapping[str, int], least: int = 1) -> list[Group]:
    """Choose the groups that can lose a unit, so that each layer keeps so many at the least."""
    return [g for g in groups if all(counts[m] > least for m in outputs(g) if m in counts)]


def numbers(groups: Sequence[Group], widths: Mapping[str, int]) -> dict[tuple[str, int], int]:
    """Number the units of each layer: layer and first channel to the place among its units."""
    firsts = {layer: set(channels) for layer, channels in uncovered(groups, widths).items()}
    for group in groups:
        firsts.setdefault(group.root, set()).update(unit[0] for unit in group.units)
    return {
        (layer, channel): place
        for layer, channels in firsts.items()
        for place, channel in enumerate(sorted(channels))
    }


def single(layer: str, channels: Sequence[int]) -> Group:
    """Make a group of a layer's single channels."""
    units = tuple((channel,) for channel in channels)
    return Group(layer, units, (Member(layer, True, units),))
