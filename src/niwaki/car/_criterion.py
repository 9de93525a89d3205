"""The classification accuracy reduction as a criterion of pruning."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from niwaki.accumulation import Totals
from niwaki.car._car_index import scores_of
from niwaki.car._evaluator import Evaluator
from niwaki.car._index import measure
from niwaki.car._units import checked_copy, list_units, name_of
from niwaki.criteria import Criterion, register
from niwaki.data import Data, batches
from niwaki.machine import parse_bytes
from niwaki.models import home
from niwaki.processes import size
from niwaki.propagation import Layer
from niwaki.runs import identified


@register("car")
class Car(Criterion):
    """Images that are lost without a unit, ties broken by the margin (Abbasi-Asl & Yu 2017).

    The score is the number of right images lost, net, plus a number between 0 and 1 that orders
    equals by the mean margin. Where layers are coupled, it stands with the first of them, and the
    others have zeros: a unit has one reduction, however many layers lose it.

    Parameters
    ----------
    max_memory : int or str
        Bytes to stay below, such as ``"500MB"``.
    normalise : str, optional
        See `Scores.normalised`; default ``"none"``: images are images in every layer.
    """

    needs_data: ClassVar[bool] = True
    _untold: ClassVar[tuple[str, ...]] = ("name",)

    def __init__(self, *, max_memory: int | str = "2GB", normalise: str | None = None) -> None:
        super().__init__(normalise=normalise)
        self.max_memory = max_memory
        parse_bytes(max_memory)
        self._prepared: tuple[str, Evaluator] | None = None

    def prepared(self, model: nn.Module, data: Data, batch_size: int) -> Criterion:
        """Begin anew for a network, and look at the first images.

        A process of several may get none in `batch`.
        """
        ready = copy.copy(self)
        ready._prepared = None
        if size() > 1:
            example = next(batches(data, 8, home(model)))[0][:8]
            ready._evaluator(ready.network(model, example), example)
        return ready

    def batch(self, model: nn.Module, inputs: Tensor, labels: Tensor) -> Mapping[str, Tensor]:
        """See `Criterion.batch`."""
        evaluator = self._evaluator(model, inputs)
        totals, most = Totals(), evaluator.batch_size(len(inputs))
        for start in range(0, len(inputs), most):
            x, y = inputs[start : start + most], labels[start : start + most]
            totals = totals.update(measure(evaluator, x, y), len(x))
        return totals.sums

    def scores(
        self, totals: Totals, layers: Sequence[Layer], model: nn.Module
    ) -> dict[str, Tensor]:
        """See `Criterion.scores`."""
        found = {layer.name: torch.zeros(layer.units, dtype=torch.float64) for layer in layers}
        assert self._prepared is not None
        for group in self._prepared[1].groups:
            broken, mended = (totals.sums[f"{k}/{name_of(group)}"] for k in ("broken", "mended"))
            margin = totals.sums[f"margin_change/{name_of(group)}"] / totals.samples
            first = [unit[0] for unit in group.units]
            found[group.root][first] = scores_of((broken - mended).sum(1), margin)
        return found

    def _evaluator(self, model: nn.Module, inputs: Tensor) -> Evaluator:
        """Prepare once for a network: pruning changes it from step to step."""
        mark = identified(model)
        if self._prepared is None or self._prepared[0] != mark:
            own = checked_copy(model)
            example = inputs[:8] if len(inputs) > 1 else torch.cat([inputs, inputs])
            units = list_units(own, example)
            memory = parse_bytes(self.max_memory)
            evaluator = Evaluator(own, example, units.groups, memory, masks=units.layers)
            self._prepared = mark, evaluator
        return self._prepared[1]
