"""Layers whose channels are mixed as equals: cut where they stand, which symmetry proves right."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, fx, nn

from niwaki.car._channels import NotFollowedError, reshaped
from niwaki.models._network import Network

__all__ = ["Cut"]

_READERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_ORDERS = 3  # permutations that are tried
_CLOSE = 1e-4  # of the largest output


class Cut:
    """Evaluates a network without single units of a layer: whole passes, the layer cut by hand.

    A softmax over channels, a mean of them or a norm written out gives other numbers where channels
    are gone than where they are silent, and pruning does not know how it should go on. Where all
    between the layer and its readers treats the channels as equals, the network stays the same
    when they change places, in the layer and in its readers alike; then the readers' channels are
    known, and what is left when one goes is the forward pass as it is, on a channel less.

    Parameters
    ----------
    network : Network
        The operations.
    layer : str
        Whose channels are the units, all of them.
    images : Tensor
        Some inputs, to try it with.

    Raises
    ------
    NotFollowedError
        If the channels are not equals, the images cannot tell, or a channel less does not pass.
    """

    path: ClassVar[str] = "cut"

    def __init__(self, network: Network, layer: str, images: Tensor) -> None:
        self._network = network
        self._layer = layer
        self._places = _readers(network, layer)
        module = network.modules[layer]
        assert isinstance(module.weight, Tensor)
        self._width = len(module.weight)
        expected = self._outputs(images, {})
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
        try:
            self.without(images[:1], 0)
        except Exception as error:  # whatever the network's own code does with fewer channels
            raise NotFollowedError(f"{type(error).__name__}: {error}") from error

    def without(self, inputs: Tensor, unit: int) -> Tensor:
        """Compute the outputs without a unit; shape (N, classes)."""
        kept = [channel for channel in range(self._width) if channel != unit]
        return self._outputs(inputs, self._with_channels(kept))

    @torch.no_grad()
    def _outputs(self, inputs: Tensor, changed: Mapping[str, nn.Module]) -> Tensor:
        network = copy.copy(self._network)
        network.modules = {**network.modules, **changed}
        return network.run(inputs, {network.output})[network.output]  # type: ignore[no-any-return]

    def _with_channels(self, channels: list[int]) -> dict[str, nn.Module]:
        """Return the layer and what reads it with some channels, in some order."""
        changed = {self._layer: _taken(self._network.modules[self._layer], channels, 0)}
        for name, labels in self._places.items():
            each = [(labels == channel).nonzero().flatten().tolist() for channel in channels]
            module = self._network.modules[name]
            dim = 0 if isinstance(module, nn.modules.batchnorm._BatchNorm) else 1
            changed[name] = _taken(module, [place for places in each for place in places], dim)
        return changed


def _readers(network: Network, layer: str) -> dict[str, Tensor]:
    """Find what reads a layer's channels, if they stand in their order: reader to channels."""
    labels: dict[fx.Node, Tensor] = {}
    found: dict[str, Tensor] = {}
    calls = [str(node.target) for node in network.nodes if node.op == "call_module"]
    for node in network.nodes:
        module, name = network.module(node), str(node.target)
        arriving = [labels[n] for n in node.all_input_nodes if n in labels]
        if name == layer and module is not None:
            if arriving or calls.count(name) > 1 or type(module) not in _READERS:
                raise NotFollowedError(f"{name} is called in a way that cannot be followed")
            labels[node] = torch.arange(network.shapes[node][0])
        elif arriving and isinstance(module, (*_READERS, nn.modules.batchnorm._BatchNorm)):
            if calls.count(name) > 1 or getattr(module, "groups", 1) > 1:
                raise NotFollowedError(f"{name} reads them in a way that cannot be followed")
            found[name] = arriving[0]
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                labels[node] = arriving[0]
        elif arriving and node in network.shapes:
            before = next(n for n in node.all_input_nodes if n in labels)
            passed = reshaped(network.shapes[before], network.shapes[node], labels[before])
            if passed is None and network.shapes[node][:1] == (len(arriving[0]),):
                passed = arriving[0]
            if passed is not None:  # otherwise it is a number of all channels
                labels[node] = passed
    if network.output in labels or not found:
        raise NotFollowedError(f"nothing is known to read {layer}")
    return found


def _taken(module: nn.Module, places: list[int], dim: int) -> nn.Module:
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
