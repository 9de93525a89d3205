"""Bundles of options: which units may be removed, in which steps, and how a run is done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from math import ceil, gcd, log
from typing import Any, Literal

from torch import Tensor, nn

from niwaki.pruning.units._coupling import Group
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
from niwaki.runs import Folder

__all__ = ["LayerLimits", "Limits", "PER_COST", "Run", "Schedule", "matching"]


@checked(batch_size=BATCH)
@dataclass(frozen=True)
class Run:
    """How a run is carried out: nothing here changes the result, except for rounding.

    Attributes
    ----------
    folder : str or Path, optional
        Where each finished part (a step, a contender, a trial) is written. Called again with the
        same folder, model, data and settings, after any interruption, the run resumes from
        there and ends as it would have without it.
    batch_size : int
        Samples that are computed at once, of data sets and tensors; a loader has its own.
    callback : callable, optional
        Called with each finished part, including those that were found in the folder.
    observe : callable, optional
        Looks at the network after each step of `niwaki.prune` (0: before anything is removed) and
        returns tensors by name, such as heatmaps. They are kept with the step in the folder, and
        handed on in `Pruned.observed`.
    """

    folder: Folder = None
    batch_size: int = 32
    callback: Callable[[Any], object] | None = None
    observe: Callable[[nn.Module], Mapping[str, Tensor]] | None = None

    def tell(self, finished: Any) -> None:
        """Tell the callback about a part that is finished."""
        if self.callback is not None:
            self.callback(finished)


PER_COST = 0.6
_STEP, _REBUILT_STEP = 0.05, 0.1


@checked(steps=STEPS, per_step=PER_STEP, floor=SHARE, per_cost=EXPONENT, prices=PRICE)
@dataclass(frozen=True)
class Schedule:
    """In which steps and in which order units are removed, and when to stop.

    Attributes
    ----------
    steps : int, optional
        Number of steps; 1 removes all at once.
    per_step : float, optional
        Share that is removed in each step, of the original cost (``"equal"``) or of what is left
        (``"geometric"``). Default: 0.05, as in Yeom et al. (2021); 0.1 where layers are rebuilt,
        nothing is trained and there is no floor, as each fit from few images loses a little.
    spacing : {"equal", "geometric"}
        Whether each step removes the same share of the original cost or of what is left.
    floor : float, optional
        Accuracy on the validation data, from 0 to 1, below which a step is undone: the network
        before it is the result, and `keep` only the furthest it may go. The step stays in the
        trajectory, `rejected`.
    recompute : bool
        Whether units are scored in each step; else once at the start.
    per_cost : float
        Exponent of the cost that a unit saves in the current network, by which its score
        is divided: 0 ranks by the score alone, 1 by the score per MAC (parameter, unit). The
        harm of a removal grows about as the square of its score, hence about the root of the cost.
    prices : mapping of str to float, optional
        What a MAC costs in each layer, relative to the others; the mean for layers that are not
        named. With `niwaki.evaluation.seconds_per_mac`, the time is predicted and reduced instead
        of the MACs.

    Raises
    ------
    ValueError
        For values out of range, or both `steps` and `per_step`.
    """

    steps: int | None = None
    per_step: float | None = None
    spacing: Literal["equal", "geometric"] = "equal"
    floor: float | None = None
    recompute: bool = True
    per_cost: float = PER_COST
    prices: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        if self.steps is not None and self.per_step is not None:
            raise ValueError("give steps or per_step, not both")

    def paced(self, *, rebuilt: bool = False) -> Schedule:
        """Return the schedule with the size of its steps, where it says nothing of them.

        Parameters
        ----------
        rebuilt : bool
            Whether layers are rebuilt after each step, and nothing is trained.
        """
        if self.steps is not None or self.per_step is not None:
            return self
        larger = rebuilt and self.floor is None
        return replace(self, per_step=_REBUILT_STEP if larger else _STEP)

    @checked(keep=INSIDE)
    def targets(self, keep: float) -> list[float]:
        """Return the share of the cost to be left after each step, the last one being `keep`.

        Raises
        ------
        ValueError
            If `keep` is out of range, or makes too many steps.
        """
        share, steps = self.paced().per_step or _STEP, self.steps
        if self.spacing == "geometric":
            if steps is not None:
                return [keep ** (i / steps) for i in range(1, steps)] + [keep]
            steps = ceil(log(keep) / log(1 - share) - 1e-9)
            STEPS.check(f"keep = {keep} and per_step = {share} make steps =", steps)
            return [(1 - share) ** i for i in range(1, steps)] + [keep]
        if steps is not None:
            return [1 - (1 - keep) * i / steps for i in range(1, steps)] + [keep]
        steps = ceil((1 - keep) / share - 1e-9)
        return [1 - share * i for i in range(1, steps)] + [keep]


@checked(min_units=UNITS, round_to=UNITS, ceilings=FRACTION)
@dataclass(frozen=True)
class Limits:
    """What pruning may not do.

    Attributes
    ----------
    ignore : str or sequence of str
        Layers whose units stay; the name of a module stands for all layers in it, and patterns
        such as ``"*.downsample.0"`` for all that fit.
    min_units : int
        Smallest number of units that a layer may keep.
    round_to : int
        Layers that lose units keep a multiple of this number, such as 8.
    ceilings : float or mapping of str to float, optional
        Largest share of its original units that a layer may lose: one for all, or by name (as in
        `ignore`; the last entry that fits counts).

    Raises
    ------
    ValueError
        For numbers out of range.
    """

    ignore: str | Sequence[str] = ()
    min_units: int = 1
    round_to: int = 1
    ceilings: float | Mapping[str, float] | None = None

    def of(self, model: nn.Module) -> LayerLimits:
        """Say what they mean for the layers of a network that is not yet pruned.

        Raises
        ------
        ValueError
            For names that fit no layer.
        """
        names = [self.ignore] if isinstance(self.ignore, str) else self.ignore
        widths = _widths(model)
        ignored = [layer for name in names for layer in matching(widths, name, "ignore", model)]
        shares = {} if self.ceilings is None else self.ceilings
        channels: dict[str, int] = {}
        for name, share in (shares if isinstance(shares, Mapping) else {"*": shares}).items():
            for layer in matching(widths, name, "ceilings", model):
                # The small subtraction only mends rounding: 0.1 * 30 > 3.
                channels[layer] = ceil((1 - share) * widths[layer] - 1e-9)
        return LayerLimits(tuple(ignored), self.min_units, self.round_to, channels)


@dataclass(frozen=True)
class LayerLimits:
    """What pruning may not do in the layers of one network.

    Attributes
    ----------
    ignore : tuple of str
        Layers whose units stay.
    min_units, multiple : int
        Smallest number of units that a layer may keep, and of which the width of a layer that loses
        is a multiple.
    channels : dict of str to int
        Channels that a layer keeps at the least, because of its ceiling.
    """

    ignore: tuple[str, ...]
    min_units: int
    multiple: int
    channels: dict[str, int]

    def least(self, groups: Sequence[Group]) -> list[int]:
        """Return the units that each group keeps at the least."""
        return [self._least(group) for group in groups]

    def lowest(self, groups: Sequence[Group]) -> list[int]:
        """Return the units that each group is left with when all that may be removed is removed."""
        left = []
        for group in groups:
            multiple = self.multiple // gcd(self.multiple, len(group.units[0]))
            left.append(min(len(group), ceil(self._least(group) / multiple) * multiple))
        return left

    def _least(self, group: Group) -> int:
        least = self.min_units
        for member in group.members:
            if member.output and member.layer in self.channels:
                each = max(len(member.channels[0]), 1)
                least = max(least, ceil(self.channels[member.layer] / each))
        return least


def _widths(model: nn.Module) -> dict[str, int]:
    """Return the output channels of each convolution and linear layer."""
    widths = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.conv._ConvNd):
            widths[name] = module.out_channels
        elif isinstance(module, nn.Linear):
            widths[name] = module.out_features
    return widths


def matching(layers: Iterable[str], name: str, option: str, model: nn.Module) -> list[str]:
    """List the layers that are named, lie in a module that is, or fit a pattern."""
    found = [
        layer for layer in layers if f"{layer}.".startswith(f"{name}.") or fnmatchcase(layer, name)
    ]
    if not found:
        raise ValueError(
            f"{option}: there is no convolution or linear layer {name!r} in "
            f"{type(model).__name__}, nor one inside a module of that name"
        )
    return found
