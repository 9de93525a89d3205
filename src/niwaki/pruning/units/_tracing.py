"""A forward pass that is watched: which channels go together, and what the layers read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from niwaki.models.zoo import ShortcutA
from niwaki.pruning.units import _layers  # noqa: F401 (registers the rules of layers)
from niwaki.pruning.units._dimensions import Slot, Slots, along
from niwaki.pruning.units._operations import (
    NORMS,
    READ,
    Call,
    reads_values,
    results_of,
    without_norm,
)
from niwaki.pruning.units._variables import Units, kernel_channels

__all__ = ["NORM_MODULES", "OUTPUTS", "Followed", "Reading", "follow", "readings", "run_silenced"]

Sides = tuple[Tensor | None, Tensor | None]
#: What a layer reads, as two numbers that hardly any other tensor of that shape has.
Reading = tuple[tuple[int, ...], float, float]


@dataclass(frozen=True)
class Followed:
    """What a forward pass tells of a network's channels.

    Attributes
    ----------
    units : Units
        What goes together, and what stays.
    tensors : dict of str to tuple of Tensor or None
        For each parameter and buffer, the variables along each dimension; None for a width of 1.
    norms : dict of str to str
        Name of a layer to that of the batch norm that alone reads it and nothing else.
    doubtful : tuple of Tensor
        Variables of channels that are moved about, those of each move together: code may have
        numbers for where they are.
    shortcuts : dict of str to Tensor
        Variables of the inputs of option A shortcuts.
    bare : dict of str to Tensor
        Variables of the channels of norms without parameters.
    names : dict of str to str
        The first name of each tensor that has several.
    choices : tuple of str
        Where the code takes numbers from what it computes, so that it may branch on them.
    """

    units: Units
    tensors: Mapping[str, tuple[Tensor | None, ...]]
    norms: Mapping[str, str]
    doubtful: tuple[Tensor, ...]
    shortcuts: Mapping[str, Tensor]
    bare: Mapping[str, Tensor]
    names: Mapping[str, str]
    choices: tuple[str, ...] = ()

    def sides(self, name: str, module: nn.Module) -> Sides:
        """Return the variables of a module's output and input channels; None where it has none."""
        if isinstance(module, ShortcutA):
            return self.tensors[_in(name, "source")][0], self.shortcuts.get(name)
        weight = self._dims(name, "weight")
        if isinstance(module, nn.modules.conv._ConvNd):
            transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
            shape = (module.weight.shape[0], module.weight.shape[1])
            first = (weight[0], weight[1])
            return kernel_channels(self.units, first, shape, module.groups, transposed)
        if isinstance(module, nn.Linear):
            return weight[0], weight[1]
        if isinstance(module, NORM_MODULES):
            found = weight or self._dims(name, "running_mean")
            return (found[0] if found else self.bare.get(name)), None
        return None, None

    def name_of(self, prefix: str, tensor: str) -> str:
        """Return the name by which a module's tensor is known: the first of those that it has."""
        name = _in(prefix, tensor)
        return self.names.get(name, name)

    def _dims(self, name: str, tensor: str) -> tuple[Tensor | None, ...]:
        return self.tensors.get(self.name_of(name, tensor), ())


#: Modules with a value for each channel.
NORM_MODULES = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.PReLU,
)


def follow(model: nn.Module, example: Tensor) -> Followed:
    """Run a network once and follow its channels.

    Parameters
    ----------
    model : nn.Module
        A network that is ours to work on: tracing sets hooks for a moment.
    example : Tensor
        Inputs of shape (N, ...), N at least 2.

    Raises
    ------
    ModelError
        If its forward pass cannot be watched.
    """
    units = Units()
    named = [*model.named_parameters(), *model.named_buffers()]
    tensors = {
        name: tuple(units.new(size) if size > 1 else None for size in tensor.shape)
        for name, tensor in named
    }
    shortcuts = {
        name: units.new(module.in_channels)
        for name, module in model.named_modules()
        if isinstance(module, ShortcutA)
    }
    watch = _Watch(units, tensors, named, shortcuts)
    output = _run(model, example, watch)
    for tensor in _tensors(output):
        for slot in watch.slots(tensor):
            units.fix(slot.variables, OUTPUTS)
    first = {id(tensor): name for name, tensor in named}
    every = (model.named_parameters(remove_duplicate=False),
             model.named_buffers(remove_duplicate=False))  # fmt: skip
    names = {name: first[id(t)] for name, t in chain(*every) if first[id(t)] != name}
    return Followed(
        units, tensors, watch.norms(), tuple(watch.doubtful), shortcuts, watch.bare, names,
        tuple(dict.fromkeys(watch.choices)),
    )  # fmt: skip


#: Why the units of the last layers stay: no more than what is expected.
OUTPUTS = "they are the network's outputs"


def run_silenced(
    model: nn.Module, example: Tensor, followed: Followed, doomed: Tensor
) -> tuple[Any, list[Reading]]:
    """Run a network with channels silenced where they are read, without touching it.

    Returns
    -------
    output, readings
        What the network returns, and what each operation that adds up over channels reads of the
        channels that are not silenced.
    """
    named = [*model.named_parameters(), *model.named_buffers()]
    watch = _Watch(followed.units, followed.tensors, named, followed.shortcuts, doomed)
    return _run(model, example, watch), watch.readings


def readings(model: nn.Module, example: Tensor) -> tuple[Any, list[Reading]]:
    """Run a network as it is; return its output, and what operations read, as `run_silenced`."""
    watch = _Watch(Units(), {}, [], {})
    return _run(model, example, watch), watch.readings


def _run(model: nn.Module, example: Tensor, watch: _Watch) -> Any:
    with torch.no_grad(), _bypassed(model), watch.hooked(model), _Numbers(watch), watch:
        inputs = example.clone()  # which the network may overwrite
        watch.enter(inputs)
        return model(inputs)


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees each operation of torch's core, and keeps the slots of the tensors that are alive."""

    def __init__(
        self,
        units: Units,
        tensors: Mapping[str, tuple[Tensor | None, ...]],
        named: Sequence[tuple[str, Tensor]],
        shortcuts: Mapping[str, Tensor],
        doomed: Tensor | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.units, self.doomed, self.shortcuts = units, doomed, shortcuts
        self.doubtful: list[Tensor] = []
        self.readings: list[Reading] = []
        self._following = bool(tensors)
        self._slots: Any = WeakTensorKeyDictionary()
        self._signals: Any = WeakTensorKeyDictionary()
        self.bare: dict[str, Tensor] = {}
        self._busy = False  # with something of its own, that is no part of the network
        self._outputs: dict[nn.Module, Slots] = {}
        self._places: list[tuple[str, nn.Module]] = []
        # For batch norms: the layer that made a tensor, and how often that is read.
        self._made: Any = WeakTensorKeyDictionary()
        self._behind: list[tuple[str, str, list[int]]] = []
        self.choices: list[str] = []
        self._calls: list[str] = []
        self._owners: dict[int, str] = {}
        for name, tensor in named:
            variables = tensors.get(name, ())
            slots = (Slot(d, v) for d, v in enumerate(variables) if v is not None)
            self._slots[tensor] = tuple(slots)
            self._owners[id(tensor)] = name

    def enter(self, example: Tensor) -> None:
        """Take note of the network's input."""
        self._slots[example] = ()
        self._signals[example] = True

    def slots(self, tensor: Any) -> Slots:
        """Return the slots of a tensor; none for what is unknown."""
        found: Slots = self._slots.get(tensor, ()) if isinstance(tensor, Tensor) else ()
        return found

    def take_numbers(self, tensor: Any) -> None:
        """Take note that code goes on with the values of a tensor instead of the tensor."""
        if not self._following or self._busy or tensor not in self._signals:
            return
        self.choices.append(self._place())
        for slot in self.slots(tensor):
            self.units.fix(slot.variables, f"the code reads their values {self.choices[-1]}")

    def norms(self) -> dict[str, str]:
        """Name the batch norms that alone read a layer, and that layer alone."""
        found = {}
        for layer, norm, uses in self._behind:
            alone = sum(n == norm for _, n, _ in self._behind) == 1
            if uses[0] == 1 and alone and self._calls.count(layer) == 1:
                found[layer] = norm
        return found

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._busy:
            return func(*args, **kwargs)
        name = func.overloadpacket.__name__
        name = name.rstrip("_") if not name.startswith("__") else name.strip("_")
        if name in READ:
            args = tuple(
                self._read(a, noted=i == READ[name][0])
                if i in READ[name] and isinstance(a, Tensor)
                else a
                for i, a in enumerate(args)
            )
        result = without_norm(name, args) if name in NORMS else func(*args, **kwargs)
        if self._following:
            self._note(name, func, args, kwargs, result)
        return result

    def _note(
        self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        given = _tensors([*args, *kwargs.values()])
        signal = any(t in self._signals for t in given)
        if signal and reads_values(func, args, lambda t: t in self._signals):
            for tensor in given:
                self.take_numbers(tensor)
        outputs = _tensors(result)
        if not outputs or not (signal or any(self.slots(t) for t in given)):
            return
        self._count(name, given, args)
        call = Call(
            name, func, args, kwargs, outputs, self.slots, lambda t: t in self._signals,
            self.units, self._place(), self.doubtful,
        )  # fmt: skip
        found = results_of(call)
        for output, slots in zip(outputs, found, strict=False):
            self._slots[output] = slots
            if signal:
                self._signals[output] = True
        if "norm" in name and self._places and isinstance(self._places[-1][1], NORM_MODULES):
            channel = 1 if name != "native_layer_norm" else args[0].dim() - len(args[1])
            for variables in along(self.slots(args[0]), channel):
                self.bare[self._places[-1][0]] = variables
        if name in ("convolution", "addmm", "mm", "linear"):
            weight = {"convolution": 1, "linear": 1, "addmm": 2, "mm": 1}[name]
            layer = self._owner(args[weight])
            self._calls.append(layer)
            self._made[outputs[0]] = (layer, [0])

    def _place(self) -> str:
        return f"in {self._places[-1][0]!r}" if self._places else "in the forward pass"

    def _count(self, name: str, given: Sequence[Tensor], args: tuple[Any, ...]) -> None:
        """Count who reads what a layer made."""
        for tensor in given:
            if tensor in self._made:
                layer, uses = self._made[tensor]
                uses[0] += 1
                if "batch_norm" in name and tensor is args[0] and isinstance(args[3], Tensor):
                    norm = self._owners.get(id(args[3]), "")
                    self._behind.append((layer, norm.rpartition(".")[0], uses))

    def _owner(self, weight: Tensor) -> str:
        """Return the name of the module whose weight this is, or of which it is a view."""
        base = weight._base if weight._base is not None else weight
        return self._owners.get(id(base), "").rpartition(".")[0]

    # -- reading --------------------------------------------------------------------------------

    def _read(self, tensor: Tensor, noted: bool = True) -> Tensor:
        """Silence what is doomed, and note what is left (weights are not worth the time)."""
        left = tensor
        if self.doomed is not None:
            for dim, variables in self.slots(tensor):
                gone = torch.isin(self.units.find(variables), self.doomed)
                if bool(gone.any()):
                    slots, signal = self.slots(tensor), tensor in self._signals
                    tensor = tensor.index_fill(dim, _places(gone, tensor), 0)
                    left = left.index_select(dim, _places(~gone, left))
                    self._slots[tensor] = slots
                    if signal:
                        self._signals[tensor] = True
        if noted and (self.doomed is not None or not self._following):
            self.readings.append(_digest(left))
        return tensor

    # -- modules --------------------------------------------------------------------------------

    @contextmanager
    def hooked(self, model: nn.Module) -> Iterator[None]:
        """Know where the forward pass is; and let option A shortcuts read and make channels."""
        handles = []
        for name, module in model.named_modules():
            if not name:
                continue
            handles.append(module.register_forward_pre_hook(self._entering(name)))
            handles.append(module.register_forward_hook(self._leaving, always_call=True))
            if isinstance(module, ShortcutA):
                handles.append(module.register_forward_pre_hook(self._into(name), prepend=True))
                handles.append(module.register_forward_hook(self._out_of))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _entering(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            self._places.append((name, module))

        return hook

    def _leaving(self, module: nn.Module, args: Any, result: Any) -> None:
        if self._places:
            self._places.pop()

    def _into(self, name: str) -> Any:
        def hook(module: Any, args: tuple[Tensor, ...]) -> Any:
            x = args[0]
            self._outputs[module] = self.slots(module.source)
            self._slots[module.source] = ()
            for dim, variables in self.slots(x):
                self.units.tie(variables, self.shortcuts[name], f"the shortcut {name!r} ties them")
                assert dim == 1
            self._busy = True
            # Which input goes where is the shortcut's own business: within it, nothing has slots.
            copy = self._read(x).clone()
            self._slots[copy] = ()
            self._busy = False
            return (copy, *args[1:])

        return hook

    def _out_of(self, module: Any, args: Any, result: Tensor) -> None:
        slots = self._outputs.pop(module)
        self._slots[module.source] = slots
        self._slots[result] = tuple(Slot(1, slot.variables) for slot in slots)


class _Numbers(TorchFunctionMode):
    """Sees where values leave torch for Python or NumPy, which torch's core does not show."""

    def __init__(self, watch: _Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__name__", "") in ("tolist", "numpy", "__array__", "__dlpack__"):
            self.watch.take_numbers(args[0])
        return func(*args, **(kwargs or {}))


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in _tensors(item)]
    return []


def _in(module: str, tensor: str) -> str:
    return f"{module}.{tensor}" if module else tensor


def _places(which: Tensor, beside: Tensor) -> Tensor:
    return which.nonzero().flatten().to(beside.device)


def _digest(tensor: Tensor) -> Reading:
    """Weigh all values by where they are."""
    values = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    values = values.detach()
    if values.dtype not in (torch.float32, torch.float64):
        values = values.float()
    size = values.abs()
    for dim in reversed(range(values.dim())):
        weights = torch.cos(torch.arange(values.shape[-1], device=values.device) + dim)
        weights = weights.to(values)
        values, size = values @ weights, size @ weights.abs()
    return tuple(tensor.shape), float(values), float(size)


@contextmanager
def _bypassed(model: nn.Module) -> Iterator[None]:
    """Let local response norms, that sum over neighbouring channels, hand on their inputs."""
    norms = [module for module in model.modules() if isinstance(module, nn.LocalResponseNorm)]
    for norm in norms:
        norm.__dict__["forward"] = _identity
    try:
        yield
    finally:
        for norm in norms:
            norm.__dict__.pop("forward", None)


def _identity(x: Tensor) -> Tensor:
    return x
