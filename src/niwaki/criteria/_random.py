"""Chance as a criterion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from niwaki.accumulation import Totals
from niwaki.criteria._criterion import Criterion
from niwaki.criteria._registry import register
from niwaki.propagation import Layer
from niwaki.ranges import SEED, checked

__all__ = ["Random"]


@checked(seed=SEED)
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
