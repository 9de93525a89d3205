"""What layers do to channels: they read them with weights, and make others."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from niwaki.pruning.units._dimensions import Slot, Slots, along, joined
from niwaki.pruning.units._operations import Call, rule, unknown
from niwaki.pruning.units._variables import kernel_channels

__all__: list[str] = []


def _read(call: Call, one: Sequence[Tensor], other: Sequence[Tensor]) -> None:
    """Tie the channels of an input to those of the weight that reads them."""
    if len(one) == len(other):
        for a, b in zip(one, other, strict=True):
            call.tie(a, b)
        return
    for variables in (*one, *other):
        call.units.fix(variables, f"{call.why} reads them with weights that keep their width")


@rule("convolution", "_convolution", "convolution_overrideable")
def _convolution(call: Call) -> list[Slots]:
    x, weight, bias = call.args[:3]
    transposed, groups = bool(call.args[6]), int(call.args[8])
    slots, kernel = call.slots(x), call.slots(weight)
    call.fix([s for s in slots if s.dim > 1], "slides over channels")
    call.fix([s for s in kernel if s.dim > 1], "slides over channels")
    sides = [along(kernel, 0), along(kernel, 1)]
    if any(len(side) > 1 for side in sides):
        return unknown(call)
    if not call.signal(weight) and not any(slot.dim < 2 for slot in kernel):
        # A constant that the code makes, such as a blur: perhaps for as many channels as there are.
        sides = [[call.units.new(n)] if n > 1 else [] for n in weight.shape[:2]]
        call.doubtful += along(slots, 1)
    first, second = (side[0] if side else None for side in sides)
    outputs, inputs = kernel_channels(
        call.units, (first, second), tuple(weight.shape[:2]), groups, transposed, call.why
    )
    _read(call, along(slots, 1), [] if inputs is None else [inputs])
    result = [slot for slot in slots if slot.dim == 0]
    if outputs is not None:
        for found in along(call.slots(bias), 0) if bias is not None else ():
            call.tie(found, outputs)
        result.append(Slot(1, outputs))
    return [tuple(result)]


def _product(call: Call, left: Tensor, right: Tensor) -> Slots:
    """Follow the product of two matrices, or of two batches of them."""
    a, b = call.slots(left), call.slots(right)
    last = left.dim() - 1
    _read(call, along(a, last), along(b, max(right.dim() - 2, 0)))
    result = [slot for slot in a if slot.dim != last]
    if right.dim() > 1:
        result += [Slot(last, v) for v in along(b, right.dim() - 1)]
        if right.dim() > 2:  # the batch
            batch = along(b, 0)
            for one, other in zip(along(a, 0), batch, strict=False):
                call.tie(one, other)
            result += [Slot(0, v) for v in batch[len(along(a, 0)) :]]
    return tuple(result)


@rule("mm", "bmm", "mv", "dot", "vdot")
def _matrices(call: Call) -> list[Slots]:
    return [_product(call, *call.args[:2])]


@rule("addmm", "baddbmm", "addmv")
def _added(call: Call) -> list[Slots]:
    bias, left, right = call.args[:3]
    product = _product(call, left, right)
    shape = call.outputs[0].shape
    parts = [(product, shape, call.signal(left) or call.signal(right)),
             (call.slots(bias), bias.shape, call.signal(bias))]  # fmt: skip
    # A width that the product has without a slot is the network's own, and the bias keeps it.
    slots, doubtful = joined(call.units, parts, len(shape), call.why)
    call.doubtful += doubtful
    return [slots]


@rule("linear")
def _linear(call: Call) -> list[Slots]:
    x, weight = call.args[:2]
    bias = call.argument(2, "bias")
    slots, matrix = call.slots(x), call.slots(weight)
    last = x.dim() - 1
    _read(call, along(slots, last), along(matrix, 1))
    outputs = along(matrix, 0)
    for found in along(call.slots(bias), 0) if bias is not None else ():
        for variables in outputs:
            call.tie(found, variables)
    return [(*(s for s in slots if s.dim != last), *(Slot(last, v) for v in outputs))]


@rule(
    "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training",
    "cudnn_batch_norm", "miopen_batch_norm", "_batch_norm_with_update",
    "_batch_norm_no_update", "_native_batch_norm_legit_functional", "batch_norm",
)  # fmt: skip
def _batch_norm(call: Call) -> list[Slots]:
    x = call.args[0]
    slots = call.slots(x)
    channels = along(slots, 1)
    for parameter in call.args[1:5]:
        if isinstance(parameter, Tensor):
            _read(call, channels, along(call.slots(parameter), 0))
    training = any(argument is True for argument in call.args[3:6])
    others = [s for s in slots if s.dim != 1]
    if training:
        call.fix(others, "takes in all channels at once")
        others = []
    rest: list[Slots] = [tuple(Slot(0, v) for v in channels)] * (len(call.outputs) - 1)
    return [(*(Slot(1, v) for v in channels), *others), *rest]


@rule("native_layer_norm", "_fused_rms_norm")
def _layer_norm(call: Call) -> list[Slots]:
    x, shape = call.args[:2]
    slots = call.slots(x)
    for parameter in call.args[2:4]:
        if isinstance(parameter, Tensor):
            for dim in range(len(shape)):
                own = along(slots, x.dim() - len(shape) + dim)
                found = along(call.slots(parameter), dim)
                if own or x.shape[x.dim() - len(shape) + dim] > 1:
                    _read(call, own, found)
    return [slots, *[() for _ in call.outputs[1:]]]


@rule("native_group_norm")
def _group_norm(call: Call) -> list[Slots]:
    x = call.args[0]
    groups, slots = int(call.args[6]), call.slots(x)
    for variables in along(slots, 1):
        bundles = variables.view(groups, -1)
        one = bundles[:, :1] if bundles.shape[1] == 1 else bundles[:1]
        call.tie(bundles, one.expand_as(bundles))
    for parameter in call.args[1:3]:
        if isinstance(parameter, Tensor):
            _read(call, along(slots, 1), along(call.slots(parameter), 0))
    return [slots, *[() for _ in call.outputs[1:]]]
