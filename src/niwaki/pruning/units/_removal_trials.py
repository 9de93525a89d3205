"""Trials: whether the code of a network follows when channels that it moves about are removed.

Code may have numbers for where channels are, or for how many there are. Nothing but a trial tells:
the units of a kind but one are taken out for a moment, and the network is held against itself with
these units silenced. (All but one: what is split into halves stands a single one that is missing.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from niwaki.pruning.units._surgery import agrees
from niwaki.pruning.units._tracing import Followed
from niwaki.pruning.units._union_find import FIXED

__all__ = ["try_out"]

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
        The units that may go, alike ones together.
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
