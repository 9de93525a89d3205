"""Schedules: how much is left after each step."""

from __future__ import annotations

from math import ceil

__all__ = ["targets"]


def targets(keep: float, steps: int | None, per_step: float | None) -> list[float]:
    """Return the share of the cost to be left after each step, the last one being `keep`.

    Parameters
    ----------
    keep : float
        Share to be left in the end, between 0 and 1.
    steps : int, optional
        Number of steps of equal size.
    per_step : float, optional
        Share of the original cost that goes in each step; default 0.05, as in Yeom et al. (2021).

    Raises
    ------
    ValueError
        For values out of range, or both `steps` and `per_step`.
    """
    if not 0 < keep < 1:
        raise ValueError(f"keep = {keep}: the share to keep must lie between 0 and 1")
    if steps is not None and per_step is not None:
        raise ValueError("give steps or per_step, not both")
    if steps is None:
        share = 0.05 if per_step is None else per_step
        if not 0 < share < 1:
            raise ValueError(f"per_step = {share}: must lie between 0 and 1")
        steps = ceil((1 - keep) / share - 1e-9)
        return [1 - share * i for i in range(1, steps)] + [keep]
    if steps < 1:
        raise ValueError(f"steps = {steps}: must be at least 1")
    return [1 - (1 - keep) * i / steps for i in range(1, steps)] + [keep]
