"""The search for rules: what is proposed next, by optuna."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, TypeAlias

from niwaki.errors import NiwakiError
from niwaki.pruning.comparison._choice import RULES, Groups, Settings

if TYPE_CHECKING:
    import optuna

__all__ = ["EPSILON", "GAMMA", "REDUCTIONS", "RuleSearch", "Span", "check_optuna"]

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
    """Silence optuna's log, which tells what the trials tell; its level is a global one."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
