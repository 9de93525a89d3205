"""Sums over images of what a network loses with each unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from niwaki.accumulation import Totals
from niwaki.car._evaluator import Evaluator
from niwaki.car._index import CarIndex, LayerCar, Whole
from niwaki.car._outcome import Outcome, judge
from niwaki.car._pairs import Pairs
from niwaki.car._units import name_of, outputs
from niwaki.data import check_labels
from niwaki.models import class_logits
from niwaki.pruning import Group

__all__ = ["index_of", "measure"]


def measure(evaluator: Evaluator, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Compute the sums over some images; their names are those of `LayerCar` and the layer.

    Raises
    ------
    DataError
        For a label that is no output.
    """
    look = evaluator.look(inputs)
    classes = class_logits(look.logits).shape[1]
    check_labels(labels, classes)
    before = judge(look.logits, labels)
    sums = {
        "of_class": torch.bincount(labels, minlength=classes),
        "right": torch.bincount(labels[before.right], minlength=classes),
        "loss": before.loss.sum(),
        "margin": before.margin.sum(),
        "near": before.near.sum(),
    }
    for i, group in enumerate(evaluator.groups):
        found = _Sums(len(group), classes, before)
        active = look.active(i)
        for pairs, logits in evaluator.without(look, i, Pairs.where(active)):
            found.add(pairs, judge(logits, labels[pairs.images]), labels)
        unchanged = (~active & before.near).sum(1)
        found.sums["near_ties"] += unchanged
        sums |= {f"{kind}/{name_of(group)}": value for kind, value in found.sums.items()}
    return {name: value.cpu() for name, value in sums.items()}


class _Sums:
    """What changes with each unit of one group."""

    def __init__(self, units: int, classes: int, before: Outcome) -> None:
        self._before = before
        self._classes = classes
        device = before.right.device
        self.sums = {
            "broken": torch.zeros(units, classes, dtype=torch.int64, device=device),
            "mended": torch.zeros(units, classes, dtype=torch.int64, device=device),
            "near_ties": torch.zeros(units, dtype=torch.int64, device=device),
            "loss_change": torch.zeros(units, dtype=torch.float64, device=device),
            "margin_change": torch.zeros(units, dtype=torch.float64, device=device),
        }

    def add(self, pairs: Pairs, after: Outcome, labels: Tensor) -> None:
        before = self._before[pairs.images]
        place = pairs.units * self._classes + labels[pairs.images]
        broken, mended = before.right & ~after.right, ~before.right & after.right
        self.sums["broken"].view(-1).index_add_(0, place, broken.long())
        self.sums["mended"].view(-1).index_add_(0, place, mended.long())
        self.sums["near_ties"].index_add_(0, pairs.units, after.near.long())
        self.sums["loss_change"].index_add_(0, pairs.units, after.loss - before.loss)
        self.sums["margin_change"].index_add_(0, pairs.units, after.margin - before.margin)


def index_of(
    totals: Totals, groups: Sequence[Group], paths: Mapping[str, str], fingerprint: str
) -> CarIndex:
    """Make the index of the sums."""
    sums, samples = totals.sums, totals.samples
    whole = Whole(
        tuple(sums["of_class"].long().tolist()),
        tuple(sums["right"].long().tolist()),
        float(sums["loss"]) / samples,
        float(sums["margin"]) / samples,
        int(sums["near"]),
    )
    layers = {}
    for root in dict.fromkeys(group.root for group in groups):
        own = [group for group in groups if group.root == root]
        units = [unit for group in own for unit in group.units]
        ways = [paths[name_of(group)] for group in own for _ in group.units]
        order = sorted(range(len(units)), key=units.__getitem__)
        of = {
            kind: torch.cat([sums[f"{kind}/{name_of(group)}"] for group in own])[order]
            for kind in ("broken", "mended", "loss_change", "margin_change", "near_ties")
        }
        layers[root] = LayerCar(
            tuple(units[i] for i in order),
            tuple(dict.fromkeys(layer for group in own for layer in outputs(group))),
            tuple(ways[i] for i in order),
            whole,
            of["broken"].long(),
            of["mended"].long(),
            of["loss_change"] / samples,
            of["margin_change"] / samples,
            of["near_ties"].long(),
        )
    return CarIndex(layers, whole, fingerprint)
