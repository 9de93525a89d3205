"""Criteria that look at the weights alone, or at nothing."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from niwaki.accumulation import Totals
from niwaki.criteria._catalogue import register, register_variant
from niwaki.criteria._criterion import (
    ByLayer,
    Criterion,
    Granularity,
    weights_by_filter,
    weights_of,
)
from niwaki.propagation import Layer
from niwaki.ranges import SEED, checked


@register("weight")
class Weight(Criterion):
    """Norm of a unit's weights, by default their absolute sum (Li et al. 2017); needs no data.

    Parameters
    ----------
    p : {1, 2}
        Which norm: the sum of absolute weights, or the root of the sum of squares.
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

    def scores(self, totals: Totals, layers: Sequence[Layer], model: nn.Module) -> ByLayer:
        """See `Criterion.scores`."""
        return {
            layer.name: torch.linalg.vector_norm(weights_by_filter(layer), self.p, dim=1)
            for layer in layers
        }


register_variant(
    "weight.l2", "weight", "Euclidean norm of a unit's weights (He et al. 2018); no data.", p=2
)


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

    def scores(self, totals: Totals, layers: Sequence[Layer], model: nn.Module) -> ByLayer:
        """See `Criterion.scores`."""
        return {layer.name: _distances(weights_by_filter(layer)) for layer in layers}


def _distances(rows: Tensor) -> Tensor:
    return torch.cdist(rows, rows).sum(1)


@register("magnitude", "weight")
class Magnitude(Criterion):
    """Absolute value of each weight (Han et al. 2015); needs no data.

    Parameters
    ----------
    normalise : str, optional
        See `Scores.normalised`; default ``"none"``.
    """

    granularity: Granularity = "weight"
    needs_data: ClassVar[bool] = False

    def scores(self, totals: Totals, layers: Sequence[Layer], model: nn.Module) -> ByLayer:
        """See `Criterion.scores`."""
        return {layer.name: weights_of(layer).abs() for layer in layers}


class _OfEither(Criterion):
    """A criterion that scores units or weights, as it is told.

    Parameters
    ----------
    granularity : {"unit", "weight"}
        What gets a score.
    normalise : str, optional
        See `Scores.normalised`; default ``"none"``.
    """

    needs_data: ClassVar[bool] = False

    def __init__(self, *, granularity: Granularity = "unit", normalise: str | None = None) -> None:
        super().__init__(normalise=normalise)
        self.granularity = granularity


@register("lamp", "weight")
@register("lamp")
class Lamp(_OfEither):
    """Square of a unit's or weight's size, over those at least as large (Lee et al. 2021; LAMP).

    Layer-adaptive magnitude: the sum runs over the weights of the layer that would still be there
    when this one is removed. The published score is that of single weights; a unit takes a weight's
    place with the norm of its weights, as in torch-pruning. The largest of every layer has the
    score 1, so that no layer is emptied. Needs no data.

    Parameters
    ----------
    granularity : {"unit", "weight"}
        What gets a score.
    normalise : str, optional
        See `Scores.normalised`; default ``"none"``: the score is comparable as it is.
    """

    def scores(self, totals: Totals, layers: Sequence[Layer], model: nn.Module) -> ByLayer:
        """See `Criterion.scores`."""
        if self.granularity == "weight":
            squares = {layer.name: weights_of(layer).square() for layer in layers}
        else:
            squares = {layer.name: weights_by_filter(layer).square().sum(1) for layer in layers}
        return {name: _share_of_the_larger(values) for name, values in squares.items()}


def _share_of_the_larger(squares: Tensor) -> Tensor:
    distinct, where, counts = torch.unique(squares, return_inverse=True, return_counts=True)
    at_least = (distinct * counts).flip(0).cumsum(0).flip(0)
    return torch.where(at_least > 0, distinct / at_least, at_least)[where]


@checked(seed=SEED)
@register("random", "weight")
@register("random")
class Random(_OfEither):
    """Uniform random scores: what any criterion must beat.

    Parameters
    ----------
    seed : int, optional
        Seed of the draw; the same seed gives the same scores for the same layers. Default: that of
        the comparison or command it takes part in, or 0.
    granularity : {"unit", "weight"}
        What gets a score.
    normalise : str, optional
        See `Scores.normalised`; default ``"none"``.
    """

    def __init__(
        self,
        *,
        seed: int | None = None,
        granularity: Granularity = "unit",
        normalise: str | None = None,
    ) -> None:
        super().__init__(granularity=granularity, normalise=normalise)
        self.seed = seed

    @property
    def draws(self) -> bool:
        """See `Criterion.draws`."""
        return self.seed is None

    @checked(seed=SEED)
    def seeded(self, seed: int) -> Criterion:
        """See `Criterion.seeded`."""
        twin = copy.copy(self)
        twin.seed = seed if self.draws else self.seed
        return twin

    def scores(self, totals: Totals, layers: Sequence[Layer], model: nn.Module) -> ByLayer:
        """See `Criterion.scores`."""
        generator = torch.Generator().manual_seed(self.seed or 0)
        one_each = self.granularity == "unit"
        return {
            layer.name: torch.rand(
                (layer.units,) if one_each else weights_of(layer).shape,
                generator=generator,
                dtype=torch.float64,
            )
            for layer in layers
        }
