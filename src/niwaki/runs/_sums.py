"""Sums over a data set, kept in a run as they grow, by any number of processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Subset

from niwaki import stages
from niwaki.accumulation import Totals
from niwaki.data import Data, as_dataset, batches, count
from niwaki.processes import agreed, decided, gathered, is_mine, size
from niwaki.runs._run import Run

__all__ = ["accumulate"]

_BETWEEN = 1.0  # seconds from one time that processes meet to the next
Measure = Callable[[Tensor, Tensor], Mapping[str, Tensor]]


def accumulate(data: Data, measure: Measure, kept: Run, name: str, **loop: Any) -> Totals:
    """Add up what is measured on each batch, and go on from the sums that a run has kept.

    Processes that work together take turns with the batches. From time to time they meet: then the
    sums are those over the first so many samples, and are kept. Whoever goes on from there, with as
    many processes or others, counts no sample twice and none too few.

    Parameters
    ----------
    data : DataLoader, Dataset or pair of tensors
        In the same order each time.
    measure : callable
        From inputs and labels to the sums over this batch, by name.
    kept : Run
        Keeps the sums.
    name : str
        Name of the part of the run that they are.
    **loop
        Options of `niwaki.data.batches`.

    Returns
    -------
    Totals
        Over all samples, the same in each process.
    """
    part = kept.read(name)
    totals = Totals() if part is None else Totals.from_state_dict(part.tensors)
    own = _remaining(data, totals.samples, **loop)
    often, ended, met = 1, False, time.monotonic()
    while not ended:
        began = time.monotonic()
        fresh = Totals()
        with agreed():
            for _ in range(often):
                batch = next(own, None)
                if batch is None:
                    ended = True
                    break
                fresh = fresh.update(measure(*batch), len(batch[0]))
        totals = totals.merge(fresh.reduced() if size() > 1 else fresh)
        kept.write_rarely(name, totals.state_dict)
        ended = all(gathered(ended)) if size() > 1 else ended
        if size() > 1:
            often = decided(_next(often, time.monotonic() - began))
        elif time.monotonic() - met > _BETWEEN or ended:
            stages.sent(8 * sum(total.numel() for total in totals.sums.values()))
            met = time.monotonic()
    return totals


def _next(often: int, seconds: float) -> Callable[[], int]:
    """Say after how many batches processes meet again."""
    return lambda: max(1, min(2 * often, round(often * _BETWEEN / max(seconds, 1e-3))))


def _remaining(
    data: Data, done: int, batch_size: int, **loop: Any
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield this process's batches of the samples after those that are done."""
    samples = None if isinstance(data, DataLoader) else count(data)
    if samples is not None and not isinstance(data, DataLoader):
        left = range(done, samples)
        if left or not done:  # no data at all are refused
            rest = Subset(as_dataset(data), left)
            yield from batches(rest, batch_size, shared=True, **loop)
        return
    seen = 0
    for number, (inputs, labels) in enumerate(batches(data, batch_size, **loop)):
        seen += len(inputs)
        fresh = min(seen - done, len(inputs))
        if fresh > 0 and is_mine(number):
            yield inputs[-fresh:], labels[-fresh:]
