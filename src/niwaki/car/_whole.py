"""Units that are taken out of whole passes: by removing them physically, or by masking them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from niwaki.car._channels import CHANNELWISE_NAMES
from niwaki.models import respond
from niwaki.pruning import Group, Removal, operate

__all__ = ["Masked", "Removed"]


class Removed:
    """Evaluates a network without single units by pruning a copy of it for each.

    Parameters
    ----------
    model : nn.Module
        A copy that is ours.
    example : Tensor
        Inputs to trace it with.
    group : Group
        Whose units are taken out.
    memory : int
        Bytes that the pruned copies may take, beside the weights that they share.
    """

    path: ClassVar[str] = "removed"

    def __init__(self, model: nn.Module, example: Tensor, group: Group, memory: int) -> None:
        self._model = model
        self._example = example
        self._group = group
        self._left = memory
        self._kept: dict[int, nn.Module] = {}

    def without(self, inputs: Tensor, unit: int) -> Tensor:
        """Compute the outputs without a unit; shape (N, classes)."""
        return respond(self.remove(unit), inputs)

    def remove(self, unit: int) -> nn.Module:
        """Return the network from which a unit is physically gone.

        Raises
        ------
        ModelError
            If it cannot be removed.
        """
        if unit in self._kept:
            return self._kept[unit]
        smaller = copy.deepcopy(self._model)
        operate(smaller, self._example, [Removal(self._group.root, self._group.units[unit])])
        size = _share(smaller, self._model)
        if size <= self._left:
            self._left -= size
            self._kept[unit] = smaller
        return smaller


class Masked:
    """Evaluates a network in which a channel of one layer is zero, behind its norm and activation.

    For layers that cannot lose a channel, whatever follows them.

    Parameters
    ----------
    model : nn.Module
        A copy that is ours.
    layer : str
        Its name.
    channels : sequence of int
        Those that are the units.
    """

    path: ClassVar[str] = "masked"

    def __init__(self, model: nn.Module, layer: str, channels: Sequence[int]) -> None:
        self._model = model
        self._channels = channels
        self._layer = model.get_submodule(layer)
        self._axis = -1 if isinstance(self._layer, nn.Linear) else 1

    def without(self, inputs: Tensor, unit: int) -> Tensor:
        """Compute the outputs without a unit; shape (N, classes)."""
        return self._masked(inputs, unit)[0]

    def works(self, inputs: Tensor) -> bool:
        """Whether the layer's output could be found, as a value that is there to be masked."""
        return self._masked(inputs, 0)[1].found

    def _masked(self, inputs: Tensor, unit: int) -> tuple[Tensor, _Mask]:
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


def _share(smaller: nn.Module, model: nn.Module) -> int:
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
