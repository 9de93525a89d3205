"""Which units go next: the lowest of all layers, one by one, until the cost is met."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from niwaki.criteria import Scores
from niwaki.pruning._budget import Budget
from niwaki.pruning._coupling import Group
from niwaki.pruning._plan import Removal

__all__ = ["select"]


def select(
    groups: Sequence[Group], scores: Scores, budget: Budget, target: float, min_units: int = 1
) -> list[Removal]:
    """Choose the units to remove.

    All units of all groups are ranked together, the lowest first; ties are broken by the order of
    the layers and then of the units. Units go until the cost is at or below the target; the last
    `min_units` of a group stay.

    Returns
    -------
    list of Removal
        One per group that loses units, in the order of the groups.
    """
    values = [group.scores(scores) for group in groups]
    owners = [(g, u) for g, group in enumerate(groups) for u in range(len(group))]
    left = [len(group) for group in groups]
    chosen: dict[int, list[int]] = {}
    cost = budget.total()
    for place in torch.cat(values).argsort(stable=True).tolist():
        if cost <= target:
            break
        group, unit = owners[place]
        if left[group] > min_units:
            left[group] -= 1
            cost -= budget.remove(group, unit)
            chosen.setdefault(group, []).append(unit)
    return [
        Removal(
            groups[g].root,
            tuple(sorted(c for unit in units for c in groups[g].units[unit])),
        )
        for g, units in sorted(chosen.items())
    ]
