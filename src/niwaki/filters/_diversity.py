"""How different the filters of a layer are: twins, clusters, and their effective number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from niwaki import models
from niwaki.arrays import Shaped, shaped
from niwaki.contexts import undisturbed
from niwaki.data import Data, batches
from niwaki.filters._partial_pass import Responses, chosen_layers, products, reach
from niwaki.ranges import BATCH, CORRELATION, checked
from niwaki.runs import accumulate, open_run

_FEW = 8  # images that say what the layers are

_CORRELATION = Shaped("units units", low=-1, high=1)


@dataclass(frozen=True)
class Diversity:
    """How different the activations of a layer's filters are.

    Attributes
    ----------
    filters : int
        How many there are.
    alive : int
        Those whose activations vary at all; the rest counts for nothing below.
    effective : float
        Effective number of filters: the exponential of the entropy of the eigenvalues of the
        correlation of the activations, taken as shares. It is 1 if all are copies of one, and
        `alive` if all are uncorrelated.
    participation : float
        The same by the participation ratio, which weighs large eigenvalues more.
    clusters : int
        Groups of filters that are alike: average linkage, joined while the mean correlation between
        two groups is above 0.5.
    """

    filters: int
    alive: int
    effective: float
    participation: float
    clusters: int


def correlation(products: Tensor, sums: Tensor, count: float) -> Tensor:
    """Correlate activations, from sums over images and positions.

    Parameters
    ----------
    products : Tensor
        Sum of the products of two units' activations, shape (units, units).
    sums : Tensor
        Sum of each unit's activations, shape (units,).
    count : float
        How many activations of a unit were summed.

    Returns
    -------
    Tensor
        Shape (units, units); the rows and columns of units that never vary are 0.
    """
    mean = sums / count
    covariance = products / count - mean.outer(mean)
    variance = covariance.diagonal()
    # Below this share of the mean square, a variance is rounding.
    alive = variance > 1e-10 * (products.diagonal() / count).clamp_min(1e-300)
    scale = torch.where(alive, variance.clamp_min(1e-300).rsqrt(), torch.zeros_like(variance))
    result = (covariance * scale.outer(scale)).clamp(-1, 1)
    result.fill_diagonal_(0)
    return result + torch.diag(alive.to(result))


@shaped(correlated=_CORRELATION)
def diversity(correlated: Tensor) -> Diversity:
    """Measure the diversity of a layer's filters from the correlation of their activations."""
    alive = correlated.diagonal() > 0
    part = correlated[alive][:, alive]
    if not len(part):
        return Diversity(len(correlated), 0, 0.0, 0.0, 0)
    shares = torch.linalg.eigvalsh(part).clamp_min(0)
    shares = shares / shares.sum()
    return Diversity(
        len(correlated),
        len(part),
        float(torch.special.entr(shares).sum().exp()),
        float(1 / shares.square().sum()),
        _clusters(part),
    )


@checked(threshold=CORRELATION)
@shaped(correlated=_CORRELATION)
def twins(correlated: Tensor, threshold: float = 0.9) -> list[list[int]]:
    """List for each unit those whose activations correlate above a threshold, the closest first."""
    others = correlated.clone().fill_diagonal_(-1)
    found = []
    for row in others:
        close = (row > threshold).nonzero().flatten()
        found.append(close[row[close].argsort(descending=True, stable=True)].tolist())
    return found


def _clusters(correlated: Tensor) -> int:
    if len(correlated) == 1:
        return 1
    # scikit-learn takes a second to import, which only this should cost.
    from sklearn.cluster import AgglomerativeClustering

    joined = AgglomerativeClustering(
        n_clusters=None, distance_threshold=0.5, metric="precomputed", linkage="average"
    ).fit((1 - correlated).clamp_min(0).numpy())
    return int(joined.n_clusters_)


@undisturbed
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
        Samples in a batch of a data set or tensors; a loader has its own.
    description : str, optional
        Title of a progress bar; none if not given.

    Returns
    -------
    dict of str to Diversity
        By layer; what `Profile` has in each layer's `diversity`.
    """
    models.check(model)
    example, _ = next(iter(batches(data, _FEW, models.home(model))))
    names = [layer.name for layer in chosen_layers(model, example[:_FEW], layers)]

    def measure(inputs: Tensor, _: Tensor) -> dict[str, Tensor]:
        responses = Responses(names)
        reach(model, inputs.requires_grad_(), names, [responses])
        return {
            f"{what}/{name}": value.cpu()
            for name in names
            for what, value in products(responses.activations[name]).items()
        }

    loop = {"batch_size": batch_size, "place": models.home(model), "description": description}
    with open_run(None, dict) as kept:
        totals = accumulate(data, measure, kept, "diversity", **loop)
    sums = totals.sums
    return {
        name: diversity(
            correlation(
                sums[f"products/{name}"], sums[f"sum/{name}"], float(sums[f"positions/{name}"])
            )
        )
        for name in names
    }
