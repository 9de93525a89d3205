"""Masks of weights: which stay, and a network in which the others are zero."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

from niwaki.criteria import Scores
from niwaki.errors import ModelError
from niwaki.models import deep_copy
from niwaki.ranges import INSIDE, UNITS, checked

__all__ = ["Over", "mask_weights", "masked", "place", "select_weights"]

Over = Literal["network", "layer"]


@checked(keep=INSIDE, min_weights=UNITS.but(low=0))
def select_weights(
    scores: Scores,
    keep: float,
    *,
    over: Over = "network",
    min_weights: int = 1,
    among: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Choose the weights that stay: those with the highest scores.

    Parameters
    ----------
    scores : Scores
        From `niwaki.criteria.score_weights`.
    keep : float
        Share to keep, between 0 and 1; the number of weights is exact, rounded to the nearest.
    over : {"network", "layer"}
        Whether all layers are ranked together or each by itself.
    min_weights : int
        Weights that each layer keeps at the least.
    among : mapping of str to Tensor, optional
        Masks of the weights that are there still: the others are gone for good. The share is of
        all weights all the same.

    Returns
    -------
    dict of str to Tensor
        For each layer a mask in the weight's shape, True where a weight stays. Of equal scores the
        first is removed first, by the order of layers and then of weights.

    Raises
    ------
    ValueError
        For options out of range, and for scores of units.
    """
    for layer, values in scores.items():
        if values.dim() < 2:
            raise ValueError(
                f"the scores of {layer!r} are one for each unit; this needs one for each weight, "
                "from niwaki.criteria.score_weights"
            )
    ranked: dict[str, Tensor] = {}
    for layer, values in scores.items():
        flat = values.flatten().clone()
        if among is not None:
            flat[~among[layer].flatten()] = -torch.inf
        if min_weights:
            flat[flat.argsort(stable=True)[-min_weights:]] = torch.inf
        ranked[layer] = flat
    pools = [list(ranked)] if over == "network" else [[layer] for layer in ranked]
    masks: dict[str, Tensor] = {}
    for pool in pools:
        values = torch.cat([ranked[layer] for layer in pool])
        stays = torch.ones(len(values), dtype=torch.bool)
        stays[values.argsort(stable=True)[: round((1 - keep) * len(values))]] = False
        parts = torch.split(stays, [len(ranked[layer]) for layer in pool])
        for layer, part in zip(pool, parts, strict=True):
            masks[layer] = (part | ranked[layer].isposinf()).view(scores[layer].shape)
    return masks


def mask_weights(model: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """Copy a network and set the weights outside the masks to zero permanently.

    Parameters
    ----------
    model : nn.Module
        Stays as it is.
    masks : mapping of str to Tensor
        Layer name to a mask in the shape of its weight, True where a weight stays.

    Returns
    -------
    nn.Module
        A plain network: the masks are multiplied into the weights.

    Raises
    ------
    ModelError
        For a layer that the network does not have, or whose weight is not a parameter.
    ValueError
        For a mask of another shape, or of numbers.
    """
    copied = masked(model, masks)
    for layer in masks:
        module, name = place(model, layer)
        torch_prune.remove(copied.get_submodule(module), name)  # type: ignore[no-untyped-call]
    return copied


def masked(model: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """Copy a network under masks of `torch.nn.utils.prune`, which hold while it is trained.

    Parameters and errors are those of `mask_weights`. `torch.nn.utils.prune.remove` makes the
    masks permanent.
    """
    for layer, mask in masks.items():
        module, name = place(model, layer)
        shape = model.get_submodule(module).get_parameter(name).shape
        if mask.shape != shape:
            raise ValueError(
                f"the mask of {layer!r} has shape {tuple(mask.shape)}, its weight {tuple(shape)}"
            )
        check_mask(layer, mask)
    copied: nn.Module = deep_copy(model)
    for layer, mask in masks.items():
        owner, name = place(model, layer)
        holder = copied.get_submodule(owner)
        on_device = mask.to(holder.get_parameter(name))
        torch_prune.custom_from_mask(holder, name, on_device)  # type: ignore[no-untyped-call]
    return copied


def check_mask(layer: str, mask: Tensor) -> None:
    """Refuse a mask of numbers, which would scale the weights instead of keeping or removing them.

    Raises
    ------
    ValueError
        If it holds anything but booleans.
    """
    if mask.dtype != torch.bool:
        raise ValueError(
            f"the mask of {layer!r} is of type {mask.dtype}; a mask is True where a weight stays: "
            "give a comparison, such as mask > 0"
        )


def place(model: nn.Module, layer: str) -> tuple[str, str]:
    """Return the name of the module that holds a layer's weight, and the weight's name in it.

    Raises
    ------
    ModelError
        If there is none, or the weight is made anew in each pass.
    """
    modules = dict(model.named_modules())
    owner, _, name = layer.rpartition(".")
    # A layer that is no module bears the name of its parameter.
    for module, parameter in ((layer, "weight"), (owner, name)):
        if module in modules and modules[module]._parameters.get(parameter) is not None:
            return module, parameter
    raise ModelError(
        f"the weight of {layer!r} is no parameter of {type(model).__name__}, so that none of its "
        "values can be set to zero. Make masks (torch.nn.utils.prune) and parametrizations "
        "permanent first, or keep the layer: ignore=[...]"
    )
