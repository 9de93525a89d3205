"""PatternAttribution as a criterion."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import nn

from niwaki.attribution import fit_patterns
from niwaki.criteria._criterion import Criterion
from niwaki.criteria._lrp import Reduce, Relevance
from niwaki.criteria._registry import register
from niwaki.data import Data, batches
from niwaki.models import home
from niwaki.propagation import pattern_attribution

__all__ = ["PatternRelevance"]


@register("pattern_attribution")
class PatternRelevance(Relevance):
    """Relevance by PatternAttribution that reaches a unit (rule: Kindermans et al. 2018).

    As `Relevance`, with weights times patterns in place of the weights. The patterns, the direction
    in which each unit's signal lies, are fitted on the reference samples in a pass of their own
    before the scoring; a unit that none of them activates has no pattern and hands nothing on.
    Transposed convolutions have no patterns.

    Parameters
    ----------
    estimator : {"relu", "linear", "negative"}
        See `niwaki.attribution.fit_patterns`.
    reduce, target
        See `Relevance`.
    normalise : str, optional
        See `Scores.normalised`; default ``"none"``.
    """

    def __init__(
        self,
        *,
        estimator: Literal["relu", "linear", "negative"] = "relu",
        reduce: Reduce = "absolute",
        target: Literal["true", "predicted"] = "true",
        normalise: str | None = None,
    ) -> None:
        super().__init__(
            composite=pattern_attribution({}),  # the patterns come with the data
            reduce=reduce,
            target=target,
            normalise=normalise,
            max_loss=None,
        )
        self.estimator = estimator

    def prepared(self, model: nn.Module, data: Data, batch_size: int) -> Criterion:
        """Return the criterion with patterns fitted on the reference samples."""
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        example, _ = next(iter(batches(data, batch_size, home(model))))
        judged = self.network(model, example)
        patterns = fit_patterns(judged, data, estimator=self.estimator, batch_size=batch_size)
        ready = copy.copy(self)
        ready.composite = pattern_attribution(patterns.to(device))
        return ready

    def __repr__(self) -> str:
        return (
            f"PatternRelevance({self.estimator}, reduce={self.reduce!r}, target={self.target!r}, "
            f"normalise={self.normalise!r})"
        )
