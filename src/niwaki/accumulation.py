"""Sums over a data set: a pure update, an associative merge, a reduction across processes.

Sums are kept twice as precisely as in doubles, and rounded to these only when they are read. So
they are the same, bit by bit, in whatever order and by however many processes they were added up:
a network that is fitted to them would turn a difference in the last bit into one that can be seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from niwaki import processes, stages
from niwaki.exact import added

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
    rests : dict of str to Tensor
        What doubles cannot hold of some of the sums.
    """

    sums: dict[str, Tensor] = field(default_factory=dict)
    samples: int = 0
    rests: dict[str, Tensor] = field(default_factory=dict)

    def update(self, batch: Mapping[str, Tensor], samples: int) -> Totals:
        """Return the totals with a batch's own sums added."""
        return self.merge(Totals(dict(batch), samples))

    def merge(self, other: Totals) -> Totals:
        """Return the totals of both; the order does not matter."""
        sums, rests = dict(self.sums), dict(self.rests)
        for name, value in other.sums.items():
            more, rest = value.detach().to(torch.float64), other.rests.get(name)
            if name in sums:
                known = [one for one in (rests.get(name), rest) if one is not None]
                sums[name], rests[name] = added(sums[name], more, known)
            else:
                sums[name] = more
                rests |= {} if rest is None else {name: rest}
        return Totals(sums, self.samples + other.samples, rests)

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
            stages.sent(16 * sum(value.numel() for value in self.sums.values()))
            return self
        return self.from_state_dict(processes.summed(self.state_dict(), device, self.rests))

    def state_dict(self) -> dict[str, Tensor]:
        """Return plain tensors, for safetensors or another process."""
        return {**self.sums, "samples": torch.tensor(self.samples)}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> Totals:
        """Rebuild from `state_dict`."""
        sums = {name: value for name, value in state.items() if name != "samples"}
        return cls(sums, int(state["samples"]))
