"""Rules chosen by data: a search for the composite that keeps the most accuracy per cost."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import nn

from niwaki import models, runs
from niwaki.contexts import undisturbed
from niwaki.criteria import Criterion
from niwaki.data import Data, batches
from niwaki.errors import AbsorbedWarning, NiwakiError, UnknownOptionError
from niwaki.propagation import trace
from niwaki.pruning._bundles import PER_COST, Run, Schedule
from niwaki.pruning._prune import prune
from niwaki.pruning._trajectory import area
from niwaki.pruning.comparison._choice import (
    RULES,
    Choice,
    Groups,
    Settings,
    Trial,
    depth_groups,
    same_settings,
)
from niwaki.pruning.units._budget import Of
from niwaki.ranges import EXPONENT, INSIDE, SEED, STEPS, checked
from niwaki.runs import Workplace, described, digest, identified, open_run, within
from niwaki.schema import rebuild

if TYPE_CHECKING:
    import optuna

__all__ = ["EPSILON", "GAMMA", "REDUCTIONS", "RuleSearch", "Span", "check_optuna", "choose_rules"]


@undisturbed
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
    validation data. On other data it may be: the fewer the samples, the more of a lead may be due
    to chance.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode, returning shape (N, classes). It stays as it is.
    data : DataLoader, Dataset or pair of tensors
        The reference samples with their labels, on which the criterion is computed.
    validation : DataLoader, Dataset or pair of tensors
        Images that decide: neither the reference samples nor those on which the result is tested.
    trials : int
        The budget: how many settings are tried, each by a whole run of pruning.
    keep, of, schedule
        See `prune`: the share at which the curves end, of what, and the steps.
    per_cost : float or pair of float, optional
        In place of the schedule's: one for all trials, or the smallest and largest to choose from.
    seed : int
        Seed of the search; the same seed gives the same trials.
    run : Run
        The batch size, the callback for each `Trial`, and the folder in which the trials so far are
        written after each one (see `Choice.save`). Called again, the search resumes from there and
        ends as it would have without the interruption; `trials` may grow.
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
        known = {"model": identified(model), "data": digest(data, seeded=True)}
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
    """Run a trial; one that fails cannot be chosen."""
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


Span: TypeAlias = tuple[float, float]

EPSILON: Span = (1e-6, 1.0)
GAMMA: Span = (1e-2, 10.0)
REDUCTIONS = ("absolute_of_sum", "absolute", "signed")


def check_optuna() -> None:
    """Say what to install.

    Raises
    ------
    NiwakiError
        If optuna is missing.
    """
    if find_spec("optuna") is None:
        raise NiwakiError("choosing rules needs optuna: pip install niwaki[tune]")


class RuleSearch:
    """Proposes settings one by one, and is told how good each was.

    Parameters
    ----------
    groups : mapping of str to tuple of str
        The depth groups.
    span : pair of float
        Smallest and largest exponent of the cost.
    exponent : float
        The usual one, which the defaults get as far as the span allows.
    seed : int
        The same seed and answers give the same proposals.
    """

    def __init__(self, groups: Groups, span: Span, exponent: float, seed: int) -> None:
        import optuna

        self._groups = groups
        self._span = span
        self._asked: optuna.Trial | None = None
        usual = _defaults(groups, min(max(exponent, span[0]), span[1]))
        #: How many of the first proposals are defaults.
        self.defaults = len(usual)
        with _quiet():
            sampler = optuna.samplers.TPESampler(seed=seed)
            self._study = optuna.create_study(direction="maximize", sampler=sampler)
            for settings in usual:
                self._study.enqueue_trial(settings)

    def ask(self) -> Settings:
        """Propose what to try next."""
        with _quiet():
            self._asked = self._study.ask()
            return _proposal(self._asked, self._groups, self._span)

    def tell(self, area: float | None) -> None:
        """Take note of how good the last proposal was; None: it could not be run."""
        import optuna

        assert self._asked is not None
        state = optuna.trial.TrialState.FAIL if area is None else None
        with _quiet():
            self._study.tell(self._asked, area, state=state)


def _proposal(asked: optuna.Trial, groups: Groups, span: Span) -> Settings:
    settings: Settings = {}
    for group in groups:
        rule = str(asked.suggest_categorical(f"{group}.rule", RULES))
        settings[f"{group}.rule"] = rule
        for name, (low, high) in (("epsilon", EPSILON), ("gamma", GAMMA)):
            if rule.lower() == name:
                number = asked.suggest_float(f"{group}.{name}", low, high, log=True)
                settings[f"{group}.{name}"] = number
    settings["reduce"] = str(asked.suggest_categorical("reduce", REDUCTIONS))
    low, high = span
    settings["per_cost"] = low if low == high else asked.suggest_float("per_cost", low, high)
    return settings


def _defaults(groups: Groups, exponent: float) -> list[Settings]:
    """Write the criteria `lrp` and `lrp.z_plus_sums` as proposals."""
    everywhere: Settings = {}
    plus: Settings = {}
    for group in groups:
        row: Settings = {f"{group}.rule": "Epsilon", f"{group}.epsilon": EPSILON[0]}
        everywhere |= row
        plus |= row if group == "linear" else {f"{group}.rule": "ZPlus"}
    return [
        {**everywhere, "reduce": "absolute_of_sum", "per_cost": exponent},
        {**plus, "reduce": "absolute", "per_cost": exponent},
    ]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence optuna's log, which repeats what the trials report; its level is global."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
