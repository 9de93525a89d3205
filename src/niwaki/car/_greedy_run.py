"""A greedy run: the current network, what was removed from it, and what is known of the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from niwaki import pruning
from niwaki.car._counts import Batches, Candidate, Found
from niwaki.car._evaluator import Evaluator
from niwaki.car._images import ForwardPass, ImagePool, judge
from niwaki.car._search import ExactSearch, Sampling, sampled_search
from niwaki.car._units import (
    Kind,
    groups_within,
    kind_of,
    list_units,
    name_of,
    outputs,
    removable_groups,
)
from niwaki.data import Data, count
from niwaki.errors import NothingToPruneError
from niwaki.processes import check_same
from niwaki.pruning import Plan, Pruned, Removal, Step, Trajectory
from niwaki.pruning.steps import Measure, Structure, run_loop, shapes
from niwaki.runs import Run
from niwaki.schema import Anything, ListOf, Record, check, rebuild

_PER_PAIR = 32  # bytes that the search takes for each pair of a candidate and an image
_WORN = 0.25  # share of the units gone after which the operations are listed anew, and narrower
_LAST = "last"  # the part of a run folder that keeps the last step
_FORM = Record({"trajectory": ListOf(Anything()), "removed": ListOf(Anything())})


@dataclass(frozen=True)
class RemovedUnit:
    """A removed unit, and how it was found.

    Attributes
    ----------
    layer : str
        The layer that numbers it.
    channels : tuple of int
        The layer's channels that it is made of, in the network that the previous step left.
    unit : int
        Its number in the layer of the unpruned network.
    taken : dict of str to tuple of int
        The channels that every layer loses with it, in the network that the previous step left.
    accuracy : float
        The accuracy without it, on the images that were looked at.
    near_ties, evaluated, pairs, certainty
        See `Found`.
    """

    layer: str
    channels: tuple[int, ...]
    unit: int
    taken: dict[str, tuple[int, ...]]
    accuracy: float
    near_ties: int
    evaluated: int
    pairs: int
    certainty: float


class GreedyRun:
    """The state of a greedy compression, from one removal to the next.

    The network's operations are listed, and checked against physical removal, once for many steps:
    a removed unit is afterwards read by nobody, and only what follows it is computed anew. As its
    channels are still there, all is listed anew when many are gone.

    Parameters
    ----------
    model : nn.Module
        A copy, which is made smaller step by step.
    images : ImagePool
        The images on which the reduction is computed.
    layers : sequence of str, optional
        The layers that may lose units.
    min_units : int
        Smallest number of units that a layer may keep.
    memory : int
        Bytes to stay below.
    batch_size : int
        Images that are processed together.
    sampling : Sampling, optional
        For a search that looks at random images only.

    Attributes
    ----------
    steps : list of Step
        The trajectory.
    removed : list of RemovedUnit
        What was removed, in order.
    """

    def __init__(
        self,
        model: nn.Module,
        images: ImagePool,
        layers: Sequence[str] | None,
        min_units: int,
        memory: int,
        batch_size: int,
        sampling: Sampling | None,
    ) -> None:
        self.model = model
        self.images = images
        self.example = images.read(torch.arange(8).remainder(len(images)))
        self.units = list_units(model, self.example, layers)
        self.steps: list[Step] = []
        self.removed: list[RemovedUnit] = []
        self._layers = layers
        self._min_units = min_units
        self._memory = memory
        self._batch_size = batch_size
        self._sampling = sampling
        self._architecture = shapes(model)
        self._numbers = self.units.numbers()
        # What makes the next choice quick: how easily images flip, what each unit last changed,
        # and how groups were evaluated before.
        self._margins = torch.empty(0)
        self._changes: dict[tuple[str, int], Tensor] = {}
        self._paths: dict[Kind, str] = {}
        self._evaluator: Evaluator | None = None

    # From step to step.

    def resume(self, kept: Run) -> None:
        """Resume from what a run folder has kept, if there is anything."""
        part = kept.read(_LAST)
        if part is not None:
            check(part.about, _FORM, "the search")
            self.removed = [rebuild(RemovedUnit, told) for told in part.about["removed"]]
            pruning.restore(self.model, self.example, self._plan(), part.tensors)
            self.steps = list(Trajectory.from_json(part.about["trajectory"]))
        self.learn_margins()

    def keep(self, kept: Run) -> None:
        """Write the progress into a run folder."""
        kept.write(
            _LAST,
            pruning.tensors_of(self.model),
            trajectory=Trajectory(tuple(self.steps)).to_json(),
            removed=[asdict(removed) for removed in self.removed],
        )

    @torch.no_grad()
    def learn_margins(self) -> None:
        """Learn anew which images flip easily, after the network was changed otherwise."""
        self._evaluator = None
        margins = []
        for numbers in torch.split(torch.arange(len(self.images)), self._batch_size):
            logits = self.model(self.images.read(numbers))
            labels = self.images.labels[numbers.to(self.images.labels.device)]
            margins.append(judge(logits, labels).margin)
        self._margins = torch.cat(margins)

    @property
    def accuracy(self) -> float:
        """Share of the images with a positive margin."""
        return float((self._margins > 0).double().mean())

    def remove(self, unit: RemovedUnit) -> None:
        """Take a unit out of the network, physically."""
        pruning.operate(self.model, self.example, [Removal(unit.layer, unit.channels)])
        self.removed.append(unit)

    def finish_step(
        self,
        since: float,
        validation: float,
        test: Data | None,
        tune: Callable[[nn.Module, int], object] | None,
    ) -> Step:
        """Measure the network, fine-tune it after a removal, and measure it again."""
        measure, number = Measure(test, None, self._batch_size), len(self.steps)
        step = measure.step(number, Structure(self.model, self.example), since, validation)
        if tune is not None and number:
            run_loop(tune, self.model, number)
            self.learn_margins()
            step = measure.tuned(step, self.model, since)
        self.steps.append(step)
        return step

    def _plan(self) -> Plan:
        return Plan(tuple((Removal(unit.layer, unit.channels),) for unit in self.removed))

    def pruned(self, test: Data | None) -> Pruned:
        """Return the current network and how it came about."""
        evaluated = sum(unit.evaluated for unit in self.removed)
        pairs = sum(unit.pairs for unit in self.removed)
        return Pruned(
            self.model,
            self._plan(),
            Trajectory(tuple(self.steps)),
            tuple(self.example.shape[1:]),
            self._architecture,
            {
                "criterion": "car",
                "greedy": True,
                "evaluated": evaluated / pairs if pairs else 0.0,
                "removals": [asdict(unit) for unit in self.removed],
                "search_images": len(self.images),
                "test_images": None if test is None else count(test),
            },
        )

    # The next choice.

    def next_unit(self) -> RemovedUnit | None:
        """Find the unit to remove, or None where every layer is down to its last units."""
        try:
            evaluator = self._evaluator or self._list_operations()
        except NothingToPruneError:
            return None
        candidates = self._candidates(evaluator)
        if not candidates:
            return None
        self._paths |= dict(zip(map(kind_of, evaluator.groups), evaluator.paths, strict=True))
        names = [self._name(evaluator, candidate) for candidate in candidates]
        found = self._search(evaluator, candidates, names)
        ways = zip(map(name_of, evaluator.groups), evaluator.paths, strict=True)
        check_same("search for a unit", [*ways, ("what was found", str(found))])
        chosen, (layer, first) = candidates[found.candidate], names[found.candidate]
        taken = self._taken(evaluator, chosen)
        self._take_out(evaluator, chosen)
        return RemovedUnit(
            layer,
            taken[layer],
            self._numbers.get((layer, first), first),
            taken,
            1 - found.errors / found.images,
            found.near_ties,
            found.evaluated,
            found.pairs,
            found.certainty,
        )

    def _list_operations(self) -> Evaluator:
        """List the operations of the current network, and run it on all images if they fit."""
        units = list_units(self.model, self.example)
        self._left = dict(units.counts)
        groups = removable_groups(units.groups, self._left, self._min_units)
        if self._layers is not None:  # a layer down to its last unit is no longer among the units
            groups = groups_within(groups, self._layers)
        if not groups:
            raise NothingToPruneError("every layer is down to its last units")
        known = [self._paths.get(kind_of(group), "") for group in groups]
        memory = self._memory // 2
        evaluator = Evaluator(
            self.model, self.example, groups, memory // 2, known if all(known) else None
        )
        self._gone: list[set[int]] = [set() for _ in evaluator.groups]
        self._lost: dict[str, list[int]] = {}  # channels of each layer, as they were listed
        self._size = evaluator.batch_size(self._batch_size)
        self._whole: ForwardPass | None = None
        if evaluator.kept_bytes * len(self.images) <= memory // 4:
            self._whole = self.images.forward(evaluator.forward, self._size)
        self._evaluator = evaluator
        return evaluator

    def _candidates(self, evaluator: Evaluator) -> list[Candidate]:
        """List the units that may be removed, in the order that decides between equals."""
        may = {
            name_of(group)
            for group in removable_groups(evaluator.groups, self._left, self._min_units)
        }
        return [
            Candidate(g, u)
            for g, group in enumerate(evaluator.groups)
            if name_of(group) in may
            for u in range(len(group))
            if u not in self._gone[g]
        ]

    def _taken(self, evaluator: Evaluator, candidate: Candidate) -> dict[str, tuple[int, ...]]:
        """Return the channels that layers lose with a unit, as they are numbered now."""
        return {
            layer: tuple(
                c - sum(gone < c for gone in self._lost.get(layer, ()))
                for c in member.channels[candidate.unit]
            )
            for layer, member in outputs(evaluator.groups[candidate.group]).items()
        }

    def _name(self, evaluator: Evaluator, candidate: Candidate) -> tuple[str, int]:
        """Return the layer and first channel of a unit in the unpruned network."""
        root = evaluator.groups[candidate.group].root
        channel = min(self._taken(evaluator, candidate)[root])
        for removed in reversed(self.removed):
            for gone in sorted(removed.taken.get(root, ())):
                channel += gone <= channel
        return root, channel

    def _take_out(self, evaluator: Evaluator, chosen: Candidate) -> None:
        """Drop a unit from the listed operations, unless all of them must be listed anew."""
        self._evaluator = None
        if self._whole is None or not evaluator.can_remove:
            return
        self._gone[chosen.group].add(chosen.unit)
        for layer, member in outputs(evaluator.groups[chosen.group]).items():
            self._lost.setdefault(layer, []).extend(member.channels[chosen.unit])
            if layer in self._left:
                self._left[layer] -= 1
        if sum(map(len, self._gone)) >= _WORN * sum(map(len, evaluator.groups)):
            return
        evaluator.remove(self._whole, chosen.group, chosen.unit)
        self._evaluator = evaluator

    def _search(
        self, evaluator: Evaluator, candidates: list[Candidate], names: list[tuple[str, int]]
    ) -> Found:
        """Search exactly, the images that flip easily first; or at random images."""
        pool, images = self.images, len(self.images)
        if self._sampling is not None:
            generator = torch.Generator().manual_seed(self._sampling.seed + len(self.steps))
            order = torch.randperm(images, generator=generator).to(pool.labels.device)
            batches = Batches(evaluator, pool, order, self._size, self._whole)
            return sampled_search(evaluator, candidates, batches, self._sampling)
        if self._whole is not None:
            self._margins = judge(self._whole.logits, pool.labels).margin
        width = self._memory // 8 // (_PER_PAIR * len(candidates))  # images that memory allows
        size = min(max(1, width), self._size if self._whole is None else images)
        order = self._margins.argsort(stable=True)
        batches = Batches(evaluator, pool, order, size, self._whole)
        if images > width:
            return ExactSearch(evaluator, candidates, batches, None).run()
        nothing = torch.zeros(images, device=self._margins.device)
        changes = torch.stack([self._changes.get(name, nothing) for name in names])
        found = ExactSearch(evaluator, candidates, batches, changes).run()
        self._changes = dict(zip(names, changes, strict=True))
        return found
