"""Heatmaps against annotated nuclei: does relevance tell epithelial cells from the others?"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from biases import Row, asked, harm, marked
from numpy.typing import NDArray
from PIL import Image
from sources import Annotated, Learner, Set
from torch import nn
from torch.nn import functional as F

from niwaki.attribution import create, fit_patterns
from niwaki.auditing import CellScores, auc, cell_scores, discs
from niwaki.data import read_points

Array = NDArray[Any]
TUMOUR = 1
RADIUS = 6.0  # pixels, of a nucleus's disc
# Method, whether its size counts (True) or its sign as well, and its options.
METHODS: dict[str, tuple[bool, dict[str, Any]]] = {
    "lrp.epsilon_plus": (False, {}),
    "lrp.epsilon": (False, {}),
    "lrp.alpha_2_beta_1": (False, {}),
    "deep_lift": (False, {}),
    "pattern.attribution": (False, {}),
    "input_t_gradient": (False, {}),
    "integrated_gradients": (False, {"steps": 32}),
    "gradient": (True, {}),
    "smoothgrad": (True, {"samples": 32, "sigma": 0.1, "relative": True}),
    "guided_backprop": (True, {}),
    "grad_cam": (False, {}),
    "occlusion": (False, {"window": 8, "stride": 4}),
    "random": (False, {}),
}
FEWER = (
    "lrp.epsilon_plus",
    "lrp.epsilon",
    "deep_lift",
    "input_t_gradient",
    "gradient",
    "smoothgrad",
    "guided_backprop",
    "grad_cam",
    "random",
)


def cells(source: Annotated, learner: Learner, seed: int) -> Row:
    """Cell-level AUC of the heatmaps of a small network on held-out images."""
    train, test = source.draw("train", seed), source.draw("test", seed)
    pair = learner.tensors(train)
    model = learner.train(pair, seed)
    patterns = fit_patterns(model, pair)
    methods = {name: value for name, value in METHODS.items() if name != "pattern.attribution"}
    methods["pattern.attribution"] = (False, {"patterns": patterns})
    return {
        "auc test": learner.auc(model, test),
        "cells": ranking(learner, model, grid(source.real / "val"), methods),
    }


def squeezenet(source: Annotated, learner: Learner, seed: int) -> Row:
    """A fine-tuned SqueezeNet: cell-level AUC, an audit, and one of a network with a bias."""
    train, test = source.draw("train", seed), source.draw("test", seed)
    model = learner.train(learner.tensors(train), seed)
    methods = {name: METHODS[name] for name in FEWER}
    methods["smoothgrad"] = (True, {**METHODS["smoothgrad"][1], "samples": 8})
    row: Row = {
        "auc test": learner.auc(model, test),
        "audit": asked(learner, model, test, seed),
        "cells": ranking(learner, model, grid(source.real / "val"), methods),
    }
    biased = marked(test, "square", 0.5, seed + 50)
    attacked = marked(test, "square", 0.0, seed + 60, elsewhere=1.0)
    model = learner.train(learner.tensors(marked(train, "square", 0.5, seed)), seed)
    row["square/0.5"] = {
        "auc test": learner.auc(model, biased),
        **harm(learner, model, test, attacked),
        "audit": asked(learner, model, biased, seed),
    }
    return row


def grid(folder: Path, size: int = 64) -> Set:
    """Cut images into patches side by side, so that each cell is seen once."""
    parts: list[tuple[Array, int, Array, list[str]]] = []
    for number, file in enumerate(sorted(folder.glob("*.png"))):
        image = np.asarray(Image.open(file).convert("RGB"))
        points, types = read_points(file.with_suffix(".csv"))
        starts = [range((side % size) // 2, side - size + 1, size) for side in image.shape[:2]]
        for top in starts[0]:
            for left in starts[1]:
                corner = np.array([top, left])
                inside = np.flatnonzero(((points >= corner) & (points < corner + size)).all(1))
                if len(inside):
                    patch = image[top : top + size, left : left + size]
                    kinds = [types[i] for i in inside]
                    parts.append((patch, number, points[inside] - corner, kinds))
    pixels, image_of, places, kinds_of = zip(*parts, strict=True)
    empty = np.zeros(len(parts), int)
    found = Set(np.stack(pixels), empty, np.array(image_of), list(places), list(kinds_of))
    return replace(found, labels=found.content())


def ranking(
    learner: Learner, model: nn.Module, data: Set, methods: dict[str, tuple[bool, dict[str, Any]]]
) -> dict[str, Row]:
    """Judge each method's heatmaps for the tumour class by the nuclei in them.

    *image*: the AUC of each image over all its cells, which a method also owes to how the network
    judges whole patches; *patch*: within each patch that has both kinds, mean by image.
    """
    inputs, side = learner.inputs(data.pixels), data.pixels.shape[1]
    instances = discs(data.points, side, side, RADIUS)
    most = max(len(types) for types in data.types)
    positive = np.zeros((len(data), most), bool)
    for row, types in zip(positive, data.types, strict=True):
        row[: len(types)] = [name == "epithelial" for name in types]

    def judged(heat: Array, started: float) -> Row:
        scores = cell_scores(heat, instances, positive)
        return {
            "image": by_image(replace(scores, image=data.image[scores.image])),
            "patch": by_image(scores, data.image),
            "seconds": round(time.process_time() - started, 1),
        }

    found = {}
    for name, (size_only, options) in methods.items():
        started = time.process_time()
        found[name] = judged(heatmaps(model, inputs, name, size_only, options, side), started)
    outputs = learner.outputs(model, data)
    margin = (outputs[:, 1] - outputs[:, 0])[:, None, None]
    flat = np.broadcast_to(margin, instances.shape)
    return {**found, "no map, the patch's output": judged(flat, time.process_time())}


def heatmaps(
    model: nn.Module,
    inputs: torch.Tensor,
    name: str,
    size_only: bool,
    options: dict[str, Any],
    side: int,
) -> Array:
    """Explain the tumour output; maps of the patches' own size, shape (N, side, side)."""
    method = create(name, model, **options)
    if hasattr(method, "max_loss"):
        method.max_loss = None
    parts = []
    for batch in torch.split(inputs, 32):
        heat = method.attribute(batch, TUMOUR).detach()
        parts.append((heat.abs() if size_only else heat).sum(1, keepdim=True))
    maps = torch.cat(parts)
    if maps.shape[-1] != side:
        maps = F.interpolate(maps, (side, side), mode="area")
    return maps[:, 0].double().numpy()


def by_image(scores: CellScores, image: Array | None = None) -> list[float | None]:
    """AUC of each image; with `image`, the mean over its patches. None without both kinds."""
    groups = scores.image if image is None else image[scores.image]
    found = []
    for group in np.unique(groups):
        values = []
        for part in np.unique(scores.image[groups == group]):
            inside = scores.image == part
            heat, positive = scores.relevance[inside], scores.positive[inside]
            if 0 < positive.sum() < len(positive):
                values.append(auc(np.stack([-heat, heat], 1), positive.astype(int)))
        found.append(round(float(np.mean(values)), 5) if values else None)
    return found
