"""The loop: score, choose, remove, repair, tune, look, and again, from one state to the next."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn

from niwaki.criteria import Criterion, RebuiltError, Scores, score
from niwaki.data import Data
from niwaki.models import check_same_network, deep_copy
from niwaki.processes import decided
from niwaki.pruning._bundles import LayerLimits, Schedule
from niwaki.pruning._plan import Plan, Removal
from niwaki.pruning._trajectory import Step
from niwaki.pruning.repair._fine_tune import FineTune, fine_tune, run_loop
from niwaki.pruning.repair._norms_and_biases import compensate, recalibrate
from niwaki.pruning.repair._rebuild import rebuild
from niwaki.pruning.steps import Measure, Structure
from niwaki.pruning.units._budget import ROUNDING, Budget, Of
from niwaki.pruning.units._coupling import Group
from niwaki.pruning.units._selection import Within, select
from niwaki.pruning.units._surgery import operate
from niwaki.pruning.units._within_layers import rechosen

__all__ = ["REPAIR", "Job", "Repair", "State", "begin", "rebuilds", "run"]

#: What is done for a network after each removal, without training.
Repair = Literal["rebuild", "rebuild_jointly", "recalibrate", "compensate"]
REPAIR: Repair = "rebuild_jointly"


@dataclass(frozen=True)
class Job:
    """All that stays the same from step to step; see `prune` for what it means.

    Attributes
    ----------
    original : nn.Module
        The user's network: the teacher, never changed.
    example : Tensor
        Inputs to trace with.
    total : float
        The cost at the start.
    stays : tuple of str
        Layers of which the structure of the network lets nothing go.
    prices : mapping of str to float
        What a MAC costs in each layer, scaled so that the whole network costs its number of MACs.
    """

    original: nn.Module
    data: Data
    example: Tensor
    criterion: Criterion
    keep: float
    of: Of
    total: float
    schedule: Schedule
    limits: LayerLimits
    prices: Mapping[str, float]
    repair: Repair | None
    tune: FineTune | None
    measure: Measure
    stays: tuple[str, ...] = ()

    @cached_property
    def shares(self) -> list[float]:
        """Of the cost that each step leaves."""
        return self.schedule.targets(self.keep)

    def budget(self, seen: Structure, groups: Sequence[Group] = ()) -> Budget:
        """Count what a network costs in its present state."""
        return seen.budget(groups, self.of, self.prices)


@dataclass(frozen=True)
class State:
    """A run after a step; any of them can be gone on from.

    Attributes
    ----------
    structure : Structure
        The network as it is left, ours, and what is known of it. It is never changed: steps work
        on copies.
    plan : Plan
        What is gone.
    rows : tuple of Step
        The trajectory so far.
    scores : Scores or None
        Scores of the units that are left, where they are computed only once.
    done : bool
        Whether nothing is to come.
    """

    structure: Structure
    plan: Plan
    rows: tuple[Step, ...]
    scores: Scores | None = None
    done: bool = False

    @property
    def model(self) -> nn.Module:
        """The network."""
        return self.structure.model


def begin(job: Job, whole: Structure) -> State:
    """Look at the network before anything is removed."""
    return State(whole, Plan(), (job.measure.step(0, whole, time.perf_counter()),))


def run(job: Job, state: State, record: Callable[[State], None]) -> State:
    """Go on from a state to the end, and record each one."""
    while not state.done:
        if len(state.rows) <= len(job.shares) and not state.rows[-1].rejected:
            state = _advance(job, state, job.shares[len(state.rows) - 1])
        else:
            state = _finish(job, state)
        record(state)
    return state


def _advance(job: Job, state: State, share: float) -> State:
    """Take one step, on a copy: whatever happens, the state before stays good."""
    started, number = time.perf_counter(), len(state.rows)
    seen, scores, working = state.structure, state.scores, deep_copy(state.model)
    size = job.measure.batch_size
    if scores is None:
        scores = score(state.model, job.data, job.criterion, layers=seen.hidden, batch_size=size)
    coupling = seen.coupling(list(scores), (*job.limits.ignore, *job.stays))
    groups = coupling.groups
    chosen = select(
        groups,
        scores,
        job.budget(seen, groups),
        share * job.total + ROUNDING,
        least=job.limits.least(groups),
        multiple=job.limits.multiple,
        per_cost=job.schedule.per_cost,
        within=_within(job, working, groups),
    )
    removals = decided(lambda: chosen)
    plan = state.plan
    if removals:
        if job.repair == "compensate":
            compensate(
                working,
                job.example,
                removals,
                job.data,
                followed=coupling.followed,
                batch_size=size,
            )
        operate(working, job.example, removals, coupling.followed)
        plan = plan.with_step(removals)
        if job.repair == "recalibrate":
            recalibrate(working, job.data, batch_size=size)
        elif rebuilds(job.repair):
            _rebuild(job, state, working, plan)
        check_same_network(working)
    structure = Structure(working, job.example)
    row = job.measure.step(number, structure, started)
    if removals and job.tune is not None and job.tune.each:
        row = _tune(job, job.tune, working, row, started)
    floor = job.schedule.floor
    if floor is not None and row.validation is not None and row.validation < floor:
        return replace(state, rows=(*state.rows, replace(row, rejected=True)))
    left = None if job.schedule.recompute else _survivors(scores, groups, removals)
    return State(structure, plan, (*state.rows, row), left)


def _within(job: Job, working: nn.Module, groups: Sequence[Group]) -> Within | None:
    """Say how units are chosen within layers, where scores give the widths alone."""
    if not isinstance(job.criterion, RebuiltError):
        return None
    return lambda taken: rechosen(working, groups, taken, job.data)


def _rebuild(job: Job, before: State, working: nn.Module, plan: Plan) -> None:
    """Let a network compute what the unpruned one does, or, once fine-tuned, the one before it."""
    jointly = job.repair == "rebuild_jointly"
    if job.tune is not None and job.tune.each:
        plan = Plan(plan.steps[-1:])
        rebuild(working, before.model, job.data, plan, jointly=jointly)
    else:
        rebuild(working, job.original, job.data, plan, jointly=jointly)


def rebuilds(repair: Repair | None) -> bool:
    """Whether a repair fits layers to the unpruned network."""
    return repair in ("rebuild", "rebuild_jointly")


def _finish(job: Job, state: State) -> State:
    """Fine-tune the network that is kept, if that is to be done at the end."""
    if job.tune is None or job.tune.each or not state.plan.steps:
        return replace(state, done=True)
    started, working = time.perf_counter(), deep_copy(state.model)
    place = max(i for i, row in enumerate(state.rows) if not row.rejected)
    row = _tune(job, job.tune, working, state.rows[place], started)
    row = replace(row, seconds=state.rows[place].seconds + row.seconds)
    rows = (*state.rows[:place], row, *state.rows[place + 1 :])
    return replace(state, structure=Structure(working, job.example), rows=rows, done=True)


def _tune(job: Job, tune: FineTune, model: nn.Module, row: Step, since: float) -> Step:
    """Fine-tune in place, and measure again."""
    if tune.loop is not None:
        run_loop(tune.loop, model, row.step)
    else:
        data = job.data if tune.training is None else tune.training
        # Another seed for each step; no state of a generator has to be kept between them.
        settings = replace(tune, seed=tune.seed + row.step)
        held = job.measure.validation
        history = fine_tune(model, data, settings, teacher=job.original, validation=held)
        row = replace(row, epochs=history.epochs, kept=history.kept)
    return job.measure.tuned(row, model, since)


def _survivors(scores: Scores, groups: Sequence[Group], removals: Sequence[Removal]) -> Scores:
    """Return the scores of the units that stay."""
    gone = {removal.layer: set(removal.channels) for removal in removals}
    lost: dict[str, set[int]] = {}
    for group in groups:
        doomed = gone.get(group.root, set())
        units = [i for i, channels in enumerate(group.units) if doomed.issuperset(channels)]
        for member in group.members:
            if member.output and member.layer in scores:
                lost.setdefault(member.layer, set()).update(
                    channel for unit in units for channel in member.channels[unit]
                )
    left = {}
    for layer, values in scores.items():
        keep = torch.ones(len(values), dtype=torch.bool)
        keep[sorted(lost.get(layer, set()))] = False
        left[layer] = values[keep]
    return replace(scores, by_layer=left)
