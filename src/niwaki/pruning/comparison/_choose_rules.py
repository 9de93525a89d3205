"""The rules by data: a search for the composite that keeps the most accuracy per cost."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from torch import nn

from niwaki import models, runs
from niwaki.criteria import Criterion
from niwaki.data import Data, batches
from niwaki.errors import AbsorbedWarning, NiwakiError, UnknownOptionError
from niwaki.propagation import trace
from niwaki.pruning._prune import prune
from niwaki.pruning._run import Run
from niwaki.pruning._schedule import PER_COST, Schedule
from niwaki.pruning._trajectory import area
from niwaki.pruning.comparison._choice import Choice, Trial, depth_groups, same_settings
from niwaki.pruning.comparison._rule_search import RuleSearch, Span, check_optuna
from niwaki.pruning.units._budget import Of
from niwaki.ranges import EXPONENT, INSIDE, SEED, STEPS, checked
from niwaki.runs import Workplace, described, digest, open_run, within
from niwaki.schema import rebuild

__all__ = ["choose_rules"]


@checked(trials=STEPS, keep=INSIDE, per_cost=EXPONENT, seed=SEED)
def choose_rules(
    model: nn.Module,
    data: Data,
    *,
    validation: Data,
    trials: int = 20,
    keep: float = 0.3,
    of: Of = "macs",
    schedule: Schedule = Schedule(steps=7),
    per_cost: float | Span | None = None,
    seed: int = 0,
    run: Run = Run(),
    **prune_options: Any,
) -> Choice:
    """Choose the rules by which `lrp` prunes this network best (Hatefi et al. 2024).

    Each trial prunes a copy of the network and measures the area under accuracy against cost on
    the validation data. What is chosen: the rule of each depth group of layers (the first, second
    and last third of the convolutions, and the linear layers) among Epsilon, ZPlus, Gamma and
    AlphaBeta (2, 1), with epsilon from 1e-6 to 1 and gamma from 0.01 to 10 on a log scale; and how
    relevances are summed. Optuna's tree-structured Parzen estimator searches, beginning with the
    defaults `lrp` and `lrp.z_plus_sums`, so that the best is never worse than these on the
    validation data. On other data it may be: the fewer the samples, the more of a lead is chance.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode, returning shape (N, classes). It stays as it is.
    data : DataLoader, Dataset or pair of tensors
        The reference samples with their labels, that the criterion looks at.
    validation : DataLoader, Dataset or pair of tensors
        What is decided by: neither the reference samples nor those that the result is tested on.
    trials : int
        The budget: how many settings are tried, each by a whole run of pruning.
    keep, of, schedule
        See `prune`: the share at which the curves end, of what, and the steps.
    per_cost : float or pair of float, optional
        In place of the schedule's: one for all trials, or the smallest and largest to choose from.
    seed : int
        Seed of the search; the same seed gives the same trials.
    run : Run
        The size of batches, who is told about each `Trial`, and the folder in which the trials so
        far are written after each one (see `Choice.save`). Called again, the search goes on from
        there and ends as it would have without the interruption; `trials` may grow.
    **prune_options
        Further options of `prune`, for all trials.

    Returns
    -------
    Choice
        With `.criterion`, `.per_cost`, `.best` and all `.trials`.

    Raises
    ------
    ValueError
        For options out of range.
    NiwakiError
        If optuna is missing, one of the defaults cannot be run, or the folder holds a search on
        another network, other data or with other settings (which one is named).

    Examples
    --------
    >>> found = niwaki.pruning.choose_rules(model, few, validation=held_out, trials=30)
    >>> print(found)
    >>> best = niwaki.criteria.RebuiltError(found.criterion)
    >>> schedule = niwaki.pruning.Schedule(per_cost=found.per_cost)
    >>> pruned = niwaki.prune(model, few, best, schedule=schedule, keep=0.4)
    """
    if trials < 1:
        raise ValueError(f"trials = {trials}: at least one is needed")
    check_optuna()
    models.check(model)
    example = next(iter(batches(data, 1, models.home(model))))[0][:1]
    groups = depth_groups(trace(model, example))
    options = {"keep": keep, "of": of, **prune_options}
    span = _span(schedule.per_cost if per_cost is None else per_cost)
    settings = {
        "seed": seed,
        "batch_size": run.batch_size,
        **described({**vars(schedule), "per_cost": list(span)}),
        **{name: described(value) for name, value in options.items()},
    }

    def identity() -> dict[str, Any]:
        known = {"model": models.fingerprint(model), "data": digest(data)}
        return {**known, "validation": digest(validation), **settings}

    def measure(criterion: Criterion, exponent: float) -> float:
        pruned = prune(
            model,
            data,
            criterion,
            test=validation,
            schedule=replace(schedule, per_cost=exponent),
            run=Run(batch_size=run.batch_size),
            **options,
        )
        return area(pruned.trajectory, of, (keep, 1.0))

    folder = run.folder.path if isinstance(run.folder, Workplace) else run.folder
    search = RuleSearch(groups, span, PER_COST, seed)
    done: list[Trial] = []
    with open_run(within(run.folder, "trials"), identity) as kept:
        known = _known(kept)
        for number in range(trials):
            tried = search.ask()
            found = known.get(same_settings(tried))
            if found is None:
                found = _try(Choice(groups, ()), Trial(number, tried, None, 0.0), measure)
            if found.area is None and number < search.defaults:
                raise NiwakiError(f"a default cannot be run on this network: {found.error}")
            search.tell(found.area)
            done.append(replace(found, number=number))
            known[same_settings(tried)] = found
            kept.write(f"{number:04}", trial=asdict(done[-1]))
            if folder is not None:
                Choice(groups, tuple(done), settings).save(folder)
            run.tell(done[-1])
    return Choice(groups, tuple(done), settings)


def _known(kept: runs.Run) -> dict[str, Trial]:
    """Return the trials that a folder holds already, by what they tried."""
    parts = [part for name in kept.parts if (part := kept.read(name)) is not None]
    trials = [rebuild(Trial, part.about.get("trial"), "a trial") for part in parts]
    return {same_settings(trial.settings): trial for trial in trials}


def _try(choice: Choice, trial: Trial, measure: Callable[[Criterion, float], float]) -> Trial:
    """Run a trial; one that goes wrong is one that is not chosen."""
    started = time.perf_counter()
    found, error = None, None
    try:
        with warnings.catch_warnings():
            # Layers that cannot be compared show in what is measured.
            warnings.simplefilter("ignore", AbsorbedWarning)
            found = measure(choice.criterion_of(trial), float(trial.settings["per_cost"]))
    except UnknownOptionError:  # of `choose_rules` itself
        raise
    except NiwakiError as wrong:
        error = str(wrong)
    return replace(trial, area=found, seconds=time.perf_counter() - started, error=error)


def _span(per_cost: float | Span) -> Span:
    if isinstance(per_cost, (int, float)):
        per_cost = (float(per_cost), float(per_cost))
    low, high = map(float, per_cost)
    if low > high:
        raise ValueError(f"per_cost = {per_cost}: the smaller one comes first")
    return low, high
