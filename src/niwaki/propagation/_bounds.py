"""Bounds of the network's input, carried through what is done to it before the first layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from niwaki.propagation._calls import Call

__all__ = ["Box", "Carry", "as_it_is", "bounds_of", "carried", "one_of"]

#: Smallest and largest value of each element.
Box = tuple[Tensor, Tensor]
#: Turns the box of the network's input into that of a tensor made from it.
Carry = Callable[[Box], Box]

#: Operations that send the ends of a box to ends of a box: element by element, all arguments
#: increasing or all decreasing, or means of them.
_ELEMENTWISE = "add sub rsub mul multiply div divide true_divide neg negative batch_norm"
_INCREASING = (
    "relu relu6 leaky_relu hardtanh tanh softplus sigmoid hardsigmoid clamp clamp_min clip "
    "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
    "max_pool1d max_pool2d max_pool3d mean sum interpolate upsample upsample_nearest "
    "upsample_bilinear"
)
_MONOTONE = frozenset(f"{_ELEMENTWISE} {_INCREASING}".split())
#: Of these only one argument may depend on the input.
_OF_ONE = frozenset(["sub", "rsub", "mul", "multiply", "div", "divide", "true_divide"])


def carried(call: Call, carries: dict[int, Carry | None], moves: bool) -> Carry | None:
    """Say how the box of a call's result comes from that of the network's input.

    Parameters
    ----------
    call : Call
        Not run yet, so that what it overwrites is still there.
    carries : dict of int to Carry or None
        By the id of each signal among its arguments.
    moves : bool
        Whether it only moves values.

    Returns
    -------
    Carry or None
        None where bounds do not say what comes out.
    """
    ways = {key: carry for key, carry in carries.items() if carry is not None}
    if len(ways) < len(carries) or not (moves or call.name in _MONOTONE):
        return None
    if call.argument(3, "mode") == "bicubic" or (call.name in _OF_ONE and len(ways) > 1):
        return None
    if call.name == "setitem":
        return _set(call, ways)
    function, kwargs = call.out_of_place(), {k: v for k, v in call.kwargs.items() if k != "inplace"}
    arguments = _held(call.args, ways), _held(kwargs, ways)

    def carry(box: Box) -> Box:
        ends = []
        for end in (0, 1):
            args, named = (_filled(value, box, end) for value in arguments)
            ends.append(function(*args, **named))
        low, high = _ordered(*ends)
        return low, high

    return carry


def _set(call: Call, ways: dict[int, Carry]) -> Carry:
    """Writing into a part of a tensor: a signal, or a constant such as a canvas of zeros."""
    target, index, value = call.args
    into = _held(target if id(target) in ways else target.detach().clone(), ways)
    value = _held(value, ways)

    def carry(box: Box) -> Box:
        ends = []
        for end in (0, 1):
            whole = _filled(into, box, end).clone()
            whole[index] = _filled(value, box, end)
            ends.append(whole)
        low, high = _ordered(*ends)
        return low, high

    return carry


def _ordered(one: Any, other: Any) -> Any:
    """Put the smaller end first; of operations with several results, a tuple of both."""
    if isinstance(one, Tensor):
        return torch.minimum(one, other), torch.maximum(one, other)
    lows, highs = zip(*(_ordered(*both) for both in zip(one, other, strict=True)), strict=True)
    return lows, highs


class _Slot:
    """Where a signal stood among the arguments."""

    def __init__(self, carry: Carry) -> None:
        self.carry = carry


def _held(value: Any, ways: dict[int, Carry]) -> Any:
    """Replace signals by slots, so that they are not kept in memory."""
    if isinstance(value, Tensor):
        return _Slot(ways[id(value)]) if id(value) in ways else value.detach()
    if isinstance(value, (tuple, list)) and type(value) in (tuple, list):
        return type(value)(_held(item, ways) for item in value)
    if isinstance(value, dict):
        return {key: _held(item, ways) for key, item in value.items()}
    return value


def _filled(value: Any, box: Box, end: int) -> Any:
    if isinstance(value, _Slot):
        return value.carry(box)[end]
    if isinstance(value, (tuple, list)) and type(value) in (tuple, list):
        return type(value)(_filled(item, box, end) for item in value)
    if isinstance(value, dict):
        return {key: _filled(item, box, end) for key, item in value.items()}
    return value


def as_it_is(box: Box) -> Box:
    """Carry nothing: the tensor is the network's input."""
    return box


def one_of(carry: Carry, number: int, box: Box) -> Box:
    """Carry to one of the tensors that a call returns together."""
    low, high = carry(box)
    return low[number], high[number]


def bounds_of(
    carry: Carry, shape: torch.Size, dtype: torch.dtype, low: Tensor, high: Tensor
) -> Box:
    """Carry bounds of the network's input, of one value or one per channel."""
    with torch.no_grad():
        ends = (end.to(dtype).view(1, -1, *[1] * (len(shape) - 2)) for end in (low, high))
        box = tuple(end.expand(shape).contiguous() for end in ends)
        low, high = carry((box[0], box[1]))
    return low, high
