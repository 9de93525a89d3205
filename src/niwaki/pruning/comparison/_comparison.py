"""What a comparison of criteria has found: runs, and everything that is read off them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

from niwaki.display import html_table
from niwaki.pruning._trajectory import accuracy_at, area
from niwaki.pruning.comparison._contenders import Outcome
from niwaki.pruning.units._budget import Of
from niwaki.ranges import FRACTION, SHARE, SOME, checked
from niwaki.schema import Anything, ListOf, MapOf, Record, check

__all__ = ["Agreement", "Comparison", "Summary", "agreement"]


@dataclass(frozen=True)
class Summary:
    """A number per run of a contender, over its seeds.

    Attributes
    ----------
    label : str
        Label of the contender.
    references : int
        Samples per class.
    values : tuple of float
        One per run; empty where a run did not come far enough for the number to exist.
    """

    label: str
    references: int
    values: tuple[float, ...]

    @property
    def mean(self) -> float | None:
        """Mean over the runs."""
        return fmean(self.values) if self.values else None

    @property
    def std(self) -> float | None:
        """Standard deviation over the runs (of the sample); None for fewer than two."""
        return stdev(self.values) if len(self.values) > 1 else None

    def __str__(self) -> str:
        if self.mean is None:
            return "-"
        return f"{self.mean:.4f}" + ("" if self.std is None else f" ± {self.std:.4f}")


@dataclass(frozen=True)
class Comparison:
    """Runs of several contenders on the same network, test data and draws.

    Attributes
    ----------
    runs : tuple of Outcome
        In the order in which the contenders were given.
    settings : dict
        What all runs share.
    """

    runs: tuple[Outcome, ...]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def labels(self) -> list[str]:
        """The contenders, in order."""
        return list(dict.fromkeys(run.label for run in self.runs))

    @property
    def references(self) -> list[int]:
        """The numbers of reference samples per class, ascending."""
        sizes = {run.references for run in self.runs if run.references is not None}
        return sorted(sizes) or list(self.settings.get("references", [0]))

    def select(self, label: str, references: int) -> list[Outcome]:
        """Return the runs of a contender; those that do not depend on the data fit any number."""
        return [r for r in self.runs if r.label == label and r.references in (None, references)]

    def cells(self) -> Iterator[tuple[str, int, list[Outcome]]]:
        """Go over all contenders and numbers of references that have runs."""
        for references in self.references:
            for label in self.labels:
                runs = self.select(label, references)
                if runs:
                    yield label, references, runs

    @checked(between=FRACTION)
    def areas(self, of: Of = "macs", between: tuple[float, float] | None = None) -> list[Summary]:
        """Area under accuracy against cost, divided by its width: a mean accuracy.

        Parameters
        ----------
        of : {"macs", "params", "units"}
            The cost.
        between : pair of float, optional
            From which share kept to which; default: from the share that was pruned to, to 1.

        Returns
        -------
        list of Summary
            Without values where a run ends before the lower share.
        """
        low, high = between or (float(self.settings.get("keep", 0.3)), 1.0)
        return [
            Summary(label, references, _values(runs, lambda t: area(t, of, (low, high))))
            for label, references, runs in self.cells()
        ]

    @checked(share=SHARE)
    def accuracies(self, share: float, of: Of = "macs") -> list[Summary]:
        """Accuracy at a share of the cost, interpolated between the steps."""
        return [
            Summary(label, references, _values(runs, lambda t: accuracy_at(t, share, of)))
            for label, references, runs in self.cells()
        ]

    def removed(self) -> list[tuple[str, int, dict[str, float]]]:
        """Share of each layer's units that is removed in the end: the mean over the runs."""
        found = []
        for label, references, runs in self.cells():
            with_layers = [run.removed for run in runs if run.removed]
            if with_layers:
                means = {n: fmean(r[n] for r in with_layers) for n in with_layers[0]}
                found.append((label, references, means))
        return found

    @checked(count=SOME)
    def agreement(self, count: int | None = None) -> list[Agreement]:
        """Compare the rankings within contenders (over seeds) and between them (same seed).

        Parameters
        ----------
        count : int, optional
            Size of the sets of least and most relevant units; default: a tenth of all units.
        """
        found = []
        for references in self.references:
            runs = [r for label in self.labels for r in self.select(label, references) if r.ranks]
            if runs:
                found += agreement(runs, references, count)
        return found

    def to_json(self) -> dict[str, Any]:
        """Return plain lists and dicts."""
        return {"settings": self.settings, "runs": [run.to_json() for run in self.runs]}

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Comparison:
        """Rebuild from `to_json`."""
        check(saved, _FORM, "the comparison")
        return cls(tuple(map(Outcome.from_json, saved["runs"])), dict(saved["settings"]))

    def rows(self) -> list[dict[str, Any]]:
        """Return the table: one row per contender and number of references, best area first.

        The area and the accuracies at some shares are against the cost that was pruned to, with
        standard deviations over the seeds.
        """
        of: Of = self.settings.get("of", "macs")
        low = float(self.settings.get("keep", 0.3))
        shares = [low + (1 - low) * part for part in (0.75, 0.5, 0.25, 0.0)]
        columns = [self.accuracies(share, of) for share in shares]
        rows = []
        for number, found in enumerate(self.areas(of)):
            runs = self.select(found.label, found.references)
            row: dict[str, Any] = {
                "contender": found.label,
                "references": found.references if runs[0].references is not None else None,
                "runs": len(runs),
                "area": found.mean,
                "std": found.std,
            }
            for share, column in zip(shares, columns, strict=True):
                row[f"{share:.3g}"] = column[number].mean
            row["seconds"] = fmean(sum(s.seconds for s in run.trajectory) for run in runs)
            rows.append({**row, "_size": found.references})
        rows.sort(key=lambda row: (row["_size"], -(row["area"] or 0.0)))
        return [{k: v for k, v in row.items() if k != "_size"} for row in _once(rows)]

    def _repr_html_(self) -> str:
        return html_table(self.rows(), f"{len(self.labels)} contenders, {len(self.runs)} runs")

    def __str__(self) -> str:
        rows = self.rows()
        cells = [[_cell(name, row[name]) for name in rows[0]] for row in rows] if rows else []
        table = [list(rows[0]), *cells] if rows else []
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        return "\n".join(
            "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
            for line in table
        )


_FORM = Record({"runs": ListOf(Anything()), "settings": MapOf(Anything())}, open=True)


def _values(runs: Sequence[Outcome], number: Any) -> tuple[float, ...]:
    try:
        return tuple(number(run.trajectory) for run in runs)
    except ValueError:
        return ()


def _once(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Leave out the repetitions of contenders that no number of references changes."""
    seen = set()
    for row in rows:
        if row["references"] is not None or row["contender"] not in seen:
            seen.add(row["contender"])
            yield row


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-" if name != "references" else "any"
    if isinstance(value, float):
        return f"{value:.1f}" if name == "seconds" else f"{value:.4f}"
    return str(value)


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
