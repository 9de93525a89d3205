"""Which units are removed next: the lowest of all layers, one by one, until the cost is met."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import gcd
from typing import TypeAlias

from niwaki.criteria import Scores
from niwaki.pruning._plan import Removal
from niwaki.pruning.units._budget import Budget
from niwaki.pruning.units._coupling import Group

__all__ = ["Within", "select"]

#: Gets the units of each group that the scores take; returns those that go, as many.
Within: TypeAlias = Callable[[Sequence[Sequence[int]]], Sequence[Sequence[int]]]


def select(
    groups: Sequence[Group],
    scores: Scores,
    budget: Budget,
    target: float,
    *,
    least: Sequence[int],
    multiple: int = 1,
    per_cost: float = 0.0,
    within: Within | None = None,
) -> list[Removal]:
    """Choose the units to remove.

    All units of all groups are ranked together, the lowest first; ties are broken by the order of
    the layers and then of the units. Units go until the cost is at or below the target.

    Parameters
    ----------
    groups, scores, budget
        The units, what they are worth, and what the network costs; the budget is used up.
    target : float
        The cost to reach.
    least : sequence of int
        Units that each group keeps at the least.
    multiple : int
        Widths that layers are left with are multiples of this, where they lose anything.
    per_cost : float
        Exponent of the cost by which scores are divided: 0 ranks by the score alone, 1 by the score
        per MAC (or parameter, or unit) that the removal saves in the current network.
    within : callable, optional
        Chooses anew within each group once the widths are known, see `Within`.

    Returns
    -------
    list of Removal
        One for each layer that loses outputs, in the order of the layers.
    """
    queues = [
        _Queue(group.scores(scores).tolist(), keep, multiple // gcd(multiple, len(group.units[0])))
        for group, keep in zip(groups, least, strict=True)
    ]
    neighbours = budget.neighbours()

    def priority(index: int) -> float:
        block = queues[index].head()
        if not block:
            return float("inf")
        worth = sum(queues[index].scores[unit] for unit in block) / len(block)
        if per_cost:
            worth /= max(budget.saving(index, block[0]), 1) ** per_cost
        return worth

    priorities = [priority(index) for index in range(len(groups))]
    cost = budget.total()
    while cost > target and priorities:
        index = min(range(len(groups)), key=priorities.__getitem__)
        block = queues[index].head()
        if not block:
            break
        cost -= sum(budget.remove(index, unit) for unit in block)
        queues[index].take(block)
        for other in neighbours[index] if per_cost else [index]:
            priorities[other] = priority(other)
    taken: Sequence[Sequence[int]] = [queue.taken for queue in queues]
    if within is not None:
        taken = within(taken)
    gone: dict[str, list[int]] = {}
    for group, units in zip(groups, taken, strict=True):
        for member in group.members:
            if units and member.output and member.layer in group.layers:
                channels = (c for unit in units for c in member.channels[unit])
                gone.setdefault(member.layer, []).extend(channels)
    order = dict.fromkeys([*(layer for layer in scores if layer in gone), *gone])
    return [Removal(layer, tuple(sorted(gone[layer]))) for layer in order]


@dataclass
class _Queue:
    """The units of a group, the lowest first, as they go."""

    scores: list[float]
    least: int
    multiple: int
    taken: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._order = sorted(range(len(self.scores)), key=self.scores.__getitem__)

    def head(self) -> list[int]:
        """Return the units that go next, together: one, or as many as make the width even."""
        left = len(self._order)
        count = left % self.multiple or self.multiple
        return self._order[:count] if left - count >= self.least else []

    def take(self, block: list[int]) -> None:
        """Take out what `head` returned."""
        self._order = self._order[len(block) :]
        self.taken += block
