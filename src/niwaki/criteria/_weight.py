"""The size of a filter's weights as a criterion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from niwaki.accumulation import Totals
from niwaki.criteria._criterion import Criterion
from niwaki.criteria._filters import weights_by_filter
from niwaki.criteria._registry import register, register_variant
from niwaki.propagation import Layer

__all__ = ["Weight"]


@register("weight")
class Weight(Criterion):
    """Norm of a unit's weights, by default their absolute sum (Li et al. 2017); needs no data.

    Parameters
    ----------
    p : {1, 2}
        Of the norm: the sum of absolute weights, or the root of the sum of squares.
    normalise : str, optional
        See `Scores.normalised`; default ``"l2"``.
    """

    default_normalise: ClassVar[str] = "l2"
    needs_data: ClassVar[bool] = False

    def __init__(self, *, p: int = 1, normalise: str | None = None) -> None:
        super().__init__(normalise=normalise)
        if p not in (1, 2):
            raise ValueError(f"p = {p!r} is neither 1 nor 2")
        self.p = p

    def scores(
        self, totals: Totals, layers: Sequence[Layer], model: nn.Module
    ) -> dict[str, Tensor]:
        """See `Criterion.scores`."""
        return {
            layer.name: torch.linalg.vector_norm(weights_by_filter(layer), self.p, dim=1)
            for layer in layers
        }


register_variant(
    "weight.l2", "weight", "Euclidean norm of a unit's weights (He et al. 2018); no data.", p=2
)
