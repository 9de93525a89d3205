"""SpRAy: strategies as clusters of heatmaps, by spectral analysis (Lapuschkin et al. 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.sparse import diags
from scipy.sparse.linalg import eigsh

from niwaki.arrays import Array, Shaped, shaped
from niwaki.auditing._material import Material
from niwaki.auditing._on_disk import blocks
from niwaki.ranges import FEW, SEED, checked

NEIGHBOURS = 10
MOST_CLUSTERS = 8
_EIGENVECTORS = 32
_SIZE = 16
_ROWS = 256  # images compared with all others at a time
_DENSE = 1000  # images of a class above which the graph is kept sparse


@dataclass(frozen=True)
class Cluster:
    """Images of a class whose heatmaps are alike.

    Attributes
    ----------
    number : int
        In its class's clustering.
    positions : tuple of int
        Positions of its images in the audit's sample, the most typical first.
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
        Positions of the class's images in the audit's sample, shape (n,).
    clusters : tuple of Cluster
        The oddest first.
    assigned : ndarray
        Number of each image's cluster, shape (n,).
    eigenvalues : ndarray
        Eigenvalues of the Laplacian, ascending; a gap after the k-th hints at k strategies.
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

    def to_json(self, class_names: Sequence[str]) -> dict[str, Any]:
        """Return plain data, without images."""
        return {
            "class": class_names[self.label],
            "features": self.features,
            "eigenvalues": [round(float(value), 6) for value in self.eigenvalues],
            "clusters": [
                {
                    "number": cluster.number,
                    "images": len(cluster),
                    "separate": cluster.separate,
                    "consistent": cluster.consistent,
                    "class_bound": cluster.class_bound,
                }
                for cluster in self.clusters
            ],
        }

    def __repr__(self) -> str:
        sizes = ", ".join(str(len(cluster)) for cluster in self.clusters)
        return f"Strategies(class {self.label}, {self.features}: clusters of {sizes})"


def heatmap_features(strength: Array, kind: str, size: int = _SIZE) -> Array:
    """Turn heatmaps into vectors that can be compared.

    Parameters
    ----------
    strength : ndarray
        Shape (N, H, W), not negative.
    kind : {"place", "pattern"}
        The heatmaps downsized to `size` x `size`, which tells where; or the size of their Fourier
        coefficients, which stays when a pattern moves.
    size : int
        Side of the small heatmaps, or of the block of low frequencies.

    Returns
    -------
    ndarray
        Shape (N, features), each row of length 1.
    """
    return _unit(_vectors(strength, kind, size), kind)


def _vectors(strength: Array, kind: str, size: int) -> Array:
    """Return the vectors as they are for each image alone."""
    if kind == "place":
        factor = max(1, min(strength.shape[1:]) // size)
        soft = gaussian_filter(strength, (0, factor / 2, factor / 2), mode="nearest")
        small: Array = soft[:, factor // 2 :: factor, factor // 2 :: factor]
        return small.reshape(len(strength), -1)
    if kind == "pattern":
        spectrum = np.abs(np.fft.rfft2(strength))
        half = min(size, strength.shape[1] // 2)
        low = np.concatenate([spectrum[:, :half, :half], spectrum[:, -half:, :half]], 1)
        logarithms: Array = np.log(low.reshape(len(strength), -1) + 1e-3)
        return logarithms
    raise ValueError(f"features {kind!r} are neither 'place' nor 'pattern'")


def _unit(flat: Array, kind: str) -> Array:
    """Return vectors of length 1; patterns as what differs from the mean over the images."""
    if kind == "pattern":
        flat = flat - flat.mean(0)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    unit: Array = flat / np.where(length > 0, length, 1)
    return unit


def _features(material: Material, kind: str) -> Array:
    """Return `heatmap_features` of all images, a part at a time."""
    parts = [_vectors(material.strength(some), kind, _SIZE) for some in blocks(len(material))]
    return _unit(np.concatenate(parts), kind)


@checked(neighbours=FEW)
@shaped(features=Shaped("N features"))
def spectral(features: Array, neighbours: int = NEIGHBOURS) -> tuple[Array, Array]:
    """Embed vectors by the symmetric normalised Laplacian of their nearest-neighbour graph.

    Parameters
    ----------
    features : ndarray
        Shape (n, features).
    neighbours : int
        Nearest neighbours of each vector; an edge in either direction counts.

    Returns
    -------
    eigenvalues : ndarray
        Ascending, shape (k,).
    vectors : ndarray
        Shape (n, k), rows of the eigenvectors.
    """
    from sklearn.neighbors import kneighbors_graph

    count = len(features)
    graph = kneighbors_graph(features, min(neighbours, count - 1), include_self=False)
    weights = graph.maximum(graph.T)
    root = 1 / np.sqrt(np.asarray(weights.sum(1)).ravel())
    kept = min(_EIGENVECTORS, count)
    if count <= _DENSE:
        laplacian = np.eye(count) - root[:, None] * weights.toarray() * root
        values, vectors = np.linalg.eigh(laplacian)
        return values[:kept].clip(0), vectors[:, :kept]
    scaled = diags(root) @ weights @ diags(root)
    first = np.random.default_rng(0).standard_normal(count)
    values, vectors = eigsh(scaled, kept, which="LA", v0=first)
    order = np.argsort(-values)
    return (1 - values[order]).clip(0), vectors[:, order]


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
        Kinds of features, see `heatmap_features`.
    seed : int
        Seed of k-means and t-SNE.

    Returns
    -------
    list of Strategies
        For each class and kind of features; classes of fewer than 30 images are left out.
    """
    found = []
    for kind in kinds:
        features = _features(material, kind)
        for label in material.classes():
            members = material.members(label)
            if len(members) >= 3 * NEIGHBOURS:
                found.append(_cluster(material, features, members, label, kind, seed))
    return found


def clustered(
    features: Array, labels: Array, label: int, seed: int = 0
) -> tuple[tuple[Cluster, ...], Array, Array, Array]:
    """Cluster the images of a class by vectors of length 1.

    Parameters
    ----------
    features : ndarray
        Features of all images, shape (N, features).
    labels : ndarray
        Shape (N,).
    label : int
        The class.
    seed : int
        Seed of k-means.

    Returns
    -------
    clusters : tuple of Cluster
        The oddest first.
    assigned : ndarray
        Number of each of the class's images' cluster.
    values, vectors : ndarray
        See `spectral`.
    """
    from sklearn import config_context
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_samples

    members = np.flatnonzero(labels == label)
    own = features[members]
    values, vectors = spectral(own)
    count = _eigengap(values)
    rows = vectors[:, :count]
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-12)
    assigned = KMeans(count, n_init=10, random_state=seed).fit_predict(rows)
    with config_context(working_memory=64):
        silhouette = silhouette_samples(rows, assigned)
    same = (labels[_neighbours(own, features)] == label).mean(1)
    # Mean products with many vectors are products with their mean.
    overall = float(own.mean(0) @ own.mean(0))
    clusters = []
    for number in range(count):
        inside = np.flatnonzero(assigned == number)
        centre = own[inside].mean(0)
        typical = inside[np.argsort(-(own[inside] @ centre))]
        clusters.append(
            Cluster(
                number,
                tuple(int(position) for position in members[typical]),
                float(silhouette[inside].mean()),
                float(centre @ centre) - overall,
                float(same[inside].mean()),
            )
        )
    clusters.sort(key=lambda cluster: -cluster.oddness)
    return tuple(clusters), assigned, values, vectors


def _cluster(
    material: Material, features: Array, members: Array, label: int, kind: str, seed: int
) -> Strategies:
    from sklearn.manifold import TSNE

    clusters, assigned, values, vectors = clustered(features, material.labels, label, seed)
    perplexity = min(30.0, (len(members) - 1) / 3)
    plane = TSNE(
        2, perplexity=perplexity, init="pca", random_state=seed, max_iter=300
    ).fit_transform(vectors[:, : max(len(clusters), 8)])
    return Strategies(
        label, kind, members, clusters, assigned, values, vectors, plane.astype(float)
    )


def _neighbours(own: Array, features: Array) -> Array:
    """Return for each vector the most alike of all, without the first, which is itself."""
    found = []
    for rows in blocks(len(own), _ROWS):
        order = np.argsort(-(own[rows] @ features.T), axis=1)
        found.append(order[:, 1 : NEIGHBOURS + 1].copy())  # not a view, which would keep it all
    return np.concatenate(found)


def _eigengap(values: Array) -> int:
    """Return how many eigenvalues lie before the largest gap, two at the least."""
    gaps = np.diff(values[: MOST_CLUSTERS + 1])
    return int(np.argmax(gaps[1:])) + 2
