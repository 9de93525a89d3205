"""Plans: what is removed, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from niwaki.display import html_table
from niwaki.schema import ListOf, Record, Text, Whole

__all__ = ["Plan", "Removal"]


@dataclass(frozen=True)
class Removal:
    """Output channels of one layer.

    A plan of `prune` lists all layers that lose outputs. Where fewer are listed, what is coupled
    to them is removed all the same.

    Attributes
    ----------
    layer : str
        Its name.
    channels : tuple of int
        Their indices in the current network before this step.
    """

    layer: str
    channels: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """Which units are removed, step by step; replays on a fresh copy of the architecture.

    Attributes
    ----------
    steps : tuple of tuple of Removal
        The removals of each step; indices count in the network that the step before has left.
    """

    steps: tuple[tuple[Removal, ...], ...] = ()

    def with_step(self, removals: list[Removal]) -> Plan:
        """Return a plan with one more step."""
        return Plan((*self.steps, tuple(removals)))

    def to_json(self) -> list[list[dict[str, Any]]]:
        """Return plain lists and dicts."""
        return [
            [{"layer": r.layer, "channels": list(r.channels)} for r in step] for step in self.steps
        ]

    FORM = ListOf(
        ListOf(Record({"layer": Text(longest=10_000), "channels": ListOf(Whole(0, 2**31))})),
        longest=100_000,
    )

    @classmethod
    def from_json(cls, steps: list[list[Mapping[str, Any]]]) -> Plan:
        """Rebuild from `to_json`."""
        return cls(
            tuple(
                tuple(Removal(str(r["layer"]), tuple(map(int, r["channels"]))) for r in step)
                for step in steps
            )
        )

    def removed(self) -> dict[str, int]:
        """Count the removed channels of each layer, over all steps."""
        counts: dict[str, int] = {}
        for step in self.steps:
            for removal in step:
                counts[removal.layer] = counts.get(removal.layer, 0) + len(removal.channels)
        return counts

    def _repr_html_(self) -> str:
        rows = [{"layer": layer, "removed": count} for layer, count in self.removed().items()]
        return html_table(rows, repr(self))

    def __str__(self) -> str:
        rows = [f"{layer:40} -{count}" for layer, count in self.removed().items()]
        return "\n".join([f"Plan of {len(self.steps)} steps", *rows])

    def __repr__(self) -> str:
        return f"Plan({len(self.steps)} steps, {sum(self.removed().values())} channels)"
