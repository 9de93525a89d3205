"""Schedules: in which steps and in which order units go, and when to stop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, log
from typing import Literal

from niwaki.ranges import EXPONENT, INSIDE, PER_STEP, PRICE, SHARE, STEPS, checked

__all__ = ["PER_COST", "Schedule"]

PER_COST = 0.6


@checked(steps=STEPS, per_step=PER_STEP, floor=SHARE, per_cost=EXPONENT, prices=PRICE)
@dataclass(frozen=True)
class Schedule:
    """In which steps and in which order units go, and when to stop.

    Attributes
    ----------
    steps : int, optional
        Number of steps; 1 removes all at once.
    per_step : float, optional
        Share that goes in each step, of the original cost (``"equal"``) or of what is left
        (``"geometric"``); default 0.05, as in Yeom et al. (2021).
    spacing : {"equal", "geometric"}
        Whether each step removes the same share of the original cost or of what is left.
    floor : float, optional
        Accuracy on the validation data, from 0 to 1, below which a step is taken back: the network
        before it is the result, and `keep` only the furthest it may go. The step stays in the
        trajectory, `rejected`.
    recompute : bool
        Whether units are scored in each step; else once at the start.
    per_cost : float
        Exponent of the cost that a unit saves in the network as it then stands, by which its score
        is divided: 0 ranks by the score alone, 1 by the score per MAC (parameter, unit). The
        harm of a removal grows about as the square of its score, hence about the root of the cost.
    prices : mapping of str to float, optional
        What a MAC costs in each layer, beside others; the mean where a layer is not named. With
        `niwaki.evaluation.seconds_per_mac`, the time is predicted and reduced in place of the MACs.

    Raises
    ------
    ValueError
        For values out of range, or both `steps` and `per_step`.
    """

    steps: int | None = None
    per_step: float | None = None
    spacing: Literal["equal", "geometric"] = "equal"
    floor: float | None = None
    recompute: bool = True
    per_cost: float = PER_COST
    prices: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        if self.steps is not None and self.per_step is not None:
            raise ValueError("give steps or per_step, not both")

    @checked(keep=INSIDE)
    def targets(self, keep: float) -> list[float]:
        """Return the share of the cost to be left after each step, the last one being `keep`.

        Raises
        ------
        ValueError
            If `keep` is out of range, or makes too many steps.
        """
        share, steps = 0.05 if self.per_step is None else self.per_step, self.steps
        if self.spacing == "geometric":
            if steps is not None:
                return [keep ** (i / steps) for i in range(1, steps)] + [keep]
            steps = ceil(log(keep) / log(1 - share) - 1e-9)
            STEPS.check(f"keep = {keep} and per_step = {share} make steps =", steps)
            return [(1 - share) ** i for i in range(1, steps)] + [keep]
        if steps is not None:
            return [1 - (1 - keep) * i / steps for i in range(1, steps)] + [keep]
        steps = ceil((1 - keep) / share - 1e-9)
        return [1 - share * i for i in range(1, steps)] + [keep]
