"""The splice: what follows a unit computed anew, for many pairs of a unit and an image at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from niwaki.car._channels import NotFollowedError, find_readers
from niwaki.models.network import Network, last_uses
from niwaki.models.zoo import ShortcutA
from niwaki.pruning import Group

_MAKE_NEW = (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._BatchNorm)


@dataclass(frozen=True)
class Segment:
    """Neighbouring pairs of one unit: rows `start` to `stop`."""

    unit: int
    start: int
    stop: int


@dataclass(frozen=True)
class Pairs:
    """Units of one group and images of one batch, sorted by unit.

    Attributes
    ----------
    units, images : Tensor
        Indices of shape (P,).
    """

    units: Tensor
    images: Tensor

    @classmethod
    def where(cls, wanted: Tensor) -> Pairs:
        """Take all pairs that are True in a tensor of shape (units, N)."""
        units, images = wanted.nonzero(as_tuple=True)
        return cls(units, images)

    def __len__(self) -> int:
        return len(self.units)

    def split(self, rows: int) -> Iterator[Pairs]:
        """Cut into pieces of at most so many pairs."""
        for start in range(0, len(self), rows):
            part = slice(start, start + rows)
            yield Pairs(self.units[part], self.images[part])

    def by_unit(self, rows: int) -> Iterator[Pairs]:
        """Cut into pieces of one unit each, and of at most so many pairs."""
        for segment in self.segments():
            part = slice(segment.start, segment.stop)
            yield from Pairs(self.units[part], self.images[part]).split(rows)

    def segments(self) -> list[Segment]:
        """List the runs of pairs with the same unit."""
        units, counts = torch.unique_consecutive(self.units, return_counts=True)
        stops = counts.cumsum(0).tolist()
        starts = [0, *stops[:-1]]
        return [Segment(*row) for row in zip(units.tolist(), starts, stops, strict=True)]


class Splice:
    """Evaluates a network without single units of a group, from the cut on.

    Everything before the first layers that read the group's channels (its *readers*) is computed
    once per image. A reader whose input lies before the cut is linear in it: its new output is the
    old one minus the unit's contribution. A reader behind the cut gets the unit's channels as
    zeros.

    Attributes
    ----------
    readers : dict of fx.Node to Tensor
        The operations that read the group's channels, see `find_readers`.
    needs : set of fx.Node
        The values of the whole network's pass that `without` needs.
    row_bytes, largest_bytes : int
        Memory that one pair takes at most, and that its largest value takes.

    Raises
    ------
    NotFollowedError
        If the channels mix on their way to the readers.
    """

    path: ClassVar[str] = "spliced"

    def __init__(self, network: Network, group: Group) -> None:
        self._network = network
        self.readers = find_readers(network, group)
        self._units = len(group)
        self._channels = {
            node: [(labels == unit).nonzero().flatten() for unit in range(len(group))]
            for node, labels in self.readers.items()
        }
        behind = _behind(network, self.readers)
        self._linear = {
            node: _Contribution(module, self._channels[node])
            for node in self.readers
            if node.args[0] not in behind and (module := network.module(node)) is not None
            if _is_plain(module)
        }
        self._steps = _with_sizes(network, behind)
        inside = set(self._steps)
        self._outside = {
            n
            for node in self._steps
            if node not in self._linear
            for n in node.all_input_nodes
            if n not in inside
        }
        self._first_use = _first_uses(self._steps, self._outside)
        self.needs = {n for n in self._outside if n not in network.constants}
        for node in self._linear:
            self.needs |= {node, node.args[0]}  # type: ignore[arg-type]
        release = last_uses([*self._outside, *self._steps], {network.output})
        self._release = {node: release[node] for node in self._steps}
        self._in_place = _in_place(network, self._steps, self._linear)
        size = torch.finfo(_dtype(network)).bits // 8
        self.row_bytes = self._peak() * size
        self.largest_bytes = size * max(prod(network.shapes.get(n, ())) for n in self._steps)

    def active(self, node: fx.Node, value: Tensor) -> Tensor:
        """Tell which units are not zero everywhere in a reader's input; shape (units, N)."""
        labels = self.readers[node].to(value.device)
        present = value.ne(0).flatten(2).any(2) if value.dim() > 2 else value.ne(0)
        found = present.new_zeros(self._units + 1, len(value), dtype=torch.int32)
        # The label -1 counts into the last row, which is dropped.
        found.index_add_(0, labels.remainder(self._units + 1), present.t().int())
        return found[:-1] > 0

    def channels(self, reader: fx.Node, unit: int) -> Tensor:
        """Return which channels of a reader's input belong to a unit."""
        return self._channels[reader][unit]

    def without(
        self,
        values: Mapping[fx.Node, Any],
        pairs: Pairs,
        note: Callable[[fx.Node, Any], None] | None = None,
    ) -> Tensor:
        """Compute the network's outputs without the unit of each pair.

        Parameters
        ----------
        values : mapping
            Those of `needs`, from the pass of the whole network.
        pairs : Pairs
            All of them are computed as one batch of P rows.
        note : callable, optional
            Told each operation and its value, which may be overwritten afterwards.
        """
        network, segments = self._network, pairs.segments()
        env: dict[fx.Node, Any] = {}
        for node in self._steps:
            for outside in self._first_use[node]:
                if outside in network.constants:
                    env[outside] = network.call(outside, env)
                else:
                    env[outside] = values[outside].index_select(0, pairs.images)
            if node in self._linear:
                source: Any = node.args[0]
                env[node] = self._linear[node].removed(
                    values[source], values[node], pairs, segments
                )
            else:
                if node in self.readers:
                    self._silence(env[node.args[0]], self._channels[node], segments)  # type: ignore[index]
                change = self._in_place.get(node)
                env[node] = network.call(node, env) if change is None else change(node, env)
            if note is not None:
                note(node, env[node])
            for done in self._release[node]:
                env.pop(done, None)
        return env[network.output]  # type: ignore[no-any-return]

    def macs_per_pair(self) -> int:
        """Count the multiply-accumulates of a pair; by linearity, one unit's work of a reader."""
        total = 0
        for node in self._steps:
            module = self._network.module(node)
            if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):
                weight, each = module.weight, module.weight[0].numel()
                if node in self._linear:
                    each = len(self._channels[node][0]) * weight[0, 0].numel()
                total += prod(self._network.shapes[node]) * each
        return total

    @property
    def can_remove(self) -> bool:
        """Whether `remove` can do it: each reader is used once, and reads each channel alone."""
        called = [node.target for node in self._network.nodes if node.op == "call_module"]
        return all(
            called.count(node.target) == 1
            and (isinstance(module, ShortcutA) or (module is not None and _is_plain(module)))
            for node in self.readers
            for module in [self._network.module(node)]
        )

    def remove(self, unit: int) -> None:
        """Let the readers read the unit no more: in this network, for all groups."""
        for node, channels in self._channels.items():
            module, doomed = self._network.module(node), channels[unit]
            if isinstance(module, ShortcutA):
                gone = torch.isin(module.source, doomed.to(module.source.device))
                module.source = module.source.masked_fill(gone, -1)
            else:
                assert isinstance(module, (nn.modules.conv._ConvNd, nn.Linear))
                module.weight.detach().index_fill_(1, doomed.to(module.weight.device), 0)

    @staticmethod
    def _silence(value: Tensor, channels: list[Tensor], segments: list[Segment]) -> None:
        # In place: the value is ours, and nobody but readers looks at these channels.
        for segment in segments:
            value[segment.start : segment.stop].index_fill_(
                1, channels[segment.unit].to(value.device), 0
            )

    def _peak(self) -> int:
        """Count the numbers that one row keeps alive at most, with room for the kernels' own."""
        shapes, live, peak = self._network.shapes, 0, 0
        size = {node: prod(shapes.get(node, ())) for node in (*self._outside, *self._steps)}
        for node in self._steps:
            live += sum(size[n] for n in self._first_use[node]) + size[node]
            window = 0
            if node in self._linear:
                window = self._linear[node].window * prod(shapes[node][1:])
            peak = max(peak, live + size[node] + window)
            live -= sum(size[n] for n in self._release[node])
        return peak


class _Contribution:
    """What single channels contribute to the output of a convolution or linear layer."""

    def __init__(self, module: nn.Module, channels: list[Tensor]) -> None:
        assert isinstance(module, (nn.modules.conv._ConvNd, nn.Linear))
        self._module = module
        self._channels = channels
        weight = module.weight.detach()
        self._weights = [weight[:, c.to(weight.device)] for c in channels]
        kernel = weight[0, 0].numel() if weight.dim() > 2 else 1
        self.window = 2 * kernel * max((len(c) for c in channels), default=0)

    def removed(
        self, before: Tensor, output: Tensor, pairs: Pairs, segments: list[Segment]
    ) -> Tensor:
        """Return the output for each pair's image without its unit's channels."""
        result = output.index_select(0, pairs.images)
        for segment in segments:
            rows = slice(segment.start, segment.stop)
            channels = self._channels[segment.unit].to(before.device)
            images = pairs.images[rows]
            if not len(channels):  # another reader's, where concatenations meet sums
                continue
            if len(channels) == 1:
                x = before.select(1, int(channels)).index_select(0, images).unsqueeze(1)
            else:
                x = before.index_select(0, images).index_select(1, channels)
            result[rows] -= self._apply(x, self._weights[segment.unit])
        return result

    def _apply(self, x: Tensor, weight: Tensor) -> Tensor:
        module = self._module
        if isinstance(module, nn.Linear):
            return x @ weight.t()
        assert isinstance(module, nn.modules.conv._ConvNd)
        if not isinstance(module, nn.Conv2d):
            convolve = F.conv1d if weight.dim() == 3 else F.conv3d
            return convolve(x, weight, None, module.stride, module.padding, module.dilation)
        # One or few input channels: a matrix product over windows is faster than a convolution.
        assert not isinstance(module.padding, str)
        kernel = module.kernel_size
        height, width = (
            (size + 2 * pad - step * (k - 1) - 1) // stride + 1
            for size, pad, step, k, stride in zip(
                x.shape[2:], module.padding, module.dilation, kernel, module.stride, strict=True
            )
        )
        windows = F.unfold(x, kernel, module.dilation, module.padding, module.stride)
        return (weight.flatten(1) @ windows).view(len(x), -1, height, width)


def _is_plain(module: nn.Module) -> bool:
    """Whether the output is a sum over the input's channels that `_Contribution` knows."""
    if type(module) is nn.Linear:
        return True
    if type(module) not in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
        return False
    assert isinstance(module, nn.modules.conv._ConvNd)
    return (
        module.groups == 1
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
    )


def _behind(network: Network, readers: Mapping[fx.Node, Tensor]) -> set[fx.Node]:
    """Collect what depends on a reader's output, readers included."""
    behind: set[fx.Node] = set()
    for node in network.nodes:
        if node in readers or any(n in behind for n in node.all_input_nodes):
            behind.add(node)
    if network.output not in behind:
        raise NotFollowedError("they do not reach the network's output")
    return behind


def _with_sizes(network: Network, behind: set[fx.Node]) -> list[fx.Node]:
    """List what runs for pairs: all behind the cut, and sizes, which count pairs, not images."""
    wanted = set(behind)
    needed = {network.output}
    for node in reversed(network.nodes):
        if node not in needed:
            continue
        plain = node not in network.shapes and node not in network.constants
        if node in behind or plain:
            wanted.add(node)
            needed |= set(node.all_input_nodes)
    return [node for node in network.nodes if node in wanted and node in needed]


def _first_uses(steps: list[fx.Node], outside: set[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
    """List for each operation the outside values that it is the first to need."""
    uses: dict[fx.Node, list[fx.Node]] = {}
    seen: set[fx.Node] = set()
    for node in steps:
        uses[node] = [n for n in node.all_input_nodes if n in outside and n not in seen]
        seen |= set(uses[node])
    return uses


def _dtype(network: Network) -> torch.dtype:
    found = (p.dtype for m in network.modules.values() for p in m.parameters())
    return next((d for d in found if d.is_floating_point), torch.float32)


def _relu_(node: fx.Node, env: Mapping[fx.Node, Any]) -> Tensor:
    return env[node.all_input_nodes[0]].relu_()  # type: ignore[no-any-return]


def _add_(node: fx.Node, env: Mapping[fx.Node, Any]) -> Tensor:
    first, second = node.all_input_nodes
    return env[first].add_(env[second])  # type: ignore[no-any-return]


def _in_place(
    network: Network, steps: list[fx.Node], linear: Mapping[fx.Node, Any]
) -> dict[fx.Node, Any]:
    """Choose the operations that may overwrite their input, as nobody else reads it."""
    fresh: set[fx.Node] = set()
    found: dict[fx.Node, Any] = {}
    for node in steps:
        module, sources = network.module(node), node.all_input_nodes
        ours = bool(sources) and sources[0] in fresh and len(sources[0].users) == 1
        name = str(getattr(node.target, "__name__", node.target))
        if ours and (isinstance(module, nn.ReLU) or (module is None and name == "relu")):
            found[node] = _relu_
        elif ours and module is None and name == "add" and _is_sum_of_equals(network, node):
            found[node] = _add_
        if isinstance(module, _MAKE_NEW) or node in linear or node in found or name == "add":
            fresh.add(node)
    return found


def _is_sum_of_equals(network: Network, node: fx.Node) -> bool:
    shapes = [network.shapes.get(source) for source in node.all_input_nodes]
    return len(shapes) == 2 and shapes[0] == shapes[1] and not node.kwargs
