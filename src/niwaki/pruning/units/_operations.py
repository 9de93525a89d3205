"""What each operation of torch's core does to the channels that pass through it.

The rules of layers, which have weights, stand in `_layers`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from niwaki.pruning.units._dimensions import Slot, Slots, along, concatenated, joined, moved
from niwaki.pruning.units._variables import Units

__all__ = ["NORMS", "READ", "Call", "reads_values", "results_of", "rule", "unknown", "without_norm"]


@dataclass
class Call:
    """An operation with what is known of its arguments.

    Attributes
    ----------
    name : str
        Name of the operation, without underscores at its end.
    function : callable
        The overload that was called.
    args, kwargs
        Its arguments.
    outputs : list of Tensor
        What came of it.
    slots : callable
        Returns the slots of a tensor.
    signal : callable
        Says whether a tensor depends on the network's input.
    units : Units
        Ties and fixes.
    place : str
        Where in the network it stands, for messages.
    doubtful : list of Tensor
        Variables that have to be tried: whether the code follows them is not known.
    """

    name: str
    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: list[Tensor]
    slots: Callable[[Any], Slots]
    signal: Callable[[Any], bool]
    units: Units
    place: str
    doubtful: list[Tensor]

    @property
    def why(self) -> str:
        """Name the operation and its place."""
        return f"{self.name.strip('_')} {self.place}"

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """Look up an argument that may be given by position or by name."""
        if name in self.kwargs:
            return self.kwargs[name]
        return self.args[position] if position < len(self.args) else default

    def fix(self, slots: Sequence[Slot], what: str) -> None:
        """Keep channels because of what the operation does."""
        for slot in slots:
            self.units.fix(slot.variables, f"{self.why} {what}")

    def tie(self, one: Tensor, other: Tensor) -> None:
        """Tie channels that the operation brings together."""
        self.units.tie(one, other, f"{self.why} joins them with values that keep their width")

    def to_all(self, slots: Slots) -> list[Slots]:
        """Return the same slots for each result."""
        return [slots for _ in self.outputs]


Rule = Callable[[Call], list[Slots]]
_RULES: dict[str, Rule] = {}

#: Operations that add up over channels, and the arguments in which they read them.
READ: dict[str, tuple[int, ...]] = {
    "convolution": (0, 1),
    "linear": (0, 1),
    "mm": (0, 1),
    "bmm": (0, 1),
    "mv": (0, 1),
    "dot": (0, 1),
    "addmm": (1, 2),
    "addmv": (1, 2),
    "baddbmm": (1, 2),
    "sum": (0,),
    "linalg_vector_norm": (0,),
}

#: Norms over channels, which give other numbers where channels are gone than where they are silent.
NORMS = ("native_layer_norm", "native_group_norm", "_fused_rms_norm")

_SPATIAL = re.compile(
    r"_?(mkldnn_|adaptive_)?(max_|avg_|fractional_max_)pool(\d)d(_with_indices)?|"
    r"_?upsample_\w*?(\d)d(_aa)?|(?:reflection|replication)_pad(\d)d|grid_sampler_(\d)d|"
    r"cudnn_grid_sampler"
)


def results_of(call: Call) -> list[Slots]:
    """Return the slots of each result of an operation; ties and fixes what it has to."""
    found = _RULES.get(call.name)
    if found is None and _SPATIAL.fullmatch(call.name):
        found = _spatial
    if found is None and torch.Tag.pointwise in call.function.tags:
        found = _pointwise
    return (unknown if found is None else found)(call)


def reads_values(function: Any, args: tuple[Any, ...], signal: Callable[[Tensor], bool]) -> bool:
    """Whether an operation gives Python a number, or a shape that depends on values."""
    if torch.Tag.data_dependent_output in function.tags:
        return True
    if torch.Tag.dynamic_output_shape not in function.tags:
        return False
    if function.overloadpacket.__name__ != "index":
        return True
    # Of an index, only a mask makes a shape of values.
    masks = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)]
    return any(signal(mask) for mask in masks)


def without_norm(name: str, args: tuple[Any, ...]) -> Any:
    """Do only what comes after the division in a norm over channels: scale and shift."""
    x = args[0]
    weight, bias = (
        (args[2], None if name == "_fused_rms_norm" else args[3])
        if name != "native_group_norm"
        else (args[1], args[2])
    )
    result = x
    for parameter, apply in ((weight, torch.mul), (bias, torch.add)):
        if parameter is not None:
            rest = [1] * (x.dim() - 2) if name == "native_group_norm" else []
            result = apply(result, parameter.view(*parameter.shape, *rest))
    result = result.clone() if result is x else result
    nothing = x.new_zeros(1)
    return (result, nothing) if name == "_fused_rms_norm" else (result, nothing, nothing)


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register the rule of the named operations."""

    def register(made: Rule) -> Rule:
        _RULES.update(dict.fromkeys(names, made))
        return made

    return register


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in _tensors(item)]
    return []


def unknown(call: Call) -> list[Slots]:
    """Keep all channels that go into an operation that cannot be followed."""
    for tensor in _tensors([*call.args, *call.kwargs.values()]):
        call.fix(call.slots(tensor), "mixes or moves channels in a way that cannot be followed")
    return call.to_all(())


@rule(
    "clone", "contiguous", "detach", "alias", "lift", "lift_fresh", "lift_fresh_copy", "_to_copy",
    "to", "zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "fill",
    "zero", "bernoulli", "native_dropout", "_conj", "resolve_conj", "positive", "as_strided",
    "new_zeros", "new_ones", "new_empty", "new_full", "uniform", "normal", "nan_to_num", "real",
    "view_as_real_copy", "_reshape_alias",
)  # fmt: skip
def _same(call: Call) -> list[Slots]:
    """A copy, or new values of the same shape."""
    shape = call.args[0].shape
    if all(output.shape == shape for output in call.outputs):
        return call.to_all(call.slots(call.args[0]))
    if call.name.startswith("new_"):
        return call.to_all(())
    return unknown(call) if call.name != "_reshape_alias" else _view(call)


@rule(  # those that torch does not tag as such, in one version or another
    "_prelu_kernel", "prelu", "hardswish", "mish", "rrelu_with_noise", "log_sigmoid_forward",
    "threshold", "fmod", "remainder", "floor_divide", "true_divide", "rsub", "special_erf",
)  # fmt: skip
def _pointwise(call: Call) -> list[Slots]:
    tensors = _tensors([*call.args, *call.kwargs.values()])
    parts = [(call.slots(t), _widths(t), call.signal(t)) for t in tensors]
    dims = call.outputs[0].dim()
    slots, doubtful = joined(call.units, parts, dims, call.why)
    call.doubtful += doubtful
    for tensor, (_, widths, _) in zip(tensors, parts, strict=True):
        for d in range(tensor.dim()):
            if widths[d] < tensor.shape[d]:  # the code may have a number for how far it expands
                call.doubtful += along(slots, d + dims - tensor.dim())
    return call.to_all(slots)


def _widths(tensor: Tensor) -> list[int]:
    """Return a tensor's shape, 1 where one value was expanded."""
    return [min(n, 1) if s == 0 else n for n, s in zip(tensor.shape, tensor.stride(), strict=True)]


@rule("copy")
def _copy(call: Call) -> list[Slots]:
    """A copy into a tensor, which may be part of a larger one that nobody owns."""
    target, source = call.args[:2]
    if target._is_view() and not call.slots(target) and target._base.shape != target.shape:
        call.fix(call.slots(source), "writes them into a tensor that keeps its width")
        return call.to_all(())
    if not call.slots(target):
        lead = target.dim() - source.dim()
        return call.to_all(tuple(Slot(d + lead, v) for d, v in call.slots(source)))
    return _pointwise(call)


# -- moves ------------------------------------------------------------------------------------


def _move(call: Call, function: Callable[..., Any]) -> list[Slots]:
    """Do to the variables what is done to the values."""
    source = call.args[0]
    rest = [_on_cpu(a) for a in call.args[1:]]
    options = {name: _on_cpu(a) for name, a in call.kwargs.items()}

    def move(labels: Tensor) -> Any:
        found = function(labels, *rest, **options)
        return list(found) if isinstance(found, (list, tuple)) else found

    before = call.slots(source)
    found = moved(call.units, before, source.shape, move, call.why)
    _doubt(call, before, found)
    return found or call.to_all(())


def _doubt(call: Call, before: Slots, after: Sequence[Slots]) -> None:
    """Note channels that have been moved about: code may have numbers for where they are."""
    kept = {tuple(slot.variables.tolist()) for slots in after for slot in slots}
    for slot in before:
        if tuple(slot.variables.tolist()) not in kept:
            call.doubtful.append(slot.variables)


def _on_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, (list, tuple)):
        return type(value)(_on_cpu(item) for item in value)
    return value


for _name in (
    "permute", "transpose", "t", "expand", "slice", "select", "split", "split_with_sizes",
    "unbind", "squeeze", "unsqueeze", "index_select", "flip", "roll", "repeat", "narrow", "index",
    "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "unfold", "diagonal", "movedim",
    "numpy_T", "chunk", "repeat_interleave", "unsafe_split", "unsafe_chunk",
    "unsafe_split_with_sizes", "native_channel_shuffle", "tile", "rot90", "take_along_dim",
):  # fmt: skip

    @rule(_name)
    def _moves(call: Call) -> list[Slots]:
        if any(call.slots(t) for t in _tensors([*call.args[1:], *call.kwargs.values()])):
            return unknown(call)
        return _move(call, call.function)


@rule("view", "_unsafe_view", "reshape")
def _view(call: Call) -> list[Slots]:
    shape = list(call.outputs[0].shape)
    if not isinstance(call.args[1], (list, tuple, torch.Size)):  # another type, of the same width
        return _same(call)
    before = call.slots(call.args[0])
    source = call.args[0].shape
    found = moved(call.units, before, source, lambda labels: labels.reshape(shape), call.why)
    _doubt(call, before, found)
    return found or call.to_all(())


@rule("cat", "concat", "stack")
def _cat(call: Call) -> list[Slots]:
    tensors = [t for t in call.args[0] if t.numel() or t.dim() > 1]
    dims = call.outputs[0].dim()
    dim = int(call.argument(1, "dim", 0)) % dims
    parts = [call.slots(t) for t in tensors]
    shapes = [list(t.shape) for t in tensors]
    if call.name == "stack":
        parts = [tuple(Slot(d + (d >= dim), v) for d, v in slots) for slots in parts]
        shapes = [[*shape[:dim], 1, *shape[dim:]] for shape in shapes]
    slots = concatenated(call.units, parts, shapes, dim, call.why)
    call.doubtful += [v for d, v in slots if d == dim and bool((v == 0).any())]
    return [slots]


@rule("constant_pad_nd", "pad")
def _pad(call: Call) -> list[Slots]:
    pads = list(call.args[1])
    dims = call.args[0].dim()
    result = []
    for dim, variables in call.slots(call.args[0]):
        place = 2 * (dims - 1 - dim)
        around = pads[place : place + 2] if place < len(pads) else [0, 0]
        padded = torch.constant_pad_nd(variables, around) if any(around) else variables
        if any(around):
            call.doubtful.append(padded)
        result.append(Slot(dim, padded))
    return [tuple(result)]


# -- reductions and the like ------------------------------------------------------------------


_DIM_AT = {"linalg_vector_norm": 2, "norm": 2, "quantile": 2, "kthvalue": 2}


@rule(
    "sum", "linalg_vector_norm", "mean", "amax", "amin", "max", "min", "var", "var_mean", "std",
    "std_mean", "prod", "logsumexp", "any", "all", "argmax", "argmin", "norm", "median", "aminmax",
    "_local_scalar_dense", "nansum", "count_nonzero",
)  # fmt: skip
def _reduction(call: Call) -> list[Slots]:
    source = call.args[0]
    if len(call.args) > 1 and isinstance(call.args[1], Tensor):
        return _pointwise(call)  # the larger of two tensors
    given = call.argument(_DIM_AT.get(call.name, 1), "dim")
    if given is None or given == []:
        dims = set(range(source.dim()))
    else:
        dims = {
            int(d) % source.dim() for d in (given if isinstance(given, (list, tuple)) else [given])
        }
    result = []
    for dim, variables in call.slots(source):
        if dim not in dims:
            result.append(Slot(dim, variables))
        elif call.name not in READ:
            call.fix([Slot(dim, variables)], "takes in all channels at once")
    if not call.outputs or call.outputs[0].dim() == source.dim():
        return call.to_all(tuple(result))
    return call.to_all(tuple(Slot(d - sum(r < d for r in dims), v) for d, v in result))


@rule(
    "_softmax", "_log_softmax", "cumsum", "cumprod", "sort", "topk", "flip_sorted", "logcumsumexp",
    "renorm", "cummax", "cummin", "glu",
)  # fmt: skip
def _along(call: Call) -> list[Slots]:
    """An operation along one dimension, whose channels depend on each other."""
    source = call.args[0]
    position = 2 if call.name == "topk" else 1
    dim = int(call.argument(position, "dim", -1)) % source.dim()
    if call.name == "glu":
        return _glu(call, dim)
    stays = [slot for slot in call.slots(source) if slot.dim == dim]
    call.fix(stays, "takes in all channels at once")
    return call.to_all(tuple(slot for slot in call.slots(source) if slot.dim != dim))


def _glu(call: Call, dim: int) -> list[Slots]:
    result = []
    for d, variables in call.slots(call.args[0]):
        first, second = variables.chunk(2) if d == dim else (variables, variables)
        call.tie(first, second)
        if d == dim:
            call.doubtful.append(variables)
        result.append(Slot(d, first))
    return [tuple(result)]


def _spatial(call: Call) -> list[Slots]:
    """Pooling and resizing: operations over the last dimensions."""
    match = re.search(r"(\d)d", call.name)
    count = int(match.group(1)) if match else 2
    source = call.args[0]
    first = source.dim() - count
    call.fix([s for s in call.slots(source) if s.dim >= first], "slides over channels")
    for tensor in _tensors(call.args[1:]):
        call.fix(call.slots(tensor), "takes them for places")
    return call.to_all(tuple(s for s in call.slots(source) if s.dim < first))
