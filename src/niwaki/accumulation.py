"""Sums over a data set: a pure update, an associative merge, a reduction across processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from niwaki import processes, stages

__all__ = ["Totals"]


@dataclass(frozen=True)
class Totals:
    """Named sums over samples, in double precision.

    Attributes
    ----------
    sums : dict of str to Tensor
        The sum of each named quantity.
    samples : int
        Over how many samples.
    """

    sums: dict[str, Tensor] = field(default_factory=dict)
    samples: int = 0

    def update(self, batch: Mapping[str, Tensor], samples: int) -> Totals:
        """Return the totals with a batch's own sums added."""
        return self.merge(Totals(dict(batch), samples))

    def merge(self, other: Totals) -> Totals:
        """Return the totals of both; the order does not matter beyond rounding."""
        sums = dict(self.sums)
        for name, value in other.sums.items():
            more = value.detach().to(torch.float64)
            sums[name] = sums[name] + more if name in sums else more
        return Totals(sums, self.samples + other.samples)

    def reduced(self, device: torch.device | None = None) -> Totals:
        """Return the totals over all processes that work together, the same in each.

        Every process has to call it; see `niwaki.processes`. With a single one, these are the
        totals.

        Parameters
        ----------
        device : torch.device, optional
            Where the sums are afterwards, even in a process that had none.
        """
        if processes.size() == 1:
            stages.sent(8 * sum(value.numel() for value in self.sums.values()))
            return self
        return self.from_state_dict(processes.summed(self.state_dict(), device))

    def state_dict(self) -> dict[str, Tensor]:
        """Return plain tensors, for safetensors or another process."""
        return {**self.sums, "samples": torch.tensor(self.samples)}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> Totals:
        """Rebuild from `state_dict`."""
        sums = {name: value for name, value in state.items() if name != "samples"}
        return cls(sums, int(state["samples"]))
