"""Trajectories: how a network changed from step to step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Step", "Trajectory"]


@dataclass(frozen=True)
class Step:
    """The network after one step.

    Attributes
    ----------
    step : int
        0 is the network as it came.
    units, params, macs : int
        See `niwaki.evaluation.Cost`.
    accuracy : float or None
        On the evaluation data, from 0 to 1; None where there are none.
    accuracy_tuned : float or None
        The same after fine-tuning; None without.
    seconds : float
        That the step took.
    """

    step: int
    units: int
    params: int
    macs: int
    accuracy: float | None
    accuracy_tuned: float | None
    seconds: float


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

    def kept(self, of: str) -> list[float]:
        """Return the share of units, params or macs that is left after each step."""
        return [getattr(step, of) / getattr(self.steps[0], of) for step in self.steps]

    def to_json(self) -> list[dict[str, Any]]:
        """Return plain lists and dicts."""
        return [asdict(step) for step in self.steps]

    @classmethod
    def from_json(cls, steps: Sequence[Mapping[str, Any]]) -> Trajectory:
        """Rebuild from `to_json`."""
        return cls(tuple(Step(**step) for step in steps))

    def __str__(self) -> str:
        head = (
            f"{'step':>4} {'units':>8} {'parameters':>12} {'MACs':>15} {'kept':>6} {'accuracy':>9}"
        )
        rows = [
            f"{s.step:>4} {s.units:>8,} {s.params:>12,} {s.macs:>15,} {kept:>6.1%} "
            + (f"{s.accuracy:>9.2%}" if s.accuracy is not None else f"{'':>9}")
            for s, kept in zip(self.steps, self.kept("macs"), strict=True)
        ]
        return "\n".join([head, *rows])
