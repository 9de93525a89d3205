"""Are filters of a kind over-represented among the first that pruning takes?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import comb

from niwaki.pruning import Plan
from niwaki.ranges import SOME, checked


@dataclass(frozen=True)
class Enrichment:
    """How many of the first filters pruned are of a kind, against chance.

    Attributes
    ----------
    filters, marked : int
        All filters, and those of the kind.
    first, found : int
        How many of the pruned were looked at, and how many of them are of the kind.
    expected : float
        How many chance would put there.
    p : float
        Probability that chance puts as many or more there (hypergeometric, one-sided).
    """

    filters: int
    marked: int
    first: int
    found: int
    expected: float
    p: float

    def __str__(self) -> str:
        return (
            f"{self.found} of the first {self.first} pruned, {self.expected:.1f} expected by "
            f"chance ({self.marked} of {self.filters} filters), p = {self.p:.2g}"
        )


@checked(among=SOME, first=SOME)
def enrichment(
    order: Sequence[tuple[str, int]], marked: Iterable[tuple[str, int]], among: int, first: int
) -> Enrichment:
    """Count the marked filters among the first pruned.

    Parameters
    ----------
    order : sequence of pair
        Layer and number of the filters in the order of their removal, such as from `removal_order`.
    marked : iterable of pair
        The filters of the kind, of all that could have gone.
    among : int
        How many filters could have gone.
    first : int
        How many of `order` to look at.

    Raises
    ------
    ValueError
        For counts that do not fit.
    """
    kind = set(marked)
    if len(set(order)) < len(order):
        raise ValueError("order names a filter twice")
    if not 1 <= first <= len(order):
        raise ValueError(f"first = {first}: the order has {len(order)} filters")
    if len(order) > among or len(kind) > among:
        raise ValueError(f"among = {among}: fewer than were pruned or marked")
    found = sum(unit in kind for unit in order[:first])
    return Enrichment(
        among,
        len(kind),
        first,
        found,
        first * len(kind) / among,
        sum(_shares(among, len(kind), first)[found:]),
    )


def combined(parts: Sequence[Enrichment]) -> float:
    """Probability that chance puts as many marked filters, over all networks, among the first.

    The sum of independent hypergeometric counts, exactly, one-sided.
    """
    total = [1.0]
    for part in parts:
        shares = _shares(part.filters, part.marked, part.first)
        longer = [0.0] * (len(total) + len(shares) - 1)
        for i, a in enumerate(total):
            for j, b in enumerate(shares):
                longer[i + j] += a * b
        total = longer
    return min(1.0, sum(total[sum(part.found for part in parts) :]))


def removal_order(plan: Plan, widths: Mapping[str, int]) -> list[tuple[str, int]]:
    """List filters in the order of their removal, numbered as in the unpruned network.

    Parameters
    ----------
    plan : Plan
        A plan such as `Pruned.plan`; its own numbers count in the network that each step finds.
    widths : mapping of str to int
        How many filters each layer had at first. Layers that are not in it are left out.

    Returns
    -------
    list of pair
        Layer and number. Filters that go in the same step stand in the plan's order.
    """
    left = {name: list(range(width)) for name, width in widths.items()}
    order = []
    for step in plan.steps:
        for removal in step:
            if removal.layer not in left:
                continue
            numbers = left[removal.layer]
            gone = [numbers[channel] for channel in removal.channels]
            order += [(removal.layer, number) for number in gone]
            left[removal.layer] = [number for number in numbers if number not in set(gone)]
    return order


def _shares(filters: int, marked: int, first: int) -> list[float]:
    """Probability of 0, 1, ... marked filters among the first, drawn at random."""
    ways = comb(filters, first)
    return [comb(marked, k) * comb(filters - marked, first - k) / ways for k in range(first + 1)]
