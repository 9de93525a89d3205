"""Which channels can only go together, and what each layer loses with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from niwaki.criteria import Scores
from niwaki.pruning._graph import dependency_graph, is_output

__all__ = ["Group", "Member", "couple"]


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
    """Channels that residual sums, depthwise convolutions and the like tie together.

    Attributes
    ----------
    root : str
        Name of the layer whose output channels number the units.
    units : tuple of tuple of int
        Output channels of the root that make up each unit: one, or, where a grouped convolution
        must lose one in each of its groups, several.
    members : tuple of Member
        All layers that lose channels, the root among them.
    """

    root: str
    units: tuple[tuple[int, ...], ...]
    members: tuple[Member, ...]

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


def couple(
    model: nn.Module, example: Tensor, scored: Sequence[str], ignore: Sequence[str] = ()
) -> list[Group]:
    """Find the groups of channels that may be removed.

    Parameters
    ----------
    model : nn.Module
        A network that is ours to work on: tracing sets hooks for a moment.
    example : Tensor
        Inputs to trace it with.
    scored : sequence of str
        The layers whose units may be judged; a group whose outputs are those of another
        convolution or linear layer (the network's output) is left out.
    ignore : sequence of str
        Layers whose units must stay, and with them all that is coupled to them.
    """
    graph = dependency_graph(model, example)
    names = {module: name for name, module in model.named_modules()}
    groups = []
    for traced in graph.get_all_groups():
        layers = [names.get(item.dep.target.module) for item in traced]
        outputs = [
            (name, item.dep.target.module)
            for name, item in zip(layers, traced, strict=True)
            if is_output(graph, item)
        ]
        judged = (nn.modules.conv._ConvNd, nn.Linear)
        if any(isinstance(m, judged) and (n not in scored or n in ignore) for n, m in outputs):
            continue
        root = layers[0]
        assert root is not None
        units = _units(graph, traced)
        if not units:
            continue
        members = tuple(
            Member(name, is_output(graph, item), _channels(units, item))
            for name, item in zip(layers, traced, strict=True)
            if name is not None and sum(1 for _ in item.dep.target.module.parameters()) > 0
        )
        groups.append(Group(root, units, members))
    order = {name: i for i, name in enumerate(scored)}
    return sorted(groups, key=lambda group: order[group.root])


def _units(graph: Any, traced: Any) -> tuple[tuple[int, ...], ...]:
    """Bundle the root's channels so that grouped layers lose the same place in each group.

    Nothing is returned where that cannot be done, or takes channels of other layers too, as when
    each group of a grouped convolution reads another layer.
    """
    channels = sorted(set(traced[0].root_idxs))
    bundle = {channel: channel for channel in channels}

    def first(channel: int) -> int:
        while bundle[channel] != channel:
            channel = bundle[channel]
        return channel

    for item in traced:
        module = item.dep.target.module
        groups = getattr(module, "groups", getattr(module, "num_groups", 1))
        if groups == 1:
            continue
        if isinstance(module, nn.modules.conv._ConvTransposeNd):
            return ()  # torch-pruning looks for its outputs where a plain convolution has them
        if groups == getattr(module, "out_channels", None):  # each output is its own group
            if module.in_channels != groups:
                return ()  # torch-pruning takes it for depthwise, which it is not
            continue
        output = is_output(graph, item)
        width = graph.get_out_channels(module) if output else graph.get_in_channels(module)
        places: dict[int, list[int]] = {}
        for index, channel in zip(item.idxs, item.root_idxs, strict=True):
            places.setdefault(index % (width // groups), []).append(channel)
        for together in places.values():
            if len(together) != groups:
                return ()
            lowest = min(map(first, together))
            for channel in together:
                bundle[first(channel)] = lowest
    units: dict[int, list[int]] = {}
    for channel in channels:
        units.setdefault(first(channel), []).append(channel)
    return tuple(tuple(unit) for unit in units.values())


def _channels(units: tuple[tuple[int, ...], ...], item: Any) -> tuple[tuple[int, ...], ...]:
    of_root: dict[int, list[int]] = {}
    for index, channel in zip(item.idxs, item.root_idxs, strict=True):
        of_root.setdefault(channel, []).append(index)
    return tuple(tuple(i for channel in unit for i in of_root.get(channel, [])) for unit in units)
