"""The loop: score, choose, remove, repair, tune, look, and again, from one state to the next."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from niwaki import models
from niwaki.criteria import Criterion, RebuiltError, Scores, score
from niwaki.data import Data
from niwaki.evaluation import accuracy
from niwaki.propagation import trace
from niwaki.pruning._limits import Limits
from niwaki.pruning._plan import Plan, Removal
from niwaki.pruning._trajectory import Step, measured_step
from niwaki.pruning.repair._fine_tune import FineTune, fine_tune
from niwaki.pruning.repair._rebuild import rebuild
from niwaki.pruning.repair._repair import compensate, recalibrate
from niwaki.pruning.units._budget import Budget, Of
from niwaki.pruning.units._coupling import Group, couple
from niwaki.pruning.units._selection import Within, select
from niwaki.pruning.units._surgery import operate
from niwaki.pruning.units._within_layers import rechosen

__all__ = [
    "ROUNDING",
    "REPAIR",
    "Job",
    "Repair",
    "State",
    "Tune",
    "begin",
    "run",
    "tune_by_function",
]

Tune = FineTune | Callable[[nn.Module, int], object]
#: What is done for a network after each removal, without training.
Repair = Literal["rebuild", "recalibrate", "compensate"]
REPAIR: Repair = "rebuild"

# Costs are whole numbers, so a small addition to a target only mends rounding: 0.29 * 100 < 29.
ROUNDING = 1e-3


@dataclass(frozen=True)
class Job:
    """All that stays the same from step to step; see `prune` for what it means.

    Attributes
    ----------
    original : nn.Module
        The user's network: the teacher, never changed.
    example : Tensor
        Inputs to trace with.
    shares : sequence of float
        Of the cost that each step leaves.
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
    shares: Sequence[float]
    of: Of
    total: float
    limits: Limits
    stays: tuple[str, ...] = ()
    prices: Mapping[str, float] = field(default_factory=dict)
    per_cost: float = 0.0
    recompute: bool = True
    repair: Repair | None = None
    tune: Tune | None = None
    tune_each: bool = True
    training: Data | None = None
    test: Data | None = None
    validation: Data | None = None
    floor: float | None = None
    batch_size: int = 32

    def budget(self, model: nn.Module, groups: Sequence[Group] = ()) -> Budget:
        """Count what a network costs as it stands."""
        return Budget(model, trace(model, self.example[:1]), groups, self.of, self.prices)


@dataclass(frozen=True)
class State:
    """A run after a step; any of them can be gone on from.

    Attributes
    ----------
    model : nn.Module
        The network as it is left, ours. A state's network is never changed: steps work on copies.
    plan : Plan
        What is gone.
    rows : tuple of Step
        The trajectory so far.
    scores : Scores or None
        Of the units that are left, where they are computed only once.
    done : bool
        Whether nothing is to come.
    """

    model: nn.Module
    plan: Plan
    rows: tuple[Step, ...]
    scores: Scores | None = None
    done: bool = False


def begin(job: Job, working: nn.Module) -> State:
    """Look at the network before anything goes."""
    return State(working, Plan(), (_look(job, working, 0, time.perf_counter()),))


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
    working = copy.deepcopy(state.model)
    scores = state.scores
    if scores is None:
        scores = score(working, job.data, job.criterion, batch_size=job.batch_size)
    ignore = (*job.limits.ignore, *job.stays)
    groups = couple(working, job.example, list(scores), ignore)
    removals = select(
        groups,
        scores,
        job.budget(working, groups),
        share * job.total + ROUNDING,
        least=job.limits.least(groups),
        multiple=job.limits.multiple,
        per_cost=job.per_cost,
        within=_within(job, working, groups),
    )
    plan = state.plan
    if removals:
        if job.repair == "compensate":
            compensate(working, job.example, removals, job.data, batch_size=job.batch_size)
        operate(working, job.example, removals)
        plan = plan.with_step(removals)
        if job.repair == "recalibrate":
            recalibrate(working, job.data, batch_size=job.batch_size)
        elif job.repair == "rebuild":
            _rebuild(job, state, working, plan)
    row = _look(job, working, number, started)
    if removals and job.tune is not None and job.tune_each:
        row = _tune(job, working, row, started)
    if job.floor is not None and row.validation is not None and row.validation < job.floor:
        return replace(state, rows=(*state.rows, replace(row, rejected=True)))
    left = None if job.recompute else _survivors(scores, groups, removals)
    return State(working, plan, (*state.rows, row), left)


def _within(job: Job, working: nn.Module, groups: Sequence[Group]) -> Within | None:
    """Say how units are chosen within layers, where scores give the widths alone."""
    if not isinstance(job.criterion, RebuiltError):
        return None
    return lambda taken: rechosen(working, groups, taken, job.data)


def _rebuild(job: Job, before: State, working: nn.Module, plan: Plan) -> None:
    """Let a network compute what the unpruned one does, or, once fine-tuned, the one before it."""
    if job.tune is not None and job.tune_each:
        rebuild(working, before.model, job.data, Plan(plan.steps[-1:]))
    else:
        rebuild(working, job.original, job.data, plan)


def _finish(job: Job, state: State) -> State:
    """Fine-tune the network that is kept, if that is to be done at the end."""
    if job.tune is None or job.tune_each or not state.plan.steps:
        return replace(state, done=True)
    started, working = time.perf_counter(), copy.deepcopy(state.model)
    place = max(i for i, row in enumerate(state.rows) if not row.rejected)
    row = _tune(job, working, state.rows[place], started)
    row = replace(row, seconds=state.rows[place].seconds + row.seconds)
    rows = (*state.rows[:place], row, *state.rows[place + 1 :])
    return replace(state, model=working, rows=rows, done=True)


def _look(job: Job, model: nn.Module, number: int, since: float) -> Step:
    """Measure a network after a step."""
    right, held = _accuracies(job, model)
    return measured_step(number, model, job.example, since, right, held)


def _accuracies(job: Job, model: nn.Module) -> tuple[float | None, float | None]:
    test, validation = (
        None if data is None else accuracy(model, data, batch_size=job.batch_size)
        for data in (job.test, job.validation)
    )
    return test, validation


def _tune(job: Job, model: nn.Module, row: Step, since: float) -> Step:
    """Fine-tune in place, and measure again."""
    data = job.data if job.training is None else job.training
    if isinstance(job.tune, FineTune):
        # Another seed for each step; no state of a generator has to be kept between them.
        settings = replace(job.tune, seed=job.tune.seed + row.step)
        history = fine_tune(model, data, settings, teacher=job.original, validation=job.validation)
        row = replace(row, epochs=history.epochs, kept=history.kept)
    elif job.tune is not None:
        tune_by_function(job.tune, model, row.step)
    right, held = _accuracies(job, model)
    seconds = time.perf_counter() - since
    return replace(row, accuracy_tuned=right, validation=held, seconds=seconds)


def tune_by_function(tune: Callable[[nn.Module, int], object], model: nn.Module, step: int) -> None:
    """Call a training loop of the user's, with torch's generators seeded by the step."""
    flags = [(p, p.requires_grad) for p in model.parameters()]
    device = next(model.parameters()).device
    gpus = [device.index or 0] if device.type == "cuda" else []
    with torch.random.fork_rng(gpus), torch.enable_grad():
        torch.manual_seed(step)
        tune(model, step)
    model.eval()
    for parameter, wanted in flags:
        parameter.requires_grad_(wanted)
        parameter.grad = None
    models.check(model)


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
