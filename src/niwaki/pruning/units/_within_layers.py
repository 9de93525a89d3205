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
from niwaki.pruning.repair._rows import (
    FEWEST_ROWS,
    ROWS,
    Places,
    drawn,
    inputs_at,
    is_linear,
    matrix_of,
)
from niwaki.pruning.units._coupling import Group, Member
from niwaki.stages import stage

__all__ = ["RIDGE", "Reader", "eliminate", "rechosen"]


@stage("choosing")
def rechosen(
    model: nn.Module,
    groups: Sequence[Group],
    taken: Sequence[Sequence[int]],
    data: Data,
    *,
    max_memory: int | str | None = None,
) -> list[list[int]]:
    """Choose again which units of each group are removed, as many as before, by the rebuilt error.

    Groups that no plain layer reads, such as those in front of grouped convolutions that keep
    their groups apart in another way, keep the units that they are given. So do those that only
    layers of more than 8,000 features read, such as the first linear layer of AlexNet, because the
    inverse of what such a layer reads takes too long.

    Parameters
    ----------
    model : nn.Module
        The current network, ours to run: hooks are set for a moment.
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
            if matrix_of(_layer(model, member.layer)).shape[2] > _WIDEST:
                continue
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
                    model(block.clone())
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


_WIDEST = 8_000  # features of a layer
_ROUNDS = 256  # of elimination, at the most

#: Of the mean diagonal of a Gram matrix: what keeps its inverse within bounds.
RIDGE = 1e-2
_TINY = 1e-300


class Reader:
    """A layer that reads units, and what least squares need to know of it.

    It keeps up with what goes: weights and inverse are at any time those of the layer that has been
    fitted to the inputs that are left.

    Parameters
    ----------
    gram : Tensor
        ``X^T X`` of what it reads, in double precision; shape (groups, features, features).
    weight : Tensor
        Shape (groups, outputs, features).
    ridge : float
        See `RIDGE`.

    Notes
    -----
    With ``H = X^T X + ridge``, taking out the features u and fitting the others to what the layer
    has given raises the squared error by ``tr(W_u (H^-1)_uu^-1 W_u^T)``; the weights become
    ``W - W_u (H^-1)_uu^-1 (H^-1)_u``, and the inverse ``H^-1 - (H^-1)_u^T (H^-1)_uu^-1 (H^-1)_u``
    (Hassibi and Stork 1993, for blocks as in OSSCAR).
    """

    def __init__(self, gram: Tensor, weight: Tensor, ridge: float = RIDGE) -> None:
        size = ridge * gram.diagonal(dim1=1, dim2=2).mean(1).clamp(min=_TINY)
        unit = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        self.weight = weight.to(gram, copy=True)
        self.inverse = _inverted(gram + size[:, None, None] * unit)
        self._energy = float(((self.weight @ gram) * self.weight).sum().clamp(min=_TINY))

    def harm(self, blocks: Tensor) -> Tensor:
        """Return the rise of the error with each unit, half of it, as a share of the energy.

        Parameters
        ----------
        blocks : Tensor
            The features of each unit, in every group; shape (groups, units, features each).
        """
        groups, units, each = blocks.shape
        at = blocks.flatten(1)
        if each == 1:  # the same, without a copy of the weights for each unit that goes
            inverse = self.inverse.diagonal(dim1=1, dim2=2).gather(1, at)
            power = self.weight.square().sum(1).gather(1, at)
            return (power / inverse).sum(0) / 2 / self._energy
        weight = self.weight.gather(2, at[:, None].expand(-1, self.weight.shape[1], -1))
        weight = weight.view(groups, -1, units, each).permute(0, 2, 3, 1)
        place = torch.arange(groups, device=blocks.device)[:, None, None, None]
        inner = self.inverse[place, blocks[..., :, None], blocks[..., None, :]]
        harm = (_solved(inner, weight) * weight).sum((0, 2, 3)) / 2
        return harm / self._energy

    def remove(self, features: Tensor) -> None:
        """Fit the layer without some features; shape (groups, features)."""
        count = features.shape[1]
        rows = self.inverse.gather(1, features[:, :, None].expand(-1, -1, self.inverse.shape[2]))
        inner = rows.gather(2, features[:, None].expand(-1, count, -1))
        solved = _solved(inner, rows)
        at = features[:, None].expand(-1, self.weight.shape[1], -1)
        self.weight.baddbmm_(self.weight.gather(2, at), solved, alpha=-1)
        self.inverse.baddbmm_(rows.transpose(1, 2), solved, alpha=-1)
        # What is gone is exactly zero from here on, and its block can still be inverted.
        for group, gone in enumerate(features):
            self.weight[group, :, gone] = 0
            self.inverse[group, gone] = 0
            self.inverse[group, :, gone] = 0
            self.inverse[group, gone, gone] = 1


def eliminate(readers: Sequence[tuple[Reader, Tensor]], count: int) -> list[int]:
    """Remove units one after another, each time the one that does the least harm.

    Where more than 256 go, several go at a time, because each round takes passes over matrices that
    are as large as the layers that have so many units.

    Parameters
    ----------
    readers : sequence of pairs of Reader and Tensor
        All layers that read the units, each with the features of every unit (see `Reader.harm`).
        They are brought up to date.
    count : int
        How many units go.

    Returns
    -------
    list of int
        The units, in the order in which they go; of several of the same harm, the first.
    """
    gone: list[int] = []
    while len(gone) < count:
        harm = torch.stack([reader.harm(blocks).cpu() for reader, blocks in readers]).sum(0)
        harm[gone] = float("inf")
        least = harm.argsort(stable=True)[: min(-(-count // _ROUNDS), count - len(gone))]
        gone += least.tolist()
        for reader, blocks in readers:
            reader.remove(blocks[:, least.to(blocks.device)].flatten(1))
    return gone


def _inverted(matrices: Tensor) -> Tensor:
    factors, failed = torch.linalg.cholesky_ex(matrices)
    if bool((failed != 0).any()):  # by rounding
        found: Tensor = torch.linalg.pinv(matrices, hermitian=True)
        return found
    return torch.cholesky_inverse(factors)


def _solved(inner: Tensor, right: Tensor) -> Tensor:
    """Solve symmetric systems; where rounding leaves none, by the pseudo-inverse."""
    found: Tensor
    found, failed = torch.linalg.solve_ex(inner, right)
    if bool((failed != 0).any()):
        found = torch.linalg.pinv(inner, hermitian=True) @ right
    return found
