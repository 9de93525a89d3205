"""Distance to the other filters of the layer as a criterion."""

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

__all__ = ["GeometricMedian"]


@register("fpgm")
class GeometricMedian(Criterion):
    """Sum of a unit's distances to the other units of its layer (He et al. 2019); needs no data.

    A unit near the geometric median of its layer is the one that the others replace best. The
    source ranks within each layer only, and says nothing of how layers compare.

    Parameters
    ----------
    normalise : str, optional
        See `Scores.normalised`; default ``"l2"``, as for `Weight`: a sum of distances grows with
        the number of units.
    """

    default_normalise: ClassVar[str] = "l2"
    needs_data: ClassVar[bool] = False

    def scores(
        self, totals: Totals, layers: Sequence[Layer], model: nn.Module
    ) -> dict[str, Tensor]:
        """See `Criterion.scores`."""
        return {layer.name: _distances(weights_by_filter(layer)) for layer in layers}


def _distances(rows: Tensor) -> Tensor:
    return torch.cdist(rows, rows).sum(1)
