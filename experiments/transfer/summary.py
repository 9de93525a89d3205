"""The table and the curves of the transfer experiment, from its results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from matplotlib.figure import Figure

from niwaki.files import write_atomically
from niwaki.pruning import Trajectory, area

__all__ = ["percent", "plot", "table"]

COLUMNS = 4  # steps that the table shows
MARKERS = "osD^vP*X"
WORDS = {"macs": "MACs", "units": "units"}


def table(results: dict[str, Any]) -> str:
    """Markdown: a row per criterion, the largest area first."""
    about, runs = results["settings"], _trajectories(results)
    shown = _places(runs)
    of = about["of"]
    head = [f"{100 * _target(about, step):.0f} %" for step in shown]
    rows = sorted(
        ((name, found, _areas(found, about)) for name, found in runs.items()),
        key=lambda row: -fmean(row[2]),
    )
    best = max((fmean(areas) for _, _, areas in rows), default=0)
    lines = [
        f"{_adapted(results)} Accuracy in %, before → after the fine-tuning of a step; a column "
        f"has the step that leaves this share of the {WORDS[of]}. Area: mean accuracy after "
        f"fine-tuning from 100 % to {100 * about['keep']:.0f} %.",
        "",
        "| criterion | area | "
        + " | ".join(head)
        + " | after the last epochs | MACs left | units left | seeds |",
        "| --- |" + " ---: |" * (len(head) + 5),
    ]
    for name, found, areas in rows:
        value = percent(areas)
        cells = [
            f"**{value}**" if fmean(areas) >= best else value,
            *(_cell(found, step) for step in shown),
            _final(results["runs"][name]),
            *(percent([run.kept(what)[-1] for run in found]) for what in ("macs", "units")),
            str(len(found)),
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    settings = ", ".join(f"{name} {value}" for name, value in about.items())
    return "\n".join([*lines, "", f"{settings}.", "", f"{results['machine']}."]) + "\n"


def plot(path: Path, results: dict[str, Any]) -> None:
    """Draw accuracy against MACs: after fine-tuning, and before that of the same step."""
    figure = Figure(figsize=(9.5, 4.2), layout="constrained", dpi=130)
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    for number, (name, found) in enumerate(_trajectories(results).items()):
        style = {
            "label": name,
            "color": f"C{number}",
            "marker": MARKERS[number % len(MARKERS)],
            "markersize": 3.5,
            "linewidth": 2.2 if name.startswith("lrp") else 1.1,
        }
        kept = _mean([run.kept("macs") for run in found])
        left.plot(kept, _mean([_tuned(run) for run in found]), **style)
        right.plot(kept, _mean([_before(run) for run in found]), **style)
    left.set_title("after fine-tuning", fontsize=9)
    right.set_title("before the fine-tuning of the step", fontsize=9)
    left.set_ylabel("accuracy (%)")
    left.invert_xaxis()  # shared
    for axis in (left, right):
        axis.set_xlabel("multiply-accumulates kept (%)")
        axis.grid(alpha=0.3)
    left.legend(fontsize=7, frameon=False)
    write_atomically(path, figure.savefig)


def _trajectories(results: dict[str, Any]) -> dict[str, list[Trajectory]]:
    return {
        name: [Trajectory.from_json(run["trajectory"]) for run in runs.values()]
        for name, runs in results["runs"].items()
        if runs
    }


def _places(runs: dict[str, list[Trajectory]]) -> list[int]:
    """Choose steps for the columns, evenly, the last among them."""
    last = min((len(run) for found in runs.values() for run in found), default=1) - 1
    number = min(COLUMNS, last)
    return [round(last * (i + 1) / number) for i in range(number)]


def _target(about: dict[str, Any], step: int) -> float:
    return float(max(about["keep"], 1 - step * about["per_step"]))


def _areas(found: Sequence[Trajectory], about: dict[str, Any]) -> list[float]:
    return [area(run, about["of"], between=(about["keep"], 1.0)) for run in found]


def _before(run: Trajectory) -> list[float]:
    return [step.accuracy or 0.0 for step in run]


def _tuned(run: Trajectory) -> list[float]:
    """Accuracy after fine-tuning; of the unpruned network there is no such."""
    return [step.accuracy_tuned or step.accuracy or 0.0 for step in run]


def _mean(curves: Sequence[Sequence[float]]) -> list[float]:
    return [100 * fmean(values) for values in zip(*curves, strict=True)]


def _cell(found: Sequence[Trajectory], step: int) -> str:
    before = 100 * fmean(_before(run)[step] for run in found)
    return f"{before:.1f} → {percent([_tuned(run)[step] for run in found])}"


def _final(runs: dict[str, Any]) -> str:
    values = [run["final"] for run in runs.values() if run["final"] is not None]
    return percent(values) if values else "-"


def _adapted(results: dict[str, Any]) -> str:
    values = [entry["accuracy"] for entry in results["adapted"].values()]
    return f"Unpruned, adapted to {results['settings']['data']}: {percent(values)} %."


def percent(values: Sequence[float]) -> str:
    """Write shares in percent: the mean and, over several seeds, the standard deviation."""
    mean = f"{100 * fmean(values):.1f}"
    return mean if len(values) < 2 else f"{mean} ± {100 * stdev(values):.1f}"
