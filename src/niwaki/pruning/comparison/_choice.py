"""What a search for the best rules has tried, and the best of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from glob import escape
from pathlib import Path
from typing import Any, TypeAlias

from niwaki.criteria import Criterion, create
from niwaki.errors import DataError
from niwaki.files import write_json, write_text
from niwaki.propagation import (
    AlphaBeta,
    Assign,
    Composite,
    Epsilon,
    Gamma,
    Layer,
    Rule,
    ZPlus,
    epsilon,
    save_composite,
)
from niwaki.schema import Anything, MapOf, read_json, rebuild

__all__ = [
    "NUMBERS",
    "RULES",
    "Choice",
    "Groups",
    "Settings",
    "Trial",
    "depth_groups",
    "same_settings",
]

RULES = ("Epsilon", "ZPlus", "Gamma", "AlphaBeta")
_DEPTHS = ("low", "middle", "high")
NUMBERS = "choice.json"
_PLAIN = MapOf(Anything())

#: Name of a depth group to the names of its layers.
Groups: TypeAlias = Mapping[str, tuple[str, ...]]

#: What is chosen, see `Trial`.
Settings: TypeAlias = dict[str, str | float]


def depth_groups(layers: Sequence[Layer]) -> dict[str, tuple[str, ...]]:
    """Sort layers by depth: three equal groups of convolutions, and the linear layers.

    The first layers are in none: scores are read at outputs, so that their rules do not matter.
    """
    behind = [layer for layer in layers if not layer.operation.first]
    convolutions = [layer.name for layer in behind if layer.kind == "convolution"]
    ends = [round(part * len(convolutions) / 3) for part in range(4)]
    groups = {
        depth: tuple(convolutions[start:end])
        for depth, start, end in zip(_DEPTHS, ends[:-1], ends[1:], strict=True)
    }
    groups["linear"] = tuple(layer.name for layer in behind if layer.kind == "linear")
    return {name: members for name, members in groups.items() if members}


@dataclass(frozen=True)
class Trial:
    """One setting and how good it was.

    Attributes
    ----------
    number : int
        From 0, in the order of the search.
    settings : dict
        The rule of each depth group (``"low.rule"``) with its number (``"low.epsilon"``,
        ``"low.gamma"``), ``"reduce"`` and ``"per_cost"``.
    area : float or None
        Mean accuracy on the validation data on the way to the share kept; None where it failed.
    seconds : float
        How long it took.
    error : str, optional
        Why it failed.
    """

    number: int
    settings: Settings
    area: float | None
    seconds: float
    error: str | None = None

    def __str__(self) -> str:
        area = "failed" if self.area is None else f"{self.area:.4f}"
        return f"{self.number:>5} {area:>7} {self.seconds:>8.1f}  {_words(self.settings)}"


@dataclass(frozen=True)
class Choice:
    """The trials of a search, and the best of them; prints as a table.

    Attributes
    ----------
    groups : dict of str to tuple of str
        The layers of each depth group.
    trials : tuple of Trial
        In the order of the search; the first are the defaults.
    settings : dict
        What they share: network, data, the share kept and the like.
    """

    groups: Groups
    trials: tuple[Trial, ...]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def best(self) -> Trial:
        """The trial with the largest area; of several, the first."""
        return max(self.trials, key=lambda t: -1.0 if t.area is None else t.area)

    @property
    def criterion(self) -> Criterion:
        """The best criterion, for `niwaki.prune` and `niwaki.score`."""
        return self.criterion_of(self.best)

    @property
    def composite(self) -> Composite:
        """Its composite."""
        return _composite(self.groups, self.best.settings)

    @property
    def per_cost(self) -> float:
        """The exponent of the cost that goes with it, see `niwaki.prune`."""
        return float(self.best.settings["per_cost"])

    def criterion_of(self, trial: Trial) -> Criterion:
        """Make the criterion of a trial."""
        # How much relevance a rule loses is no matter here: the area says what it is worth.
        return create(
            "lrp",
            composite=_composite(self.groups, trial.settings),
            reduce=trial.settings["reduce"],
            max_loss=None,
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain lists and dicts."""
        return {
            "settings": self.settings,
            "groups": {name: list(layers) for name, layers in self.groups.items()},
            "trials": [asdict(trial) for trial in self.trials],
        }

    @classmethod
    def from_json(cls, about: Mapping[str, Any]) -> Choice:
        """Rebuild from `to_json`."""
        found = rebuild(cls, about, "the choice")
        if not set(found.groups) <= {*_DEPTHS, "linear"} or not found.trials:
            raise DataError("the choice has other groups of layers, or no trials")
        for trial in found.trials:
            _check_settings(trial, found.groups)
            try:
                found.criterion_of(trial)
            except ValueError as error:
                raise DataError(f"trial {trial.number} makes no criterion: {error}") from error
        return found

    def save(self, folder: str | Path) -> None:
        """Write ``choice.json``, the table ``trials.txt``, and ``composite.json`` of the best.

        `niwaki.propagation.load_composite` reads the last one, and so does
        ``niwaki prune --criterion lrp:composite=FILE``.
        """
        save_composite(self.composite, Path(folder) / "composite.json")
        write_text(Path(folder) / "trials.txt", f"{self}\n")
        write_json(Path(folder) / NUMBERS, self.to_json())  # last: it says that the rest is there

    @classmethod
    def load(cls, folder: str | Path) -> Choice:
        """Read what `save` wrote.

        Raises
        ------
        NiwakiError
            If the folder holds no choice.
        """
        try:
            return cls.from_json(read_json(Path(folder) / NUMBERS, _PLAIN, "it cannot be read"))
        except DataError as error:
            raise DataError(f"{folder} holds no choice of rules: {error}") from error

    def __str__(self) -> str:
        rows = [f"{'trial':>5} {'area':>7} {'seconds':>8}  settings", *map(str, self.trials)]
        layers = [f"{name:>8}: {', '.join(members)}" for name, members in self.groups.items()]
        return "\n".join([*rows, f"best: {self.best.number}", "layers:", *layers])


def same_settings(settings: Mapping[str, str | float]) -> str:
    """Text that two trials have in common if they tried the same."""
    return json.dumps(settings, sort_keys=True)


def _check_settings(trial: Trial, groups: Groups) -> None:
    """Refuse settings that make no criterion."""
    texts = {"reduce": str, "per_cost": float, **{f"{group}.rule": str for group in groups}}
    numbers = {"Epsilon": "epsilon", "Gamma": "gamma"}
    for group in groups:
        number = numbers.get(str(trial.settings.get(f"{group}.rule")))
        texts |= {} if number is None else {f"{group}.{number}": float}
    for name, kind in texts.items():
        value = trial.settings.get(name)
        if not isinstance(value, str if kind is str else (int, float)):
            raise DataError(f"{name} of trial {trial.number} is {value!r}")


def _composite(groups: Groups, settings: Mapping[str, str | float]) -> Composite:
    rules = {group: _rule(group, settings) for group in groups}
    rows = [
        Assign(rules[group], kind=("convolution", "linear"), layer=escape(layer))
        for group, layers in groups.items()
        for layer in layers
    ]
    # A batch norm that stands alone has no layer's name: it goes with the convolutions around it.
    rows += [Assign(rules[depth], kind="batch_norm") for depth in _DEPTHS if depth in rules][:1]
    return Composite("Chosen", (*rows, *epsilon(sums=ZPlus()).rows))


def _rule(group: str, settings: Mapping[str, str | float]) -> Rule:
    name = settings[f"{group}.rule"]
    if name == "Epsilon":
        return Epsilon(float(settings[f"{group}.epsilon"]))
    if name == "Gamma":
        return Gamma(float(settings[f"{group}.gamma"]))
    return ZPlus() if name == "ZPlus" else AlphaBeta(2, 1)


def _words(settings: Mapping[str, str | float]) -> str:
    """Write settings in a line, as ``low Gamma(0.2), linear ZPlus, absolute, per cost 0.6``."""
    parts = []
    for name, rule in settings.items():
        group, dot, what = name.partition(".")
        if dot and what == "rule":
            number = [settings[key] for key in (f"{group}.epsilon", f"{group}.gamma")
                      if key in settings]  # fmt: skip
            parts.append(f"{group} {rule}" + (f"({number[0]:.3g})" if number else ""))
    return ", ".join([*parts, str(settings["reduce"]), f"per cost {settings['per_cost']:.3g}"])
