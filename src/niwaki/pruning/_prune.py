"""The loop: score, choose, remove, look, and again."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.prune import BasePruningMethod

from niwaki import models
from niwaki.criteria import Criterion, create, hidden_layers, score
from niwaki.data import Data, batches
from niwaki.errors import ModelError, NiwakiError, NothingToPruneError
from niwaki.evaluation import accuracy, cost
from niwaki.propagation import trace
from niwaki.pruning._budget import Budget, Of
from niwaki.pruning._coupling import Group, couple
from niwaki.pruning._plan import Plan
from niwaki.pruning._pruned import Pruned, shapes
from niwaki.pruning._schedule import targets
from niwaki.pruning._select import select
from niwaki.pruning._surgery import operate
from niwaki.pruning._trajectory import Step, Trajectory

__all__ = ["prune"]


def prune(
    model: nn.Module,
    data: Data,
    criterion: str | Criterion = "lrp",
    *,
    keep: float = 0.5,
    of: Of = "macs",
    steps: int | None = None,
    per_step: float | None = None,
    test: Data | None = None,
    ignore: Sequence[str] = (),
    min_units: int = 1,
    batch_size: int = 32,
    callback: Callable[[Step], None] | None = None,
    **options: Any,
) -> Pruned:
    """Remove the units that matter least, until a share of the cost is left.

    In each step all units are scored anew, coupled channels by the sum over their members, ranked
    over all layers at once, and removed from the lowest, with their batch norms and the inputs
    behind them, until the step's cost is reached. Ties go by the order of layers and units, so
    that numbers are exact.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode, returning shape (N, classes). It stays as it is.
    data : DataLoader, Dataset or pair of tensors
        The reference samples with their labels, that the criterion looks at.
    criterion : str or Criterion
        One of `niwaki.criteria.names`.
    keep : float
        Share to keep, between 0 and 1. The result is the first network at or below it.
    of : {"units", "params", "macs"}
        Of what.
    steps, per_step : int, float, optional
        Number of steps, or share of the original cost per step; default: 0.05 per step.
    test : DataLoader, Dataset or pair of tensors, optional
        Measures the accuracy after each step.
    ignore : sequence of str
        Layers whose units stay; the name of a module stands for all layers in it.
    min_units : int
        Units that each layer keeps at the least.
    batch_size : int
        For data sets and tensors; a loader has its own.
    callback : callable, optional
        Told about each step.
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

    Examples
    --------
    >>> pruned = niwaki.prune(model, (images, labels), criterion="lrp", keep=0.5, of="macs")
    >>> pruned.save("smaller")
    """
    shares = targets(keep, steps, per_step)
    if of not in ("units", "params", "macs"):
        raise ValueError(f"of = {of!r} is not one of 'units', 'params', 'macs'")
    if min_units < 1:
        raise ValueError(f"min_units = {min_units}: every layer keeps at least one unit")
    ignore = _layers(model, ignore)
    made = create(criterion, **options)
    models.check(model)
    example = _example(model, data)
    working = _copy(model)
    started = time.perf_counter()
    first = cost(working, example)
    total = getattr(first, of)
    plan = Plan()

    def look(step: int, since: float) -> Step:
        now = cost(working, example)
        right = None if test is None else accuracy(working, test, batch_size=batch_size)
        row = Step(step, now.units, now.params, now.macs, right, None, time.perf_counter() - since)
        if callback is not None:
            callback(row)
        return row

    hidden = [layer.name for layer in hidden_layers(working, example[:1])]
    groups = couple(working, example, hidden, ignore)
    _check_reach(working, example, groups, of, keep * total, total, min_units)
    rows = [look(0, started)]
    for number, share in enumerate(shares, 1):
        started = time.perf_counter()
        scores = score(working, data, made, batch_size=batch_size)
        groups = couple(working, example, list(scores), ignore)
        budget = Budget(working, trace(working, example[:1]), groups, of)
        # Costs are whole numbers, so the small addition only mends rounding: 0.29 * 100 < 29.
        removals = select(
            groups, scores, budget, share * total + 1e-3, least=[min_units] * len(groups)
        )
        if removals:
            operate(working, example, removals)
            plan = plan.with_step(removals)
        rows.append(look(number, started))
    left = getattr(rows[-1], of)
    if left > keep * total + 1e-3:
        raise NiwakiError(
            f"keep = {keep} of the {of} was not reached: {left / total:.3g} remain, as some layers "
            "became too narrow to lose more. Keep more, or take fewer steps"
        )
    return Pruned(
        working,
        plan,
        Trajectory(tuple(rows)),
        tuple(example.shape[1:]),
        shapes(model),
        {"criterion": repr(made), "keep": keep, "of": of},
    )


def _layers(model: nn.Module, names: Sequence[str]) -> list[str]:
    """List the layers that are named, or lie in modules that are."""
    layers: list[str] = []
    kinds = (nn.modules.conv._ConvNd, nn.Linear)
    for name in [names] if isinstance(names, str) else names:
        found = [
            layer
            for layer, module in model.named_modules()
            if isinstance(module, kinds) and f"{layer}.".startswith(f"{name}.")
        ]
        if not found:
            raise ValueError(
                f"ignore: there is no convolution or linear layer {name!r} in "
                f"{type(model).__name__}, nor one inside a module of that name"
            )
        layers += found
    return layers


def _example(model: nn.Module, data: Data) -> Tensor:
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    inputs, _ = next(iter(batches(data, 2, device)))
    return inputs[:2]


def _copy(model: nn.Module) -> nn.Module:
    for name, module in model.named_modules():
        masks = (isinstance(h, BasePruningMethod) for h in module._forward_pre_hooks.values())
        if any(masks) or is_parametrized(module):
            raise ModelError(
                f"the weight of {name!r} is made anew in each pass (torch.nn.utils.prune or "
                "parametrize), so that its channels cannot be removed. Make it permanent first: "
                "prune.remove or parametrize.remove_parametrizations"
            )
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} cannot be copied ({error}). Remove what it holds of a pass, "
            "such as cached outputs, and pass it again"
        ) from error


def _check_reach(
    model: nn.Module,
    example: Tensor,
    groups: Sequence[Group],
    of: Of,
    target: float,
    total: float,
    min_units: int,
) -> None:
    """Refuse a target that cannot be met, before any work is done."""
    if not any(len(group) > min_units for group in groups):
        raise NothingToPruneError(
            f"{type(model).__name__} has nothing to prune: no hidden layer has more than "
            f"{min_units} unit(s) that may go. Convolutions and linear layers must be modules "
            "(nn.Conv2d, nn.Linear) for channels to be removed"
        )
    budget = Budget(model, trace(model, example[:1]), groups, of)
    for index, group in enumerate(groups):
        for unit in range(len(group) - min_units):
            budget.remove(index, unit)
    if budget.total() > target + 1e-3:
        raise NiwakiError(
            f"keep = {target / total:.3g} of the {of} cannot be reached: with {min_units} unit(s) "
            f"left everywhere, {budget.total() / total:.3g} remain"
        )
