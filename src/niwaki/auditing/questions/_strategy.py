"""Strategy: does a group of images owe its class to one and the same thing that can be moved?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from niwaki.arrays import Array
from niwaki.auditing._finding import Finding
from niwaki.auditing._interventions import Cause
from niwaki.auditing._material import Material, margins
from niwaki.auditing._on_disk import blocks
from niwaki.auditing._power import of_group
from niwaki.auditing._question import Evidence, question
from niwaki.auditing._spray import Cluster, Strategies
from niwaki.auditing._statistics import group_test

SMALLEST = 1.75  # the rest's windows differ so many times more among themselves
ASKED = 2  # clusters per class and kind of features
RECIPIENTS = 6
_REST = 10  # images of the class beside the group


@question("strategy", "Does a group of images owe its class to one and the same thing?")
def find_shared_things(evidence: Evidence, rng: np.random.Generator) -> Iterator[Finding]:
    """Ask for the oddest clusters whether they stand for an object that gives the class away.

    Seen: the windows around the peaks of the cluster's heatmaps look more alike than those of the
    class's other heatmaps do. Cause: pasted into images of other classes, these windows move the
    output towards the class more than the windows of the class's other images do.
    """
    material = evidence.material
    for strategies in evidence.strategies:
        members = strategies.positions
        boxes = np.concatenate([peak_windows(material.relevance[part]) for part in blocks(members)])
        looks = np.concatenate(
            [
                _looks(material.pixels[torch.as_tensor(members[part])], boxes[part])
                for part in blocks(len(members))
            ]
        )
        for cluster in strategies.clusters[:ASKED]:
            inside = np.isin(members, cluster.positions)
            if inside.sum() >= 5 and (~inside).sum() >= _REST:
                yield _find(material, strategies, cluster, inside, boxes, looks, rng)


def peak_windows(relevance: Array, share: float = 0.2) -> Array:
    """Return the window around each heatmap's peak, shape (N, H, W), bool.

    Parameters
    ----------
    relevance : ndarray
        Shape (N, H, W).
    share : float
        Side of the window as a share of the image's.
    """
    count, height, width = relevance.shape
    side = max(3, round(share * min(height, width)))
    soft = gaussian_filter(relevance.clip(0), (0, side / 4, side / 4), mode="constant")
    row, column = np.unravel_index(soft.reshape(count, -1).argmax(1), (height, width))
    top = (row - side // 2).clip(0, height - side)[:, None, None]
    left = (column - side // 2).clip(0, width - side)[:, None, None]
    rows, columns = np.arange(height)[:, None], np.arange(width)
    inside: Array = (
        (rows >= top) & (rows < top + side) & (columns >= left) & (columns < left + side)
    )
    return inside


def _looks(pixels: Tensor, boxes: Array) -> Array:
    """Describe each window by quantiles of its colours, shape (N, 9)."""
    channels = pixels.permute(0, 2, 3, 1).numpy()
    inside = [image[box] for image, box in zip(channels, boxes, strict=True)]
    quantiles = [np.quantile(window, (0.1, 0.5, 0.9), axis=0).ravel() for window in inside]
    return np.stack(quantiles)


def _find(
    material: Material,
    strategies: Strategies,
    cluster: Cluster,
    inside: Array,
    boxes: Array,
    looks: Array,
    rng: np.random.Generator,
) -> Finding:
    who = material.class_names[strategies.label]
    name = f"{strategies.features} {cluster.number}"
    # Distance to the group's own median: what differs within the cluster, and within the rest.
    spread = np.where(inside, _spread(looks, inside), _spread(looks, ~inside))
    p = group_test(-spread, inside, rng, material.draws)
    effect = float(spread[~inside].mean() / max(spread[inside].mean(), 1e-9))
    finding = Finding(
        key=f"strategy/{who}/{name}",
        title=f"group of heatmaps, {name} (class {who})",
        question=f"Does a group of images of class {who!r} owe it to one and the same thing?",
        label=strategies.label,
        effect=effect,
        effect_name="how much more alike the windows at the peaks are than the class's others",
        smallest=SMALLEST,
        p_seen=p,
        examples=cluster.positions[:8],
        having=cluster.positions,
        outlines=boxes[np.searchsorted(strategies.positions, cluster.positions[:8])],
        power=of_group(len(inside), _REST, material.draws),
        numbers={"images": float(inside.sum()), "share_of_class": float(inside.mean())},
    )
    if not finding.suspicious():
        return finding
    cause = _paste(material, strategies, inside, boxes, rng)
    return replace(
        finding,
        cause=cause,
        sentence=f"{inside.sum()} images of class {who!r} ({inside.mean():.0%}) are recognised by "
        f"a thing that looks the same in all of them. Pasted into images of other classes it turns "
        f"{cause.flips:.0%} of them into {who!r}; what the class's other images are recognised by, "
        f"{cause.control_flips:.0%}.",
        advice="Look at the examples: if the thing is no sign of the class, mask it or put it on "
        "images of all classes, and train again.",
    )


def _spread(looks: Array, group: Array) -> Array:
    distance: Array = np.linalg.norm(looks - np.median(looks[group], axis=0), axis=1)
    return distance


def _paste(
    material: Material,
    strategies: Strategies,
    inside: Array,
    boxes: Array,
    rng: np.random.Generator,
) -> Cause:
    """Paste the windows of all images of the class into random images of other classes."""
    label, donors = strategies.label, strategies.positions
    others = np.flatnonzero(material.labels != label)
    gain, flipped, eligible = [], [], []
    for _ in range(RECIPIENTS):
        recipients = rng.choice(others, len(donors))
        said = []
        for part in blocks(len(donors)):
            mixed = torch.where(
                torch.as_tensor(boxes[part])[:, None],
                material.pixels[torch.as_tensor(donors[part])],
                material.pixels[torch.as_tensor(recipients[part])],
            )
            said.append(material.ask(mixed))
        before = margins(material.outputs[recipients], label)
        after = margins(np.concatenate(said), label)
        gain.append(after - before)
        flipped.append((before < 0) & (after > 0))
        eligible.append(before < 0)
    mean = np.mean(gain, axis=0)
    flips, tried = np.sum(flipped, axis=0), np.sum(eligible, axis=0)
    return Cause(
        float(mean[inside].mean()),
        float(mean[~inside].mean()),
        float(flips[inside].sum() / max(tried[inside].sum(), 1)),
        float(flips[~inside].sum() / max(tried[~inside].sum(), 1)),
        group_test(mean, inside, rng, material.draws),
        int(inside.sum()),
    )
