"""Layer-adaptive magnitude as a criterion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from niwaki.accumulation import Totals
from niwaki.criteria._criterion import Criterion
from niwaki.criteria._filters import weights_by_filter
from niwaki.criteria._registry import register
from niwaki.propagation import Layer

__all__ = ["Lamp"]


@register("lamp")
class Lamp(Criterion):
    """Squared norm of a unit, over those of all in its layer at least as large (Lee et al. 2021).

    The published score is that of single weights; here a unit takes a weight's place, as in
    torch-pruning. The largest unit of every layer has the score 1, so that no layer is emptied.
    Needs no data.

    Parameters
    ----------
    normalise : str, optional
        See `Scores.normalised`; default ``"none"``: the score is comparable as it is.
    """

    needs_data: ClassVar[bool] = False

    def scores(
        self, totals: Totals, layers: Sequence[Layer], model: nn.Module
    ) -> dict[str, Tensor]:
        """See `Criterion.scores`."""
        return {
            layer.name: _share_of_the_larger(weights_by_filter(layer).square().sum(1))
            for layer in layers
        }


def _share_of_the_larger(squares: Tensor) -> Tensor:
    distinct, where, counts = torch.unique(squares, return_inverse=True, return_counts=True)
    at_least = (distinct * counts).flip(0).cumsum(0).flip(0)
    return torch.where(at_least > 0, distinct / at_least, at_least)[where]
