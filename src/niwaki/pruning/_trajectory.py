"""Trajectories: how a network changed step by step, and accuracy against cost in one number."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from niwaki.display import html_table
from niwaki.errors import DataError
from niwaki.pruning.repair._history import Epoch, Kept
from niwaki.pruning.units._budget import Of
from niwaki.ranges import FRACTION, SHARE, checked
from niwaki.schema import rebuild

__all__ = ["Step", "Trajectory", "accuracy_at", "area"]


@dataclass(frozen=True)
class Step:
    """The network after one step.

    Attributes
    ----------
    step : int
        0 is the unpruned network.
    units, params, macs : int
        See `niwaki.evaluation.Cost`.
    accuracy : float or None
        On the test data, which decide nothing, from 0 to 1; None where there are none.
    accuracy_tuned : float or None
        The same after fine-tuning; None without.
    seconds : float
        How long the step took.
    validation : float or None
        Accuracy on the validation data, by which a floor and fine-tuning decide, so that it is no
        held-out figure; None where there are none.
    rejected : bool
        Whether the step fell below the floor: it was undone, and nothing came after it.
    epochs : tuple of Epoch
        Epochs of the fine-tuning: learning rate, loss, and accuracy on the validation data.
    kept : Kept or None
        Which of these epochs the validation data chose; None without fine-tuning or such data.
    """

    step: int
    units: int
    params: int
    macs: int
    accuracy: float | None
    accuracy_tuned: float | None
    seconds: float
    validation: float | None = None
    rejected: bool = False
    epochs: tuple[Epoch, ...] = ()
    kept: Kept | None = None


@dataclass(frozen=True)
class Trajectory(Sequence[Step]):
    """One row per step; it is the table and the plot."""

    steps: tuple[Step, ...] = ()

    def __getitem__(self, index: Any) -> Any:
        return self.steps[index]

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    @property
    def final(self) -> Step:
        """The row of the network that was kept: the last that was not rejected."""
        return [step for step in self.steps if not step.rejected][-1]

    def kept(self, of: str) -> list[float]:
        """Return the share of units, params or macs that is left after each step."""
        return [getattr(step, of) / getattr(self.steps[0], of) for step in self.steps]

    def to_json(self) -> list[dict[str, Any]]:
        """Return plain lists and dicts."""
        return [{**asdict(step), "epochs": [asdict(e) for e in step.epochs]} for step in self.steps]

    @classmethod
    def from_json(cls, steps: Sequence[Mapping[str, Any]]) -> Trajectory:
        """Rebuild from `to_json`."""
        found = tuple(rebuild(Step, step, f"step {number}") for number, step in enumerate(steps))
        if found and min(found[0].units, found[0].params, found[0].macs) < 1:
            raise DataError("a network without units, parameters or MACs has no trajectory")
        return cls(found)

    def rows(self) -> list[dict[str, Any]]:
        """Return the table for people: a row per step."""
        return [
            {
                "step": step.step,
                "units": step.units,
                "parameters": step.params,
                "MACs": step.macs,
                "kept": f"{kept:.1%}",
                "accuracy": None if step.accuracy is None else f"{step.accuracy:.2%}",
                "tuned": None if step.accuracy_tuned is None else f"{step.accuracy_tuned:.2%}",
                "": "rejected" if step.rejected else None,
            }
            for step, kept in zip(self.steps, self.kept("macs"), strict=True)
        ]

    def _repr_html_(self) -> str:
        return html_table(self.rows(), f"{len(self)} steps of pruning")

    def __str__(self) -> str:
        tuned = any(step.accuracy_tuned is not None for step in self.steps)
        head = (
            f"{'step':>4} {'units':>8} {'parameters':>12} {'MACs':>15} {'kept':>6} {'accuracy':>9}"
        )
        rows = []
        for step, kept in zip(self.steps, self.kept("macs"), strict=True):
            row = (
                f"{step.step:>4} {step.units:>8,} {step.params:>12,} {step.macs:>15,} {kept:>6.1%}"
            )
            row += _share(step.accuracy) + (_share(step.accuracy_tuned) if tuned else "")
            rows.append(row + (" rejected" if step.rejected else ""))
        return "\n".join([head + (f" {'tuned':>9}" if tuned else ""), *rows])


def _share(value: float | None) -> str:
    return f" {'':>9}" if value is None else f" {value:>9.2%}"


@checked(between=FRACTION)
def area(
    trajectory: Trajectory, of: Of = "macs", between: tuple[float, float] = (0.3, 1.0)
) -> float:
    """Area under accuracy against the share of the cost, divided by its width.

    The trapezoid rule, with the accuracies at both ends interpolated.

    Raises
    ------
    ValueError
        If the accuracies of the trajectory end before the lower share, begin after the upper one,
        or are none, or the shares are none.
    """
    low, high = between
    if not 0 <= low < high <= 1:
        raise ValueError(f"between = {between}: two shares from 0 to 1, the lower one first")
    x, y = _points(trajectory, of)
    _check_reach(x, low, high)
    inner = (x > low) & (x < high)
    at = np.concatenate([[low], x[inner], [high]])
    accuracies = np.interp(at, x, y)
    return float(((accuracies[1:] + accuracies[:-1]) / 2 * np.diff(at)).sum() / (high - low))


@checked(share=SHARE)
def accuracy_at(trajectory: Trajectory, share: float, of: Of = "macs") -> float:
    """Accuracy at a share of the cost, interpolated between the steps.

    Raises
    ------
    ValueError
        If the accuracies of the trajectory end before it, begin after it, or are none.
    """
    x, y = _points(trajectory, of)
    _check_reach(x, share, share)
    return float(np.interp(share, x, y))


def _points(trajectory: Trajectory, of: Of) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Shares kept, ascending, and accuracies.

    Among steps that removed nothing the last one counts; one that was undone does not.
    """
    points: dict[float, float] = {}
    for kept, step in zip(trajectory.kept(of), trajectory, strict=True):
        accuracy = step.accuracy if step.accuracy_tuned is None else step.accuracy_tuned
        if accuracy is not None and not step.rejected:
            points[kept] = accuracy
    if not points:
        raise ValueError("the trajectory has no accuracies: prune with test data")
    shares = sorted(points)
    return np.array(shares), np.array([points[share] for share in shares])


def _check_reach(shares: NDArray[np.float64], low: float, high: float) -> None:
    if shares[0] > low * (1 + 1e-3) + 1e-9:  # costs are whole numbers
        raise ValueError(f"the trajectory ends at {shares[0]:.3g}, above the share {low:.3g}")
    if shares[-1] < high * (1 - 1e-3):
        raise ValueError(
            f"the trajectory has its first accuracy at {shares[-1]:.3g}, below the share {high:.3g}"
        )
