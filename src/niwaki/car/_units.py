"""The units of a network: which may be judged, and how their groups share the layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor, nn

from niwaki import models
from niwaki.criteria import hidden_layers
from niwaki.errors import ModelError, NothingToPruneError
from niwaki.propagation import check_logit
from niwaki.pruning import Group, Member, couple
from niwaki.pruning.steps import deep_copy

Kind: TypeAlias = tuple[tuple[str, bool], ...]


@dataclass(frozen=True)
class Units:
    """What may be judged of a network.

    Attributes
    ----------
    groups : list of Group
        Those that lose a unit without being emptied, in the order of the signal.
    layers : dict of str to int
        The layers that are judged: hidden ones with more than one unit; and their widths.
    widths : dict of str to int
        Widths of all hidden layers.
    counts : dict of str to int
        Units of all hidden layers, also those that are not judged.
    coupled : list of Group
        All groups of the network, also those that are not judged.
    """

    groups: list[Group]
    layers: dict[str, int]
    widths: dict[str, int]
    counts: dict[str, int]
    coupled: list[Group]

    def check_removable(self, model: nn.Module) -> None:
        """Refuse a network of which no unit can be removed.

        Raises
        ------
        NothingToPruneError
            With the layers.
        """
        if not self.groups:
            names = ", ".join(self.layers)
            raise NothingToPruneError(
                f"no unit of {names} can be removed from {type(model).__name__}"
            )

    def available(self, least: int) -> int:
        """Count the units that can go at the most, if each layer keeps so many at the least."""
        total = 0
        for root in {group.root for group in self.groups}:
            own = sum(len(group) for group in self.groups if group.root == root)
            total += max(0, min(own, self.counts[root] - least))
        return total

    def numbers(self) -> dict[tuple[str, int], int]:
        """Number the units of each layer: layer and first channel to the place among its units."""
        uncovered = uncovered_channels(self.coupled, self.widths)
        firsts = {layer: set(channels) for layer, channels in uncovered.items()}
        for group in self.coupled:
            firsts.setdefault(group.root, set()).update(unit[0] for unit in group.units)
        return {
            (layer, channel): place
            for layer, channels in firsts.items()
            for place, channel in enumerate(sorted(channels))
        }


def checked_copy(model: nn.Module) -> nn.Module:
    """Check a network and copy it; weights that hooks or parametrizations compute become plain.

    Raises
    ------
    ModelError
        In training mode, with NaN weights, or if it cannot be copied.
    """
    models.check(model)
    return models.plain_copy(model) if models.computes_weights(model) else deep_copy(model)


def list_units(model: nn.Module, example: Tensor, layers: Sequence[str] | None = None) -> Units:
    """List what may be judged of a network, from two inputs or more.

    Parameters
    ----------
    layers : sequence of str, optional
        Only these layers, or layers within modules of these names.

    Raises
    ------
    ValueError
        For a name that fits no layer.
    ModelError
        If the network's output is no tensor of shape (N, classes) or (N, 1).
    NothingToPruneError
        If there is none.
    """
    models.class_outputs(model, example, "the classification accuracy reduction")
    check_logit(model, example)
    widths = {layer.name: layer.units for layer in hidden_layers(model, example[:1])}
    try:
        coupled = list(couple(model, example, list(widths)))
    except (ModelError, IndexError):
        coupled = []  # no layer can lose a unit, and all can be masked
    counts = _count_units(coupled, widths)
    several = {layer: width for layer, width in widths.items() if counts[layer] > 1}
    if layers is not None:
        wanted = [layers] if isinstance(layers, str) else list(layers)
        for name in wanted:
            if not any(_is_within(layer, name) for layer in several):
                raise ValueError(
                    f"layers: {name!r} has no unit that can be judged. Those that have: "
                    + ", ".join(several)
                )
        several = {n: w for n, w in several.items() if any(_is_within(n, name) for name in wanted)}
    if not several:
        raise NothingToPruneError(
            f"{type(model).__name__} has no unit that can be removed. Convolutions and linear "
            "layers must be modules (nn.Conv2d, nn.Linear) with more than one unit"
        )
    groups = removable_groups(coupled, counts)
    groups = [group for group in groups if any(layer in several for layer in outputs(group))]
    return Units(groups, several, widths, counts, coupled)


def groups_within(groups: Sequence[Group], layers: Sequence[str]) -> list[Group]:
    """Choose the groups that have one of these layers, or a layer within a module so named."""
    wanted = [layers] if isinstance(layers, str) else layers
    return [g for g in groups if any(_is_within(m, name) for m in outputs(g) for name in wanted)]


def _is_within(layer: str, name: str) -> bool:
    return f"{layer}.".startswith(f"{name}.")


def outputs(group: Group) -> dict[str, Member]:
    """Return the layers that lose outputs with a group."""
    return {member.layer: member for member in group.members if member.output}


def name_of(group: Group) -> str:
    """Return a name that no other group of the same network has."""
    return f"{group.root}/{group.units[0][0]}"


def kind_of(group: Group) -> Kind:
    """Tell groups of one layer apart, before and after units are removed."""
    return ((group.root, True), *((member.layer, member.output) for member in group.members))


def uncovered_channels(groups: Sequence[Group], widths: Mapping[str, int]) -> dict[str, list[int]]:
    """List the channels of each layer that no group has."""
    left = {layer: set(range(width)) for layer, width in widths.items()}
    for group in groups:
        for layer, member in outputs(group).items():
            if layer in left:
                left[layer] -= {c for channels in member.channels for c in channels}
    return {layer: sorted(channels) for layer, channels in left.items()}


def _count_units(groups: Sequence[Group], widths: Mapping[str, int]) -> dict[str, int]:
    """Count the units of each layer: those of groups, and each channel that no group has."""
    counts = {layer: len(own) for layer, own in uncovered_channels(groups, widths).items()}
    for group in groups:
        for layer in outputs(group):
            if layer in counts:
                counts[layer] += len(group)
    return counts


def removable_groups(
    groups: Sequence[Group], counts: Mapping[str, int], least: int = 1
) -> list[Group]:
    """Choose the groups that can lose a unit, so that each layer keeps so many at the least."""
    return [g for g in groups if all(counts[m] > least for m in outputs(g) if m in counts)]


def single_channels(layer: str, channels: Sequence[int]) -> Group:
    """Make a group of a layer's single channels."""
    units = tuple((channel,) for channel in channels)
    return Group(layer, units, (Member(layer, True, units),))
