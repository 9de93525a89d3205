"""Greedy compression: the unit of the lowest classification accuracy reduction goes, and again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from niwaki import models
from niwaki.car._descent import Descent, Removed
from niwaki.car._goal import Goal
from niwaki.car._groups import copy_of, judged
from niwaki.car._outcome import judge
from niwaki.car._pool import Pool
from niwaki.car._race import race
from niwaki.car._search import lowest
from niwaki.car._stand import Stand
from niwaki.car._tally import Candidate, Found, Looks
from niwaki.car._units import Kind, kind_of, numbers, units_of
from niwaki.data import Data, check_labels, check_same_classes, count
from niwaki.errors import NothingToPruneError
from niwaki.evaluation import accuracy, cost
from niwaki.memory import parse_bytes
from niwaki.pruning import Group, Pruned, Removal, Step, operate
from niwaki.ranges import BATCH, FRACTION, INSIDE, SEED, SOME, UNITS, checked
from niwaki.runs import Folder, described, digest, open_run

__all__ = ["greedy"]

_PER_PAIR = 32  # bytes that the search takes for each pair of a candidate and an image


@checked(
    remove=SOME,
    keep=INSIDE,
    floor=FRACTION,
    min_units=UNITS,
    batch_size=BATCH,
    confidence=INSIDE,
    tolerance=FRACTION,
    seed=SEED,
)
def greedy(
    model: nn.Module,
    data: Data,
    *,
    remove: int | None = None,
    keep: float | None = None,
    of: Literal["units", "params", "macs"] = "units",
    floor: float | None = None,
    layers: Sequence[str] | None = None,
    min_units: int = 1,
    batch_size: int = 64,
    max_memory: int | str = "2GB",
    confidence: float | None = None,
    tolerance: float = 0.0,
    seed: int = 0,
    test: Data | None = None,
    tune: Callable[[nn.Module], None] | None = None,
    folder: Folder = None,
    callback: Callable[[Step], None] | None = None,
) -> Pruned:
    """Remove the unit of the lowest classification accuracy reduction, recompute, and repeat.

    The sequence is that of brute force, unit by unit: the highest accuracy without the unit
    decides, then the mean margin without it in steps of 1e-4, then the order of layers and units
    (Abbasi-Asl & Yu 2017). Only the lowest reduction is needed, so that a candidate is out as soon
    as the errors that it has made leave it no way to beat the best.

    It may run in several threads at once, on one model, too, while others call that model.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode, returning shape (N, classes). It stays as it is.
    data : DataLoader, Dataset or pair of tensors
        The images, with labels, on which the reduction is computed.
    remove : int, optional
        Stop when so many units are gone.
    keep : float, optional
        Stop at this share of the cost, or just below it.
    of : {"units", "params", "macs"}
        The cost that `keep` means.
    floor : float, optional
        Stop before the accuracy on `data` falls below this.
    layers : sequence of str, optional
        Only units of these layers or of layers within modules of these names; one layer, several,
        or (the default) the whole network compete in each step.
    min_units : int
        Units that each layer keeps at the least.
    batch_size : int
        Images that are looked at together.
    max_memory : int or str
        Bytes to stay below, beside the network.
    confidence : float, optional
        For very large sets: look in each step at random images only, until the unit is with this
        probability the right one, up to `tolerance`. Default: all images count, exactly.
    tolerance : float
        Difference in accuracy that does not matter there.
    seed : int
        Of the order of the images there.
    test : DataLoader, Dataset or pair of tensors, optional
        Measures the accuracy after each step on images that the search does not see. The accuracy
        on `data` says little of others, as every unit was chosen for it.
    tune : callable, optional
        Called with the network after each removal; trains it in place.
    folder : str or Path, optional
        Keeps the network after each step; the same call goes on from there, also with another
        `remove`, `keep` or `floor`.
    callback : callable, optional
        Told about each step.

    Returns
    -------
    Pruned
        With a step of its plan and a row of its trajectory for each unit. A row's `accuracy` is
        that on `test`, and its `validation` that on `data`, the images of the search; how many
        these are, ``settings["test_images"]`` (None without) and ``settings["search_images"]``
        say. ``settings["removals"]`` says for each unit what it was in the
        network as it came, and how many of the (unit, image) pairs were evaluated.

    Raises
    ------
    ValueError
        For options out of range, or neither `remove` nor `keep` nor `floor`.
    ModelError, DataError, NothingToPruneError, NiwakiError
        For a network, data or a folder that cannot be worked with.

    Examples
    --------
    >>> pruned = niwaki.car.greedy(model, (images, labels), remove=20, floor=0.98, test=held_out)
    >>> [step.accuracy for step in pruned.trajectory]
    >>> pruned.save("smaller")
    """
    goal = Goal(remove, keep, of, floor)
    choice = _Choice(batch_size, parse_bytes(max_memory), confidence, tolerance, seed)
    own = copy_of(model)
    check_same_classes(data, test, "the searched and the test images")
    pool = Pool(data, choice.memory // 4, models.home(model))
    example = pool.read(torch.arange(8).remainder(len(pool)))
    found = judged(own, example, layers)
    choice.numbers = numbers(found.coupled, found.widths)
    check_labels(pool.labels, _outputs(own, example), data)
    goal.check(_available(found.removable(own), units_of(found.coupled, found.widths), min_units))

    def identity() -> dict[str, Any]:
        return {
            "model": models.fingerprint(model),
            "data": digest(data, ordered=confidence is not None),
            "test": None if test is None else digest(test),
            "layers": None if layers is None else list(layers),
            "min_units": min_units,
            "sampled": None if confidence is None else [confidence, tolerance, seed],
            "tune": described(tune),
        }

    with open_run(folder, identity) as kept:
        descent = Descent.start_or_resume(own, kept, example)
        choice.begin(descent.model, pool)

        def look(since: float, right: float | None) -> None:
            now = cost(descent.model, example)
            seen = None if test is None else accuracy(descent.model, test, batch_size=batch_size)
            row = Step(
                len(descent.rows),
                now.units,
                now.params,
                now.macs,
                seen,
                None,
                0.0,
                validation=right,
            )
            if tune is not None and descent.rows:
                tune(descent.model)
                descent.model.eval()
                models.check(descent.model)
                choice.begin(descent.model, pool)
                if test is not None:
                    tuned = accuracy(descent.model, test, batch_size=batch_size)
                    row = replace(row, accuracy_tuned=tuned)
            descent.rows.append(replace(row, seconds=time.perf_counter() - since))
            descent.keep(kept)
            if callback is not None:
                callback(descent.rows[-1])

        if not descent.rows:
            look(time.perf_counter(), choice.accuracy)
        while not goal.reached(descent.rows):
            since = time.perf_counter()
            removed = choice.next(descent, pool, example, layers, min_units)
            if removed is None or goal.forbids(removed.accuracy):
                break
            operate(descent.model, example, [Removal(removed.layer, removed.channels)])
            descent.add(removed)
            look(since, removed.accuracy)
    pruned = descent.pruned()
    images = {"search_images": len(pool), "test_images": None if test is None else count(test)}
    return replace(pruned, settings={**pruned.settings, **images})


class _Choice:
    """Chooses the next unit, and remembers what makes the next choice quick."""

    def __init__(
        self, size: int, memory: int, confidence: float | None, tolerance: float, seed: int
    ) -> None:
        self.memory = memory
        self._size = size
        self._confidence = confidence
        self._tolerance = tolerance
        self._seed = seed
        self._margins = torch.empty(0)
        self._changes: dict[tuple[str, int], Tensor] = {}
        self._paths: dict[Kind, str] = {}
        self.numbers: dict[tuple[str, int], int] = {}
        self._stand: Stand | None = None

    @torch.no_grad()
    def begin(self, model: nn.Module, pool: Pool) -> None:
        """Learn which images flip easily, and the accuracy."""
        self._stand = None
        margins = []
        for start in range(0, len(pool), self._size):
            images = torch.arange(start, min(start + self._size, len(pool)))
            logits, labels = model(pool.read(images)), pool.labels[images.to(pool.labels.device)]
            margins.append(judge(logits, labels).margin)
        self._margins = torch.cat(margins)

    @property
    def accuracy(self) -> float:
        """Share of the images with a positive margin."""
        return float((self._margins > 0).double().mean())

    def next(
        self,
        descent: Descent,
        pool: Pool,
        example: Tensor,
        layers: Sequence[str] | None,
        min_units: int,
    ) -> Removed | None:
        """Find the unit that goes, or None where every layer is down to its last units."""
        if self._stand is None:
            try:
                self._stand = Stand(
                    descent.model,
                    pool,
                    example,
                    layers,
                    min_units,
                    self.memory // 2,
                    self._size,
                    self._paths,
                )
            except NothingToPruneError:
                return None
        stand = self._stand
        candidates = stand.candidates()
        if not candidates:
            return None
        self._paths |= dict(zip(map(kind_of, stand.groups), stand.evaluator.paths, strict=True))
        names = []
        for candidate in candidates:
            root = stand.groups[candidate.group].root
            first = min(stand.taken(candidate)[root])
            names.append((root, descent.original(root, first)))
        found = self._search(stand, pool, candidates, names, len(descent.rows))
        chosen = candidates[found.candidate]
        layer, first = names[found.candidate]
        taken = stand.taken(chosen)
        removed = Removed(
            layer,
            taken[layer],
            self.numbers.get((layer, first), first),
            taken,
            1 - found.errors / found.images,
            found.near_ties,
            found.evaluated,
            found.pairs,
            found.certainty,
        )
        if not stand.remove(chosen):
            self._stand = None
        return removed

    def _search(
        self,
        stand: Stand,
        pool: Pool,
        candidates: Sequence[Candidate],
        names: Sequence[tuple[str, int]],
        step: int,
    ) -> Found:
        evaluator, images = stand.evaluator, len(pool)
        if self._confidence is not None:
            generator = torch.Generator().manual_seed(self._seed + step)
            order = torch.randperm(images, generator=generator).to(pool.labels.device)
            looks = Looks(evaluator, pool, _cut(order, stand.size), stand.whole)
            return race(evaluator, candidates, looks, images, self._confidence, self._tolerance)
        fresh = stand.margins(pool)
        self._margins = self._margins if fresh is None else fresh
        order = self._margins.argsort(stable=True)
        width = self.memory // 8 // (_PER_PAIR * len(candidates))
        blocks = _cut(order, max(1, images if stand.whole is not None else stand.size))
        if len(blocks[0]) > width:
            blocks = _cut(order, max(1, width))
        looks = Looks(evaluator, pool, blocks, stand.whole)
        changes = self._known(names, images) if images <= width else None
        found = lowest(evaluator, candidates, looks, images, changes)
        if changes is not None:
            self._changes = dict(zip(names, changes, strict=True))
        return found

    def _known(self, names: Sequence[tuple[str, int]], images: int) -> Tensor:
        """Return the last known change of each image's margin without each candidate."""
        nothing = torch.zeros(images, device=self._margins.device)
        return torch.stack([self._changes.get(name, nothing) for name in names])


def _cut(order: Tensor, size: int) -> list[Tensor]:
    return [order[start : start + size] for start in range(0, len(order), size)]


def _available(groups: Sequence[Group], counts: Mapping[str, int], min_units: int) -> int:
    """Count the units that can go at the most."""
    total = 0
    for root in {group.root for group in groups}:
        own = sum(len(group) for group in groups if group.root == root)
        total += max(0, min(own, counts[root] - min_units))
    return total


def _outputs(model: nn.Module, example: Tensor) -> int:
    return models.class_outputs(model, example, "the search").shape[1]
