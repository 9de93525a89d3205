"""Units taken out of full forward passes: removed physically, cut by hand, or masked."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from niwaki.car._channels import CHANNELWISE_NAMES, NotFollowedError, find_equal_readers
from niwaki.models import respond
from niwaki.models.network import Network
from niwaki.pruning import Group, Removal, operate

_ORDERS = 3  # permutations that are tried
_CLOSE = 1e-4  # of the largest output


class Removed:
    """Evaluates a network without single units by pruning a copy of it for each.

    The pruned copies may take `memory` bytes, beside the weights that they share with the network.
    """

    path: ClassVar[str] = "removed"

    def __init__(self, model: nn.Module, example: Tensor, group: Group, memory: int) -> None:
        self._model = model
        self._example = example
        self._group = group
        self._memory_left = memory
        self._pruned: dict[int, nn.Module] = {}

    def without(self, inputs: Tensor, unit: int) -> Tensor:
        """Compute the outputs without a unit; shape (N, classes)."""
        return respond(self.pruned(unit), inputs)

    def pruned(self, unit: int) -> nn.Module:
        """Return the network from which a unit is physically gone.

        Raises
        ------
        ModelError
            If it cannot be removed.
        """
        if unit in self._pruned:
            return self._pruned[unit]
        smaller = copy.deepcopy(self._model)
        operate(smaller, self._example, [Removal(self._group.root, self._group.units[unit])])
        size = _share_weights(smaller, self._model)
        if size <= self._memory_left:
            self._memory_left -= size
            self._pruned[unit] = smaller
        return smaller


class Cut:
    """Evaluates a network without single units of a layer: full passes, the layer cut by hand.

    A softmax over channels, a mean of them or a norm written out gives other numbers where channels
    are gone than where they are silent, and pruning does not know how it should go on. Where all
    between the layer and its readers treats the channels as equals, the network stays the same
    when they change places, in the layer and in its readers alike; then the readers' channels are
    known, and what is left when one goes is the forward pass as it is, on a channel less.

    Raises
    ------
    NotFollowedError
        If the channels are not equals, the images cannot tell, or a channel less does not pass.
    """

    path: ClassVar[str] = "cut"

    def __init__(self, network: Network, layer: str, images: Tensor) -> None:
        self._network = network
        self._layer = layer
        self._readers = find_equal_readers(network, layer)
        module = network.modules[layer]
        assert isinstance(module.weight, Tensor)
        self._width = len(module.weight)
        self._check_symmetry(images)
        try:
            self.without(images[:1], 0)
        except Exception as error:  # whatever the network's own code does with fewer channels
            raise NotFollowedError(f"{type(error).__name__}: {error}") from error

    def without(self, inputs: Tensor, unit: int) -> Tensor:
        """Compute the outputs without a unit; shape (N, classes)."""
        kept = [channel for channel in range(self._width) if channel != unit]
        return self._outputs(inputs, self._with_channels(kept))

    def _check_symmetry(self, images: Tensor) -> None:
        """Let the channels change places: the outputs may change only if the readers do not."""
        layer, expected = self._layer, self._outputs(images, {})
        size = _CLOSE * float(expected.abs().max())
        generator = torch.Generator().manual_seed(0)
        for _ in range(_ORDERS):
            order = torch.randperm(self._width, generator=generator).tolist()
            if order == sorted(order):
                continue
            changed = self._with_channels(order)
            alone = self._outputs(images, {layer: changed[layer]})
            if not float((self._outputs(images, changed) - expected).abs().max()) <= size:
                raise NotFollowedError(f"the channels of {layer} are no equals")
            if not float((alone - expected).abs().max()) > size:
                raise NotFollowedError(f"the channels of {layer} make no difference here")

    @torch.no_grad()
    def _outputs(self, inputs: Tensor, changed: Mapping[str, nn.Module]) -> Tensor:
        network = copy.copy(self._network)
        network.modules = {**network.modules, **changed}
        return network.run(inputs, {network.output})[network.output]  # type: ignore[no-any-return]

    def _with_channels(self, channels: list[int]) -> dict[str, nn.Module]:
        """Return the layer and what reads it with some channels, in some order."""
        changed = {self._layer: _select(self._network.modules[self._layer], channels, 0)}
        for name, labels in self._readers.items():
            each = [(labels == channel).nonzero().flatten().tolist() for channel in channels]
            module = self._network.modules[name]
            dim = 0 if isinstance(module, nn.modules.batchnorm._BatchNorm) else 1
            changed[name] = _select(module, [place for places in each for place in places], dim)
        return changed


class Masked:
    """Evaluates a network in which a channel of one layer is zero, behind its norm and activation.

    For layers that cannot lose a channel, whatever follows them. Each of `channels` is a unit.
    """

    path: ClassVar[str] = "masked"

    def __init__(self, model: nn.Module, layer: str, channels: Sequence[int]) -> None:
        self._model = model
        self._channels = channels
        self._layer = model.get_submodule(layer)
        self._axis = -1 if isinstance(self._layer, nn.Linear) else 1

    def without(self, inputs: Tensor, unit: int) -> Tensor:
        """Compute the outputs without a unit; shape (N, classes)."""
        return self._run(inputs, unit)[0]

    def works(self, inputs: Tensor) -> bool:
        """Whether the layer's output could be found, as a value that is there to be masked."""
        return self._run(inputs, 0)[1].found

    def _run(self, inputs: Tensor, unit: int) -> tuple[Tensor, _Mask]:
        mask = _Mask(self._layer.weight, self._channels[unit], self._axis)  # type: ignore[arg-type]
        with mask.hooked(self._layer), mask:
            return respond(self._model, inputs), mask


class _Mask(TorchFunctionMode):
    """Sets a channel of a layer's output to zero, again behind all that acts on each alone."""

    def __init__(self, weight: Tensor, channel: int, axis: int) -> None:
        super().__init__()
        self._weight = weight
        self._channel = channel
        self._axis = axis
        self._masked: dict[int, Tensor] = {}  # which are kept, so that no other takes their id
        self.found = False  # whether there was an output of the layer

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        source = args[0] if args else kwargs.get("input")
        weight = args[1] if len(args) > 1 else kwargs.get("weight")
        full = str(getattr(func, "__name__", ""))
        name = full.strip("_")
        if weight is self._weight and (name == "linear" or name.startswith("conv")):
            self._mask(result)
        elif id(source) in self._masked:
            if name in CHANNELWISE_NAMES:
                self._mask(result)
            elif full == "__setitem__" or full.startswith("__i") or full.endswith("_"):
                del self._masked[id(source)]  # something was added to it: it is another's, too
        return result

    def _mask(self, value: Any) -> None:
        if isinstance(value, Tensor):
            value.narrow(self._axis, self._channel, 1).zero_()
            self._masked[id(value)] = value
            self.found = True

    @contextmanager
    def hooked(self, layer: nn.Module) -> Iterator[None]:
        """Mask what a layer returns, however it is computed."""

        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            self._mask(output)

        handle = layer.register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()


def _share_weights(smaller: nn.Module, model: nn.Module) -> int:
    """Let a pruned copy take the values that it has in common; return the bytes of the others."""
    size = 0
    modules = dict(model.named_modules())
    for name, module in smaller.named_modules():
        for mine, theirs in (
            (module._parameters, modules[name]._parameters),
            (module._buffers, modules[name]._buffers),
        ):
            for key, value in mine.items():
                other = theirs.get(key)
                if value is None:
                    continue
                if other is not None and torch.equal(value, other):
                    mine[key] = other
                else:
                    size += value.numel() * value.element_size()
    return size


def _select(module: nn.Module, places: list[int], dim: int) -> nn.Module:
    """Return a layer or norm with some places of a dimension, in some order."""
    chosen = copy.deepcopy(module)
    for name, value in module.named_parameters(recurse=False):
        if dim == 0 or name == "weight":
            if value.shape[dim : dim + 1] == () or value.shape[dim] <= max(places):
                raise NotFollowedError("a reader is narrower than what it reads")
            at = torch.tensor(places, device=value.device)
            taken = nn.Parameter(value.detach().index_select(dim, at), requires_grad=False)
            chosen._parameters[name] = taken
    for name, buffer in module.named_buffers(recurse=False):
        if dim == 0 and buffer.dim():
            at = torch.tensor(places, device=buffer.device)
            chosen._buffers[name] = buffer.index_select(dim, at)
    return chosen
