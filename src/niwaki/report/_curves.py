"""Accuracy against what is left of a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from niwaki.pruning import Step, Trajectory
from niwaki.ranges import FRACTION, checked
from niwaki.report._figures import save_figure

__all__ = ["plot_trajectories"]

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
        Where the PNG goes.
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
    save_figure(path, figure)


def _curve(
    axis: Any, shares: list[float], values: list[float | None], label: str, **style: Any
) -> None:
    points = [(x, 100 * y) for x, y in zip(shares, values, strict=True) if y is not None]
    if points:
        axis.plot(*zip(*points, strict=True), markersize=4, linewidth=1.2, label=label, **style)
