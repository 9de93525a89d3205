"""Who takes part in a comparison, and what came out when they were pruned."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from niwaki.criteria import Criterion, Scores, create
from niwaki.data import Data
from niwaki.pruning._loop import REPAIR
from niwaki.pruning._pruned import Pruned
from niwaki.pruning._trajectory import Trajectory
from niwaki.runs import described
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

__all__ = ["Contender", "Contenders", "Outcome", "Runner", "contenders_of"]

#: Gets a copy of the network, the reference samples and the seed; gives the network after each
#: step, to be measured as all others are, or a trajectory that it has measured itself.
Runner: TypeAlias = Callable[[nn.Module, Data, int], Iterable[nn.Module] | Trajectory | Pruned]

# Options of `prune` that leave a criterion without data as blind as it is; anything else, such as
# repairs and fine-tuning, may look at the reference samples.
_BLIND = {"keep", "of", "schedule", "limits", "validation", "run"}


@dataclass(frozen=True)
class Contender:
    """One entry of a comparison.

    Attributes
    ----------
    label : str
        Its name in tables and pictures.
    criterion : str, Criterion or callable
        One of `niwaki.criteria.names`; one that is made already; or a function
        ``(model, references, seed)`` that prunes in a way of its own. The function gets a copy of
        the network that it may change, the reference samples as a dataset or a pair of tensors,
        and the seed of their draw. It returns, best as a generator, the network after each step;
        or a `Trajectory` or `Pruned`.
    options : mapping
        The criterion's own; one that draws at random and has no ``seed`` gets that of the draw.
    prune_options : mapping
        Options of `niwaki.prune` that overrule those of the comparison.
    needs_data : bool, optional
        Whether it uses the reference samples. A contender that does not is run once for all draws,
        or, if it is seeded, once per seed. Default: what the criterion says; True for functions and
        for options of `prune` that may look at samples.
    """

    label: str
    criterion: str | Criterion | Runner
    options: Mapping[str, Any] = field(default_factory=dict)
    prune_options: Mapping[str, Any] = field(default_factory=dict)
    needs_data: bool | None = None

    def create(self, seed: int) -> Criterion:
        """Make the criterion for a draw.

        Raises
        ------
        TypeError
            For a function, which has none.
        """
        if not isinstance(self.criterion, (str, Criterion)):
            raise TypeError(f"{self.label!r} is a function and has no criterion")
        made = create(self.criterion, **self.options)
        return made.seeded(seed) if self.is_seeded() else made

    def is_seeded(self) -> bool:
        """Whether it draws anew for each seed, without looking at data."""
        if not isinstance(self.criterion, (str, Criterion)):
            return False
        return create(self.criterion, **self.options).draws

    def looks(self, shared: Mapping[str, Any]) -> bool:
        """Whether it looks at the reference samples, given the comparison's options of `prune`."""
        if self.needs_data is not None:
            return self.needs_data
        if not isinstance(self.criterion, (str, Criterion)):
            return True
        merged = {**shared, **self.prune_options}
        if merged.get("repair", REPAIR) is not None:
            return True
        wanted = {
            name for name, value in merged.items() if value is not None and value is not False
        }
        return self.create(0).needs_data or not wanted <= _BLIND

    def describe(self) -> dict[str, Any]:
        """Say in plain words what it is, to tell whether a saved run was made by the same."""
        if isinstance(self.criterion, (str, Criterion)):
            made = described(create(self.criterion, **self.options))
        else:
            made = described(self.criterion)
        return {
            "criterion": made,
            "options": described(self.options),
            "prune_options": described(self.prune_options),
        }


Contenders: TypeAlias = (
    Sequence[str | Criterion | Contender]
    | Mapping[str, str | Criterion | Runner | Mapping[str, Any]]
)


def contenders_of(given: Contenders) -> list[Contender]:
    """Read what a user may write; see `compare`.

    Raises
    ------
    ValueError
        For no contender, two of the same label, or unknown criteria.
    TypeError
        For what is none, or options that a criterion does not have.
    """
    if isinstance(given, Mapping):
        found = [_labelled(label, entry) for label, entry in given.items()]
    else:
        found = [_single(entry) for entry in ([given] if isinstance(given, str) else given)]
    labels = [contender.label for contender in found]
    if not labels:
        raise ValueError("there is nothing to compare: give at least one criterion")
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise ValueError(f"two contenders are called {twice!r}: give a mapping with other labels")
    for contender in found:  # wrong names and options are refused before any work
        if isinstance(contender.criterion, (str, Criterion)):
            create(contender.criterion, **contender.options)
    return found


def _single(entry: str | Criterion | Contender) -> Contender:
    if isinstance(entry, Contender):
        return entry
    if isinstance(entry, (str, Criterion)):
        return Contender(entry if isinstance(entry, str) else entry.name, entry)
    raise TypeError(
        f"{entry!r} is no contender: pass names of criteria, criteria or Contender objects, or a "
        "mapping from labels"
    )


def _labelled(label: str, entry: str | Criterion | Runner | Mapping[str, Any]) -> Contender:
    if isinstance(entry, Mapping):
        options = dict(entry)
        return Contender(label, options.pop("criterion", label), options)
    if isinstance(entry, (str, Criterion)) or callable(entry):
        return Contender(label, entry)
    raise TypeError(f"{label!r}: {entry!r} is no criterion, options or function")


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
        Layer to the share of its units that is removed in the end.
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
