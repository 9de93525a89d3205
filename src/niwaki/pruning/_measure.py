"""What is measured after each step, in the same way for all that prune."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from torch import nn

from niwaki.data import Data
from niwaki.evaluation import accuracy
from niwaki.pruning._trajectory import Step
from niwaki.pruning.units._structure import Structure

__all__ = ["Measure"]


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
