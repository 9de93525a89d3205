"""Curves of how heatmaps were judged: perturbation, and randomised networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from niwaki.evaluation import PerturbationCurves, Randomisation
from niwaki.report._figures import save_figure

__all__ = ["plot_perturbation", "plot_randomisation"]

_MARKERS = "osD^vP*X<>"
_ORDERS = {
    "most": "most relevant first: lower is better",
    "least": "least relevant first: higher is better",
}


def plot_perturbation(
    path: str | Path, curves: Mapping[str, PerturbationCurves], *, heading: str = ""
) -> None:
    """Draw the score against the share perturbed, most and least relevant first, side by side.

    Parameters
    ----------
    path : str or Path
        Where the PNG goes; the same as SVG and PDF goes beside it.
    curves : mapping of str to PerturbationCurves
        By method. Shaded: one standard error over the images; grey: random order, if measured.
    heading : str
        Title.
    """
    figure = Figure(figsize=(9.6, 4.4), layout="constrained", dpi=130)
    axes = figure.subplots(1, 2, sharey=True)
    for axis, (order, title) in zip(axes, _ORDERS.items(), strict=True):
        first = next(iter(curves.values()))
        if "random" in first.scores:
            _curve(axis, first, "random", color="0.5", linestyle="--", label="random order")
        for number, (name, found) in enumerate(_best_first(curves, order)):
            style = {"marker": _MARKERS[number % len(_MARKERS)], "markersize": 3.5}
            _curve(axis, found, order, color=_colour(name, curves), label=name, **style)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("regions perturbed (%)")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7, title="best first", title_fontsize=7)
    axes[0].set_ylabel(_score(next(iter(curves.values()))))
    figure.suptitle(heading, fontsize=10)
    save_figure(path, figure, vector=True)


def plot_randomisation(
    path: str | Path, results: Mapping[str, Randomisation], *, heading: str = ""
) -> None:
    """Draw the similarity of heatmaps against the layers that were randomised.

    Parameters
    ----------
    path : str or Path
        Where the PNG goes; the same as SVG and PDF goes beside it.
    results : mapping of str to Randomisation
        By method.
    heading : str
        Title.
    """
    figure = Figure(figsize=(6.4, 4.4), layout="constrained", dpi=130)
    axis = figure.subplots()
    first = next(iter(results.values()))
    places = np.arange(len(first.layers) + 1)
    for number, (name, found) in enumerate(results.items()):
        means = [1.0, *(estimate.mean for estimate in found.by_layer())]
        marker = _MARKERS[number % len(_MARKERS)]
        axis.plot(places, means, marker=marker, markersize=4, label=name, color=f"C{number % 10}")
    axis.axhline(0, color="0.6", linewidth=0.8)
    axis.set_xticks(places, ["none", *first.layers], rotation=35, ha="right", fontsize=7)
    cascading = first.settings.get("mode") == "cascading"
    axis.set_xlabel("randomised from the output down to" if cascading else "randomised layer")
    axis.set_ylabel("rank correlation with the original heatmap")
    axis.set_ylim(min(-0.1, axis.get_ylim()[0]), 1.05)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7)
    axis.set_title(heading, fontsize=10)
    save_figure(path, figure, vector=True)


def _curve(axis: Any, found: PerturbationCurves, order: str, **style: Any) -> None:
    share = 100 * found.share.numpy()
    mean, error = found.mean(order).numpy(), np.nan_to_num(found.error(order).numpy())
    axis.plot(share, mean, linewidth=1.3, **style)
    edges = mean - error, mean + error
    axis.fill_between(share, *edges, color=style["color"], alpha=0.1, linewidth=0)


def _best_first(
    curves: Mapping[str, PerturbationCurves], order: str
) -> Sequence[tuple[str, PerturbationCurves]]:
    sign = -1 if order == "least" else 1
    return sorted(curves.items(), key=lambda item: sign * item[1].area(order).mean)


def _colour(name: str, curves: Mapping[str, PerturbationCurves]) -> str:
    return f"C{list(curves).index(name) % 10}"


def _score(found: PerturbationCurves) -> str:
    name = str(found.settings.get("score", "score"))
    return f"{name} of the class" + (" / initial" if found.settings.get("normalise") else "")
