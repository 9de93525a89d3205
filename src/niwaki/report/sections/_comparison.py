"""Several criteria compared: accuracy against cost with the spread over draws."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from niwaki.errors import NiwakiError
from niwaki.pruning import Comparison, Trajectory
from niwaki.report._chart import Axis, Chart, Line, Point
from niwaki.report._section import RunFolder, Section, section
from niwaki.report.sections._pruning import cost_charts, cost_facts

__all__ = ["comparison", "curves"]

_COSTS = {"macs": "MACs", "params": "parameters", "units": "units"}
_HEADS = {
    "contender": "criterion",
    "references": "reference images per class",
    "runs": "runs",
    "area": "area",
    "std": "standard deviation of the area",
    "seconds": "seconds per run",
}
_SHARES = 15  # at which the curves are read off, as in the picture beside the page


@section
def comparison(run: RunFolder) -> Section | None:
    """Show a comparison of criteria."""
    told = run.json("comparison.json")
    if not isinstance(told, dict) or "runs" not in told:
        return None
    found = Comparison.from_json({"runs": told["runs"], "settings": told["settings"]})
    rows = told["table"]
    return Section(
        "Criteria compared",
        "comparison.html.j2",
        {
            "sizes": [
                {"title": _title(size), "charts": list(_charts(found, size))}
                for size in found.references
            ],
            "head": [_head(name) for name in rows[0]] if rows else [],
            "rows": [[_cell(name, value) for name, value in row.items()] for row in rows],
            "of": _COSTS[found.settings.get("of", "macs")],
            "layers": run.picture("layers.png"),
            "ranks": run.picture("rank_correlation.png"),
            "labels": found.labels,
        },
        facts=(
            ("Criteria", str(len(found.labels))),
            ("Runs", str(len(found.runs))),
            *_best(rows),
        ),
        cautions=tuple(_cautions(rows)),
    )


@section
def curves(run: RunFolder) -> Section | None:
    """Show several runs of pruning in one chart."""
    told = run.json("curves.json")
    if not told:
        return None
    runs = {name: Trajectory.from_json(rows) for name, rows in told.items()}
    rows = run.json("table.json") or []
    kept = run.json("pruned/trajectory.json")  # of the network that the demo keeps
    return Section(
        "Accuracy and cost",
        "curves.html.j2",
        {
            "charts": cost_charts(runs),
            "head": list(rows[0]) if rows else [],
            "rows": [[f"{v:.1%}" if isinstance(v, float) else v for v in r.values()] for r in rows],
        },
        facts=cost_facts(Trajectory.from_json(kept)) if kept else (),
        cautions=(
            "Each criterion ran on one draw of reference images: a difference of a few points may "
            "be due to chance. “niwaki compare-criteria” repeats the runs over several draws.",
        ),
    )


def _charts(found: Comparison, size: int) -> Iterator[Chart]:
    for cost, name in _COSTS.items():
        of: Any = cost
        low = max(min(run.trajectory.kept(of)) for run in found.runs)
        lines: dict[str, list[Point]] = {}
        shares = np.linspace(low, 1, _SHARES)
        for share in shares:
            try:
                summaries = found.accuracies(float(share), of)
            except NiwakiError:
                continue
            for one in summaries:
                if one.references == size and one.mean is not None:
                    spread = one.std or 0.0
                    words = f"{one.label}\n{one.mean:.2%}"
                    words += f" ± {spread:.2%} over {len(one.values)} draws" if one.std else ""
                    words += f"\nat {share:.1%} of the {name}"
                    band = (one.mean - spread, one.mean + spread) if one.std else (None, None)
                    lines.setdefault(one.label, []).append(
                        Point(float(share), one.mean, words, *band)
                    )
        if lines:
            yield Chart(
                f"Mean accuracy of each criterion against the share of {name} kept",
                Axis(f"{name} kept", percent=True, reverse=True),
                Axis("accuracy on test images; the band is one standard deviation over the draws",
                     percent=True),
                tuple(Line(label, tuple(points)) for label, points in lines.items()),
                (f"{name} kept", *lines),
                _values(lines),
                name=name,
            )  # fmt: skip


def _values(lines: Mapping[str, Sequence[Point]]) -> tuple[tuple[str, ...], ...]:
    """Return a row for each share, with the accuracy of each line."""
    known = [{point.x: f"{point.y:.2%}" for point in points} for points in lines.values()]
    shares = sorted({x for one in known for x in one}, reverse=True)
    return tuple((f"{x:.0%}", *(one.get(x, "") for one in known)) for x in shares)


def _title(size: int) -> str:
    return f"{size} reference image{'s' * (size != 1)} per class"


def _best(rows: Sequence[dict[str, Any]]) -> tuple[tuple[str, str], ...]:
    if not rows:
        return ()
    best = max(rows, key=lambda row: row["area"])
    return (("Largest area", f"{best['contender']}: {best['area']:.2%}"),)


def _head(name: str) -> str:
    known = _HEADS.get(name)
    return known or f"at {float(name):.1%}"


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name == "seconds":
        return f"{value:.1f}"
    return f"{value:.2%}" if isinstance(value, float) else str(value)


def _cautions(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    if len(rows) > 1 and rows[0].get("std") is not None and rows[1].get("std") is not None:
        first, second = rows[0], rows[1]
        gap, spread = first["area"] - second["area"], max(first["std"], second["std"])
        if gap < spread:
            yield (
                f"{first['contender']} and {second['contender']} differ by {gap:.2%} in their "
                f"areas, which is less than the standard deviation over the draws ({spread:.2%}): "
                "their order may be due to chance."
            )
    if rows and (rows[0].get("runs") or 0) < 5:
        yield f"There are {rows[0]['runs']} runs for each criterion: the spread is a rough guess."
    yield (
        "The criteria were compared on one network and one data set; their order may differ on "
        "others."
    )
