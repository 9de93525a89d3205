"""Accuracy against what is left of a network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from niwaki.pruning import Trajectory
from niwaki.ranges import FRACTION, checked
from niwaki.report._figures import save_figure

__all__ = ["plot_trajectories"]

_MARKERS = "osD^vP*X<>"
_WORDS = {"macs": "multiply-accumulates", "params": "parameters", "units": "units"}


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
        Name of the curve to its steps; steps without an accuracy are left out.
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
        points = [
            (100 * kept, 100 * step.accuracy)
            for kept, step in zip(trajectory.kept(of), trajectory, strict=True)
            if step.accuracy is not None
        ]
        if not points:
            continue
        axis.plot(
            *zip(*points, strict=True),
            marker=_MARKERS[number % len(_MARKERS)],
            markersize=4,
            linewidth=2.2 if name == "lrp" else 1.2,
            zorder=3 if name == "lrp" else 2,
            label=name,
        )
    if chance is not None:
        axis.axhline(100 * chance, color="0.6", linestyle=":", linewidth=1)
    axis.invert_xaxis()
    axis.set_xlabel(f"{_WORDS[of]} kept (%)")
    axis.set_ylabel("accuracy (%)")
    axis.set_ylim(0, 101)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    axis.set_title(heading, fontsize=10)
    save_figure(path, figure)
