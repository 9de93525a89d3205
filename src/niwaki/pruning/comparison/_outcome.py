"""One contender of a comparison, pruned once: plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from niwaki.criteria import Scores
from niwaki.pruning._trajectory import Trajectory
from niwaki.schema import (
    Anything,
    Either,
    ListOf,
    MapOf,
    Nothing,
    Number,
    Record,
    Text,
    Whole,
    check,
)

__all__ = ["Outcome"]


@dataclass(frozen=True)
class Outcome:
    """One contender, pruned once.

    Attributes
    ----------
    label : str
        Label of the contender.
    references, seed : int or None
        Samples per class and seed of the draw; None where they make no difference.
    trajectory : Trajectory
        Cost and accuracy after each step.
    removed : dict of str to float
        Layer to the share of its units that is gone in the end.
    ranks : Scores or None
        Ranks of all units of the whole network by the criterion, 0 for the least relevant; None
        where there is no criterion.
    about : dict
        What the contender is.
    """

    label: str
    references: int | None
    seed: int | None
    trajectory: Trajectory
    removed: dict[str, float] = field(default_factory=dict, repr=False)
    ranks: Scores | None = field(default=None, repr=False)
    about: dict[str, Any] = field(default_factory=dict, repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return plain lists and dicts."""
        ranks = None
        if self.ranks is not None:
            ranks = {name: _compact(values) for name, values in self.ranks.items()}
        return {
            "label": self.label,
            "references": self.references,
            "seed": self.seed,
            "about": self.about,
            "trajectory": self.trajectory.to_json(),
            "removed": self.removed,
            "ranks": ranks,
        }

    @classmethod
    def from_json(cls, saved: Any) -> Outcome:
        """Rebuild from `to_json`."""
        check(saved, _FORM, "the outcome")
        ranks = None
        if saved["ranks"] is not None:
            values = {n: torch.tensor(v, dtype=torch.float64) for n, v in saved["ranks"].items()}
            ranks = Scores(values, saved["label"])
        return cls(
            saved["label"],
            saved["references"],
            saved["seed"],
            Trajectory.from_json(saved["trajectory"]),
            dict(saved["removed"]),
            ranks,
            dict(saved["about"]),
        )


_COUNT = Either(Nothing(), Whole(-(2**62), 2**62))
_FORM = Record(
    {
        "label": Text(),
        "references": _COUNT,
        "seed": _COUNT,
        "trajectory": ListOf(Anything()),
        "removed": MapOf(Number()),
        "ranks": Either(Nothing(), MapOf(ListOf(Number()))),
        "about": MapOf(Anything()),
    }
)


def _compact(ranks: Tensor) -> list[int | float]:
    """Write whole ranks as whole numbers: ranks are halves only where there are ties."""
    return [int(rank) if rank == int(rank) else rank for rank in ranks.tolist()]
