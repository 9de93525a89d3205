"""The loop over images that makes the index, interrupted and resumed at will."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from niwaki import models
from niwaki.accumulation import Totals
from niwaki.car._evaluator import Evaluator
from niwaki.car._groups import copy_of, examples, judged
from niwaki.car._index import CarIndex
from niwaki.car._measure import index_of, measure
from niwaki.car._units import name_of
from niwaki.data import Data, batches
from niwaki.memory import parse_bytes
from niwaki.ranges import BATCH, checked
from niwaki.runs import Folder, digest, open_run

__all__ = ["index"]


@checked(batch_size=BATCH)
def index(
    model: nn.Module,
    data: Data,
    *,
    layers: Sequence[str] | None = None,
    batch_size: int = 64,
    max_memory: int | str = "2GB",
    folder: Folder = None,
    description: str | None = None,
) -> CarIndex:
    """Compute the classification accuracy reduction of every unit, exactly.

    The reduction (CAR) of a unit is the network's accuracy minus the accuracy of the network from
    which the unit is physically gone, with its batch norm and the inputs behind it, and with all
    that is coupled to it (Abbasi-Asl & Yu 2017). What lies before a unit is computed once, what
    it contributes to the next layer is subtracted there, images that do not activate it are
    skipped, and the rest of the network runs for many units and images at once. The counts equal
    those of physical removal but for images whose two largest outputs differ by less than 1e-4,
    which are reported. A layer that cannot lose a unit, because of what its network does with its
    channels, is judged by masking: the channel is zero behind the layer's norm and activation.

    It may run in several threads at once, on one model, too, while others call that model.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode, returning shape (N, classes). It stays as it is.
    data : DataLoader, Dataset or pair of tensors
        Images with their labels.
    layers : sequence of str, optional
        Only units of these layers or of layers within modules of these names; default: all hidden
        convolutions and linear layers.
    batch_size : int
        Images that are looked at together, fewer where memory asks for it; a loader has its own.
    max_memory : int or str
        Bytes to stay below, beside the network and the data themselves; such as ``"500MB"``.
    folder : str or Path, optional
        Keeps the counts after each batch; the same call goes on from there.
    description : str, optional
        Title of a progress bar; none if not given.

    Returns
    -------
    CarIndex
        Layer name to the reductions of its units, in total and by class.

    Raises
    ------
    ValueError
        For options out of range.
    ModelError, DataError, NothingToPruneError
        For a network or data that cannot be worked with; a folder that holds counts of others.

    Examples
    --------
    >>> index = niwaki.car.index(model, (images, labels))
    >>> index["conv1"].car
    >>> index.ranking()[:5]
    """
    memory = parse_bytes(max_memory)
    own = copy_of(model)
    example = examples(own, data)
    found = judged(own, example, layers)
    evaluator = Evaluator(own, example, found.groups, memory, masks=found.layers)
    groups = evaluator.groups
    size = evaluator.images(batch_size)
    fingerprint = models.fingerprint(model)

    def identity() -> dict[str, Any]:
        names = [name_of(group) for group in groups]
        return {"model": fingerprint, "data": digest(data, ordered=True), "layers": names}

    with open_run(folder, identity) as kept:
        part, seen = kept.read(_SUMS), 0
        totals = Totals() if part is None else Totals.from_state_dict(part.tensors)
        for inputs, labels in batches(data, size, models.home(model), description):
            for start in range(0, len(inputs), size):
                rows = slice(start, min(start + size, len(inputs)))
                seen += rows.stop - rows.start
                fresh = min(seen - totals.samples, rows.stop - rows.start)
                if fresh > 0:  # else the sums have these images
                    rows = slice(rows.stop - fresh, rows.stop)
                    sums = measure(evaluator, inputs[rows], labels[rows])
                    totals = totals.update(sums, fresh)
                    kept.write_rarely(_SUMS, totals.state_dict)
    paths = dict(zip(map(name_of, groups), evaluator.paths, strict=True))
    return index_of(totals, groups, paths, fingerprint)


_SUMS = "sums"
