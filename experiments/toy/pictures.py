"""Decision boundaries before and after, and accuracy against the number of references."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn
from toy import draw

from niwaki.files import write_atomically


def boundaries(path: Path, name: str, model: nn.Module, pruned: dict[str, nn.Module]) -> None:
    """Draw what each network says all over the plane, with the training points."""
    points, labels = draw(name, 1000, 0)
    low, high = points.amin(0) - 0.3, points.amax(0) + 0.3
    x, y = (torch.linspace(float(a), float(b), 220) for a, b in zip(low, high, strict=True))
    grid = torch.cartesian_prod(x, y)
    networks = {"unpruned": model, **pruned}
    figure = Figure(figsize=(2.3 * len(networks), 2.7), layout="constrained", dpi=130)
    for axis, (title, network) in zip(
        figure.subplots(1, len(networks)), networks.items(), strict=True
    ):
        with torch.no_grad():
            said = network(grid).argmax(1).reshape(len(x), len(y)).T
            right = float((network(points).argmax(1) == labels).float().mean())
        levels = np.arange(5) - 0.5
        axis.contourf(x, y, said, levels=levels, cmap="Pastel1", alpha=0.9)
        axis.scatter(*points.T, c=labels, cmap="Set1", vmin=0, vmax=8, s=0.6, linewidths=0)
        axis.set_title(f"{title}\n{right:.1%}", fontsize=8)
        axis.set_xticks([])
        axis.set_yticks([])
    figure.suptitle(
        f"{name}: 1000 of 3000 units removed, 5 references per class, seed 0", fontsize=9
    )
    write_atomically(path, lambda aside: figure.savefig(aside, format="png"))


def curves(path: Path, sets: dict[str, Any]) -> None:
    """Draw the mean accuracy, with a band of one standard deviation, by number of references."""
    figure = Figure(figsize=(12, 3.8), layout="constrained", dpi=130)
    panels = figure.subplots(1, len(sets), squeeze=False)[0]
    for axis, (name, found) in zip(panels, sets.items(), strict=True):
        sizes = max((list(by) for by in found["accuracy"].values()), key=len)
        for number, (criterion, by_size) in enumerate(found["accuracy"].items()):
            first = next(iter(by_size.values()))
            at = [by_size.get(size, first) for size in sizes]
            mean = 100 * np.array([point["mean"] for point in at])
            spread = 100 * np.array([point["std"] for point in at])
            axis.plot(sizes, mean, marker="o", markersize=3, label=criterion, color=f"C{number}")
            edges = mean - spread, mean + spread
            axis.fill_between(sizes, *edges, color=f"C{number}", alpha=0.1, linewidth=0)
        axis.axhline(100 * found["unpruned"], color="0.5", linestyle=":", linewidth=1)
        axis.set_xscale("log")
        axis.set_xticks(sizes, [str(size) for size in sizes])
        axis.minorticks_off()
        axis.set_xlabel("reference points per class")
        axis.set_title(f"{name} (dotted: unpruned)", fontsize=9)
        axis.grid(alpha=0.3)
    axis.legend(fontsize=7)
    figure.supylabel("accuracy (%)", fontsize=9)
    write_atomically(path, lambda aside: figure.savefig(aside, format="png"))
