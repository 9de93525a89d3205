"""Which units are judged, and a copy of the network to judge them on."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from niwaki import models
from niwaki.criteria import hidden_layers
from niwaki.data import Data, batches
from niwaki.errors import ModelError, NothingToPruneError
from niwaki.propagation import check_logit
from niwaki.pruning import Group, couple

__all__ = ["Judged", "copy_of", "device_of", "examples", "judged", "removable", "within"]


def device_of(model: nn.Module) -> torch.device:
    """Return where a network's parameters are."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def examples(model: nn.Module, data: Data, count: int = 8) -> Tensor:
    """Return the first few inputs, at least two rows."""
    inputs, _ = next(iter(batches(data, count, device_of(model))))
    return inputs[:count] if len(inputs) > 1 else inputs.repeat(2, *[1] * (inputs.dim() - 1))


def copy_of(model: nn.Module) -> nn.Module:
    """Check a network and copy it.

    Raises
    ------
    ModelError
        In training mode, with NaN weights, or if it cannot be copied.
    """
    models.check(model)
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} cannot be copied ({error}). Remove what it holds of a pass, "
            "such as cached outputs, and pass it again"
        ) from error


@dataclass(frozen=True)
class Judged:
    """What may be judged of a network.

    Attributes
    ----------
    groups : list of Group
        Those that lose a unit without being emptied, in the order of the signal.
    layers : dict of str to int
        All hidden layers with more than one unit, and their number of units.
    """

    groups: list[Group]
    layers: dict[str, int]


def judged(model: nn.Module, example: Tensor, layers: Sequence[str] | None = None) -> Judged:
    """List what may be judged.

    Parameters
    ----------
    model : nn.Module
        A copy that is ours.
    example : Tensor
        Two inputs or more.
    layers : sequence of str, optional
        Only these layers, or layers within modules of these names.

    Raises
    ------
    ValueError
        For a name that fits no layer.
    ModelError
        If the network's output is no tensor of shape (N, classes) or (N, 1).
    NothingToPruneError
        If there is none.
    """
    with torch.no_grad():
        output = model(example)
    models.class_logits(output, "the classification accuracy reduction")
    check_logit(model, example)
    hidden = {layer.name: layer.units for layer in hidden_layers(model, example[:1])}
    try:
        coupled = couple(model, example, list(hidden))
    except ModelError:
        coupled = []  # no layer can lose a unit, and all can be masked
    whole = {m.layer for group in coupled if len(group) == 1 for m in group.members if m.output}
    groups = [group for group in coupled if len(group) > 1]
    several = {name: units for name, units in hidden.items() if units > 1 and name not in whole}
    if layers is not None:
        wanted = [layers] if isinstance(layers, str) else list(layers)
        for name in wanted:
            if not any(_within(layer, name) for layer in several):
                raise ValueError(
                    f"layers: {name!r} has no unit that can be judged. Those that have: "
                    + ", ".join(several)
                )
        groups = within(groups, wanted)
        several = {n: units for n, units in several.items() if any(_within(n, w) for w in wanted)}
    if not several:
        raise NothingToPruneError(
            f"{type(model).__name__} has no unit that can be removed. Convolutions and linear "
            "layers must be modules (nn.Conv2d, nn.Linear) with more than one unit"
        )
    return Judged(groups, several)


def removable(
    model: nn.Module, example: Tensor, layers: Sequence[str] | None = None
) -> list[Group]:
    """List the groups that lose a unit without being emptied, in the order of the signal.

    Parameters and errors are those of `judged`.
    """
    found = judged(model, example, layers)
    if not found.groups:
        names = ", ".join(found.layers)
        raise NothingToPruneError(f"no unit of {names} can be removed from {type(model).__name__}")
    return found.groups


def within(groups: Sequence[Group], layers: Sequence[str]) -> list[Group]:
    """Choose the groups that have one of these layers, or a layer within a module so named."""
    return [group for group in groups if any(_has(group, name) for name in layers)]


def _has(group: Group, name: str) -> bool:
    return any(m.output and _within(m.layer, name) for m in group.members)


def _within(layer: str, name: str) -> bool:
    return f"{layer}.".startswith(f"{name}.")
