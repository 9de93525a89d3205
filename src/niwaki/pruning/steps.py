"""What each search that removes units step by step needs, such as that of `niwaki.car`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor, nn

from niwaki.criteria import hidden_layers
from niwaki.data import Data
from niwaki.evaluation import Cost, accuracy
from niwaki.models import deep_copy
from niwaki.propagation import Layer, trace
from niwaki.pruning._saved import shapes
from niwaki.pruning._trajectory import Step
from niwaki.pruning.repair._fine_tune import run_loop
from niwaki.pruning.units._budget import ROUNDING, Budget, Of
from niwaki.pruning.units._coupling import Coupling, Group, couple

__all__ = ["ROUNDING", "Measure", "Structure", "deep_copy", "run_loop", "shapes"]


class Structure:
    """What is known of a network that does not change: each part is found when first asked for.

    Parameters
    ----------
    model : nn.Module
        Our own copy, which is not changed any more; what is found here holds for its copies, too.
    example : Tensor
        Inputs to trace it with.
    """

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        self.model, self.example = model, example
        self._coupling: tuple[tuple[Sequence[str], ...], Coupling] | None = None

    @cached_property
    def layers(self) -> list[Layer]:
        """The layers that count."""
        return trace(self.model, self.example[:1])

    @cached_property
    def hidden(self) -> list[Layer]:
        """The layers whose units are not the network's outputs."""
        return hidden_layers(self.model, self.example[:1], self.layers)

    @cached_property
    def cost(self) -> Cost:
        """What the network costs."""
        return Cost.of(self.model, self.layers)

    def coupling(self, scored: Sequence[str], ignore: Sequence[str]) -> Coupling:
        """Return the groups that may be removed, see `couple`; warns of choices."""
        asked = tuple(scored), tuple(ignore)
        if self._coupling is None or self._coupling[0] != asked:
            self._coupling = asked, couple(self.model, self.example, scored, ignore)
            self._coupling[1].warn_of_choices()
        return self._coupling[1]

    def budget(
        self, groups: Sequence[Group], of: Of, prices: Mapping[str, float] | None = None
    ) -> Budget:
        """Return the cost of the network, from which removals can be subtracted."""
        return Budget(self.model, self.layers, groups, of, prices)


@dataclass(frozen=True)
class Measure:
    """Measures a network after each step.

    Attributes
    ----------
    test, validation : Data, optional
        What accuracies are measured on.
    batch_size : int
        Size of the batches of data sets and tensors.
    """

    test: Data | None = None
    validation: Data | None = None
    batch_size: int = 32

    def accuracy(self, model: nn.Module, data: Data | None) -> float | None:
        """Measure the accuracy; None without data."""
        return None if data is None else accuracy(model, data, batch_size=self.batch_size)

    def step(
        self, number: int, seen: Structure, since: float, validation: float | None = None
    ) -> Step:
        """Measure a network after a step that began at `since`; `validation` where it is known."""
        right = self.accuracy(seen.model, self.test)
        held = self.accuracy(seen.model, self.validation) if validation is None else validation
        now, seconds = seen.cost, time.perf_counter() - since
        return Step(number, now.units, now.params, now.macs, right, None, seconds, held)

    def tuned(self, step: Step, model: nn.Module, since: float) -> Step:
        """Measure it again after fine-tuning."""
        right = self.accuracy(model, self.test)
        held = (
            self.accuracy(model, self.validation)
            if self.validation is not None
            else step.validation
        )
        seconds = time.perf_counter() - since
        return replace(step, accuracy_tuned=right, validation=held, seconds=seconds)
