"""How good a network is, and what it costs: accuracy, parameters, MACs, seconds."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from niwaki import models
from niwaki.accumulation import Totals
from niwaki.arrays import LABELS, shaped
from niwaki.contexts import undisturbed
from niwaki.data import Data, batches, check_labels
from niwaki.errors import NearChanceWarning
from niwaki.evaluation._explainers import Methods, factories, tolerant
from niwaki.processes import agreed
from niwaki.propagation import Layer, check_logit, trace
from niwaki.ranges import BATCH, ROUNDS, checked
from niwaki.stages import stage


@undisturbed
@stage("measuring accuracy")
@checked(batch_size=BATCH)
def accuracy(
    model: nn.Module, data: Data, *, batch_size: int = 128, description: str | None = None
) -> float:
    """Share of samples whose largest output is the true class.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode, returning shape (N, classes), or one column with the logit of the
        second of two classes, which is said where it is above 0.
    data : DataLoader, Dataset or pair of tensors
        Inputs and labels.
    batch_size : int
        Samples in a batch of a data set or tensors; a loader has its own.
    description : str, optional
        Title of a progress bar; none if not given.

    Returns
    -------
    float
        From 0 to 1.

    Raises
    ------
    ModelError
        If the network is in training mode, has NaN weights, or returns another shape.
    DataError
        For data that cannot be read, or labels that are not among the outputs.
    """
    models.check(model)
    totals, place = Totals(), models.home(model)
    with agreed():
        for inputs, labels in batches(data, batch_size, place, description, shared=True):
            if totals.samples == 0:
                check_logit(model, inputs)
            output = models.class_outputs(model, inputs, "accuracy")
            check_labels(labels, output.shape[1], data)
            totals = totals.update({"right": (output.argmax(1) == labels).sum()}, len(labels))
    totals = totals.reduced()
    return int(totals.sums["right"]) / totals.samples


@undisturbed
@checked(batch_size=BATCH)
def confusion(
    model: nn.Module, data: Data, *, batch_size: int = 128, description: str | None = None
) -> Tensor:
    """Count which classes a network takes for which.

    Parameters
    ----------
    model, data, batch_size, description
        As for `accuracy`.

    Returns
    -------
    Tensor
        Whole numbers, shape (classes, classes): true classes by predicted ones.

    Raises
    ------
    ModelError, DataError
        As for `accuracy`.
    """
    models.check(model)
    totals, place = Totals(), models.home(model)
    with agreed():
        for inputs, labels in batches(data, batch_size, place, description, shared=True):
            output = models.class_outputs(model, inputs, "a confusion matrix")
            if totals.samples == 0:
                check_logit(model, inputs)
            classes = output.shape[1]
            check_labels(labels, classes, data)
            pairs = labels.cpu() * classes + output.argmax(1).cpu()
            counts = torch.bincount(pairs, minlength=classes**2).view(classes, classes)
            totals = totals.update({"pairs": counts}, len(labels))
    return totals.reduced().sums["pairs"].long()


# At an accuracy above this no two classes or more can be near chance, if they are about as many.
_CLEAR = 0.6


@shaped(predicted=LABELS, labels=LABELS)
def near_chance(predicted: NDArray[np.integer], labels: NDArray[np.integer]) -> str | None:
    """Say in a sentence that predictions are hardly better than guessing.

    The mean over the C classes that occur of the share that is predicted right is 1 / C by
    guessing, however many images each has. It counts as chance up to twice that, or up to a tenth
    of the way from there to 1 where this is less.

    Parameters
    ----------
    predicted, labels : ndarray
        Shape (N,).

    Returns
    -------
    str or None
        None where they are better, and for a single class.
    """
    classes = np.unique(labels)
    if len(classes) < 2:
        return None
    recall = float(np.mean([(predicted[labels == c] == c).mean() for c in classes]))
    chance = 1 / len(classes)
    if recall > min(chance + 0.1 * (1 - chance), 2 * chance):
        return None
    return (
        f"the network names {recall:.1%} of the images right (mean over {len(classes)} classes; "
        f"guessing: {chance:.1%}). Before anything else, check that the labels are the numbers of "
        "its outputs (classes=, outputs=, on the command line --outputs), that its weights are "
        "those of these classes, and that the images are prepared as it was trained"
    )


def warn_near_chance(model: nn.Module, data: Data | None, found: float | None, what: str) -> None:
    """Warn if a network whose accuracy was measured is hardly better than guessing.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode, returning shape (N, classes).
    data : DataLoader, Dataset or pair of tensors, optional
        The images that it was measured on.
    found : float, optional
        The accuracy.
    what : str
        Stands before the sentence, such as "before pruning".
    """
    if data is None or found is None or found > _CLEAR:
        return
    counts = confusion(model, data, batch_size=32).numpy()
    labels, predicted = np.nonzero(counts)
    times = counts[labels, predicted]
    if said := near_chance(np.repeat(predicted, times), np.repeat(labels, times)):
        warnings.warn(f"{what}, {said}", NearChanceWarning, stacklevel=3)


@dataclass(frozen=True)
class Cost:
    """Cost of a network in its present state.

    Attributes
    ----------
    units : int
        Filters and neurons of hidden layers.
    params : int
        Parameters.
    macs : int
        Multiply-accumulates of one sample in convolutions and linear layers.
    """

    units: int
    params: int
    macs: int

    @classmethod
    def of(cls, model: nn.Module, layers: Sequence[Layer]) -> Cost:
        """Count what a network costs, given its layers from `niwaki.propagation.trace`."""
        units = sum(layer.units for layer in layers if not layer.last)
        params = sum(p.numel() for p in model.parameters())
        return cls(units, params, sum(layer.macs for layer in layers))

    def __str__(self) -> str:
        return f"{self.units} units, {self.params:,} parameters, {self.macs:,} MACs"


@undisturbed
def cost(model: nn.Module, inputs: Tensor) -> Cost:
    """Count what a network costs for inputs of this size.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode; not changed.
    inputs : Tensor
        Batch of shape (N, ...); the first sample is used.
    """
    return Cost.of(model, trace(model, inputs[:1]))


@checked(repeats=ROUNDS, warm_up=ROUNDS.but(low=0))
def latency(model: nn.Module, inputs: Tensor, *, repeats: int = 20, warm_up: int = 3) -> float:
    """Median seconds of a forward pass on these inputs, with the threads that torch is set to.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode.
    inputs : Tensor
        The whole batch is used.
    repeats, warm_up : int
        Measured passes, and passes before them that do not count.
    """
    seconds = []
    with torch.no_grad():
        for _ in range(warm_up + repeats):
            given = inputs.clone()  # which it may overwrite
            before = _now(inputs)
            model(given)
            seconds.append(_now(inputs) - before)
    return median(seconds[warm_up:])


@checked(repeats=ROUNDS, warm_up=ROUNDS.but(low=0))
def seconds_per_mac(
    model: nn.Module, inputs: Tensor, *, repeats: int = 20, warm_up: int = 3
) -> dict[str, float]:
    """Measure what a multiply-accumulate costs in each layer, here and now.

    A MAC is expensive in a layer with few channels and many positions, or of a depthwise kernel.
    The time from the beginning of a layer to that of the next is the layer's, so that what follows
    it (its norm, its activation) counts for it, and all together come to the whole forward pass.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode; not changed: a copy is measured.
    inputs : Tensor
        The whole batch is used: take one of the size that is to be fast.
    repeats, warm_up : int
        Measured passes, of which the median counts, and passes before them that do not.

    Returns
    -------
    dict of str to float
        Layer name to seconds per MAC; for the prices of a `niwaki.pruning.Schedule`. Layers whose
        module is not called, such as functional ones, are left out.
    """
    macs = {layer.name: layer.macs for layer in trace(model, inputs[:1])}
    own = models.deep_copy(model)
    begun: list[tuple[str, float]] = []
    for name, module in own.named_modules():
        if name in macs:
            module.register_forward_pre_hook(_noting(begun, name, inputs))
    seen: dict[str, list[float]] = {}
    with torch.no_grad():
        for _ in range(warm_up + repeats):
            begun.clear()
            own(inputs.clone())
            spent: dict[str, float] = {}
            ends = [since for _, since in begun[1:]] + [_now(inputs)]
            for (name, since), end in zip(begun, ends, strict=False):  # none, if none is a module
                spent[name] = spent.get(name, 0.0) + end - since
            for name, seconds in spent.items():
                seen.setdefault(name, []).append(seconds)
    per_pass = {name: median(seconds[warm_up:]) for name, seconds in seen.items()}
    return {name: per_pass[name] / (macs[name] * len(inputs)) for name in per_pass}


def _noting(
    begun: list[tuple[str, float]], name: str, where: Tensor
) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        begun.append((name, _now(where)))

    return note


def _now(tensor: Tensor) -> float:
    """Read the clock when the device has done all that was asked of it."""
    if tensor.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


@stage("timing methods")
@checked(repeats=ROUNDS)
def seconds_per_image(
    model: nn.Module, inputs: Tensor, methods: Methods, *, repeats: int = 3
) -> dict[str, float]:
    """Median seconds that a heatmap takes, with the threads that torch is set to.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode.
    inputs : Tensor
        Images of shape (N, ...), which are explained as one batch.
    methods : str, sequence of str, or mapping of str to callable
        Names of the catalogue, or titles with functions that make the method for a model.
    repeats : int
        Measured passes over the batch, after one that does not count.

    Returns
    -------
    dict of str to float
        For each method.
    """
    found = {}
    for name, make in factories(methods).items():
        method, seconds = tolerant(make(model)), []
        for _ in range(repeats + 1):
            _wait(inputs)
            before = time.perf_counter()
            method.attribute(inputs)
            _wait(inputs)
            seconds.append(time.perf_counter() - before)
        found[name] = median(seconds[1:]) / len(inputs)
    return found


def _wait(inputs: Tensor) -> None:
    if inputs.is_cuda:
        torch.cuda.synchronize()
