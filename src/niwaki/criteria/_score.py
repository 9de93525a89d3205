"""A criterion by its name, and its scores: one loop over the reference samples for every one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from niwaki import models
from niwaki.accumulation import Totals
from niwaki.contexts import undisturbed
from niwaki.criteria._catalogue import make, names
from niwaki.criteria._combination import Combination
from niwaki.criteria._criterion import Criterion, Granularity
from niwaki.criteria._rebuilt import ENDING, RebuiltError
from niwaki.criteria._scores import Scores
from niwaki.data import Data, batches, check_labels
from niwaki.errors import (
    FallbackWarning,
    LostRelevanceError,
    ModelError,
    NoRuleError,
    NothingToPruneError,
    UnknownOptionError,
)
from niwaki.models import class_outputs, fingerprint, home
from niwaki.options import make_with, split_options
from niwaki.processes import agreed
from niwaki.propagation import Layer, trace
from niwaki.ranges import BATCH, checked
from niwaki.stages import stage

__all__ = ["create", "hidden_layers", "score", "score_weights"]


def create(
    criterion: str | Criterion, granularity: Granularity = "unit", **options: Any
) -> Criterion:
    """Make the criterion of that name; one that is made already is handed on.

    Parameters
    ----------
    criterion : str or Criterion
        One of `niwaki.criteria.names`, with options as in ``"lrp:max_loss=None"``. Criteria of
        units can be added up, as in ``"lrp + 0.5*weight"`` (see `Combination`), and any of their
        names may end in ``".rebuilt"`` (see `RebuiltError`).
    granularity : {"unit", "weight"}
        What it is to score.
    **options
        The criterion's own.

    Raises
    ------
    ValueError
        For a name that does not exist, or a criterion of the other granularity.
    UnknownOptionError
        For an option that the criterion does not have; one that is made already has none.
    """
    if isinstance(criterion, Criterion):
        if options:
            raise UnknownOptionError(min(options), {f"{criterion} (made already)": ()})
        if criterion.granularity != granularity:
            raise ValueError(
                f"{criterion} scores {criterion.granularity}s, not {granularity}s; of "
                f"{granularity}s: {', '.join(names(granularity))}"
            )
        return criterion
    if ":" in criterion:
        name, told = split_options(criterion)
        return create(name, granularity, **{**told, **options})
    if granularity == "unit" and ("+" in criterion or "*" in criterion):
        return make_with(f"criterion {criterion!r}", Combination, criterion, **options)
    if granularity == "unit" and criterion.endswith(ENDING):
        return RebuiltError(make(criterion.removesuffix(ENDING), **options))
    return make(criterion, granularity, **options)


@undisturbed
@stage("scoring")
@checked(batch_size=BATCH)
def score(
    model: nn.Module,
    data: Any,
    criterion: str | Criterion = "lrp",
    *,
    batch_size: int = 32,
    normalise: str | None = None,
    layers: Sequence[Layer] | None = None,
    **options: Any,
) -> Scores:
    """Score every filter and every neuron of hidden linear layers.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode, returning one tensor of shape (N, classes). Never changed.
    data : DataLoader, Dataset or pair of tensors
        The reference samples with their labels.
    criterion : str or Criterion
        One of `niwaki.criteria.names`, several as in ``"lrp + 0.5*weight"`` (see `Combination`), or
        one that is made already.
    batch_size : int
        Samples in a batch of a data set or tensors; a loader has its own.
    normalise : str, optional
        How layers are made comparable, see `Scores.normalised`; default: the criterion's own.
    layers : sequence of Layer, optional
        The network's hidden layers, where they have been traced already.
    **options
        The criterion's own.

    Returns
    -------
    Scores
        Layer name to one value per unit. The layers whose units are the network's outputs are left
        out.

    Raises
    ------
    ModelError, DataError, NothingToPruneError
        For a network or data that cannot be scored.
    """
    made = create(criterion, **options).prepared(model, data, batch_size)
    known = None if layers is None else list(layers)
    scores, _ = scored(model, data, made, lambda *seen: known or hidden_layers(*seen), batch_size)
    taken = made if scores.criterion == made.name else create(scores.criterion)
    how = taken.normalise if normalise is None else normalise
    if how == "none":
        taken.check_comparable(scores)
    return scores.normalised(how)


def scored(
    model: nn.Module,
    data: Data,
    criterion: Criterion,
    list_layers: Callable[[nn.Module, Tensor], list[Layer]],
    batch_size: int,
    what: str = "scoring",
) -> tuple[Scores, list[Layer]]:
    """Take the sums over all batches; return the scores as they are, and the layers.

    Warns
    -----
    FallbackWarning
        If the default loses too much relevance in this network, or has no rule for an operation of
        it, and another took its place.
    """
    order = [criterion, *criterion.fallbacks()]
    for tried, other in pairwise(order):
        try:
            return _scored(model, data, tried, list_layers, batch_size, what)
        except (LostRelevanceError, NoRuleError) as error:
            warnings.warn(
                f"{tried.name!r} does not serve this network, and {other.name!r} is tried in its "
                f"place: {error}",
                FallbackWarning,
                stacklevel=3,
            )
    return _scored(model, data, order[-1], list_layers, batch_size, what)


def _scored(
    model: nn.Module,
    data: Data,
    criterion: Criterion,
    list_layers: Callable[[nn.Module, Tensor], list[Layer]],
    batch_size: int,
    what: str,
) -> tuple[Scores, list[Layer]]:
    totals, layers, judged, outputs = Totals(), None, model, 0
    title, share = f"{what} by {criterion.name}", criterion.needs_data
    with agreed():
        for inputs, labels in batches(data, batch_size, home(model), title, shared=share):
            if layers is None:
                layers = list_layers(model, inputs[:1])
            if not criterion.needs_data:
                break
            if totals.samples == 0:
                outputs = class_outputs(model, inputs[:2], "a criterion").shape[1]
                judged = criterion.network(model, inputs)
            check_labels(labels, outputs, data)
            totals = totals.update(criterion.batch(judged, inputs, labels), len(inputs))
        if layers is None:  # there was no batch for this process
            layers = list_layers(model, next(batches(data, 1, home(model)))[0][:1])
    totals = totals.reduced()
    values = criterion.scores(totals, layers, model)
    _check_finite(values, criterion)
    numbers = {name: value.detach().double().cpu() for name, value in values.items()}
    return Scores(numbers, criterion.name, totals.samples, fingerprint(model)), layers


def hidden_layers(
    model: nn.Module, inputs: Tensor, layers: Sequence[Layer] | None = None
) -> list[Layer]:
    """List the layers whose units are not the network's outputs; `layers` are all, if known.

    Raises
    ------
    NothingToPruneError
        If there is none.
    """
    layers = [layer for layer in layers or trace(model, inputs) if not layer.last]
    if not layers:
        raise NothingToPruneError(
            f"{type(model).__name__} has no hidden convolution or linear layer: there is nothing "
            "to score or prune"
        )
    return layers


def _check_finite(values: dict[str, Tensor], criterion: Criterion) -> None:
    for layer, value in values.items():
        if not torch.isfinite(value).all():
            raise ModelError(f"{criterion} gives NaN or infinite scores in layer {layer!r}")


@undisturbed
@stage("scoring")
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
    criterion : str or Criterion
        One of ``niwaki.criteria.names("weight")``, or one that is made already.
    batch_size : int
        Samples in a batch of a data set or tensors; a loader has its own.
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
    >>> scores["conv1"].shape == model.conv1.weight.shape
    True
    """
    made = create(criterion, "weight", **options)
    scores, layers = scored(model, data, made, _weighted_layers, batch_size, "scoring weights")
    _check_shapes(scores, layers)
    return scores.normalised(made.normalise if normalise is None else normalise)


def _weighted_layers(model: nn.Module, inputs: Tensor) -> list[Layer]:
    models.check(model)
    layers = trace(model, inputs)
    whole = [layer for layer in layers if layer.operation.form == 1]
    names = {layer.name for layer in whole}
    for layer in layers:
        if layer.operation.form > 1 and layer.name.rpartition(" (form ")[0] not in names:
            raise ModelError(
                f"the weight of {layer.name!r} is used in parts or transposed alone, so that its "
                "single weights cannot be scored: use the parameter as it is"
            )
    return whole


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
