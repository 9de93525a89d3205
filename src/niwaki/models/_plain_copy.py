"""A copy of a network whose weights are all plain parameters, so that channels can be removed."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import remove_spectral_norm, remove_weight_norm
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from niwaki.errors import ModelError

__all__ = ["computes_weights", "deep_copy", "plain_copy"]


def computes_weights(model: nn.Module) -> bool:
    """Whether weights are no parameters but made of some, by weight norm, spectral norm etc."""
    return any(
        is_parametrized(module)
        or any(
            isinstance(hook, (WeightNorm, SpectralNorm))
            for hook in module._forward_pre_hooks.values()
        )
        for module in model.modules()
    )


def plain_copy(model: nn.Module) -> nn.Module:
    """Copy a network and make permanent what weight norm, spectral norm and the like compute.

    Raises
    ------
    ModelError
        If weights are under a mask of `torch.nn.utils.prune`, which fine-tuning would have to
        respect, or the network cannot be copied.
    """
    for name, module in model.named_modules():
        if any(isinstance(hook, BasePruningMethod) for hook in module._forward_pre_hooks.values()):
            raise ModelError(
                f"the weight of {name!r} is made anew in each pass by a mask of "
                "torch.nn.utils.prune, so that its channels cannot be removed. Make it permanent "
                "first: torch.nn.utils.prune.remove"
            )
    copied = deep_copy(model)
    for module in list(copied.modules()):
        if is_parametrized(module):
            _make_permanent(module)
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, WeightNorm):
                remove_weight_norm(module, hook.name)
            elif isinstance(hook, SpectralNorm):
                remove_spectral_norm(module, hook.name)
    return copied


def deep_copy(model: nn.Module) -> nn.Module:
    """Copy a network as it is; of what it has kept of a pass, the values without their history.

    Raises
    ------
    ModelError
        If it cannot be copied.
    """
    try:
        return copy.deepcopy(model, _kept(model))
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} cannot be copied ({error}). Remove what it holds of a pass, "
            "such as cached outputs, and pass it again"
        ) from error


def _make_permanent(module: nn.Module) -> None:
    """Do what torch does, which would spoil the original, too: they share a class."""
    parametrizations = module.parametrizations
    assert isinstance(parametrizations, nn.ModuleDict)
    values = {name: getattr(module, name).detach().clone() for name in parametrizations}
    trained = {n: any(p.requires_grad for p in parametrizations[n].parameters()) for n in values}
    del module._modules["parametrizations"]
    module.__class__ = type(module).__bases__[0]
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value, requires_grad=trained[name]))


def _kept(model: nn.Module) -> dict[int, Any]:
    """Copy the tensors that a pass has left on a network, by their ids: they are no leaves.

    Such are weights that hooks compute, and activations that a network's code keeps, alone or in
    lists and dictionaries. torch refuses to copy them.
    """
    copied: dict[int, Any] = {}
    for module in model.modules():
        for value in _tensors(vars(module), set()):
            if not value.is_leaf:
                copied[id(value)] = value.detach().clone()
    return copied


def _tensors(value: Any, seen: set[int]) -> Iterator[Tensor]:
    """Find the tensors in nested containers."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (dict, list, tuple, set)) and id(value) not in seen:
        seen.add(id(value))
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part, seen)
