"""Physical removal, checked against the same network with the units silenced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from niwaki.contexts import undisturbed
from niwaki.errors import ModelError
from niwaki.models import plain_copy
from niwaki.pruning._plan import Plan, Removal
from niwaki.pruning.units._cut import cut, cut_for_a_moment
from niwaki.pruning.units._tracing import Followed, Reading, follow, readings, run_silenced
from niwaki.pruning.units._variables import FIXED

__all__ = ["agrees", "completed", "doomed", "operate", "replay"]

TOLERANCE = 1e-3
_LAYERS = (nn.modules.conv._ConvNd, nn.Linear)


@undisturbed
def operate(
    model: nn.Module,
    example: Tensor,
    removals: Sequence[Removal],
    followed: Followed | None = None,
) -> None:
    """Remove units of a network that is ours, with their norms and the inputs behind them.

    Parameters
    ----------
    model : nn.Module
        Changed in place; as it was where that fails.
    example : Tensor
        Inputs to trace and to check with, at least two.
    removals : sequence of Removal
        What goes, and with it all that is coupled to it.
    followed : Followed, optional
        The channels, where they are known already: `Coupling.followed`.

    Raises
    ------
    ModelError
        If the channels cannot go, or the smaller network does not compute what the old one does
        without them.
    LookupError
        For removals that make no sense: no such layer, no such channels, all of them.
    """
    followed = followed or follow(model, example)
    units = doomed(model, followed, removals)
    wrong = agrees(model, example, followed, units)
    if wrong is not None:
        raise _lost(removals, wrong)
    cut(model, followed, units)


@undisturbed
def replay(model: nn.Module, example: Tensor, plan: Plan) -> None:
    """Apply a plan to a fresh network in place; its weights are not used."""
    for step in plan.steps:
        followed = follow(model, example)
        cut(model, followed, doomed(model, followed, step))


def completed(model: nn.Module, example: Tensor, plan: Plan) -> Plan:
    """Return a plan that lists every layer that loses outputs, those that are coupled included."""
    working, steps = plain_copy(model), Plan()
    for step in plan.steps:
        followed = follow(working, example)
        units = doomed(working, followed, step)
        lost = []
        for name, module in working.named_modules():
            outputs = followed.sides(name, module)[0] if isinstance(module, _LAYERS) else None
            if outputs is not None:
                gone = torch.isin(followed.units.find(outputs), units).nonzero().flatten()
                lost += [Removal(name, tuple(gone.tolist()))] if len(gone) else []
        cut(working, followed, units)
        steps = steps.with_step(lost)
    return steps


def doomed(model: nn.Module, followed: Followed, removals: Sequence[Removal]) -> Tensor:
    """Return the units that removals take, each with all its channels.

    Raises
    ------
    LookupError
        See `operate`.
    ModelError
        If channels are among them that must stay.
    """
    found = [torch.zeros(0, dtype=torch.long)]
    for removal in removals:
        outputs = _outputs(model, followed, removal)
        units = followed.units.find(outputs[list(removal.channels)])
        if bool((units == FIXED).any()):
            which = outputs[list(removal.channels)][units == FIXED]
            raise _lost([removal], "; ".join(followed.units.why(which)))
        found.append(units)
    units = torch.tensor(sorted(set(torch.cat(found).tolist())), dtype=torch.long)
    for name, module in model.named_modules():
        if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):
            side = followed.sides(name, module)[0]
            if side is not None and bool(torch.isin(followed.units.find(side), units).all()):
                raise LookupError(f"{name!r} would be left without a channel")
    return units


def agrees(model: nn.Module, example: Tensor, followed: Followed, units: Tensor) -> str | None:
    """Say what is wrong with a network without units, beside it with the units silenced.

    Every operation that adds up over channels has to read the same of those that are left, and the
    outputs have to be the same. Norms over channels, which give other numbers by their nature, are
    bypassed in both.

    Returns
    -------
    str or None
        None if nothing is.
    """
    try:
        with cut_for_a_moment(model, followed, units):
            found, read = readings(model, example)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    expected, read_before = run_silenced(model, example, followed, units)
    for one, other in zip(_leaves(found), _leaves(expected), strict=True):
        if one.shape != other.shape:
            return f"the output became {tuple(one.shape)}"
        difference = float((one - other).abs().max())
        if not difference <= TOLERANCE * max(float(other.abs().max()), 1e-6):  # nor NaN
            return f"an output differs by {difference:.3g}"
    if not _same(read, read_before):
        return "its layers read other channels"
    return None


def _same(found: Sequence[Reading], expected: Sequence[Reading]) -> bool:
    return len(found) == len(expected) and all(
        one[0] == other[0] and abs(one[1] - other[1]) <= TOLERANCE * max(other[2], 1e-6)
        for one, other in zip(found, expected, strict=True)
    )


def _leaves(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, dict):
        output = list(output.values())
    if isinstance(output, (list, tuple)):
        return [tensor for item in output for tensor in _leaves(item)]
    return []


def _outputs(model: nn.Module, followed: Followed, removal: Removal) -> Tensor:
    """Return the variables of a layer's outputs; refuse removals that make no sense."""
    try:
        module = model.get_submodule(removal.layer)
    except AttributeError as error:
        raise LookupError(f"there is no layer {removal.layer!r}") from error
    if not isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):
        raise LookupError(f"{removal.layer!r} is no convolution or linear layer")
    outputs = followed.sides(removal.layer, module)[0]
    width, channels = 1 if outputs is None else len(outputs), set(removal.channels)
    if outputs is None or not channels <= set(range(width)) or len(channels) in (0, width):
        raise LookupError(
            f"{removal.layer!r} has {width} channels: {list(removal.channels)} cannot be removed"
        )
    return outputs


def _lost(removals: Sequence[Removal], what: str) -> ModelError:
    layers = ", ".join(repr(r.layer) for r in removals[:3])
    more = f" and {len(removals) - 3} more layers" if len(removals) > 3 else ""
    return ModelError(
        f"channels of {layers}{more} cannot be removed: {what}. Keep such layers with ignore=[...]"
    )
