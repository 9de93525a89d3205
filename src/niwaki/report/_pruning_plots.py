"""Pictures of pruning: curves of one or several runs, what was removed, and how rankings agree."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure

from niwaki.pruning import Agreement, Comparison, Step, Trajectory
from niwaki.ranges import FRACTION, STEPS, checked
from niwaki.report._figures import save_figure

_MARKERS = "osD^vP*X<>"
_WORDS = {"macs": "multiply-accumulates", "params": "parameters", "units": "units"}

_ACCURACY: Callable[[Step], float | None] = attrgetter("accuracy")
_TUNED: Callable[[Step], float | None] = attrgetter("accuracy_tuned")
_VALIDATION: Callable[[Step], float | None] = attrgetter("validation")


@checked(chance=FRACTION)
def plot_trajectories(
    path: str | Path,
    trajectories: Mapping[str, Trajectory],
    *,
    of: str = "macs",
    heading: str = "",
    chance: float | None = None,
) -> None:
    """Draw accuracy against the share of MACs, parameters or units that is kept.

    Parameters
    ----------
    path : str or Path
        Where the PNG goes; the same as SVG and PDF goes beside it.
    trajectories : mapping of str to Trajectory
        Name of the curve to its steps; steps without an accuracy are left out. A fine-tuned run
        has two curves, before and after fine-tuning, and one with validation data a third, on the
        images that decided.
    of : {"macs", "params", "units"}
        The horizontal axis.
    heading : str
        Title.
    chance : float, optional
        Accuracy of guessing, drawn as a dotted line.
    """
    figure = Figure(figsize=(6.4, 4.4), layout="constrained", dpi=130)
    axis = figure.subplots()
    for number, (name, trajectory) in enumerate(trajectories.items()):
        shares = [100 * kept for kept in trajectory.kept(of)]
        style = {"color": f"C{number % 10}", "marker": _MARKERS[number % len(_MARKERS)]}
        tuned = any(step.accuracy_tuned is not None for step in trajectory)
        before = {"linestyle": "--", "alpha": 0.6} if tuned else {}
        decided = {"linestyle": ":", "alpha": 0.6}
        for label, value, looks in (
            (f"{name}, before fine-tuning" if tuned else name, _ACCURACY, before),
            (f"{name}, fine-tuned", _TUNED, {}),
            (f"{name}, on the validation images that decided", _VALIDATION, decided),
        ):
            _curve(axis, shares, [value(step) for step in trajectory], label, **style, **looks)
    if chance is not None:
        axis.axhline(100 * chance, color="0.6", linestyle=":", linewidth=1)
    axis.invert_xaxis()
    axis.set_xlabel(f"{_WORDS[of]} kept (%)")
    axis.set_ylabel("accuracy on test images (%)")
    axis.set_ylim(0, 101)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    axis.set_title(heading, fontsize=10)
    save_figure(path, figure, vector=True)


def _curve(
    axis: Any, shares: list[float], values: list[float | None], label: str, **style: Any
) -> None:
    points = [(x, 100 * y) for x, y in zip(shares, values, strict=True) if y is not None]
    if points:
        axis.plot(*zip(*points, strict=True), markersize=4, linewidth=1.2, label=label, **style)


_STYLES = ("-", "--", ":")
_WITH_BANDS = 8  # of more, they hide each other
_FEW = 12  # layers or contenders: more get small letters


@checked(points=STEPS)
def plot_comparison(
    path: str | Path,
    comparison: Comparison,
    *,
    of: Literal["macs", "params", "units"] = "macs",
    points: int = 15,
    heading: str = "",
) -> None:
    """Draw accuracy against the share kept: a panel per number of references.

    Parameters
    ----------
    path : str or Path
        Where the PNG goes; the same as SVG and PDF goes beside it.
    comparison : Comparison
        Lines: mean over the seeds; bands: one standard deviation to both sides.
    of : {"macs", "params", "units"}
        The horizontal axis.
    points : int
        Shares at which the curves are read off, between the steps.
    heading : str
        Title.
    """
    low = max(min(run.trajectory.kept(of)) for run in comparison.runs)
    shares = np.linspace(low, 1, points)
    columns = [comparison.accuracies(float(share), of) for share in shares]
    figure, axes = _panels(comparison.references)
    for curve in zip(*columns, strict=True):
        if not all(point.values for point in curve):
            continue
        axis, label = axes[curve[0].references], curve[0].label
        number = comparison.labels.index(label)
        colour, style = f"C{number % 10}", _STYLES[number // 10 % len(_STYLES)]
        mean = 100 * np.array([point.mean for point in curve])
        spread = 100 * np.array([point.std or 0.0 for point in curve])
        marker = _MARKERS[number % len(_MARKERS)]
        line = {"marker": marker, "markersize": 3.5, "color": colour, "linestyle": style}
        axis.plot(100 * shares, mean, label=label, **line)
        if len(comparison.labels) <= _WITH_BANDS:
            edges = mean - spread, mean + spread
            axis.fill_between(100 * shares, *edges, color=colour, alpha=0.12, linewidth=0)
    for references, axis in axes.items():
        axis.set_title(_title(references), fontsize=9)
        axis.set_xlabel(f"{_WORDS[of]} kept (%)")
        axis.set_ylim(0, 101)
        axis.grid(alpha=0.3)
    first = next(iter(axes.values()))
    first.invert_xaxis()  # the panels share the axis
    first.set_ylabel("accuracy (%)")
    areas = {row.label: row.mean or 0.0 for row in comparison.areas(of, (low, 1.0))}
    lines = dict(zip(*reversed(first.get_legend_handles_labels()), strict=True))
    best = sorted(lines, key=lambda label: -areas[label])
    figure.legend([lines[k] for k in best], best, fontsize=7, loc="outside right center")
    _finish(figure, path, heading)


def _title(references: int) -> str:
    return f"{references} reference sample{'s' * (references != 1)} per class"


def plot_removed(path: str | Path, comparison: Comparison, *, heading: str = "") -> None:
    """Draw the share of its units that each layer has lost in the end: a panel per contender.

    Parameters
    ----------
    path : str or Path
        Where the PNG goes; the same as SVG and PDF goes beside it.
    comparison : Comparison
        Curves of the largest number of references; contenders whose layers are not known are left
        out.
    heading : str
        Title.

    Raises
    ------
    ValueError
        If no contender's layers are known.
    """
    size = comparison.references[-1]
    found = {label: lost for label, n, lost in comparison.removed() if n == size}
    if not found:
        raise ValueError("the comparison does not know what any layer lost")
    layers = list(next(iter(found.values())))
    width = min(24.0, max(6.0, 0.16 * len(layers) + 2))
    figure = Figure(figsize=(width, 1.3 * len(found) + 1), layout="constrained", dpi=130)
    axes = np.atleast_1d(figure.subplots(len(found), 1, sharex=True, sharey=True))
    places = np.arange(len(layers))
    for axis, (label, lost) in zip(axes, found.items(), strict=True):
        colour = f"C{comparison.labels.index(label) % 10}"
        axis.bar(places, [100 * lost[layer] for layer in layers], color=colour)
        axis.set_title(label, fontsize=9, loc="left")
        axis.set_ylim(0, 100)
        axis.grid(axis="y", alpha=0.3)
    few = len(layers) <= _FEW
    axes[-1].set_xticks(places, layers, rotation=0 if few else 90, fontsize=9 if few else 7)
    figure.supylabel("units removed (%)", fontsize=9)
    _finish(figure, path, heading)


def plot_agreement(
    path: str | Path,
    agreement: Sequence[Agreement],
    *,
    what: Literal["rank_correlation", "lowest", "highest"] = "rank_correlation",
    heading: str = "",
) -> None:
    """Draw how alike contenders rank the units: a heat map per number of references.

    Parameters
    ----------
    path : str or Path
        Where the PNG goes; the same as SVG and PDF goes beside it.
    agreement : sequence of Agreement
        From `Comparison.agreement`. On the diagonal stands each contender from draw to draw.
    what : {"rank_correlation", "lowest", "highest"}
        Spearman's correlation, or the overlap of the least or most relevant units.
    heading : str
        Title.

    Raises
    ------
    ValueError
        If there is nothing to draw.
    """
    if not agreement:
        raise ValueError("there are no rankings to draw")
    labels = list(dict.fromkeys(name for row in agreement for name in (row.first, row.second)))
    figure, axes = _panels(sorted({row.references for row in agreement}))
    size = 9 if len(labels) <= _FEW else 6
    lowest = -1.0 if what == "rank_correlation" else 0.0
    for references, axis in axes.items():
        table = np.full((len(labels), len(labels)), np.nan)
        for row in agreement:
            if row.references == references:
                i, j = labels.index(row.first), labels.index(row.second)
                table[i, j] = table[j, i] = getattr(row, what)
        image = axis.imshow(table, cmap="RdBu_r" if lowest < 0 else "Reds", vmin=lowest, vmax=1)
        for i, j in zip(*np.nonzero(np.isfinite(table)), strict=True):
            colour = "white" if abs(table[i, j]) > 0.7 else "black"
            axis.text(j, i, f"{table[i, j]:.2f}", ha="center", va="center", fontsize=size, c=colour)
        axis.set_xticks(range(len(labels)), labels, rotation=60, ha="right", fontsize=9)
        axis.set_yticks(range(len(labels)), labels, fontsize=9)
        axis.set_title(_title(references), fontsize=9)
    said = "rank correlation" if lowest < 0 else "overlap"
    figure.colorbar(image, ax=list(axes.values()), shrink=0.7, label=said)
    _finish(figure, path, heading)


def _panels(sizes: Sequence[int]) -> tuple[Figure, dict[int, Any]]:
    """Make a row of panels, one per number of references."""
    figure = Figure(figsize=(4.4 * len(sizes) + 1, 4.2), layout="constrained", dpi=130)
    axes = np.atleast_1d(figure.subplots(1, len(sizes), sharex=True, sharey=True))
    return figure, dict(zip(sizes, axes, strict=True))


def _finish(figure: Figure, path: str | Path, heading: str) -> None:
    if heading:
        figure.suptitle(heading, fontsize=10)
    save_figure(path, figure, vector=True)
