"""Accuracy against cost in one number."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from niwaki.pruning._trajectory import Trajectory
from niwaki.pruning.units._budget import Of
from niwaki.ranges import FRACTION, SHARE, checked

__all__ = ["accuracy_at", "area"]


@checked(between=FRACTION)
def area(
    trajectory: Trajectory, of: Of = "macs", between: tuple[float, float] = (0.3, 1.0)
) -> float:
    """Area under accuracy against the share of the cost, divided by its width.

    The trapezoid rule, with the accuracies at both ends interpolated.

    Raises
    ------
    ValueError
        If the trajectory ends before the lower share, has no accuracies, or the shares are none.
    """
    low, high = between
    if not 0 <= low < high <= 1:
        raise ValueError(f"between = {between}: two shares from 0 to 1, the lower one first")
    x, y = _points(trajectory, of)
    _check_reach(x, low)
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
        If the trajectory ends before it, or has no accuracies.
    """
    x, y = _points(trajectory, of)
    _check_reach(x, share)
    return float(np.interp(share, x, y))


def _points(trajectory: Trajectory, of: Of) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Shares kept, ascending, and accuracies.

    Of steps that removed nothing the last one counts; one that was taken back does not.
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


def _check_reach(shares: NDArray[np.float64], share: float) -> None:
    if shares[0] > share * (1 + 1e-3) + 1e-9:  # costs are whole numbers
        raise ValueError(f"the trajectory ends at {shares[0]:.3g}, above the share {share:.3g}")
