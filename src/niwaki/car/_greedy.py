"""Greedy compression: the unit with the lowest accuracy reduction is removed, again and again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from typing import Any, Literal

from torch import nn

from niwaki import models
from niwaki.car._greedy_run import GreedyRun
from niwaki.car._images import ImagePool
from niwaki.car._search import Sampling
from niwaki.car._units import checked_copy
from niwaki.contexts import undisturbed
from niwaki.data import Data, check_labels, check_same_classes
from niwaki.machine import parse_bytes
from niwaki.pruning import Pruned, Step
from niwaki.pruning.steps import ROUNDING
from niwaki.ranges import BATCH, FRACTION, INSIDE, SOME, UNITS, checked
from niwaki.runs import Folder, described, digest, identified, open_run


@checked(remove=SOME, keep=INSIDE, floor=FRACTION)
@dataclass(frozen=True)
class Stop:
    """When a greedy compression stops, whichever comes first.

    Attributes
    ----------
    remove : int, optional
        After so many removed units.
    keep : float, optional
        At this share of the cost, or just below it.
    of : {"units", "params", "macs"}
        The cost that `keep` means.
    floor : float, optional
        Before the accuracy on the images of the search falls below this.

    Raises
    ------
    ValueError
        For values out of range, or neither `remove` nor `keep` nor `floor`.
    """

    remove: int | None = None
    keep: float | None = None
    of: Literal["units", "params", "macs"] = "units"
    floor: float | None = None

    def __post_init__(self) -> None:
        if self.remove is None and self.keep is None and self.floor is None:
            raise ValueError("say when to stop: remove=number of units, keep=share, or floor=...")


@undisturbed
@checked(min_units=UNITS, batch_size=BATCH)
def greedy(
    model: nn.Module,
    data: Data,
    stop: Stop,
    *,
    layers: Sequence[str] | None = None,
    min_units: int = 1,
    batch_size: int = 64,
    max_memory: int | str = "2GB",
    sampling: Sampling | None = None,
    test: Data | None = None,
    tune: Callable[[nn.Module, int], object] | None = None,
    folder: Folder = None,
    callback: Callable[[Step], None] | None = None,
) -> Pruned:
    """Remove the unit of the lowest classification accuracy reduction, recompute, and repeat.

    The sequence is that of brute force, unit by unit: the highest accuracy without the unit
    decides, then the mean margin without it in steps of 1e-4, then the order of layers and units
    (Abbasi-Asl & Yu 2017). Only the lowest reduction is needed, so that a candidate is out as soon
    as the errors that it has made leave it no way to beat the best.

    It may run in several threads at once, on one model, too, while others call that model.
    Processes that work together (see `niwaki.processes`) share the (unit, image) pairs.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode, returning shape (N, classes). It stays as it is.
    data : DataLoader, Dataset or pair of tensors
        The images, with labels, on which the reduction is computed.
    stop : Stop
        When to stop: after so many units, at a share of the cost, or before an accuracy.
    layers : sequence of str, optional
        Only units of these layers or of layers within modules of these names; one layer, several,
        or (the default) the whole network compete in each step.
    min_units : int
        Smallest number of units that a layer may keep.
    batch_size : int
        Images that are processed together.
    max_memory : int or str
        Bytes to stay below, beside the network.
    sampling : Sampling, optional
        For very large sets: in each step, evaluate random images only, until the unit is probably
        the right one. Default: all images count, exactly.
    test : DataLoader, Dataset or pair of tensors, optional
        Measures the accuracy after each step on images that the search does not see. The accuracy
        on `data` says little of others, as every unit was chosen for it.
    tune : callable, optional
        Called with the network and the number of the step after each removal, the generators of
        torch, NumPy and Python being seeded by that number; trains the network in place. As for
        `niwaki.prune`.
    folder : str or Path, optional
        Keeps the network after each step; the same call resumes from there, also with another
        `stop`.
    callback : callable, optional
        Told about each step.

    Returns
    -------
    Pruned
        With a step of its plan and a row of its trajectory for each unit. A row's `accuracy` is
        that on `test`, and its `validation` that on `data`, the images of the search; how many
        these are, ``settings["test_images"]`` (None without) and ``settings["search_images"]``
        say. ``settings["removals"]`` says for each unit what it was in the unpruned network, and
        how many of the (unit, image) pairs were evaluated.

    Raises
    ------
    ValueError
        For options out of range, or fewer units than are to be removed.
    ModelError, DataError, NothingToPruneError, NiwakiError
        For a network, data or a folder that cannot be used.

    Examples
    --------
    >>> stop = niwaki.car.Stop(remove=20, floor=0.98)
    >>> pruned = niwaki.car.greedy(model, (images, labels), stop, test=held_out)
    >>> [step.accuracy for step in pruned.trajectory]
    >>> pruned.save("smaller")
    """
    memory = parse_bytes(max_memory)
    own = checked_copy(model)
    check_same_classes(data, test, "the searched and the test images")
    images = ImagePool(data, memory // 4, models.home(model))
    run = GreedyRun(own, images, layers, min_units, memory, batch_size, sampling)
    outputs = models.class_outputs(own, run.example, "the search").shape[1]
    check_labels(images.labels, outputs, data)
    run.units.check_removable(own)
    _check_reachable(stop, run.units.available(min_units))

    def identity() -> dict[str, Any]:
        return {
            "model": identified(model),
            "data": digest(data, ordered=sampling is not None),
            "test": None if test is None else digest(test),
            "layers": None if layers is None else list(layers),
            "min_units": min_units,
            "sampled": None if sampling is None else list(astuple(sampling)),
            "tune": described(tune),
        }

    with open_run(folder, identity) as kept:

        def finish_step(since: float, accuracy: float) -> None:
            step = run.finish_step(since, accuracy, test, tune)
            run.keep(kept)
            if callback is not None:
                callback(step)

        run.resume(kept)
        if not run.steps:
            finish_step(time.perf_counter(), run.accuracy)
        while not _is_reached(stop, run.steps):
            since = time.perf_counter()
            unit = run.next_unit()
            if unit is None or (stop.floor is not None and unit.accuracy < stop.floor):
                break
            run.remove(unit)
            finish_step(since, unit.accuracy)
    return run.pruned(test)


def _check_reachable(stop: Stop, available: int) -> None:
    if stop.remove is not None and stop.remove > available:
        raise ValueError(f"remove = {stop.remove}: only {available} units can be removed")


def _is_reached(stop: Stop, steps: Sequence[Step]) -> bool:
    """Whether enough was removed after these steps, the first of which is the whole network."""
    if stop.remove is not None and len(steps) > stop.remove:
        return True
    if stop.keep is None:
        return False
    whole, left = (getattr(step, stop.of) for step in (steps[0], steps[-1]))
    return bool(left <= stop.keep * whole + ROUNDING)
