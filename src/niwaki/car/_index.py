"""The index computed: sums over images, interrupted and resumed at will."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from niwaki import models
from niwaki.accumulation import Totals
from niwaki.car._car_index import COUNTS, MEANS, Baseline, CarIndex, LayerCar
from niwaki.car._evaluator import Evaluator
from niwaki.car._images import Outcome, judge
from niwaki.car._splice import Pairs, Splice
from niwaki.car._units import checked_copy, list_units, name_of, outputs
from niwaki.contexts import undisturbed
from niwaki.data import Data, batches, check_labels
from niwaki.machine import parse_bytes
from niwaki.models.network import Network
from niwaki.processes import check_same
from niwaki.pruning import Group
from niwaki.ranges import BATCH, checked
from niwaki.runs import Folder, accumulate, digest, identified, open_run
from niwaki.stages import stage

_SUMS = "sums"  # the part of a run folder that keeps them
_FEW = 8  # images that say what the layers are


@undisturbed
@stage("removing filters")
@checked(batch_size=BATCH)
def index(
    model: nn.Module,
    data: Data,
    *,
    layers: Sequence[str] | None = None,
    batch_size: int = 64,
    max_memory: int | str = "2GB",
    folder: Folder = None,
    description: str | None = None,
) -> CarIndex:
    """Compute the classification accuracy reduction of every unit, exactly.

    The reduction (CAR) of a unit is the network's accuracy minus the accuracy of the network from
    which the unit is physically removed, with its batch norm and the inputs behind it, and with all
    that is coupled to it (Abbasi-Asl & Yu 2017). What lies before a unit is computed once, what it
    contributes to the next layer is subtracted there, images that do not activate it are skipped,
    and the rest of the network runs for many units and images at once. The counts equal those of
    physical removal except for images whose two largest outputs differ by less than 1e-4, which are
    reported. A layer that cannot lose a unit, because of what its network does with its channels,
    is judged by masking: the channel is zero behind the layer's norm and activation.

    It may run in several threads at once, on one model, too, while others call that model.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode, returning shape (N, classes). It stays as it is.
    data : DataLoader, Dataset or pair of tensors
        Images with their labels.
    layers : sequence of str, optional
        Only units of these layers or of layers within modules of these names; default: all hidden
        convolutions and linear layers.
    batch_size : int
        Images that are processed together, fewer if the memory requires it; a loader has its own.
    max_memory : int or str
        Bytes to stay below in each process, beside the network and the data themselves; such as
        ``"500MB"``.
    folder : str or Path, optional
        Keeps the counts as they grow; the same call resumes from there.
    description : str, optional
        Title of a progress bar; none if not given.

    Returns
    -------
    CarIndex
        Layer name to the reductions of its units, in total and by class.

    Raises
    ------
    ValueError
        For options out of range.
    ModelError, DataError, NothingToPruneError
        For a network or data that cannot be used; a folder that holds counts of others.

    Examples
    --------
    >>> index = niwaki.car.index(model, (images, labels))
    >>> index["conv1"].car
    >>> index.ranking()[:5]
    """
    memory = parse_bytes(max_memory)
    own = checked_copy(model)
    example = _first_inputs(own, data)
    units = list_units(own, example, layers)
    evaluator = Evaluator(own, example, units.groups, memory, masks=units.layers)
    groups = evaluator.groups
    size = evaluator.batch_size(batch_size)
    fingerprint = models.fingerprint(model)

    def identity() -> dict[str, Any]:
        names = [name_of(group) for group in groups]
        return {
            "model": identified(model),
            "data": digest(data, ordered=True),
            "layers": names,
        }

    def sums(inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        totals = Totals()
        for x, y in zip(torch.split(inputs, size), torch.split(labels, size), strict=True):
            totals = totals.update(measure(evaluator, x, y), len(x))
        return totals.sums

    # Which way is exact for which unit is found out with numbers.
    check_same("way to judge units", list(zip(map(name_of, groups), evaluator.paths, strict=True)))
    loop = {"batch_size": size, "place": models.home(model), "description": description}
    with open_run(folder, identity) as kept:
        totals = accumulate(data, sums, kept, _SUMS, **loop)
    paths = dict(zip(map(name_of, groups), evaluator.paths, strict=True))
    return _index_of(totals, groups, paths, fingerprint)


def operations_behind(model: nn.Module, inputs: Tensor) -> dict[str, tuple[int, int]]:
    """Count the multiply-accumulates that follow a unit, for one image.

    The next layer's change is counted as one channel's work, as it is computed by linearity.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode, of operations that can be listed; not changed.
    inputs : Tensor
        Batch of shape (N, ...).

    Returns
    -------
    dict of str to tuple of int
        For each layer (coupled layers under the name of the first): its number of units, and the
        multiply-accumulates of one pair of a unit and an image.
    """
    own = checked_copy(model)
    example = torch.cat([inputs[:1]] * 2)
    network = Network(own, example, fold=True)
    units = list_units(own, example)
    units.check_removable(own)
    return {
        group.root: (len(group), Splice(network, group).macs_per_pair()) for group in units.groups
    }


def measure(evaluator: Evaluator, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Compute the sums over some images; their names are those of `LayerCar` and the layer.

    Raises
    ------
    DataError
        For a label that is no output.
    """
    whole = evaluator.forward(inputs)
    classes = models.class_logits(whole.logits).shape[1]
    check_labels(labels, classes)
    before = judge(whole.logits, labels)
    sums = {
        "of_class": torch.bincount(labels, minlength=classes),
        "right": torch.bincount(labels[before.right], minlength=classes),
        "loss": before.loss.sum(),
        "margin": before.margin.sum(),
        "near": before.near.sum(),
    }
    for i, group in enumerate(evaluator.groups):
        own = _Sums(len(group), classes, before)
        active = whole.active(i)
        for pairs, logits in evaluator.without(whole, i, Pairs.where(active)):
            own.add(pairs, judge(logits, labels[pairs.images]), labels)
        own.sums["near_ties"] += (~active & before.near).sum(1)
        sums |= {f"{kind}/{name_of(group)}": value for kind, value in own.sums.items()}
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


def _index_of(
    totals: Totals, groups: Sequence[Group], paths: Mapping[str, str], fingerprint: str
) -> CarIndex:
    """Make the index of the sums."""
    sums, samples = totals.sums, totals.samples
    baseline = Baseline(
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
            for kind in (*COUNTS, *MEANS)
        }
        layers[root] = LayerCar(
            tuple(units[i] for i in order),
            tuple(dict.fromkeys(layer for group in own for layer in outputs(group))),
            tuple(ways[i] for i in order),
            baseline,
            **{kind: of[kind].long() for kind in COUNTS},
            **{kind: of[kind] / samples for kind in MEANS},
        )
    return CarIndex(layers, baseline, fingerprint)


def _first_inputs(model: nn.Module, data: Data) -> Tensor:
    """Return the first few inputs, at least two rows."""
    inputs, _ = next(iter(batches(data, _FEW, models.home(model))))
    return inputs[:_FEW] if len(inputs) > 1 else inputs.repeat(2, *[1] * (inputs.dim() - 1))
