"""Physical removal: parameters and buffers without the channels that go."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from niwaki.models.zoo import ShortcutA
from niwaki.pruning.units._tracing import Followed
from niwaki.pruning.units._variables import loses_groups

__all__ = ["cut", "cut_for_a_moment", "cut_shortcut"]


def cut(model: nn.Module, followed: Followed, doomed: Tensor) -> None:
    """Take channels out of a network, in place.

    Parameters
    ----------
    model : nn.Module
        The network whose channels were followed.
    followed : Followed
        From `follow`.
    doomed : Tensor
        The representatives of the units that go.
    """
    kept = {
        name: tuple(_kept(followed, variables, doomed) for variables in dims)
        for name, dims in followed.tensors.items()
    }
    smaller: dict[int, Tensor] = {}
    for prefix, module in model.named_modules():
        _describe(module, prefix, followed, doomed)
        own: dict[str, Any] = {**module._parameters, **module._buffers}
        for name, tensor in own.items():
            if tensor is None:
                continue
            keep = kept[followed.name_of(prefix, name)]
            if isinstance(module, ShortcutA) or all(k is None for k in keep):
                continue
            if id(tensor) not in smaller:
                smaller[id(tensor)] = _smaller(tensor, keep)
            store = module._parameters if name in module._parameters else module._buffers
            store[name] = smaller[id(tensor)]


@contextmanager
def cut_for_a_moment(model: nn.Module, followed: Followed, doomed: Tensor) -> Iterator[None]:
    """Take channels out, and put them back."""
    before = [
        (module, dict(module.__dict__), dict(module._parameters), dict(module._buffers))
        for module in model.modules()
    ]
    try:
        cut(model, followed, doomed)
        yield
    finally:
        for module, attributes, parameters, buffers in before:
            module.__dict__.update(attributes)
            module._parameters.update(parameters)
            module._buffers.update(buffers)


def cut_shortcut(layer: ShortcutA, outputs: Tensor | None, inputs: Tensor | None) -> None:
    """Take channels out of an option A shortcut; masks are True where a channel stays."""
    source = layer.source
    if inputs is not None:
        # Where each input channel is now; one that is gone leaves a channel of zeros.
        moved = torch.where(inputs, inputs.cumsum(0) - 1, -1).to(source)
        source = torch.cat([moved, moved.new_tensor([-1])])[source]  # -1 stays -1
        layer.in_channels = int(inputs.sum())
    if outputs is not None:
        source = source[outputs.to(source.device)]
    layer.source = source


def _kept(followed: Followed, variables: Tensor | None, doomed: Tensor) -> Tensor | None:
    """Return a mask of what stays along a dimension, or None where all does."""
    if variables is None:
        return None
    gone = torch.isin(followed.units.find(variables), doomed)
    return ~gone if bool(gone.any()) else None


def _smaller(tensor: Tensor, keep: tuple[Tensor | None, ...]) -> Tensor:
    values = tensor.detach()
    for dim, mask in enumerate(keep):
        if mask is not None:
            values = values.index_select(dim, mask.nonzero().flatten().to(values.device))
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(values, requires_grad=tensor.requires_grad)
    return values


def _describe(module: nn.Module, prefix: str, followed: Followed, doomed: Tensor) -> None:
    """Let a module say how wide it is now."""
    outputs, inputs = (_kept(followed, v, doomed) for v in followed.sides(prefix, module))
    if isinstance(module, ShortcutA):
        cut_shortcut(module, outputs, inputs)
    if outputs is None and inputs is None:
        return
    out, into = (None if mask is None else int(mask.sum()) for mask in (outputs, inputs))
    attributes: Mapping[str, int | None] = {}
    if isinstance(module, nn.modules.conv._ConvNd):
        groups = module.groups
        if loses_groups(groups, module.out_channels, module.in_channels):
            left = module.out_channels if out is None else out
            groups = groups * left // module.out_channels
        attributes = {"out_channels": out, "in_channels": into, "groups": groups}
    elif isinstance(module, nn.Linear):
        attributes = {"out_features": out, "in_features": into}
    elif isinstance(module, nn.GroupNorm):
        one_each = module.num_groups == module.num_channels
        attributes = {"num_channels": out, "num_groups": out if one_each else None}
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        attributes = {"num_features": out}
    elif isinstance(module, nn.PReLU):
        attributes = {"num_parameters": out}
    elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        assert out is not None
        module.normalized_shape = (out, *module.normalized_shape[1:])
    for name, value in attributes.items():
        if value is not None:
            setattr(module, name, value)
