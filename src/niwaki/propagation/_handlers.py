"""The operations that niwaki knows, and what kind each one is.

A handler takes the watch and a call, says what kind of operation it is and what its output is
known to be, and lets the watch run it under its rule. To teach niwaki an operation, add it here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from niwaki.errors import PropagationError
from niwaki.propagation._calls import MOVES, Call, tensors_in
from niwaki.propagation.operation import Kind, Operation, Signals, at_least_single
from niwaki.propagation.rules import Epsilon, Gradient, Pass
from niwaki.propagation.watch import HANDLERS, Handler, Watch


def handles(names: str) -> Callable[[Handler], Handler]:
    """Register the handler of the named functions (separated by spaces)."""

    def register(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(names.split(), handler))
        return handler

    return register


def _signals(watch: Watch, call: Call) -> list[Tensor]:
    return [t for t in tensors_in((call.args, call.kwargs)) if watch.tags[t].signal]


def _layer(watch: Watch, call: Call, operation: Operation, x: Tensor) -> Any:
    """Run a convolution or linear layer and announce its units."""
    nearest = frozenset([operation])
    output = watch.apply(operation, call, [x], nearest=nearest, unit=operation, raw=True)
    watch.announce(operation, output)
    return output


@handles("conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d linear")
def layer(watch: Watch, call: Call) -> Any:
    """Convolutions and linear layers with a weight and perhaps a bias."""
    names = ("input", "weight", "bias")
    x, weight, bias = (call.argument(i, name) for i, name in enumerate(names))
    transposed = call.name.startswith("conv_transpose")
    if watch.tags[weight].signal or not watch.tags[x].signal:
        return watch.by_derivative(call, _signals(watch, call), "its weight depends on the input")
    again = call.again(*names)
    groups = 1
    if call.name != "linear":
        groups = call.argument(6, "groups", 1)
    kind: Kind = "linear" if call.name == "linear" else "convolution"
    operation = watch.operation(
        call,
        [x],
        kind=kind,
        **watch.named(weight, int(transposed)),
        function=lambda xs, w, b: again(xs[0], w, b),
        weight=weight,
        bias=bias,
        channel_dim=int(transposed),
        groups=groups,
    )
    return _layer(watch, call, operation, x)


@handles("matmul mm")
def matrix_product(watch: Watch, call: Call) -> Any:
    """Multiply by a constant matrix: a linear layer without a bias."""
    a, b = call.argument(0, "input"), call.argument(1, "other", call.kwargs.get("mat2"))
    signal_first = watch.tags[a].signal
    x, weight = (a, b) if signal_first else (b, a)
    if watch.tags[weight].signal:
        why = "both factors depend on the input, as in attention"
        return watch.by_derivative(call, [a, b], why)

    def product(xs: Signals, w: Tensor | None, _: Tensor | None) -> Tensor:
        assert w is not None
        return torch.matmul(xs[0], w) if signal_first else torch.matmul(w, xs[0])

    operation = watch.operation(
        call,
        [x],
        kind="linear",
        **watch.named(weight, 1),
        function=product,
        weight=weight,
        channel_dim=1,
    )
    if signal_first and weight.dim() == 2:
        return _layer(watch, call, operation, x)
    return watch.apply(operation, call, [x], nearest=frozenset([operation]))


@handles("batch_norm")
def batch_norm(watch: Watch, call: Call) -> Any:
    """Absorb it into the layer it follows, or treat it as a diagonal linear layer."""
    names = ("running_mean", "running_var", "weight", "bias")
    if call.function is torch.batch_norm:  # that of `functional` has another order
        names = ("weight", "bias", "running_mean", "running_var")
    given = {name: call.argument(position, name) for position, name in enumerate(names, 1)}
    mean, var, weight, bias = (
        None if (tensor := given[n]) is None else at_least_single(tensor.detach())
        for n in ("running_mean", "running_var", "weight", "bias")
    )
    x, training = call.argument(0, "input"), call.argument(5, "training")
    tag = watch.tags[x]
    if training or mean is None or var is None:
        return watch.by_derivative(call, [x], "it normalises by the batch at hand")
    scale = torch.rsqrt(var + call.argument(7, "eps", 1e-5))
    scale = scale if weight is None else scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale

    unit = tag.unit if tag.raw and tag.uses == 1 else None
    if unit is not None and unit.kind == "linear" and x.dim() != 2:
        unit = None  # its units are in the last dimension, those of the norm in the second
    shape = (1, -1, *[1] * (x.dim() - 2))
    operation = watch.operation(
        call,
        [x],
        kind="batch_norm",
        function=lambda xs, w, b: xs[0] * w if b is None else torch.addcmul(b, xs[0], w),
        weight=scale.view(shape),
        bias=shift.view(shape),
    )
    known: dict[str, Any] = {}
    if unit is not None:
        known = {"unit": unit, "nearest": tag.nearest}
        if not isinstance(unit.rule, Gradient):
            unit.absorb(scale, shift)
            operation.rule = Pass()
    output = watch.apply(operation, call, [x], **known)
    if unit is not None:
        tag.norm = operation
        watch.announce(unit, output)
    return output


@handles("layer_norm group_norm instance_norm rms_norm")
def norm(watch: Watch, call: Call) -> Any:
    """Norms over the values at hand: relevance passes (the identity rule, Achtibat et al. 2024)."""
    x = call.argument(0, "input")
    again = call.again("input")
    operation = watch.operation(call, [x], kind="norm", function=lambda xs, w, b: again(xs[0]))
    operation.rule = watch.composite.rule(operation)
    if operation.rule is not None and not isinstance(operation.rule, (Gradient, Pass)):
        raise _only(operation, "Pass and Gradient")
    return watch.apply(operation, call, [x])


@handles("add sub")
def add(watch: Watch, call: Call) -> Any:
    """Add signals, or shift one by a constant."""
    a, b = call.argument(0, "input"), call.argument(1, "other")
    factor = call.kwargs.get("alpha", 1) * (-1 if call.name == "sub" else 1)
    signals = [t for t in (a, b) if isinstance(t, Tensor) and watch.tags[t].signal]
    if len(signals) == 1:
        return _constant(watch, call, signals[0])
    saved = (a, b) if factor == 1 else (a, b.detach() * factor)
    operation = watch.operation(call, signals, kind="sum", function=lambda xs, w, b: xs[0] + xs[1])
    if factor < 0:
        operation.nonnegative = False
    return watch.apply(operation, call, [a, b], saved, nonnegative=operation.nonnegative)


@handles("mul multiply")
def multiply(watch: Watch, call: Call) -> Any:
    """Multiply by a constant, or by a gate, which only lets through (Arras et al. 2017)."""
    a, b = call.argument(0, "input"), call.argument(1, "other")
    signals = [t for t in (a, b) if isinstance(t, Tensor) and watch.tags[t].signal]
    if len(signals) == 1:
        return _constant(watch, call, signals[0])
    operation = watch.operation(call, signals, kind="product", function=_identity)
    operation.rule = watch.composite.rule(operation)
    if isinstance(operation.rule, Gradient):
        return watch.apply(operation, call, signals)
    if not isinstance(operation.rule, Pass):
        raise _only(operation, "Pass and Gradient")
    gates = [t for t in signals if watch.tags[t].gate]
    if len(gates) != 1:
        why = "both factors depend on the input and neither is a gate (a sigmoid's output)"
        raise watch.no_rule(operation, why, passes=False)
    (signal,) = [t for t in signals if t is not gates[0]]
    nonnegative = watch.tags[signal].nonnegative and watch.tags[gates[0]].nonnegative
    return _onto(watch, operation, call, signal, nonnegative)


@handles("div divide true_divide")
def divide(watch: Watch, call: Call) -> Any:
    """Divide by a constant; dividing by a signal has no rule."""
    divisor = call.argument(1, "other")
    if isinstance(divisor, Tensor) and watch.tags[divisor].signal:
        return watch.unknown(call, _signals(watch, call))
    return _constant(watch, call, call.argument(0, "input"))


@handles("neg negative")
def negate(watch: Watch, call: Call) -> Any:
    """Turn the sign."""
    return _constant(watch, call, call.argument(0, "input"))


@handles("rsub")
def subtract_reversed(watch: Watch, call: Call) -> Any:
    """Subtract from something: the second argument minus the first."""
    a, b = call.argument(0, "input"), call.argument(1, "other")
    if not isinstance(b, Tensor) or len(_signals(watch, call)) == 1:
        return _constant(watch, call, a if watch.tags[a].signal else b)
    alpha = {"alpha": call.kwargs.get("alpha", 1)}
    return add(watch, Call(torch.sub, (b, a), alpha))


def _constant(watch: Watch, call: Call, x: Tensor) -> Any:
    """Scale or shift by a constant, element by element: the signal keeps all relevance."""
    operation = watch.operation(call, [x], kind="scale", function=_identity)
    operation.rule = watch.composite.rule(operation)
    if isinstance(operation.rule, Gradient):
        return watch.apply(operation, call, [x])
    if not isinstance(operation.rule, Pass):
        raise _only(operation, "Pass and Gradient")
    factor = call.argument(1, "other")
    keeps_sign = call.name in ("mul", "div") and isinstance(factor, (int, float)) and factor >= 0
    return _onto(watch, operation, call, x, watch.tags[x].nonnegative and keeps_sign)


def _onto(watch: Watch, operation: Operation, call: Call, x: Tensor, nonnegative: bool) -> Any:
    """Run a call in which `x` alone carries relevance, perhaps into a tensor that is not `x`."""
    target = call.argument(0, "input")
    if not call.inplace or target is x:
        return watch.apply(operation, call, [x], nonnegative=nonnegative)
    call = Call(call.out_of_place(), call.args, call.kwargs)
    result = target.copy_(watch.apply(operation, call, [x]))
    watch.mark(result, nonnegative=nonnegative, nearest=watch.tags[x].nearest)
    return result


def _only(operation: Operation, rules: str) -> PropagationError:
    return PropagationError(
        f"{operation} is of the kind {operation.kind!r}, whose rules are {rules}, "
        f"not {operation.rule}"
    )


@handles(
    "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
    "mean sum interpolate upsample upsample_nearest upsample_bilinear"
)
def average(watch: Watch, call: Call) -> Any:
    """Pool by averages, sum over dimensions, interpolate."""
    (x,) = _signals(watch, call)
    again = call.again("input")
    operation = watch.operation(call, [x], kind="average", function=lambda xs, w, b: again(xs[0]))
    operation.rule = watch.composite.rule(operation)
    if call.argument(3, "mode") == "bicubic":  # the one with weights below zero
        operation.nonnegative = False
        if not isinstance(operation.rule, (Epsilon, Gradient)):
            raise _only(operation, "Epsilon and Gradient where it is bicubic")
    return watch.apply(operation, call, [x], nonnegative=operation.nonnegative)


@handles(
    "max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices "
    "max_pool3d_with_indices adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d "
    "adaptive_max_pool1d_with_indices adaptive_max_pool2d_with_indices "
    "adaptive_max_pool3d_with_indices max amax maximum fmax"
)
def max_pool(watch: Watch, call: Call) -> Any:
    """Let the winner take all: its derivative is the rule."""
    signals = _signals(watch, call)
    if call.argument(1, "other") is not None and call.name in ("max", "maximum", "fmax"):
        other = call.argument(1, "other")
        if isinstance(other, Tensor) and len(signals) == 1:
            return watch.unknown(call, signals)  # a clamp by a constant tensor
    operation = watch.operation(call, signals, kind="max_pool", function=_identity)
    operation.rule = watch.composite.rule(operation)
    if "pool" not in call.name or operation.rule is None or isinstance(operation.rule, Gradient):
        return _plain(watch, call, "max_pool", signals)
    again = call.again("input")
    operation.function = lambda xs, w, b: next(tensors_in(again(xs[0])))  # places may follow
    return watch.apply(operation, call, signals, nonnegative=operation.nonnegative)


ACTIVATIONS = (
    "relu relu6 leaky_relu prelu rrelu elu selu celu gelu silu mish hardswish hardtanh tanh "
    "hardtanh softplus softsign tanhshrink threshold clamp clamp_min clip logsigmoid "
    "sigmoid hardsigmoid"
)
NONNEGATIVE = frozenset(["relu", "relu6", "softplus", "sigmoid", "hardsigmoid"])


@handles(ACTIVATIONS)
def activation(watch: Watch, call: Call) -> Any:
    """Non-linearities that act on each value alone."""
    x = call.args[0] if call.args else call.kwargs["input"]
    if not watch.tags[x].signal:
        return watch.unknown(call, _signals(watch, call))
    tag = watch.tags[x]
    again = call.again("input")
    operation = watch.operation(
        call, [x], kind="activation", function=lambda xs, w, b: again(xs[0])
    )
    clamps = call.name in ("hardtanh", "clamp", "clamp_min", "clip")
    low = call.argument(1, "min_val" if call.name == "hardtanh" else "min")
    above_zero = clamps and isinstance(low, (int, float)) and low >= 0
    unit = tag.unit
    output = watch.apply(
        operation,
        call,
        [x],
        nonnegative=call.name in NONNEGATIVE or above_zero,
        gate=call.name in ("sigmoid", "hardsigmoid"),
        ending=call.name if "sigmoid" in call.name else "",
        unit=unit,
    )
    if unit is not None:
        watch.announce(unit, output, activation=True)
    return output


@handles("softmax log_softmax softmin")
def softmax(watch: Watch, call: Call) -> Any:
    """Fine as the last thing a network does, where it is reported; nowhere else."""
    signals = _signals(watch, call)
    operation = watch.operation(call, signals, kind="other", function=_identity)
    rule = watch.composite.rule(operation)
    operation.rule = rule or Gradient()
    pending = operation if rule is None else None
    return watch.apply(operation, call, signals, ending=call.name, pending=pending)


@handles(" ".join(MOVES))
def move(watch: Watch, call: Call) -> Any:
    """Move values about without changing them: the derivative is the rule."""
    if "dropout" in call.name and call.argument(2, "training", call.kwargs.get("train", True)):
        raise PropagationError(
            f"{call.name!r} is active in the forward pass: it was called with training=True (the "
            "default of the function). Pass training=self.training"
        )
    return _plain(watch, call, "move", _signals(watch, call))


def _plain(watch: Watch, call: Call, kind: Kind, signals: list[Tensor]) -> Any:
    """Run an operation whose derivative is its rule, tags handed on."""
    operation = watch.operation(call, signals, kind=kind, function=_identity)
    rule = watch.composite.rule(operation)
    if not isinstance(rule, Gradient):
        operation.rule = rule
        raise _only(operation, "Gradient alone")
    before = [watch.tags[t] for t in signals]
    result = call.run()
    known: dict[str, Any] = {
        "nonnegative": operation.nonnegative,
        "nearest": frozenset[Operation]().union(*(tag.nearest for tag in before)),
        "gate": all(tag.gate for tag in before),
        "ending": before[0].ending if len(before) == 1 else "",
        "pending": next((tag.pending for tag in before if tag.pending is not None), None),
    }
    if call.name in ("pad", "masked_fill", "where"):  # constants may come in
        known["nonnegative"] = False
    if call.name == "setitem":  # it returns nothing, and what it changed may be no signal yet
        target: Tensor = call.args[0]
        known["nonnegative"] = False
        watch.mark(target, **known)
        return result
    watch.mark(result, **known)
    return result


def _identity(xs: Signals, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    return xs[0]
