"""Criteria that need no derivative: weight, activation, random."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from niwaki.accumulation import Totals
from niwaki.criteria._criterion import Criterion, UnitSums, per_unit_size
from niwaki.criteria._registry import register
from niwaki.propagation import Layer, Operation, observe

__all__ = ["Activation", "Random", "Weight"]


@register("weight")
class Weight(Criterion):
    """Sum of the absolute weights of a unit (Li et al. 2017); needs no data.

    Parameters
    ----------
    normalise : str, optional
        See `Scores.normalised`; default ``"l2"``.
    """

    default_normalise: ClassVar[str] = "l2"
    needs_data: ClassVar[bool] = False

    def scores(
        self, totals: Totals, layers: Sequence[Layer], model: nn.Module
    ) -> dict[str, Tensor]:
        """See `Criterion.scores`."""
        return {layer.name: self._norms(layer.operation) for layer in layers}

    @staticmethod
    def _norms(layer: Operation) -> Tensor:
        assert layer.weight is not None
        weight = layer.weight.detach().to(torch.float64).abs()
        if layer.channel_dim == 0:
            return weight.flatten(1).sum(1)
        # Transposed: (in, out / groups, ...), the input channels ordered by group.
        per_group = weight.flatten(1).view(layer.groups, -1, *weight.shape[1:])
        return per_group.flatten(3).sum((1, 3)).flatten() if weight.dim() > 2 else weight.sum(0)


class _ActivationSums(UnitSums):
    """Observer that sums each unit's output behind its activation."""

    def __init__(self) -> None:
        super().__init__()
        self._latest: dict[Operation, Tensor] = {}

    def output(self, operation: Operation, output: Tensor) -> None:
        """Read the output; an activation behind it overrules this."""
        self._latest[operation] = per_unit_size(operation, output.detach())

    activation = output

    def finish(self) -> dict[str, Tensor]:
        """Sum over the uses of each layer."""
        for operation, values in self._latest.items():
            self.add(operation, values)
        return self.sums


@register("activation")
class Activation(Criterion):
    """Mean absolute output of a unit, behind its activation (Molchanov et al. 2017).

    Parameters
    ----------
    normalise : str, optional
        See `Scores.normalised`; default ``"l2"``.
    """

    default_normalise: ClassVar[str] = "l2"

    def batch(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Mapping[str, Tensor]:
        """See `Criterion.batch`."""
        sums = _ActivationSums()
        observe(model, inputs, [sums])
        return sums.finish()

    def scores(
        self, totals: Totals, layers: Sequence[Layer], model: nn.Module
    ) -> dict[str, Tensor]:
        """See `Criterion.scores`."""
        return {
            layer.name: totals.sums[layer.name] / (totals.samples * layer.positions)
            for layer in layers
        }


@register("random")
class Random(Criterion):
    """Uniform random scores: what any criterion must beat.

    Parameters
    ----------
    seed : int
        Of the draw; the same seed gives the same scores for the same layers.
    normalise : str, optional
        See `Scores.normalised`; default ``"none"``.
    """

    needs_data: ClassVar[bool] = False

    def __init__(self, *, seed: int = 0, normalise: str | None = None) -> None:
        super().__init__(normalise=normalise)
        self.seed = seed

    def scores(
        self, totals: Totals, layers: Sequence[Layer], model: nn.Module
    ) -> dict[str, Tensor]:
        """See `Criterion.scores`."""
        generator = torch.Generator().manual_seed(self.seed)
        return {
            layer.name: torch.rand(layer.units, generator=generator, dtype=torch.float64)
            for layer in layers
        }
