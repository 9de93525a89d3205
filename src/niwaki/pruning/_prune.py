"""Pruning as one call: what is asked for, checked, and then run step by step."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from niwaki import models
from niwaki.contexts import undisturbed
from niwaki.criteria import Criterion, RebuiltError, create
from niwaki.data import Data, batches, check_same_classes
from niwaki.errors import FallbackWarning, KeptWarning, NiwakiError, NothingToPruneError
from niwaki.evaluation import warn_near_chance
from niwaki.processes import check_joined
from niwaki.pruning import _loop
from niwaki.pruning._bundles import LayerLimits, Limits, Run, Schedule
from niwaki.pruning._loop import REPAIR, Job, Repair, State, rebuilds
from niwaki.pruning._pruned import Pruned
from niwaki.pruning._resume import Observed, keep_state, latest_state
from niwaki.pruning._saved import shapes
from niwaki.pruning._trajectory import Trajectory
from niwaki.pruning.repair._fine_tune import FineTune, check_precision, precision_on
from niwaki.pruning.repair._norms_and_biases import has_batch_norms
from niwaki.pruning.repair._rebuild import unlisted
from niwaki.pruning.steps import Measure, Structure
from niwaki.pruning.units._budget import ROUNDING, Of, relative_prices
from niwaki.pruning.units._coupling import Group
from niwaki.ranges import INSIDE, checked
from niwaki.runs import described, digest, identified, open_run

__all__ = ["prune", "usual_criterion"]


@undisturbed
@checked(keep=INSIDE)
def prune(
    model: nn.Module,
    data: Data,
    criterion: str | Criterion | None = None,
    *,
    keep: float = 0.5,
    of: Of = "macs",
    schedule: Schedule = Schedule(),
    limits: Limits = Limits(),
    repair: Repair | None = REPAIR,
    tune: FineTune | Callable[[nn.Module, int], object] | None = None,
    test: Data | None = None,
    validation: Data | None = None,
    run: Run = Run(),
) -> Pruned:
    """Remove the units that matter least, until a share of the cost is left.

    In each step all units are scored again, coupled channels by the sum over their members, ranked
    over all layers at once, and removed from the lowest, with their batch norms and the inputs
    behind them, until the step's cost is reached. Ties are broken by the order of layers and units,
    so that numbers are exact. With the default criterion and others that end in ``.rebuilt``, each
    layer loses as many units as it would in this way, but those whose loss a rebuilt network
    compensates best.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode, returning shape (N, classes). It stays as it is.
    data : DataLoader, Dataset or pair of tensors
        The reference samples with their labels, on which the criterion is computed.
    criterion : str or Criterion, optional
        One of `niwaki.criteria.names`, with options as in ``"random:seed=1"``, or what
        `niwaki.criteria.create` has made. Default: ``"lrp.rebuilt"``, which lets `lrp` decide how
        many units each layer loses and takes those that the others can stand in for (see
        `niwaki.criteria.RebuiltError`); ``"lrp"`` where `repair` does not rebuild layers.
    keep : float
        Share to keep, between 0 and 1. The result is the first network at or below it.
    of : {"units", "params", "macs"}
        What `keep` is a share of.
    schedule : Schedule
        In which steps and in which order units are removed, and when to stop.
    limits : Limits
        Which layers keep their units, and how many.
    repair : {"rebuild", "rebuild_jointly", "recalibrate", "compensate"}, optional
        What is done for the network after each removal, without training and from the reference
        samples alone: `rebuild` fits the layers that are left to what the unpruned network
        computes (after fine-tuning: the network before the step), one by one, and
        `rebuild_jointly`, the default, also each layer together with those that feed it alone,
        which keeps more of the accuracy and takes about four times as long; `recalibrate` measures
        batch norms again; `compensate` adds the mean of the removed units to the biases behind
        them. A network that cannot be rebuilt is recalibrated, with a warning.
    tune : FineTune or callable, optional
        Fine-tuning; a callable stands for ``FineTune(loop=callable)``.
    test : DataLoader, Dataset or pair of tensors, optional
        Images on which the accuracy is measured after each step. They decide nothing.
    validation : DataLoader, Dataset or pair of tensors, optional
        Images on which the floor and fine-tuning decide.
    run : Run
        The folder in which steps are kept, the batch size, and the callback for each `Step`.

    Returns
    -------
    Pruned
        With `.model`, `.plan` and `.trajectory`.

    Raises
    ------
    ValueError
        For options out of range.
    ModelError, DataError, NothingToPruneError
        For a network or data that cannot be used.
    NiwakiError
        If `keep` cannot be reached, the network is below the floor from the start, or the folder is
        of another run.

    Examples
    --------
    >>> pruned = niwaki.prune(model, (images, labels), keep=0.5, of="macs")
    >>> pruned.save("smaller")
    """
    if tune is not None:
        check_joined("fine-tuning")
    training = _training(tune)
    _check_tuning(schedule, validation, training, model)
    schedule.targets(keep)
    if schedule.prices is not None and of != "macs":
        raise ValueError(f"prices are those of MACs: they do not go with of = {of!r}")
    bounds = limits.of(model)
    made = create(usual_criterion(repair) if criterion is None else criterion)
    models.check(model)
    models.check_same_network(model)
    learned = None if training is None else training.training
    for other, what in ((test, "test"), (validation, "validation"), (learned, "training")):
        check_same_classes(data, other, f"the reference and the {what} images")
    example = next(iter(batches(data, 2, models.home(model))))[0][:2]
    whole = Structure(models.plain_copy(model), example)
    job = Job(
        original=model,
        data=data,
        example=example,
        criterion=made,
        keep=keep,
        of=of,
        total=getattr(whole.cost, of),
        schedule=schedule,
        limits=bounds,
        prices={} if schedule.prices is None else relative_prices(schedule.prices, whole.layers),
        repair=repair,
        tune=training,
        measure=Measure(test, validation, run.batch_size),
    )
    kept_layers = _check_reach(job, whole)
    stays = tuple(name for name, why in kept_layers.items() if why.startswith("all"))
    job = replace(job, stays=stays, repair=_possible(repair, model, example))
    straight = rebuilds(job.repair) and training is None
    job = replace(job, schedule=schedule.paced(rebuilt=straight))
    if criterion is None:  # and the repair may have turned out to be another
        job = replace(job, criterion=create(usual_criterion(job.repair)))
    settings = _settings(job)
    with open_run(run.folder, lambda: _identity(job, settings, run)) as kept:
        seen = Observed(run, kept)

        def record(state: State) -> None:
            if not state.done or _tunes_in_the_end(job):
                seen.look(state)
            keep_state(kept, state)
            if not state.done:
                run.tell(state.rows[-1])

        state = latest_state(kept, whole.model, example)
        if state is None:
            state = _loop.begin(job, whole)
            _check_start(job, state)
            record(state)
        else:
            seen.recall(state)
            for row in state.rows:
                run.tell(row)
        state = _loop.run(job, state, record)
    left = job.budget(state.structure).total()
    if left > keep * job.total + ROUNDING and not state.rows[-1].rejected:
        raise NiwakiError(
            f"keep = {keep} of the {of} was not reached: {left / job.total:.3g} remain, as some "
            "layers became too narrow to lose more. Keep more, or take fewer steps"
        )
    return Pruned(
        state.model,
        state.plan,
        Trajectory(state.rows),
        tuple(example.shape[1:]),
        shapes(whole.model),
        {**settings, "kept": kept_layers} if kept_layers else settings,
        seen.by_step,
    )


def _tunes_in_the_end(job: Job) -> bool:
    return job.tune is not None and not job.tune.each


def usual_criterion(repair: Repair | None) -> str:
    """Name the criterion that `prune` takes by default.

    Which units others can stand in for is a question for networks whose layers are then fitted.
    """
    return "lrp.rebuilt" if rebuilds(repair) else "lrp"


def _training(tune: Any) -> FineTune | None:
    """Read what a user may write for fine-tuning."""
    if tune is None or isinstance(tune, FineTune):
        return tune
    if not callable(tune):
        raise ValueError(f"tune = {tune!r} is neither a FineTune nor a function")
    return FineTune(loop=tune)


def _check_tuning(
    schedule: Schedule, validation: Data | None, tune: FineTune | None, model: nn.Module
) -> None:
    if schedule.floor is not None and validation is None:
        raise ValueError(
            f"floor = {schedule.floor} needs validation data to measure the accuracy on"
        )
    if tune is not None and tune.loop is None:
        if tune.patience is not None and validation is None:
            raise ValueError(f"patience = {tune.patience} needs validation data")
        check_precision(tune.precision, next((p.device for p in model.parameters()), None))


def _possible(repair: Repair | None, model: nn.Module, example: Tensor) -> Repair | None:
    """Check that a network can be repaired so; else warn, and take what else there is."""
    name = type(model).__name__
    why = unlisted(model, example) if rebuilds(repair) else None
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


def _settings(job: Job) -> dict[str, Any]:
    """Return as plain data what the result depends on, beside the network and the data."""
    schedule, limits, tune = job.schedule, job.limits, job.tune
    return {
        # Of an object without a text of its own, the address changes from run to run.
        "criterion": re.sub(" at 0x[0-9a-f]+", "", repr(job.criterion)),
        "of": job.of,
        **({"prices": dict(job.prices)} if job.prices else {}),
        "keep": job.keep,
        "steps": schedule.steps,
        "per_step": schedule.per_step,
        "schedule": schedule.spacing,
        "floor": schedule.floor,
        "recompute": schedule.recompute,
        "per_cost": schedule.per_cost,
        "ignore": list(limits.ignore),
        "min_units": limits.min_units,
        "round_to": limits.multiple,
        "ceilings": limits.channels,
        "repair": job.repair,
        "tune": None if tune is None else tune.settings(),
        "tune_each": tune is None or tune.each,
        "batch_size": job.measure.batch_size,
    }


def _identity(job: Job, settings: Mapping[str, Any], run: Run) -> dict[str, Any]:
    """Say what a run is recognised by."""
    tune, measure = job.tune, job.measure
    training = None if tune is None else tune.training
    learned = tune is not None and tune.loop is None and training is None
    fitted = rebuilds(job.repair) or isinstance(job.criterion, RebuiltError)
    return {
        "model": identified(job.original),
        "data": digest(job.data, seeded=learned or fitted),
        "validation": None if measure.validation is None else digest(measure.validation),
        "training": None if training is None else digest(training, seeded=True),
        "test": None if measure.test is None else digest(measure.test),
        **settings,
        "criterion": described(job.criterion),
        "tune": _learning(job),
        "observe": described(run.observe),
    }


def _learning(job: Job) -> Any:
    """Describe how the network is trained on this device."""
    tune = job.tune
    if tune is None or tune.loop is not None:
        return None if tune is None else described(tune.loop)
    device = models.device_of(job.original)
    return {**tune.settings(), "precision": precision_on(device, tune.precision)}


def _check_start(job: Job, state: State) -> None:
    """Warn of a network that does not know these classes, and refuse one below the floor."""
    first, floor, measure = state.rows[0], job.schedule.floor, job.measure
    if first.accuracy is not None:
        warn_near_chance(job.original, measure.test, first.accuracy, "before pruning")
    else:
        warn_near_chance(job.original, measure.validation, first.validation, "before pruning")
    if floor is not None and first.validation is not None and first.validation < floor:
        raise NiwakiError(
            f"the accuracy on the validation data is {first.validation:.2%} before anything is "
            f"removed, below the floor of {floor:.2%}"
        )


def _check_reach(job: Job, whole: Structure) -> dict[str, str]:
    """Refuse a target that cannot be met, before any work is done; return which layers stay."""
    layers = [layer.name for layer in whole.hidden]
    coupling = whole.coupling(layers, job.limits.ignore)
    if coupling.kept:
        warnings.warn(_what_stays(coupling.kept), KeptWarning, stacklevel=4)
    groups = coupling.groups
    lowest = job.limits.lowest(groups)
    least = job.limits.min_units
    if all(len(group) <= left for group, left in zip(groups, lowest, strict=True)):
        raise NothingToPruneError(
            f"{type(whole.model).__name__} has nothing to prune: no hidden layer has more than "
            f"{least} unit(s) that may be removed{_more(job.limits)}. Convolutions and linear "
            "layers must be modules (nn.Conv2d, nn.Linear) for channels to be removed"
            + _because(coupling.kept)
        )
    remains = _cost_of(lowest, job, whole, groups)
    # A floor stops where it stops: then the target is only the furthest that is tried.
    if remains > job.keep * job.total + ROUNDING and job.schedule.floor is None:
        raise NiwakiError(
            f"keep = {job.keep:.3g} of the {job.of} cannot be reached: with {least} unit(s) left "
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


def _cost_of(units: Sequence[int], job: Job, whole: Structure, groups: Sequence[Group]) -> float:
    """Count what the network costs when each group has so many units left."""
    budget = job.budget(whole, groups)
    for index, (group, left) in enumerate(zip(groups, units, strict=True)):
        for unit in range(len(group) - left):
            budget.remove(index, unit)
    return budget.total()


def _more(limits: LayerLimits) -> str:
    parts = [f"multiples of {limits.multiple}"] if limits.multiple > 1 else []
    parts += ["the ceilings"] if limits.channels else []
    return f" and {' and '.join(parts)} respected" if parts else ""
