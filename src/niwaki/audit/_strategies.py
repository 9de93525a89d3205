"""Strategies: clusters of heatmaps by spectral analysis, as in SpRAy (Lapuschkin et al. 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from niwaki.audit._material import Material
from niwaki.ranges import FEW, SEED, checked

__all__ = ["Cluster", "Strategies", "find_strategies", "heatmap_features", "spectral"]

Array = NDArray[Any]
NEIGHBOURS = 10
MOST_CLUSTERS = 8
_EIGENVECTORS = 32


@dataclass(frozen=True)
class Cluster:
    """Images of a class whose heatmaps are alike.

    Attributes
    ----------
    number : int
        In its class's clustering.
    positions : tuple of int
        Of its images in the audit's sample, the most typical first.
    separate : float
        Silhouette in the spectral embedding, from -1 to 1.
    consistent : float
        Mean correlation of its members' features, less that over the class.
    class_bound : float
        Share of its members' nearest neighbours among all images that are of the same class.
    """

    number: int
    positions: tuple[int, ...]
    separate: float
    consistent: float
    class_bound: float

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def oddness(self) -> float:
        """What clusters are ranked by: separate, consistent and class-bound together."""
        return max(self.separate, 0) * max(self.consistent, 0) * self.class_bound


@dataclass(frozen=True, eq=False)
class Strategies:
    """The clusters of one class under one kind of features.

    Attributes
    ----------
    label : int
        The class.
    features : str
        ``"place"`` or ``"pattern"``, see `heatmap_features`.
    positions : ndarray
        Of the class's images in the audit's sample, shape (n,).
    clusters : tuple of Cluster
        The oddest first.
    assigned : ndarray
        Number of each image's cluster, shape (n,).
    eigenvalues : ndarray
        Of the Laplacian, ascending; a gap after the k-th hints at k strategies.
    spectral : ndarray
        Eigenvectors, shape (n, up to 32).
    plane : ndarray
        Shape (n, 2), t-SNE of the eigenvectors, to look at.
    """

    label: int
    features: str
    positions: Array
    clusters: tuple[Cluster, ...]
    assigned: Array
    eigenvalues: Array
    spectral: Array
    plane: Array

    def __repr__(self) -> str:
        sizes = ", ".join(str(len(cluster)) for cluster in self.clusters)
        return f"Strategies(class {self.label}, {self.features}: clusters of {sizes})"


def heatmap_features(strength: Array, kind: str, size: int = 16) -> Array:
    """Turn heatmaps into vectors that can be compared.

    Parameters
    ----------
    strength : ndarray
        Shape (N, H, W), not negative.
    kind : {"place", "pattern"}
        The heatmaps downsized to `size` x `size`, which tells where; or the size of their Fourier
        coefficients, which stays when a pattern moves.
    size : int
        Of the small heatmaps, or of the block of low frequencies.

    Returns
    -------
    ndarray
        Shape (N, features), each row of length 1.
    """
    if kind == "place":
        factor = max(1, min(strength.shape[1:]) // size)
        soft = gaussian_filter(strength, (0, factor / 2, factor / 2), mode="nearest")
        flat = soft[:, factor // 2 :: factor, factor // 2 :: factor].reshape(len(strength), -1)
    elif kind == "pattern":
        spectrum = np.abs(np.fft.rfft2(strength))
        half = min(size, strength.shape[1] // 2)
        low = np.concatenate([spectrum[:, :half, :half], spectrum[:, -half:, :half]], 1)
        flat = np.log(low.reshape(len(strength), -1) + 1e-3)
        flat = flat - flat.mean(0)
    else:
        raise ValueError(f"features {kind!r} are neither 'place' nor 'pattern'")
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    unit: Array = flat / np.where(length > 0, length, 1)
    return unit


@checked(neighbours=FEW)
def spectral(features: Array, neighbours: int = NEIGHBOURS) -> tuple[Array, Array]:
    """Embed vectors by the symmetric normalised Laplacian of their nearest-neighbour graph.

    Parameters
    ----------
    features : ndarray
        Shape (n, features).
    neighbours : int
        Of each vector; an edge in either direction counts.

    Returns
    -------
    eigenvalues : ndarray
        Ascending, shape (k,).
    vectors : ndarray
        Shape (n, k), rows of the eigenvectors.
    """
    from sklearn.neighbors import kneighbors_graph

    count = len(features)
    graph = kneighbors_graph(features, min(neighbours, count - 1), include_self=False).toarray()
    weights = np.maximum(graph, graph.T)
    degree = weights.sum(1)
    root = 1 / np.sqrt(degree)
    laplacian = np.eye(count) - root[:, None] * weights * root
    values, vectors = np.linalg.eigh(laplacian)
    kept = min(_EIGENVECTORS, count)
    return values[:kept].clip(0), vectors[:, :kept]


@checked(seed=SEED)
def find_strategies(
    material: Material, kinds: tuple[str, ...] = ("place", "pattern"), seed: int = 0
) -> list[Strategies]:
    """Cluster the heatmaps of each class.

    Parameters
    ----------
    material : Material
        The audit's.
    kinds : tuple of str
        Of features, see `heatmap_features`.
    seed : int
        Of k-means and t-SNE.

    Returns
    -------
    list of Strategies
        For each class and kind of features; classes of fewer than 30 images are left out.
    """
    strength = material.strength()
    found = []
    for kind in kinds:
        features = heatmap_features(strength, kind)
        for label in material.classes():
            members = material.members(label)
            if len(members) >= 3 * NEIGHBOURS:
                found.append(_cluster(material, features, members, label, kind, seed))
    return found


def _cluster(
    material: Material, features: Array, members: Array, label: int, kind: str, seed: int
) -> Strategies:
    from sklearn.cluster import KMeans
    from sklearn.manifold import TSNE
    from sklearn.metrics import silhouette_samples

    own = features[members]
    values, vectors = spectral(own)
    count = _eigengap(values)
    rows = vectors[:, :count]
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-12)
    assigned = KMeans(count, n_init=10, random_state=seed).fit_predict(rows)
    silhouette = silhouette_samples(rows, assigned)
    alike = own @ own.T
    neighbours = np.argsort(-(own @ features.T), axis=1)[:, 1 : NEIGHBOURS + 1]
    same = (material.labels[neighbours] == label).mean(1)
    clusters = []
    for number in range(count):
        inside = np.flatnonzero(assigned == number)
        typical = inside[np.argsort(-alike[np.ix_(inside, inside)].mean(1))]
        clusters.append(
            Cluster(
                number,
                tuple(int(position) for position in members[typical]),
                float(silhouette[inside].mean()),
                float(alike[np.ix_(inside, inside)].mean() - alike.mean()),
                float(same[inside].mean()),
            )
        )
    perplexity = min(30.0, (len(members) - 1) / 3)
    plane = TSNE(
        2, perplexity=perplexity, init="pca", random_state=seed, max_iter=300
    ).fit_transform(vectors[:, : max(count, 8)])
    clusters.sort(key=lambda cluster: -cluster.oddness)
    return Strategies(
        label, kind, members, tuple(clusters), assigned, values, vectors, plane.astype(float)
    )


def _eigengap(values: Array) -> int:
    """Return how many eigenvalues lie before the largest gap, two at the least."""
    gaps = np.diff(values[: MOST_CLUSTERS + 1])
    return int(np.argmax(gaps[1:])) + 2
