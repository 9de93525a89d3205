"""Diversity of a network's layers, by forward passes alone: for comparison after pruning."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from niwaki import models
from niwaki.accumulation import Totals
from niwaki.data import Data, batches
from niwaki.filters._diversity import Diversity, correlation, diversity
from niwaki.filters._gather import chosen_layers
from niwaki.filters._reach import reach
from niwaki.filters._responses import Responses, products
from niwaki.ranges import BATCH, checked

__all__ = ["layer_diversity"]


@checked(batch_size=BATCH)
def layer_diversity(
    model: nn.Module,
    data: Data,
    *,
    layers: Sequence[str] | None = None,
    batch_size: int = 32,
    description: str | None = None,
) -> dict[str, Diversity]:
    """Measure how different the filters of each layer are.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode; not changed.
    data : DataLoader, Dataset or pair of tensors
        Images; labels do not matter.
    layers : sequence of str, optional
        As for `profile`.
    batch_size : int
        For a data set or tensors; a loader has its own.
    description : str, optional
        Title of a progress bar; none if not given.

    Returns
    -------
    dict of str to Diversity
        By layer; what `Profile` has in each layer's `diversity`.
    """
    models.check(model)
    totals, names = Totals(), list[str]()
    for inputs, _ in batches(data, batch_size, models.home(model), description):
        names = names or [layer.name for layer in chosen_layers(model, inputs, layers)]
        responses = Responses(names)
        reach(model, inputs.requires_grad_(), names, [responses])
        for name in names:
            sums = products(responses.answers[name])
            totals = totals.update({f"{k}/{name}": v.cpu() for k, v in sums.items()}, 0)
    sums = totals.sums
    return {
        name: diversity(
            correlation(
                sums[f"products/{name}"], sums[f"sum/{name}"], float(sums[f"positions/{name}"])
            )
        )
        for name in names
    }
