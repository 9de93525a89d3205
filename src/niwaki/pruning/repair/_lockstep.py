"""Two networks of the same operations, run side by side on all samples, operation by operation."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from math import prod
from tempfile import TemporaryFile
from typing import Any, TypeAlias
from weakref import finalize

import torch
from torch import Tensor, fx, nn

from niwaki.errors import ModelError
from niwaki.models.network import Network, last_uses
from niwaki.processes import is_mine, size

__all__ = ["BLOCK", "Lockstep", "Values", "Visit"]

#: Samples that are computed at once, whatever the user's batches: results do not depend on these.
BLOCK = 25
#: What an operation computes, block by block.
Values: TypeAlias = Sequence[Any]
#: Called with each call of a module that does not do what it has always done, and with what the
#: unpruned network computes there; it may change the module.
Visit: TypeAlias = Callable[[fx.Node, Values], None]


class Lockstep:
    """A walk through both networks at once, from the input to the output.

    Only values that are still to be read are kept. As long as nothing differs, both networks share
    them. Of several processes, each walks with its own blocks.

    Parameters
    ----------
    whole, small : Network
        The unpruned network and the pruned one.
    max_memory : int
        Bytes beyond which values are kept on disk.

    Attributes
    ----------
    values : dict of fx.Node to tuple of Values
        What is kept at the moment: by the smaller network's operations, the values in the whole
        network and in the smaller one.
    numbers : list of int
        The blocks that this process walks with. It has at least one; if none is its own, that
        of another process, which does not count.

    Raises
    ------
    ModelError
        If they do not do the same operations.
    """

    def __init__(self, whole: Network, small: Network, max_memory: int) -> None:
        if [(n.op, n.name) for n in whole.nodes] != [(n.op, n.name) for n in small.nodes]:
            raise ModelError("the pruned network does other operations than the unpruned one")
        self.whole, self.small = whole, small
        self.values: dict[fx.Node, tuple[Values, Values]] = {}
        self.calls: dict[str, list[fx.Node]] = {}
        for node in small.nodes:
            if node.op == "call_module":
                self.calls.setdefault(str(node.target), []).append(node)
        self._release = last_uses(small.nodes, ())
        self._memory = max_memory
        self.numbers: list[int] = []
        self._keep: Callable[[Iterator[Any]], Values] = list

    def run(self, inputs: Tensor, visit: Visit, always: Collection[str] = ()) -> None:
        """Walk through both networks.

        Parameters
        ----------
        inputs : Tensor
            All samples.
        visit : callable
            See `Visit`; called before the smaller network's module is.
        always : collection of str
            Modules that are visited wherever they are called.
        """
        keep: Callable[[Iterator[Any]], Values] = list
        if self._peak(inputs) > self._memory:
            keep = _OnDisk
        self._keep = keep
        every = range(-(-len(inputs) // BLOCK))
        self.numbers = [number for number in every if is_mine(number)] or [0]
        blocks = [inputs[BLOCK * n : BLOCK * (n + 1)] for n in self.numbers]
        for old, new in zip(self.whole.nodes, self.small.nodes, strict=True):
            if new is self.small.input:
                self.values[new] = (blocks, blocks)
            else:
                before = keep(self._computed(self.whole, old, new, 0, len(blocks)))
                after: Values = before
                if str(new.target) in always or not self._unchanged(old, new):
                    if new.op == "call_module":
                        visit(new, before)
                    after = keep(self._computed(self.small, new, new, 1, len(blocks)))
                self.values[new] = before, after
            for done in self._release[new]:
                del self.values[done]

    def hold(self, nodes: Collection[fx.Node], until: fx.Node) -> None:
        """Keep values until an operation has run, also where nothing reads them any more."""
        order = {node: place for place, node in enumerate(self.small.nodes)}
        for node, released in list(self._release.items()):
            if order[node] < order[until]:
                held = [one for one in released if one in nodes]
                self._release[node] = [one for one in released if one not in nodes]
                self._release[until] += held

    def replace(self, node: fx.Node, values: Iterator[Any]) -> None:
        """Put others in place of what an operation of the smaller network has computed."""
        self.values[node] = self.values[node][0], self._keep(values)

    def differs(self, node: fx.Node) -> bool:
        """Whether the two networks compute different values there."""
        return self.values[node][0] is not self.values[node][1]

    def _computed(
        self, network: Network, node: fx.Node, beside: fx.Node, side: int, blocks: int
    ) -> Iterator[Any]:
        names = dict(zip(node.all_input_nodes, beside.all_input_nodes, strict=True))
        for block in range(blocks):
            env = {one: self.values[other][side][block] for one, other in names.items()}
            yield network.call(node, env)

    def _unchanged(self, old: fx.Node, new: fx.Node) -> bool:
        """Whether an operation does in the smaller network what it does in the whole one."""
        if any(self.differs(node) for node in new.all_input_nodes):
            return False
        if new.op == "call_module":
            pair = self.whole.modules[str(old.target)], self.small.modules[str(new.target)]
            return all(torch.equal(a, b) for a, b in zip(*map(_tensors, pair), strict=True))
        if new.op == "get_attr":
            one, other = self.whole.call(old, {}), self.small.call(new, {})
            return not isinstance(one, Tensor) or torch.equal(one, other)
        return True

    def _peak(self, inputs: Tensor) -> int:
        """Bytes of the values that are kept at the same time, at the most."""
        alive: dict[fx.Node, int] = {}
        peak = 0
        for old, new in zip(self.whole.nodes, self.small.nodes, strict=True):
            sizes = (self.whole.shapes.get(old, ()), self.small.shapes.get(new, ()))
            alive[new] = sum(map(prod, sizes))
            peak = max(peak, sum(alive.values()))
            for done in self._release[new]:
                alive.pop(done, None)
        return peak * -(-len(inputs) // size()) * inputs.element_size()


class _OnDisk(Sequence[Any]):
    """Values in a file that has no name, so that nothing is left of it whatever happens."""

    def __init__(self, values: Iterator[Any]) -> None:
        self._file = TemporaryFile()  # noqa: SIM115 - it is closed when nobody holds the values
        finalize(self, self._file.close)
        self._blocks: list[Any] = []
        for value in values:
            if not isinstance(value, Tensor):
                self._blocks.append(value)
                continue
            start = self._file.tell()
            flat = value.detach().cpu().reshape(-1).view(torch.uint8)
            self._file.write(flat.numpy().data)
            self._blocks.append(_Stored(start, value.shape, value.dtype, value.device))

    def __len__(self) -> int:
        return len(self._blocks)

    def __getitem__(self, block: Any) -> Any:
        found = self._blocks[block]
        return found.read(self._file) if isinstance(found, _Stored) else found


class _Stored:
    """Where a tensor lies in a file."""

    def __init__(
        self, start: int, shape: torch.Size, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._start, self._shape, self._dtype, self._device = start, shape, dtype, device

    def read(self, file: Any) -> Tensor:
        """Read it back."""
        file.seek(self._start)
        size = prod(self._shape) * self._dtype.itemsize
        content = bytearray(file.read(size))
        if not content:
            return torch.empty(self._shape, dtype=self._dtype, device=self._device)
        return torch.frombuffer(content, dtype=self._dtype).view(self._shape).to(self._device)


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
