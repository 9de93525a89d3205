"""Groups of heatmaps on the page: a dot for each image, and the typical images of each group."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib import colormaps

from niwaki.auditing import Audit, Cluster, Strategies
from niwaki.report._audit_examples import example
from niwaki.report._pictures import Pictures, encoded

__all__ = ["write_clusters"]

_IMAGES = 240  # with pictures, of all groups together
_FEWEST, _MOST = 4, 16  # of one group
_AVERAGED = 1000  # images of a group, the most typical first


def write_clusters(audit: Audit, stem: str, pictures: Pictures) -> list[dict[str, Any]]:
    """Write the typical images of all groups, and return what the page shows.

    Parameters
    ----------
    audit : Audit
        Has the groups.
    stem : str
        How the names of the pictures begin.
    pictures : Pictures
        Where they are written.
    """
    groups = sum(len(found.clusters) for found in audit.strategies)
    each = max(_FEWEST, min(_MOST, _IMAGES // max(groups, 1)))
    written: dict[int, dict[str, Any]] = {}  # an image is in one group of each kind

    def image(position: int) -> dict[str, Any]:
        if position not in written:
            name = f"{stem}-image-{position:05}"
            written[position] = example(audit, position, name, pictures)
        return written[position]

    shown = []
    for number, found in enumerate(audit.strategies):
        name = f"{stem}-{number:02}"
        shown.append(
            {
                "class": audit.material.class_names[found.label],
                "features": found.features,
                "eigenvalues": [float(value) for value in found.eigenvalues[:12]],
                "dots": _dots(audit, found),
                "clusters": [_cluster(audit, c, name, pictures) for c in found.clusters],
                "images": [
                    {"cluster": cluster.number, "typical": place < _FEWEST, **image(position)}
                    for cluster in found.clusters
                    for place, position in enumerate(cluster.positions[:each])
                ],
            }
        )
    return shown


def _dots(audit: Audit, found: Strategies) -> list[list[Any]]:
    """Return place, group and words of each image: from 0 to 1, rounded."""
    low, high = found.plane.min(0), found.plane.max(0)
    places = (found.plane - low) / np.where(high > low, high - low, 1)
    dots = []
    for (x, y), cluster, position in zip(places, found.assigned, found.positions, strict=True):
        told = audit.material.describe(int(position))
        words = f"{told['name']}, the network says {told['said']}"
        dots.append([round(float(x), 3), round(float(y), 3), int(cluster), words])
    return dots


def _cluster(audit: Audit, cluster: Cluster, stem: str, pictures: Pictures) -> dict[str, Any]:
    mean = audit.material.strength(list(cluster.positions[:_AVERAGED])).mean(0)
    shade = colormaps["magma"]((mean / (mean.max() or 1)) ** 0.5)[..., :3]
    pixels = (shade * 255).round().astype(np.uint8)
    return {
        "number": cluster.number,
        "images": len(cluster),
        "oddness": cluster.oddness,
        "mean": pictures.add(f"{stem}-{cluster.number}-mean.webp", encoded(pixels, exact=True)),
    }
