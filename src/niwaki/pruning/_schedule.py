"""Schedules: how much is left after each step."""

from __future__ import annotations

from math import ceil, log
from typing import Literal

from niwaki.ranges import INSIDE, PER_STEP, STEPS, checked

__all__ = ["Schedule", "targets"]

Schedule = Literal["equal", "geometric"]


@checked(keep=INSIDE, steps=STEPS, per_step=PER_STEP)
def targets(
    keep: float, steps: int | None, per_step: float | None, schedule: Schedule = "equal"
) -> list[float]:
    """Return the share of the cost to be left after each step, the last one being `keep`.

    Parameters
    ----------
    keep : float
        Share to be left in the end, between 0 and 1.
    steps : int, optional
        Number of steps; 1 removes all at once.
    per_step : float, optional
        Share that goes in each step, of the original cost (``"equal"``) or of what is left
        (``"geometric"``); default 0.05, as in Yeom et al. (2021).
    schedule : {"equal", "geometric"}
        Whether steps remove the same amount, or the same share of what is left.

    Raises
    ------
    ValueError
        For values out of range, or both `steps` and `per_step`.
    """
    if schedule not in ("equal", "geometric"):
        raise ValueError(f"schedule = {schedule!r} is neither 'equal' nor 'geometric'")
    if steps is not None and per_step is not None:
        raise ValueError("give steps or per_step, not both")
    share = 0.05 if per_step is None else per_step
    if schedule == "geometric":
        if steps is not None:
            return [keep ** (i / steps) for i in range(1, steps)] + [keep]
        steps = ceil(log(keep) / log(1 - share) - 1e-9)
        STEPS.check(f"keep = {keep} and per_step = {share} make steps =", steps)
        return [(1 - share) ** i for i in range(1, steps)] + [keep]
    if steps is not None:
        return [1 - (1 - keep) * i / steps for i in range(1, steps)] + [keep]
    steps = ceil((1 - keep) / share - 1e-9)
    return [1 - share * i for i in range(1, steps)] + [keep]
