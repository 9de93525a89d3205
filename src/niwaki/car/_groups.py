"""Which units are judged, and a copy of the network to judge them on."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from niwaki import models
from niwaki.car._units import losing, outputs, units_of
from niwaki.criteria import hidden_layers
from niwaki.data import Data, batches
from niwaki.errors import ModelError, NothingToPruneError
from niwaki.propagation import check_logit
from niwaki.pruning import Group, couple

__all__ = ["Judged", "copy_of", "examples", "judged", "within"]


def examples(model: nn.Module, data: Data, count: int = 8) -> Tensor:
    """Return the first few inputs, at least two rows."""
    inputs, _ = next(iter(batches(data, count, models.home(model))))
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
        The layers that are judged: hidden ones with more than one unit; and their widths.
    widths : dict of str to int
        Of all hidden layers.
    coupled : list of Group
        All groups of the network, also those that are not judged.
    """

    groups: list[Group]
    layers: dict[str, int]
    widths: dict[str, int]
    coupled: list[Group]

    def removable(self, model: nn.Module) -> list[Group]:
        """Return the groups, if there are any.

        Raises
        ------
        NothingToPruneError
            If there is none.
        """
        if not self.groups:
            names = ", ".join(self.layers)
            raise NothingToPruneError(
                f"no unit of {names} can be removed from {type(model).__name__}"
            )
        return self.groups


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
    models.class_outputs(model, example, "the classification accuracy reduction")
    check_logit(model, example)
    widths = {layer.name: layer.units for layer in hidden_layers(model, example[:1])}
    try:
        coupled = list(couple(model, example, list(widths)))
    except (ModelError, IndexError):
        coupled = []  # no layer can lose a unit, and all can be masked
    counts = units_of(coupled, widths)
    several = {layer: width for layer, width in widths.items() if counts[layer] > 1}
    if layers is not None:
        wanted = [layers] if isinstance(layers, str) else list(layers)
        for name in wanted:
            if not any(_within(layer, name) for layer in several):
                raise ValueError(
                    f"layers: {name!r} has no unit that can be judged. Those that have: "
                    + ", ".join(several)
                )
        several = {n: width for n, width in several.items() if any(_within(n, w) for w in wanted)}
    groups = [g for g in losing(coupled, counts) if any(layer in several for layer in outputs(g))]
    if not several:
        raise NothingToPruneError(
            f"{type(model).__name__} has no unit that can be removed. Convolutions and linear "
            "layers must be modules (nn.Conv2d, nn.Linear) with more than one unit"
        )
    return Judged(groups, several, widths, coupled)


def within(groups: Sequence[Group], layers: Sequence[str]) -> list[Group]:
    """Choose the groups that have one of these layers, or a layer within a module so named."""
    wanted = [layers] if isinstance(layers, str) else layers
    return [g for g in groups if any(_within(m, name) for m in outputs(g) for name in wanted)]


def _within(layer: str, name: str) -> bool:
    return f"{layer}.".startswith(f"{name}.")
