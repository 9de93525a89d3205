"""How alike criteria rank the units, and one criterion itself from draw to draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from niwaki.pruning.comparison._outcome import Outcome

__all__ = ["Agreement", "agreement"]


@dataclass(frozen=True)
class Agreement:
    """How alike two contenders rank the units; of one with itself: over seeds.

    Attributes
    ----------
    first, second : str
        Labels.
    references : int
        Samples per class.
    pairs : int
        Pairs of runs that are averaged: of the same seed, or, within a contender, of different
        ones.
    rank_correlation : float
        Spearman's, from -1 to 1.
    lowest, highest : float
        Share of the `count` least and most relevant units that both have in common.
    count : int
        Number of units at each end that are compared.
    """

    first: str
    second: str
    references: int
    pairs: int
    rank_correlation: float
    lowest: float
    highest: float
    count: int


def agreement(
    runs: Sequence[Outcome], references: int, count: int | None = None
) -> list[Agreement]:
    """Compare the rankings of runs with the same number of references, in pairs.

    Parameters
    ----------
    runs : sequence of Outcome
        With ranks.
    references : int
        Goes into the result.
    count : int, optional
        Size of the sets of least and most relevant units; default: a tenth of all units.

    Raises
    ------
    ValueError
        For runs on networks of different sizes, or a count out of range.
    """
    flat = [run.ranks.flat() for run in runs if run.ranks is not None]
    if len({len(ranks) for ranks in flat}) > 1:
        raise ValueError("the runs rank different numbers of units: they cannot be compared")
    ranks = torch.stack(flat)
    units = ranks.shape[1]
    count = max(1, units // 10) if count is None else count
    if not 1 <= count <= units:
        raise ValueError(f"count = {count}: must lie between 1 and {units} units")
    alike = torch.corrcoef(ranks).reshape(len(runs), len(runs))
    lowest, highest = _common(ranks, count), _common(-ranks, count)
    labels = list(dict.fromkeys(run.label for run in runs))
    found = []
    for place, first in enumerate(labels):
        for second in labels[place:]:
            pairs = _pairs(runs, first, second)
            if pairs:
                i, j = torch.tensor(pairs).T
                found.append(
                    Agreement(
                        first,
                        second,
                        references,
                        len(pairs),
                        float(alike[i, j].mean()),
                        float(lowest[i, j].mean()),
                        float(highest[i, j].mean()),
                        count,
                    )
                )
    return found


def _common(ranks: Tensor, count: int) -> Tensor:
    """Share of the `count` lowest units in common; one row and column per run."""
    lowest = ranks.argsort(dim=1, stable=True)[:, :count]
    members = torch.zeros_like(ranks).scatter_(1, lowest, 1.0)
    return members @ members.T / count


def _pairs(runs: Sequence[Outcome], first: str, second: str) -> list[tuple[int, int]]:
    """Pairs of runs: within a contender of different seeds, between two of the same seed."""
    ones = [i for i, run in enumerate(runs) if run.label == first]
    others = [i for i, run in enumerate(runs) if run.label == second]
    if first == second:
        return [(i, j) for i in ones for j in others if i < j]
    seeds = [(i, j, {runs[i].seed, runs[j].seed} - {None}) for i in ones for j in others]
    return [(i, j) for i, j, distinct in seeds if len(distinct) <= 1]
