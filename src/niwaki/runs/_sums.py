"""What several processes keep in a run: what grows, and parts that they take turns with."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from torch import Tensor
from torch.utils.data import DataLoader, Subset

from niwaki import stages
from niwaki.accumulation import Totals
from niwaki.data import Data, as_dataset, batches, count
from niwaki.processes import agreed, alone, decided, gathered, is_mine, rank, size
from niwaki.progress import track
from niwaki.runs._run import Run

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Growing", "accumulate", "each_once", "grow"]

_BETWEEN = 1.0  # seconds from one time that processes meet to the next, at the least
_LONGEST = 60.0  # and at the most, as what was learned in between is lost if one of them dies
_TIMES = 10  # times as long as the meeting itself takes
Measure = Callable[[Tensor, Tensor], Mapping[str, Tensor]]


class Growing(Protocol):
    """What is known of some samples, and can be put together with what is known of others.

    `niwaki.accumulation.Totals` is one. The order in which they are put together does not matter.
    """

    @property
    def samples(self) -> int:
        """Of how many samples it is."""

    def merge(self, other: Self) -> Self:
        """Return what is known of both."""

    def reduced(self) -> Self:
        """Return what all processes that work together know; all of them call it."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return it as plain tensors."""

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> Self:
        """Rebuild it from `state_dict`."""


G = TypeVar("G", bound=Growing)


def accumulate(data: Data, measure: Measure, kept: Run, name: str, **loop: Any) -> Totals:
    """Add up what is measured on each batch, and go on from the sums that a run has kept.

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
        Over all samples, the same in each process; see `grow`.
    """

    def learn(inputs: Tensor, labels: Tensor, _: int) -> Totals:
        return Totals().update(measure(inputs, labels), len(inputs))

    return grow(data, learn, Totals(), kept, name, **loop)


def grow(
    data: Data,
    learn: Callable[[Tensor, Tensor, int], G],
    nothing: G,
    kept: Run,
    name: str,
    **loop: Any,
) -> G:
    """Put together what is learned from each batch, and go on from what a run has kept.

    Processes that work together take turns with the batches. From time to time they meet: then all
    know what there is to know of the first so many samples, and it is kept. Whoever resumes from
    there, with as many processes or others, counts no sample twice and none too few.

    Parameters
    ----------
    data : DataLoader, Dataset or pair of tensors
        In the same order each time.
    learn : callable
        From inputs, labels and the number of the first of them in the data to what is learned.
    nothing : Growing
        What is known of no sample.
    kept : Run
        Keeps what is known.
    name : str
        Name of the part of the run that it is.
    **loop
        Options of `niwaki.data.batches`.

    Returns
    -------
    Growing
        What is known of all samples, the same in each process.
    """
    part = kept.read(name)
    known = nothing if part is None else nothing.from_state_dict(part.tensors)
    own = _remaining(data, known.samples, **loop)
    often, ended, met = 1, False, time.monotonic()
    while not ended:
        began = time.monotonic()
        fresh = nothing
        with agreed():
            for _ in range(often):
                batch = next(own, None)
                if batch is None:
                    ended = True
                    break
                fresh = fresh.merge(learn(*batch))
        worked = time.monotonic() - began
        known = known.merge(fresh.reduced() if size() > 1 else fresh)
        kept.write_rarely(name, known.state_dict)
        ended = all(gathered(ended)) if size() > 1 else ended
        if size() > 1:
            often = decided(_next(often, worked, time.monotonic() - began - worked))
        elif time.monotonic() - met > _BETWEEN or ended:
            stages.sent(8 * sum(value.numel() for value in known.state_dict().values()))
            met = time.monotonic()
    return known


def _next(often: int, worked: float, told: float) -> Callable[[], int]:
    """Say after how many batches processes meet again, by the seconds that both have taken."""
    wanted = min(_LONGEST, max(_BETWEEN, _TIMES * told))
    return lambda: max(1, min(2 * often, round(often * wanted / max(worked, 1e-3))))


def _remaining(
    data: Data, done: int, batch_size: int, **loop: Any
) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Yield this process's batches of the samples after those that are done, and their numbers."""
    samples = None if isinstance(data, DataLoader) else count(data)
    if samples is not None and not isinstance(data, DataLoader):
        left = range(done, samples)
        if left or not done:  # no data at all are refused
            rest = Subset(as_dataset(data), left)
            for turn, batch in enumerate(batches(rest, batch_size, shared=True, **loop)):
                yield *batch, done + (turn * size() + rank()) * batch_size
        return
    seen = 0
    for number, (inputs, labels) in enumerate(batches(data, batch_size, **loop)):
        seen += len(inputs)
        fresh = min(seen - done, len(inputs))
        if fresh > 0 and is_mine(number):
            yield inputs[-fresh:], labels[-fresh:], seen - fresh


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
