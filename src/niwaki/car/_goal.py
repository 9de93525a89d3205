"""When a greedy search is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from niwaki.pruning import Step

__all__ = ["Goal"]


@dataclass(frozen=True)
class Goal:
    """Units to remove, a share of the cost to keep, an accuracy to stay above; whichever is first.

    Raises
    ------
    ValueError
        For values out of range, or none of them.
    """

    remove: int | None
    keep: float | None
    of: Literal["units", "params", "macs"]
    floor: float | None

    def __post_init__(self) -> None:
        if self.remove is None and self.keep is None and self.floor is None:
            raise ValueError("say when to stop: remove=number of units, keep=share, or floor=...")
        if self.of not in ("units", "params", "macs"):
            raise ValueError(f"of = {self.of!r} is not one of 'units', 'params', 'macs'")

    def check(self, available: int) -> None:
        """Refuse to remove more units than there are.

        Raises
        ------
        ValueError
            With their number.
        """
        if self.remove is not None and self.remove > available:
            raise ValueError(f"remove = {self.remove}: only {available} units can be removed")

    def reached(self, rows: Sequence[Step]) -> bool:
        """Whether enough is gone after these steps, the first of which is the whole network."""
        if self.remove is not None and len(rows) > self.remove:
            return True
        if self.keep is None:
            return False
        whole, left = (getattr(row, self.of) for row in (rows[0], rows[-1]))
        return bool(left <= self.keep * whole + 1e-3)  # costs are whole numbers

    def forbids(self, accuracy: float) -> bool:
        """Whether the accuracy after the next step would be too low."""
        return self.floor is not None and accuracy < self.floor
