"""Which units of each layer go, once their number is known: those that others can stand in for."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from niwaki.data import Data
from niwaki.errors import DataError
from niwaki.machine import parse_bytes, physical
from niwaki.models import home
from niwaki.processes import agreed, decided, gathered, is_mine, summed
from niwaki.pruning.repair._lockstep import BLOCK
from niwaki.pruning.repair._rows import Places, inputs_at, is_linear, matrix_of
from niwaki.pruning.repair._samples import FEWEST_ROWS, ROWS, drawn
from niwaki.pruning.units._backward_elimination import Reader, eliminate
from niwaki.pruning.units._coupling import Group, Member
from niwaki.stages import stage

__all__ = ["rechosen"]


@stage("choosing")
def rechosen(
    model: nn.Module,
    groups: Sequence[Group],
    taken: Sequence[Sequence[int]],
    data: Data,
    *,
    max_memory: int | str | None = None,
) -> list[list[int]]:
    """Choose anew which units of each group go, as many as there were, by the rebuilt error.

    Groups that no plain layer reads, such as those in front of grouped convolutions that keep
    their groups apart in another way, keep the units that they are given.

    Parameters
    ----------
    model : nn.Module
        The network as it stands, ours to run: hooks are set for a moment.
    groups : sequence of Group
        From `couple`.
    taken : sequence of sequences of int
        The units of each group that would go.
    data : DataLoader, Dataset or pair of tensors
        The reference samples; a random part of very many, the same in every call.
    max_memory : int or str, optional
        Bytes that Gram matrices may take at a time; if all of them take more, the network is run
        several times. Default: a quarter of the machine's memory.

    Returns
    -------
    list of list of int
        The units that go.

    Raises
    ------
    DataError
        If a layer reads NaN or infinite values on the samples.
    """
    memory = physical() // 4 if max_memory is None else parse_bytes(max_memory)
    # What goes with what is decided by numbers: all processes begin with the same.
    found = decided(lambda: [list(units) for units in taken])
    reading = {index: _readers(model, groups[index]) for index, units in enumerate(found) if units}
    samples = drawn(data, home(model))
    for some in _portions(model, reading, memory):
        names = list(dict.fromkeys(name for index in some for name in reading[index]))
        with torch.no_grad():
            grams = _grams(model, names, samples)
            for index, units in _eliminated(model, some, reading, grams, found).items():
                found[index] = units
    return found


def _eliminated(
    model: nn.Module,
    indices: Sequence[int],
    reading: Mapping[int, Mapping[str, Tensor]],
    grams: Mapping[str, Tensor],
    taken: Sequence[Sequence[int]],
) -> dict[int, list[int]]:
    """Choose the units of some groups; of several processes, each does so for its own groups."""
    found: dict[int, list[int]] = {}
    parts = _joined({index: reading[index] for index in indices})
    with agreed():
        for part in (some for number, some in enumerate(parts) if is_mine(number)):
            names = dict.fromkeys(name for index in part for name in reading[index])
            there = {n: Reader(grams[n], matrix_of(_layer(model, n))) for n in names if n in grams}
            for index in sorted(part):
                pairs = [(there[n], b) for n, b in reading[index].items() if n in there]
                if pairs:
                    found[index] = eliminate(pairs, len(taken[index]))
    return {index: units for some in gathered(found) for index, units in some.items()}


def _layer(model: nn.Module, name: str) -> Any:
    return model.get_submodule(name)


def _readers(model: nn.Module, group: Group) -> dict[str, Tensor]:
    """Return the layers that read a group, with the features of each unit; see `Reader.harm`."""
    if len(set(group.loose)) > 1:
        return {}  # units of different costs are no substitutes for each other
    found = {}
    for member in group.members:
        if not member.output and is_linear(_layer(model, member.layer)):
            blocks = _blocks(_layer(model, member.layer), member)
            if blocks is not None:
                found[member.layer] = blocks
    return found


def _blocks(layer: Any, member: Member) -> Tensor | None:
    """Return the features of each unit in every group of a layer; None where groups differ."""
    channels = torch.tensor(member.channels)
    if isinstance(layer, nn.Linear):
        return channels[None].to(layer.weight.device)
    groups, width = int(layer.groups), int(layer.in_channels) // int(layer.groups)
    owner = channels // width
    counts = torch.stack([(owner == group).sum(1) for group in range(groups)])
    each = channels.shape[1] // groups
    if not bool((counts == each).all()) or not each:
        return None
    inside = (channels.sort(1).values % width).view(len(channels), groups, each).transpose(0, 1)
    offsets = torch.arange(prod(layer.kernel_size)) * width
    return (inside[:, :, None] + offsets[:, None]).flatten(2).to(layer.weight.device)


def _portions(
    model: nn.Module, reading: Mapping[int, Mapping[str, Tensor]], memory: int
) -> Iterator[list[int]]:
    """Split the groups so that the matrices of each portion fit into memory.

    Groups that are read by the same layer stay together: what goes from one counts for the next.
    """
    portion: list[int] = []
    size = 0
    for some in _joined(reading):
        needed = _bytes(model, {name for index in some for name in reading[index]})
        if portion and size + needed > memory:
            yield sorted(portion)
            portion, size = [], 0
        portion += some
        size += needed
    if portion:
        yield sorted(portion)


def _joined(reading: Mapping[int, Mapping[str, Tensor]]) -> list[list[int]]:
    """Put groups together that are read by the same layers."""
    parts: list[tuple[set[str], list[int]]] = []
    for index, readers in reading.items():
        names, members = set(readers), [index]
        apart = []
        for others, there in parts:
            if others & names:
                names, members = names | others, there + members
            else:
                apart.append((others, there))
        parts = [*apart, (names, members)]
    return [members for names, members in parts if names]


def _bytes(model: nn.Module, names: Collection[str]) -> int:
    """Count what the matrices of some layers take: the sums, and the inverse beside them."""
    shapes = [matrix_of(_layer(model, name)).shape for name in names]
    return sum(2 * 8 * shape[0] * shape[2] ** 2 for shape in shapes)


def _grams(model: nn.Module, names: Sequence[str], samples: Tensor) -> dict[str, Tensor]:
    """Add up the Gram matrices of what some layers read, at all their calls.

    Where several processes work together, each does so for its own blocks of samples, and gets the
    sums of all.
    """
    sums = {name: _Sum(_layer(model, name), len(samples)) for name in names}
    handles = [
        _layer(model, name).register_forward_hook(sums[name], with_kwargs=True) for name in names
    ]
    try:
        with agreed():
            for number, block in enumerate(torch.split(samples, BLOCK)):
                if is_mine(number):
                    for total in sums.values():
                        total.begin(BLOCK * number)
                    model(block)
    finally:
        for handle in handles:
            handle.remove()
    found = summed({name: total.gram for name, total in sums.items() if total.gram is not None})
    for name, gram in found.items():
        if not bool(gram.isfinite().all()):
            raise DataError(
                f"what {name!r} reads is NaN or infinite on the reference samples; check these "
                "and the network"
            )
    return found


class _Sum:
    """Adds up the Gram matrix of what a layer reads, at some places of each sample."""

    def __init__(self, layer: Any, samples: int) -> None:
        features = matrix_of(layer).shape[-1]
        self._each = -(-max(FEWEST_ROWS, ROWS * features) // samples)
        self._read = 0
        self.gram: Tensor | None = None

    def begin(self, first: int) -> None:
        """Get ready for a block, whose first sample has a number."""
        self._read = first

    def __call__(self, layer: Any, args: Any, kwargs: Mapping[str, Any], output: Tensor) -> None:
        inputs = args[0] if args else kwargs["input"]
        linear = isinstance(layer, nn.Linear)
        if not linear and inputs.dim() != layer.weight.dim():
            return  # a single sample without a dimension for samples
        shape = output.shape[1:-1] if linear else output.shape[2:]
        places = Places(prod(shape), self._each).of(self._read, len(inputs))
        rows = inputs_at(layer, inputs, output.shape, places).double()
        gram = rows.transpose(1, 2) @ rows
        self.gram = gram if self.gram is None else self.gram + gram
        self._read += len(inputs)
