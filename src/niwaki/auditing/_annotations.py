"""Where relevance lies: on annotated cells, and on the stains of H&E images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from niwaki.arrays import MAPS, MASKS, Array, Shaped, shaped
from niwaki.auditing._material import Material
from niwaki.auditing._statistics import Interval, bootstrap
from niwaki.errors import DataError
from niwaki.ranges import POSITIVE, ROUNDS, SEED, SIDE, checked

_POINTS = Shaped("_ 2")


@dataclass(frozen=True, eq=False)
class CellScores:
    """How well relevance tells the cells that matter from the others.

    Attributes
    ----------
    relevance : ndarray
        Relevance of each cell, shape (cells,).
    positive : ndarray
        Whether a cell is of the type that matters, shape (cells,), bool.
    image : ndarray
        The image that it lies in, shape (cells,).
    """

    relevance: Array
    positive: Array
    image: Array

    @checked(seed=SEED, draws=ROUNDS)
    def pooled(self, seed: int = 0, draws: int = 1000) -> Interval:
        """Return the ROC-AUC over all cells together; the interval resamples images."""
        rng = np.random.default_rng(seed)
        order = np.argsort(self.image, kind="stable")
        groups = np.split(order, np.flatnonzero(np.diff(self.image[order])) + 1)
        values = []
        for _ in range(draws):
            chosen = rng.integers(0, len(groups), len(groups))
            cells = np.concatenate([groups[index] for index in chosen])
            values.append(_auc(self.relevance[cells], self.positive[cells]))
        low, high = np.nanpercentile(values, [2.5, 97.5])
        mean = _auc(self.relevance, self.positive)
        return Interval(mean, float(low), float(high), len(groups))

    @checked(seed=SEED)
    def per_image(self, seed: int = 0) -> Interval:
        """Return the mean ROC-AUC of the images that have cells of both kinds."""
        return bootstrap(
            np.array(
                [
                    _auc(self.relevance[self.image == i], self.positive[self.image == i])
                    for i in np.unique(self.image)
                ]
            ),
            seed,
        )


@shaped(
    relevance=MAPS, instances=Shaped("N H W", "whole", low=0), positive=Shaped("N cells", "truth")
)
def cell_scores(
    relevance: Array, instances: Array, positive: Array, pooling: str = "mean"
) -> CellScores:
    """Pool relevance per annotated cell.

    Parameters
    ----------
    relevance : ndarray
        Heatmaps for the class that the positive cells stand for, shape (N, H, W).
    instances : ndarray
        Shape (N, H, W), integer: 0 outside of cells, k + 1 on the k-th.
    positive : ndarray
        Shape (N, K), bool: whether the k-th cell is of the type that matters.
    pooling : {"mean", "sum", "max"}
        Over a cell's pixels.

    Raises
    ------
    ValueError
        For another pooling.
    DataError
        Arrays that do not fit each other, NaN, or an instance without a column in `positive`.
    """
    if pooling not in ("mean", "sum", "max"):
        raise ValueError(f"pooling {pooling!r} is none of 'mean', 'sum', 'max'")
    count, cells = positive.shape
    if instances.max(initial=0) > cells:
        raise DataError(
            f"instances are numbered up to {instances.max()}, and positive has {cells} columns: "
            "there must be one for each cell of an image"
        )
    image = np.arange(count)[:, None, None]
    label = np.where(instances > 0, image * cells + instances, 0).ravel()
    size = np.bincount(label, minlength=count * cells + 1)[1:]
    if pooling == "max":
        pooled = np.full(count * cells + 1, -np.inf)
        np.maximum.at(pooled, label, relevance.ravel())
        pooled = pooled[1:]
    else:
        pooled = np.bincount(label, relevance.ravel(), count * cells + 1)[1:]
        if pooling == "mean":
            pooled = pooled / np.maximum(size, 1)
    seen = size > 0
    return CellScores(
        pooled[seen], positive.ravel()[seen], np.repeat(np.arange(count), cells)[seen]
    )


@checked(height=SIDE, width=SIDE, radius=POSITIVE)
def discs(points: list[Array], height: int, width: int, radius: float) -> Array:
    """Draw annotated points as discs: instances of shape (N, height, width) for `cell_scores`.

    Parameters
    ----------
    points : list of ndarray
        For each image rows and columns of its cells, shape (cells, 2). A pixel belongs to the
        nearest point within `radius`.
    height, width : int
        Height and width of the images.
    radius : float
        In pixels.

    Raises
    ------
    DataError
        Points that are no pairs of numbers.
    """
    for places in points:
        _POINTS.sizes("points", places)
    instances = np.zeros((len(points), height, width), np.int32)
    rows, columns = np.mgrid[:height, :width]
    for image, places in enumerate(points):
        if len(places) == 0:
            continue
        distance = np.hypot(rows[..., None] - places[:, 0], columns[..., None] - places[:, 1])
        nearest = distance.argmin(-1)
        inside = np.take_along_axis(distance, nearest[..., None], -1)[..., 0] <= radius
        instances[image] = np.where(inside, nearest + 1, 0)
    return instances


@checked(seed=SEED)
@shaped(relevance=MAPS, masks=MASKS)
def mass_accuracy(relevance: Array, masks: Array, seed: int = 0) -> Interval:
    """Share of the positive relevance that lies inside masks (Arras et al. 2022).

    Parameters
    ----------
    relevance : ndarray
        Shape (N, H, W).
    masks : ndarray
        Shape (N, H, W), bool; images with an empty mask are left out.
    seed : int
        Seed of the bootstrap over images.
    """
    positive = relevance.clip(0)
    total = positive.sum((1, 2))
    share = np.where(total > 0, (positive * masks).sum((1, 2)) / np.where(total > 0, total, 1), 0.0)
    return bootstrap(np.where(masks.any((1, 2)), share, np.nan), seed)


@checked(seed=SEED)
@shaped(relevance=MAPS, masks=MASKS)
def rank_accuracy(relevance: Array, masks: Array, seed: int = 0) -> Interval:
    """Share of the K most relevant pixels that lie inside masks of K pixels (Arras et al. 2022).

    Parameters
    ----------
    relevance, masks, seed
        As for `mass_accuracy`.
    """
    values = np.full(len(masks), np.nan)
    for image, (heat, mask) in enumerate(zip(relevance, masks, strict=True)):
        size = int(mask.sum())
        if size:
            top = np.argsort(-heat.ravel(), kind="stable")[:size]
            values[image] = mask.ravel()[top].mean()
    return bootstrap(values, seed)


def _auc(scores: Array, positive: Array) -> float:
    """Area under the ROC curve by ranks; ties count a half; NaN without both kinds."""
    from scipy.stats import rankdata

    ones = int(positive.sum())
    zeros = len(positive) - ones
    if ones == 0 or zeros == 0:
        return float("nan")
    ranks = rankdata(scores)
    return float((ranks[positive].sum() - ones * (ones + 1) / 2) / (ones * zeros))


@shaped(pixels=Shaped("N 3 H W", low=0, high=1))
def stains(pixels: Tensor) -> dict[str, Array]:
    """Sort the pixels of H&E images by stain: shape (N, H, W), bool, one True for each pixel.

    By scikit-image's separation: *haematoxylin* where there is much of it, on either side of Otsu's
    threshold over all images; *eosin* is the rest of the tissue; *neither* where hardly any stain
    is (glass, lumen), or where the third component is far from what these two have of it
    everywhere else in the images (ink, marks).
    """
    from skimage.color import rgb2hed
    from skimage.filters import threshold_otsu

    amounts = rgb2hed(pixels.permute(0, 2, 3, 1).double().numpy())
    both = amounts[..., :2]
    # The stains of a laboratory are not quite the reference's: what the third component has of
    # them is fitted, and only what is left is foreign.
    flat = both.reshape(-1, 2)
    share = np.linalg.lstsq(flat, amounts[..., 2].ravel(), rcond=None)[0]
    left = np.abs(amounts[..., 2] - both @ share)
    scaled = both / np.quantile(flat, 0.95, axis=0).clip(1e-6)
    neither = (left > 8 * np.median(left) + 1e-3) | (scaled.max(-1) < 0.15)
    # Not where it is the stronger one: nuclei lie in eosin, and the two are known up to a scale.
    threshold: float = threshold_otsu(amounts[..., 0])  # type: ignore[no-untyped-call]
    is_nuclear = amounts[..., 0] > threshold
    return {
        "haematoxylin": is_nuclear & ~neither,
        "eosin": ~is_nuclear & ~neither,
        "neither": neither,
    }


def by_stain(material: Material) -> dict[str, dict[str, dict[str, float]]]:
    """Say for each class how much of the area and of the relevance each stain has."""
    groups = stains(material.pixels[:])
    table = {}
    for label in material.classes():
        members = material.members(label)
        strength = material.strength(members)
        table[material.class_names[label]] = {
            name: {
                "area": float(mask[members].mean()),
                "relevance": float((strength * mask[members]).sum((1, 2)).mean()),
            }
            for name, mask in groups.items()
        }
    return table
