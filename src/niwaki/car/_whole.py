"""Networks whose operations cannot be listed: whole passes, silenced or physically pruned."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import Tensor, nn

from niwaki.car._pairs import Pairs, Segment
from niwaki.pruning import Group, Removal, operate

__all__ = ["Removed", "Silenced", "silenceable"]

_NORMS_OVER_CHANNELS = (nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm)


def silenceable(model: nn.Module) -> bool:
    """Whether zeros tell the same as channels that are gone: not where norms count them."""
    return not any(isinstance(module, _NORMS_OVER_CHANNELS) for module in model.modules())


class Silenced:
    """Evaluates a network without single units: whole passes in which no reader sees the unit.

    Parameters
    ----------
    model : nn.Module
        A copy that is ours.
    group : Group
        Whose units are taken out.
    """

    path: ClassVar[str] = "silenced"

    def __init__(self, model: nn.Module, group: Group) -> None:
        self._model = model
        self._readers = {
            model.get_submodule(member.layer): member.channels
            for member in group.members
            if not member.output
            and isinstance(model.get_submodule(member.layer), (nn.modules.conv._ConvNd, nn.Linear))
        }

    def without(self, inputs: Tensor, pairs: Pairs) -> Tensor:
        """Compute the outputs without the unit of each pair; shape (P, classes)."""
        with self._hooked(pairs.segments()):
            return self._model(inputs.index_select(0, pairs.images))  # type: ignore[no-any-return]

    @contextmanager
    def _hooked(self, segments: list[Segment]) -> Iterator[None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            x = args[0].clone()
            channels_first = x.movedim(-1, 1) if isinstance(module, nn.Linear) else x
            for segment in segments:
                channels = list(self._readers[module][segment.unit])
                channels_first[segment.start : segment.stop, channels] = 0
            return (x, *args[1:])

        handles = [module.register_forward_pre_hook(hook) for module in self._readers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


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
    """

    path: ClassVar[str] = "removed"

    def __init__(self, model: nn.Module, example: Tensor, group: Group) -> None:
        self._model = model
        self._example = example
        self._group = group

    def without(self, inputs: Tensor, pairs: Pairs) -> Tensor:
        """Compute the outputs without the unit of each pair; shape (P, classes)."""
        outputs = []
        for segment in pairs.segments():
            smaller = self.remove(segment.unit)
            outputs.append(
                smaller(inputs.index_select(0, pairs.images[segment.start : segment.stop]))
            )
        return torch.cat(outputs)

    def remove(self, unit: int) -> nn.Module:
        """Return the network from which a unit is physically gone.

        Raises
        ------
        ModelError
            If it cannot be removed.
        """
        smaller = copy.deepcopy(self._model)
        operate(smaller, self._example, [Removal(self._group.root, self._group.units[unit])])
        return smaller
