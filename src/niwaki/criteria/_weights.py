"""Scores of single weights, from one loop over the reference samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from niwaki import models
from niwaki.criteria._criterion import Criterion
from niwaki.criteria._score import scored
from niwaki.criteria._scores import Scores
from niwaki.criteria._weight_criteria import create_weight_criterion
from niwaki.data import Data
from niwaki.errors import ModelError
from niwaki.propagation import Layer, trace
from niwaki.ranges import BATCH, checked

__all__ = ["score_weights"]


@checked(batch_size=BATCH)
def score_weights(
    model: nn.Module,
    data: Data,
    criterion: str | Criterion = "lrp",
    *,
    batch_size: int = 32,
    normalise: str | None = None,
    **options: Any,
) -> Scores:
    """Score every weight of convolutions and linear layers, the last one's too.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode, returning one tensor of shape (N, classes). Never changed.
    data : DataLoader, Dataset or pair of tensors
        The reference samples with their labels.
    criterion : str or WeightCriterion
        One of `niwaki.criteria.weight_criteria`, or one that is made already.
    batch_size : int
        For a data set or tensors; a loader has its own.
    normalise : str, optional
        How layers are made comparable, see `Scores.normalised`; default: the criterion's own.
    **options
        The criterion's own.

    Returns
    -------
    Scores
        Layer name to one value per weight, in the weight's shape.

    Raises
    ------
    ValueError
        For a criterion that does not exist, or scores units.
    ModelError, DataError
        For a network or data that cannot be scored.

    Examples
    --------
    >>> scores = niwaki.criteria.score_weights(model, (images, labels), "lrp")
    >>> scores["features.0"].shape == model.features[0].weight.shape
    True
    """
    made = create_weight_criterion(criterion, **options)
    scores, layers = scored(model, data, made, _layers, batch_size, "scoring weights")
    _check_shapes(scores, layers)
    return scores.normalised(made.normalise if normalise is None else normalise)


def _layers(model: nn.Module, inputs: Tensor) -> list[Layer]:
    models.check(model)
    return trace(model, inputs)


def _check_shapes(values: Mapping[str, Tensor], layers: list[Layer]) -> None:
    for layer in layers:
        weight = layer.operation.weight
        assert weight is not None
        if values[layer.name].shape != weight.shape:
            raise ModelError(
                f"the weight of {layer.name!r} is not a parameter as it is used (shape "
                f"{tuple(weight.shape)}, parameter {tuple(values[layer.name].shape)}): make a "
                "parametrization permanent, or transpose the parameter itself"
            )
