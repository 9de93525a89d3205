"""Which channels can only be removed together, and what each layer loses with them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import torch
from torch import Tensor, nn

from niwaki.criteria import Scores
from niwaki.errors import ChoiceWarning
from niwaki.models.zoo import ShortcutA
from niwaki.pruning.units._surgery import agrees
from niwaki.pruning.units._tracing import NORM_MODULES, OUTPUTS, Followed, follow
from niwaki.pruning.units._variables import FIXED

__all__ = ["Coupling", "Group", "Member", "couple", "try_out"]

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

    A unit is everything that can only be removed together, through residual sums, gates, depthwise
    and grouped convolutions, concatenations and the like, followed to the end.

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

    def warn_of_choices(self) -> None:
        """Give a `ChoiceWarning` if code takes numbers from what it computes, as for a branch."""
        if self.followed is not None and self.followed.choices:
            warnings.warn(
                "the network's code takes numbers from what it computes "
                f"({', '.join(self.followed.choices)}). If it branches on them, only the way that "
                "the first samples take is followed: layers on other ways keep the inputs that "
                "they have, and may fail after pruning. Try the pruned network on samples that "
                "take each way, or write the choice with torch.where",
                ChoiceWarning,
                stacklevel=2,
            )


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


Kinds = Sequence[Sequence[int]]


def try_out(model: nn.Module, example: Tensor, followed: Followed, kinds: Kinds) -> None:
    """Let units stay, or go together, where the code of the network wants it.

    Parameters
    ----------
    model : nn.Module
        Is as it was afterwards.
    example : Tensor
        Inputs to try it with.
    followed : Followed
        Its units are tied and fixed.
    kinds : sequence of sequence of int
        The units that may be removed, alike ones together.
    """
    moves = [set(followed.units.find(move).tolist()) for move in followed.doubtful]
    together = [[k for k, units in enumerate(kinds) if move & set(units)] for move in moves]
    # A kind with one unit stays anyway. What is moved at once could make up for each other.
    left = {k for ks in together for k in ks if len(kinds[k]) > 1}
    wrong: dict[int, str] = {}
    while left:
        round_: list[int] = []
        for k in sorted(left):
            if not any(k in ks and other in ks for ks in together for other in round_):
                round_.append(k)
        left -= set(round_)
        wrong |= _wrong(model, example, followed, kinds, round_)
    _tie(model, example, followed, [[kinds[k] for k in ks if k in wrong] for ks in together])
    for k, reason in wrong.items():
        units = followed.units.find(torch.tensor(kinds[k]))
        if len(set(units.tolist())) == len(units) and k not in _tied(followed, kinds, wrong):
            why = f"the code of the forward pass does not follow their removal ({reason})"
            followed.units.fix(units, why)


def _wrong(
    model: nn.Module, example: Tensor, followed: Followed, kinds: Kinds, which: Sequence[int]
) -> dict[int, str]:
    """Find the kinds of which a unit cannot go, by halves; say what happens."""
    found = agrees(model, example, followed, _most([kinds[k] for k in which]))
    if found is None:
        return {}
    if len(which) == 1:
        return {which[0]: found}
    middle = len(which) // 2
    return {
        **_wrong(model, example, followed, kinds, which[:middle]),
        **_wrong(model, example, followed, kinds, which[middle:]),
    }


def _tie(model: nn.Module, example: Tensor, followed: Followed, parts: Sequence[Kinds]) -> None:
    """Let units go together that code splits into equal parts, one of each part."""
    for kinds in parts:
        if len(kinds) < 2 or len({len(units) for units in kinds}) > 1:
            continue
        most = torch.tensor(sorted(set(followed.units.find(_most(kinds)).tolist())))
        if FIXED in most or agrees(model, example, followed, most):
            continue
        for units in kinds[1:]:
            why = "they are split with others"
            followed.units.tie(torch.tensor(kinds[0]), torch.tensor(units), why)


def _most(kinds: Kinds) -> Tensor:
    """Return all units of each kind but the last."""
    return torch.tensor([unit for units in kinds for unit in units[:-1]])


def _tied(followed: Followed, kinds: Kinds, wrong: dict[int, str]) -> set[int]:
    """Return the kinds whose units are now tied to those of another."""
    roots = {k: tuple(followed.units.find(torch.tensor(kinds[k])).tolist()) for k in wrong}
    return {k for k in wrong if list(roots.values()).count(roots[k]) > 1}
