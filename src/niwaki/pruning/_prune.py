"""Pruning as one call: what is asked for, checked, and then run step by step."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from types import FunctionType
from typing import Any, get_args

from torch import Tensor, nn

from niwaki import models
from niwaki.criteria import Criterion, create, hidden_layers
from niwaki.data import Data, batches, check_same_classes
from niwaki.errors import FallbackWarning, KeptWarning, NiwakiError, NothingToPruneError
from niwaki.evaluation import cost, warn_near_chance
from niwaki.machine import check_alone
from niwaki.propagation import trace
from niwaki.pruning._limits import Limits
from niwaki.pruning._loop import REPAIR, ROUNDING, Job, Repair, State, Tune, begin, run
from niwaki.pruning._pruned import Pruned
from niwaki.pruning._resume import keep_state, latest_state
from niwaki.pruning._saved import shapes
from niwaki.pruning._schedule import Schedule, targets
from niwaki.pruning._trajectory import Step, Trajectory
from niwaki.pruning.repair._fine_tune import FineTune, check_precision
from niwaki.pruning.repair._rebuild import unlisted
from niwaki.pruning.repair._repair import has_batch_norms
from niwaki.pruning.units._budget import Of
from niwaki.pruning.units._coupling import Group, couple
from niwaki.pruning.units._plain_copy import plain_copy
from niwaki.pruning.units._prices import relative_prices
from niwaki.ranges import (
    BATCH,
    EXPONENT,
    FRACTION,
    INSIDE,
    PER_STEP,
    PRICE,
    SHARE,
    STEPS,
    UNITS,
    checked,
)
from niwaki.runs import Folder, described, digest, open_run

__all__ = ["PER_COST", "prune", "usual_criterion"]

PER_COST = 0.6


@checked(
    keep=INSIDE,
    prices=PRICE,
    steps=STEPS,
    per_step=PER_STEP,
    floor=SHARE,
    per_cost=EXPONENT,
    min_units=UNITS,
    round_to=UNITS,
    ceilings=FRACTION,
    batch_size=BATCH,
)
def prune(
    model: nn.Module,
    data: Data,
    criterion: str | Criterion | None = None,
    *,
    keep: float = 0.5,
    of: Of = "macs",
    prices: Mapping[str, float] | None = None,
    steps: int | None = None,
    per_step: float | None = None,
    schedule: Schedule = "equal",
    floor: float | None = None,
    recompute: bool = True,
    per_cost: float = PER_COST,
    test: Data | None = None,
    validation: Data | None = None,
    ignore: Sequence[str] = (),
    min_units: int = 1,
    round_to: int = 1,
    ceilings: float | Mapping[str, float] | None = None,
    repair: Repair | None = REPAIR,
    tune: Tune | None = None,
    tune_each: bool = True,
    training: Data | None = None,
    folder: Folder = None,
    batch_size: int = 32,
    callback: Callable[[Step], None] | None = None,
    **options: Any,
) -> Pruned:
    """Remove the units that matter least, until a share of the cost is left.

    In each step all units are scored anew, coupled channels by the sum over their members, ranked
    over all layers at once, and removed from the lowest, with their batch norms and the inputs
    behind them, until the step's cost is reached. Ties go by the order of layers and units, so
    that numbers are exact. By the default criterion and others that end in ``.rebuilt``, each layer
    loses as many units as it would in this way, but those whose loss a rebuilt network makes up for
    best.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode, returning shape (N, classes). It stays as it is.
    data : DataLoader, Dataset or pair of tensors
        The reference samples with their labels, that the criterion looks at.
    criterion : str or Criterion, optional
        One of `niwaki.criteria.names`. Default: ``"lrp.rebuilt"``, which lets `lrp` decide how many
        units each layer loses and takes those that the others can stand in for (see
        `niwaki.criteria.RebuiltError`); ``"lrp"`` where `repair` is not ``"rebuild"``.
    keep : float
        Share to keep, between 0 and 1. The result is the first network at or below it.
    of : {"units", "params", "macs"}
        Of what.
    prices : mapping of str to float, optional
        What a MAC costs in each layer, beside others; the mean where a layer is not named. With
        `niwaki.evaluation.seconds_per_mac`, the time is predicted and reduced in place of the MACs.
    steps, per_step : int, float, optional
        Number of steps, or share of the cost per step; default: 0.05 per step.
    schedule : {"equal", "geometric"}
        Whether each step removes the same share of the original cost or of what is left.
    floor : float, optional
        Accuracy on the validation data, from 0 to 1, below which a step is taken back: the network
        before it is the result, and `keep` only the furthest it may go. The step stays in the
        trajectory, `rejected`.
    recompute : bool
        Whether units are scored in each step; else once at the start.
    per_cost : float
        Exponent of the cost that a unit saves in the network as it then stands, by which its score
        is divided: 0 ranks by the score alone, 1 by the score per MAC (parameter, unit). The
        harm of a removal grows about as the square of its score, hence about the root of the cost.
    test : DataLoader, Dataset or pair of tensors, optional
        Measures the accuracy after each step. Nothing is decided by it.
    validation : DataLoader, Dataset or pair of tensors, optional
        What the floor and fine-tuning decide by.
    ignore : sequence of str
        Layers whose units stay; the name of a module stands for all layers in it, and patterns
        such as ``"*.downsample.0"`` for all that fit.
    min_units : int
        Units that each layer keeps at the least.
    round_to : int
        Layers that lose units are left with a multiple of so many, such as 8.
    ceilings : float or mapping of str to float, optional
        Largest share of its original units that a layer may lose: one for all, or by name (as in
        `ignore`; the last entry that fits counts).
    repair : {"rebuild", "recalibrate", "compensate"}, optional
        What is done for the network after each removal, without training and from the reference
        samples alone: `rebuild` fits the layers that are left to what the unpruned network
        computes (after fine-tuning: the network before the step); `recalibrate` measures batch
        norms anew; `compensate` folds the mean of what goes into the biases behind it. A network
        that cannot be rebuilt is recalibrated, with a warning.
    tune : FineTune or callable, optional
        Fine-tuning: its settings, or a loop of your own, called with the network (in evaluation
        mode, to be trained in place) and the number of the step.
    tune_each : bool
        Whether that is done after each step, or once in the end.
    training : DataLoader, Dataset or pair of tensors, optional
        What fine-tuning learns from; default: the reference samples.
    folder : str or Path, optional
        Where each finished step is written. Called again with the same folder, model, data and
        settings, after whatever interruption, the run goes on from there and ends as it would have
        without.
    batch_size : int
        For data sets and tensors; a loader has its own.
    callback : callable, optional
        Told about each step, also about those that were found in the folder.
    **options
        The criterion's own.

    Returns
    -------
    Pruned
        With `.model`, `.plan` and `.trajectory`.

    Raises
    ------
    ValueError
        For options out of range.
    ModelError, DataError, NothingToPruneError
        For a network or data that cannot be worked with.
    NiwakiError
        If `keep` cannot be reached, the network is below the floor from the start, or the folder is
        of another run.

    Examples
    --------
    >>> pruned = niwaki.prune(model, (images, labels), keep=0.5, of="macs")
    >>> pruned.save("smaller")
    """
    if tune is not None:
        check_alone("fine-tuning")
    shares = targets(keep, steps, per_step, schedule)
    if of not in ("units", "params", "macs"):
        raise ValueError(f"of = {of!r} is not one of 'units', 'params', 'macs'")
    if repair not in (None, *get_args(Repair)):
        raise ValueError(
            f"repair = {repair!r} is not one of {', '.join(map(repr, get_args(Repair)))}"
        )
    if prices is not None and of != "macs":
        raise ValueError(f"prices are those of MACs: they do not go with of = {of!r}")
    _check_tuning(floor, validation, tune)
    if isinstance(tune, FineTune):
        check_precision(tune.precision, next((p.device for p in model.parameters()), None))
    limits = Limits.of(model, ignore, min_units, round_to, ceilings)
    made = create(usual_criterion(repair) if criterion is None else criterion, **options)
    models.check(model)
    for other, what in ((test, "test"), (validation, "validation"), (training, "training")):
        check_same_classes(data, other, f"the reference and the {what} images")
    example = _example(model, data)
    working = plain_copy(model)
    total = getattr(cost(working, example), of)
    relative = {} if prices is None else relative_prices(prices, trace(working, example[:1]))
    job = Job(
        original=model,
        data=data,
        example=example,
        criterion=made,
        shares=shares,
        of=of,
        total=total,
        limits=limits,
        prices=relative,
        per_cost=per_cost,
        recompute=recompute,
        repair=repair,
        tune=tune,
        tune_each=tune_each,
        training=training,
        test=test,
        validation=validation,
        floor=floor,
        batch_size=batch_size,
    )
    kept_layers = _check_reach(job, working, keep)
    stays = tuple(name for name, why in kept_layers.items() if why.startswith("all"))
    job = replace(job, stays=stays, repair=_possible(repair, model, example))
    if criterion is None:  # and the repair may have turned out to be another
        job = replace(job, criterion=create(usual_criterion(job.repair), **options))
    asked = {"keep": keep, "steps": steps, "per_step": per_step, "schedule": schedule}
    settings = _settings(job, asked)
    with open_run(folder, lambda: _identity(job, settings)) as kept:

        def record(state: State) -> None:
            keep_state(kept, state)
            if callback is not None and not state.done:
                callback(state.rows[-1])

        state = latest_state(kept, working, example)
        if state is None:
            state = begin(job, working)
            _check_start(job, state.rows[0])
            _check_floor(state, floor)
            record(state)
        elif callback is not None:
            for row in state.rows:
                callback(row)
        state = run(job, state, record)
    left = job.budget(state.model).total()
    if left > keep * total + ROUNDING and not state.rows[-1].rejected:
        raise NiwakiError(
            f"keep = {keep} of the {of} was not reached: {left / total:.3g} remain, as some layers "
            "became too narrow to lose more. Keep more, or take fewer steps"
        )
    return Pruned(
        state.model,
        state.plan,
        Trajectory(state.rows),
        tuple(example.shape[1:]),
        shapes(working),
        {**settings, "kept": kept_layers} if kept_layers else settings,
    )


def usual_criterion(repair: Repair | None) -> str:
    """Name the criterion that `prune` takes by default.

    Which units others can stand in for is a question for networks whose layers are then fitted.
    """
    return "lrp.rebuilt" if repair == "rebuild" else "lrp"


def _possible(repair: Repair | None, model: nn.Module, example: Tensor) -> Repair | None:
    """Check that a network can be repaired so; else warn, and take what else there is."""
    name = type(model).__name__
    why = unlisted(model, example) if repair == "rebuild" else None
    if why is not None:
        instead: Repair | None = "recalibrate" if has_batch_norms(model) else None
        warnings.warn(f"{why}. repair = {instead!r} is used", FallbackWarning, stacklevel=4)
        return instead
    if repair == "recalibrate" and not has_batch_norms(model):
        warnings.warn(
            f"recalibrate: {name} has no batch norm with running statistics; nothing is done",
            stacklevel=4,
        )
    return repair


def _settings(job: Job, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return as plain data what the result depends on, beside the network and the data."""
    return {
        # Of an object without a text of its own, the address changes from run to run.
        "criterion": re.sub(" at 0x[0-9a-f]+", "", repr(job.criterion)),
        "of": job.of,
        **({"prices": dict(job.prices)} if job.prices else {}),
        **asked,
        "floor": job.floor,
        "recompute": job.recompute,
        "per_cost": job.per_cost,
        "ignore": list(job.limits.ignore),
        "min_units": job.limits.min_units,
        "round_to": job.limits.multiple,
        "ceilings": job.limits.channels,
        "repair": job.repair,
        "tune": _named(job.tune),
        "tune_each": job.tune_each,
        "batch_size": job.batch_size,
    }


def _check_tuning(floor: float | None, validation: Data | None, tune: Tune | None) -> None:
    if floor is not None and validation is None:
        raise ValueError(f"floor = {floor} needs validation data to measure the accuracy on")
    if isinstance(tune, FineTune):
        if tune.patience is not None and validation is None:
            raise ValueError(f"patience = {tune.patience} needs validation data")
    elif tune is not None and not callable(tune):
        raise ValueError(f"tune = {tune!r} is neither a FineTune nor a function")


def _check_start(job: Job, first: Step) -> None:
    """Warn of a network that does not know these classes: what it loses says nothing then."""
    if first.accuracy is not None:
        warn_near_chance(job.original, job.test, first.accuracy, "before pruning")
    else:
        warn_near_chance(job.original, job.validation, first.validation, "before pruning")


def _check_floor(state: State, floor: float | None) -> None:
    found = state.rows[0].validation
    if floor is not None and found is not None and found < floor:
        raise NiwakiError(
            f"the accuracy on the validation data is {found:.2%} before anything is removed, below "
            f"the floor of {floor:.2%}"
        )


def _named(tune: Tune | None) -> Any:
    """Describe how is fine-tuned, as plain data."""
    if isinstance(tune, FineTune):
        return asdict(tune)
    name = getattr(tune, "__qualname__", type(tune).__qualname__)
    return None if tune is None else f"{getattr(tune, '__module__', '')}.{name}"


def _identity(job: Job, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Say what a run is recognised by."""
    data = {"validation": job.validation, "training": job.training, "test": job.test}
    return {
        "model": models.fingerprint(job.original),
        "data": digest(job.data),
        **{name: None if given is None else digest(given) for name, given in data.items()},
        **settings,
        "criterion": described(job.criterion),
        "tune": described(job.tune) if isinstance(job.tune, FunctionType) else settings["tune"],
    }


def _example(model: nn.Module, data: Data) -> Tensor:
    inputs, _ = next(iter(batches(data, 2, models.home(model))))
    return inputs[:2]


def _check_reach(job: Job, model: nn.Module, keep: float) -> dict[str, str]:
    """Refuse a target that cannot be met, before any work is done; return which layers stay."""
    layers = [layer.name for layer in hidden_layers(model, job.example[:1])]
    coupling = couple(model, job.example, layers, job.limits.ignore)
    if coupling.kept:
        warnings.warn(_what_stays(coupling.kept), KeptWarning, stacklevel=4)
    groups = coupling.groups
    lowest = job.limits.lowest(groups)
    least = job.limits.min_units
    if all(len(group) <= left for group, left in zip(groups, lowest, strict=True)):
        raise NothingToPruneError(
            f"{type(model).__name__} has nothing to prune: no hidden layer has more than "
            f"{least} unit(s) that may go{_more(job.limits)}. Convolutions and linear layers "
            "must be modules (nn.Conv2d, nn.Linear) for channels to be removed"
            + _because(coupling.kept)
        )
    remains = _cost_of(lowest, model, job, groups)
    # A floor stops where it stops: then the target is only the furthest that is tried.
    if remains > keep * job.total + ROUNDING and job.floor is None:
        raise NiwakiError(
            f"keep = {keep:.3g} of the {job.of} cannot be reached: with {least} unit(s) left "
            f"everywhere{_more(job.limits)}, {remains / job.total:.3g} remain"
            + _because(coupling.kept)
        )
    return coupling.kept


def _what_stays(kept: Mapping[str, str]) -> str:
    """Name the layers that keep units, those with the same reason together."""
    reasons: dict[str, list[str]] = {}
    for layer, reason in kept.items():
        reasons.setdefault(reason, []).append(layer)
    rows = []
    for reason, layers in list(reasons.items())[:8]:
        more = f" and {len(layers) - 4} more" if len(layers) > 4 else ""
        rows.append(f"  {', '.join(layers[:4])}{more}: {reason}")
    if len(reasons) > 8:
        rows.append(f"  and {len(reasons) - 8} other reasons")
    return f"{len(kept)} layers keep units, whatever their scores:\n" + "\n".join(rows)


def _because(kept: Mapping[str, str]) -> str:
    return f". {_what_stays(kept)}" if kept else ""


def _cost_of(units: Sequence[int], model: nn.Module, job: Job, groups: Sequence[Group]) -> float:
    """Count what the network costs when each group has so many units left."""
    budget = job.budget(model, groups)
    for index, (group, left) in enumerate(zip(groups, units, strict=True)):
        for unit in range(len(group) - left):
            budget.remove(index, unit)
    return budget.total()


def _more(limits: Limits) -> str:
    parts = [f"multiples of {limits.multiple}"] if limits.multiple > 1 else []
    parts += ["the ceilings"] if limits.channels else []
    return f" and {' and '.join(parts)} respected" if parts else ""
