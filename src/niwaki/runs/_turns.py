"""Parts of a run that do not depend on each other: several processes take turns with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from torch import Tensor

from niwaki.processes import agreed, alone, gathered, rank, size
from niwaki.progress import track
from niwaki.runs._run import Run
from niwaki.stages import handed_out

__all__ = ["each_once"]


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
    for first in handed_out(turns if description is None else track(turns, description)):
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
