"""Criteria made of what a unit sends on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from niwaki.accumulation import Totals
from niwaki.criteria._catalogue import register
from niwaki.criteria._criterion import ByLayer, Criterion, UnitSums, other_dimensions, per_unit_size
from niwaki.propagation import Layer, Operation, observe

Measure = Callable[[Operation, Tensor], Tensor]


class _OutputSums(UnitSums):
    """Observer that sums a measure of each unit's output behind its activation.

    Beside each layer's sums stands ``"LAYER/values"``, how many values of a unit there were.
    """

    def __init__(self, measure: Measure) -> None:
        super().__init__()
        self.measure = measure
        self._latest: dict[Operation, tuple[Tensor, int]] = {}

    def output(self, operation: Operation, output: Tensor) -> None:
        """Read the output; an activation behind it overrules this."""
        measured = self.measure(operation, output.detach())
        self._latest[operation] = measured, output.numel() // len(measured)

    activation = output

    def finish(self) -> dict[str, Tensor]:
        """Sum over the uses of each layer."""
        counts: dict[str, Tensor] = {}
        for operation, (measured, count) in self._latest.items():
            self.add(operation, measured)
            name = f"{operation.layer}/values"
            counts[name] = torch.tensor(count, device=measured.device) + counts.get(name, 0)
        return {**self.sums, **counts}


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
        sums = _OutputSums(self._measure)
        observe(model, inputs, [sums])
        return sums.finish()

    def scores(self, totals: Totals, layers: Sequence[Layer], model: nn.Module) -> ByLayer:
        """See `Criterion.scores`."""
        return {
            layer.name: totals.sums[layer.name] / totals.sums[f"{layer.name}/values"]
            for layer in layers
        }

    @staticmethod
    def _measure(operation: Operation, output: Tensor) -> Tensor:
        return per_unit_size(operation, output)


@register("apoz")
class Apoz(Activation):
    """Share of a unit's outputs behind its ReLU that are not zero (1 - APoZ, Hu et al. 2016).

    APoZ is the average percentage of zeros. Where no ReLU directly follows a layer, as before a
    residual sum, its outputs are hardly ever zero: such units score about 1 and are removed last.

    Parameters
    ----------
    normalise : str, optional
        See `Scores.normalised`; default ``"none"``.
    """

    default_normalise: ClassVar[str] = "none"

    @staticmethod
    def _measure(operation: Operation, output: Tensor) -> Tensor:
        others = other_dimensions(operation, output)
        return torch.count_nonzero(output, others) if others else output.ne(0).long()
