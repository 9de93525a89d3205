"""What several processes keep in a run: sums that grow, and parts that they take turns with."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Subset

from niwaki import stages
from niwaki.accumulation import Totals
from niwaki.data import Data, as_dataset, batches, count
from niwaki.processes import agreed, alone, decided, gathered, is_mine, rank, size
from niwaki.progress import track
from niwaki.runs._run import Run

__all__ = ["accumulate", "each_once"]

_BETWEEN = 1.0  # seconds from one time that processes meet to the next
Measure = Callable[[Tensor, Tensor], Mapping[str, Tensor]]


def accumulate(data: Data, measure: Measure, kept: Run, name: str, **loop: Any) -> Totals:
    """Add up what is measured on each batch, and go on from the sums that a run has kept.

    Processes that work together take turns with the batches. From time to time they meet: then the
    sums are those over the first so many samples, and are kept. Whoever resumes from there, with as
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


def each_once(
    kept: Run,
    names: Sequence[str],
    compute: Callable[[int], Mapping[str, Tensor]],
    description: str | None = None,
) -> Iterator[dict[str, Tensor]]:
    """Yield the tensors of parts, in order; compute and keep those that are not finished.

    Parameters
    ----------
    kept : Run
        Keeps the parts.
    names : sequence of str
        Names of the parts.
    compute : callable
        From the place of a part among the names to its tensors. Each is computed by one process,
        and is then there in all.
    description : str, optional
        Title of a progress bar; none if not given.
    """
    turns = range(0, len(names), size())
    for first in stages.handed_out(turns if description is None else track(turns, description)):
        parts = [kept.read(name) for name in names[first : first + size()]]
        found = [None if part is None else part.tensors for part in parts]
        mine, place = None, rank()
        with agreed():
            if place < len(found) and found[place] is None:
                with alone():
                    computed = compute(first + place)
                mine = {name: value.detach().cpu() for name, value in computed.items()}
        for place, tensors in enumerate(gathered(mine)):
            if tensors is not None:
                kept.write(names[first + place], tensors)
                found[place] = tensors
        yield from (tensors for tensors in found if tensors is not None)
