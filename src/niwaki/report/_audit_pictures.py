"""Pictures of an audit: examples of a finding, mean maps of relevance, clusters of heatmaps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
import torch
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from niwaki.auditing import STRIP, Audit, Candidate, Finding, Strategies
from niwaki.report._colours import overlay, picture
from niwaki.report._figures import save_figure

_SHOWN = 8
_AVERAGED = 1000  # images of a group, the most typical first
SHOWN = 4  # groups of heatmaps
_TYPICAL = 7  # images of a group
_ACROSS = 10  # images of a strip


def plot_examples(path: str | Path, audit: Audit, finding: Finding) -> None:
    """Draw the images that show a finding most clearly, their heatmaps, and images without it."""
    positions = list(finding.examples[:_SHOWN])
    material = audit.material
    rows = 3 if finding.ordinary else 2
    height = 1.25 * rows + 0.25
    figure = Figure(figsize=(1.25 * _SHOWN, height), dpi=110)
    axes = figure.subplots(rows, _SHOWN, squeeze=False)
    for axis in axes.ravel():
        axis.axis("off")
    for column, position in enumerate(positions):
        _show(axes[0, column], audit, position)
        _show(axes[1, column], audit, position, explained=True)
        true = material.class_names[material.labels[position]]
        said = material.class_names[int(material.outputs[position].argmax())]
        title = true if true == said else f"{true},\nsaid {said}"
        axes[0, column].set_title(title, fontsize=8, pad=2)
        region = finding.outline(column)
        if region is not None:
            for axis in axes[:, column] if 0 < region.mean() < 1 else ():
                axis.contour(region, [0.5], colors="k", linewidths=1)
    for axis, position in zip(axes[-1], finding.ordinary[:_SHOWN], strict=False):
        _show(axis, audit, position)
    figure.subplots_adjust(0.005, 0.01, 0.995, 1 - 0.275 / height, wspace=0.04, hspace=0.04)
    save_figure(path, figure)


def plot_maps(path: str | Path, audit: Audit) -> None:
    """Draw each class's mean map of relevance, in multiples of an even distribution."""
    count = len(audit.maps)
    across = min(count, 5)
    down = -(-count // across)
    figure = Figure(figsize=(2.3 * across + 0.9, 2.4 * down), dpi=110, layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).ravel()
    top = max(2.0, *(float(np.percentile(m, 99.5)) for m in audit.maps.values()))
    shown: Any = None
    for axis, (label, values) in zip(axes, audit.maps.items(), strict=False):
        shown = axis.imshow(values, norm=PowerNorm(0.5, 0, top), cmap="magma")
        axis.set_title(fill(audit.material.class_names[label], 22), fontsize=12)
    for axis in axes:
        axis.set_xticks([])
        axis.set_yticks([])
    for axis in axes[count:]:
        axis.axis("off")
    bar = figure.colorbar(shown, ax=list(axes), shrink=0.85)
    bar.set_label("times an even distribution", fontsize=12)
    bar.ax.tick_params(labelsize=11)
    save_figure(path, figure)


def plot_strategies(path: str | Path, audit: Audit, strategies: Strategies) -> None:
    """Draw the clusters of a class: a plane to look at, the eigenvalues, mean maps, examples."""
    clusters = strategies.clusters[:SHOWN]
    height = 0.75 + 0.95 * max(len(clusters), 2)
    figure = Figure(figsize=(10.2, height), dpi=110)
    outer = figure.add_gridspec(1, 3, width_ratios=(2.2, 1.6, 6.4), wspace=0.22)
    plane = figure.add_subplot(outer[0])
    for cluster in strategies.clusters:
        mine = strategies.assigned == cluster.number
        x, y = strategies.plane[mine].T
        plane.scatter(x, y, s=8, color=_colour(cluster.number), linewidths=0)
    _bare(plane)
    plane.set_title("a dot per image (t-SNE)", fontsize=8)
    values = figure.add_subplot(outer[1])
    first = strategies.eigenvalues[:12]
    values.plot(np.arange(1, len(first) + 1), first, ".-", color="0.3", linewidth=1)
    values.axvline(len(strategies.clusters) + 0.5, color="0.6", linewidth=0.8)
    values.set_xticks([1, 4, 8, 12])
    values.set_title("eigenvalues", fontsize=8)
    values.tick_params(labelsize=7)
    inner = outer[2].subgridspec(len(clusters), 2, width_ratios=(1, 7), wspace=0.02, hspace=0.12)
    for row, cluster in enumerate(clusters):
        positions = list(cluster.positions)
        axis = figure.add_subplot(inner[row, 0])
        mean = audit.material.strength(positions[:_AVERAGED]).mean(0)
        axis.imshow(mean, norm=PowerNorm(0.5, 0, mean.max()), cmap="magma")
        axis.set_ylabel(f"{cluster.number}: {len(cluster)} im.", fontsize=7)
        for side in axis.spines.values():
            side.set(color=_colour(cluster.number), linewidth=2.5)
        axis.set_title("mean map" if row == 0 else "", fontsize=8, pad=3)
        _bare(axis)
        axis = figure.add_subplot(inner[row, 1])
        _show_row(axis, audit, positions[:_TYPICAL], _TYPICAL, explained=True)
        axis.set_title("most typical images" if row == 0 else "", fontsize=8, pad=3, loc="left")
    figure.subplots_adjust(0.01, 0.3 / height, 0.995, 1 - 0.25 / height)
    save_figure(path, figure)


def plot_strip(path: str | Path, audit: Audit, candidate: Candidate) -> None:
    """Draw the images of a candidate, and those of the class that come next, by their rank."""
    places = candidate.positions[:STRIP]
    down = -(-len(places) // _ACROSS)
    figure = Figure(figsize=(_ACROSS, 2.2 * down), dpi=110)
    axes = figure.subplots(2 * down, 1, squeeze=False)[:, 0]
    for start in range(0, len(places), _ACROSS):
        row = places[start : start + _ACROSS]
        above, below = axes[2 * start // _ACROSS :][:2]
        step = _show_row(above, audit, row, _ACROSS)
        _show_row(below, audit, row, _ACROSS, explained=True)
        for column in range(len(row)):
            rank = start + column
            own = "" if rank < candidate.count else " (next)"
            middle = (column + 0.5) * step
            above.text(middle, -1, f"{rank + 1}{own}", fontsize=7, ha="center", va="bottom")
    figure.subplots_adjust(0.005, 0.01, 0.995, 1 - 0.1 / down, hspace=0.15)
    save_figure(path, figure)


def plot_stains(path: str | Path, audit: Audit) -> None:
    """Draw by class how much area and how much relevance each stain has."""
    colours = {"haematoxylin": "#6a4c9c", "eosin": "#e58fb1", "neither": "#c9c9c9"}
    rows = [(name, what) for name in audit.stains for what in ("area", "relevance")]
    figure = Figure(figsize=(6.2, 0.7 + 0.32 * len(rows)), dpi=110, layout="constrained")
    axis = figure.subplots()
    for stain, colour in colours.items():
        left = [
            sum(audit.stains[n][s][w] for s in list(colours)[: list(colours).index(stain)])
            for n, w in rows
        ]
        width = [audit.stains[n][stain][w] for n, w in rows]
        axis.barh(range(len(rows)), width, left=left, color=colour, label=stain)
    axis.set_yticks(range(len(rows)), [f"{name}: {what}" for name, what in rows], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(0, 1)
    axis.xaxis.set_major_formatter(PercentFormatter(1))
    axis.set_xlabel("share of the image's area, or of its relevance", fontsize=8)
    axis.tick_params(axis="x", labelsize=8)
    figure.legend(fontsize=7, ncols=3, loc="outside upper center", frameon=False)
    save_figure(path, figure)


def _show(axis: Any, audit: Audit, position: int, *, explained: bool = False) -> None:
    axis.imshow(_drawn(audit, position, explained), interpolation="nearest")


def _show_row(
    axis: Any, audit: Audit, positions: Sequence[int], most: int, *, explained: bool = False
) -> int:
    """Show images side by side, with room for so many; return the pixels from one to the next."""
    images = [_drawn(audit, position, explained) for position in positions]
    height, width = images[0].shape[:2]
    step: int = width + max(1, width // 25)
    row = np.ones((height, most * step, 3))
    for place, image in enumerate(images):
        row[:, place * step : place * step + width] = image
    axis.imshow(row, interpolation="nearest")
    axis.axis("off")
    return step


def _drawn(audit: Audit, position: int, explained: bool) -> Any:
    """Draw an image of the audit, with its heatmap laid over it if it is to be explained."""
    image = audit.material.pixels[position]
    if not explained:
        return picture(image)
    return overlay(image, torch.from_numpy(audit.material.relevance[position]))


def _colour(number: int) -> str:
    return f"C{number % 10}"


def _bare(axis: Any) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
