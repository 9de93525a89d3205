"""Where a forward pass cuts a part of the signal off, and where that part joins the rest again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from niwaki.propagation._calls import Call, Tags, tensors_in

__all__ = ["Cut", "Cuts", "Read"]


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Steps: autograd follows them, and their derivative is zero wherever there is one.
_STEPS = _names("round floor ceil trunc fix sign sgn floor_divide floordiv heaviside")
_INTEGER_CASTS = _names("to type long int short char byte")
#: Only the first argument's values are used; the other one says of what type or shape they are.
_OF_FIRST = _names("to type_as expand_as view_as reshape_as sum_to_size")
#: What the first argument held before is overwritten.
_OVERWRITING = _names("copy fill zero")
#: Integers given to these say where, not how much.
_INDEXING = _names(
    "getitem setitem gather index_select take take_along_dim scatter scatter_add index_add "
    "index_copy index_put index_fill repeat_interleave"
)
_ONE_TO_ONE = _names("broadcast_tensors meshgrid")
_NONE = -2  # no number of an operation


@dataclass(frozen=True)
class Cut:
    """What cut a part of the signal off.

    Attributes
    ----------
    by : str
        The operation, or ``"torch.no_grad()"``.
    place : str
        Behind which layers.
    joined : str
        The operation in which that part joined the signal again; empty if it has not.
    """

    by: str
    place: str
    joined: str = ""

    def __str__(self) -> str:
        joins = f", and {self.joined!r} joins it to the rest again" if self.joined else ""
        return (
            f"a part of the signal is cut off: {self.by} ({self.place}) gives values that no "
            f"derivative leads back from{joins}. That part gets no relevance, so that the heatmap "
            "tells of the rest alone. Let the model compute it from tensors, without "
            "torch.no_grad(), detach() or rounding, for it to be explained too; if it is meant to "
            "be a constant, ignore this warning"
        )


@dataclass(frozen=True)
class Read:
    """What a call is about to read: signals that can be followed, and what was cut off."""

    signals: list[Tensor]
    cut: Cut | None
    joined: Cut | None


class Cuts:
    """The cuts of one forward pass, by the tensors that come behind them; holds no tensor.

    Truth values are no parts of the signal: a mask or a branch of the model's own is a choice, as
    it is in a ReLU.
    """

    def __init__(self, tags: Tags, held: Mapping[int, Any]) -> None:
        self._tags = tags
        self._held = held
        # All tensors seen: what is cut off (or None), and their history then.
        self._cuts: Any = WeakTensorKeyDictionary()
        self._numbers: dict[float, Cut] = {}  # that left as Python's floats
        self._array: Cut | None = None  # the latest that left as an array of NumPy
        self._joined: Cut | None = None  # the latest that joined, for what is made unseen

    def begin(self, signal: Tensor) -> None:
        """Declare the signal, of which nothing is cut off yet."""
        self._set(signal, None)

    def of(self, tensor: Tensor) -> Cut | None:
        """Return what is cut off in, or in front of, a tensor."""
        found, history = self._cuts.get(tensor, (None, _NONE))
        if history == _history(tensor):
            return found  # type: ignore[no-any-return]
        if id(tensor) in self._held or not tensor.is_floating_point():
            return None
        if tensor.requires_grad:
            return None if tensor.is_leaf else self._joined
        return self._array  # `torch.from_numpy` cannot be seen

    def read(self, call: Call) -> Read:
        """Look at the arguments of a call that has not run yet."""
        values = _values(call)
        signals, cut, joined = [], None, None
        for tensor in tensors_in(values):
            found = self.of(tensor)
            if found is not None and not found.joined:
                cut = cut or (None if self._only_chooses(call, tensor, values) else found)
            elif self._is_signal(tensor):
                signals.append(tensor)
                joined = joined or found
        if cut is None and (self._numbers or self._array):
            cut = next((c for value in _plain(values) if (c := self._left(value))), None)
        return Read(signals, cut, joined)

    def note(self, call: Call, read: Read, result: Any) -> None:
        """Remember what a call has made of what it read."""
        made = list(tensors_in(result))
        if call.name == "setitem":
            made.append(call.args[0])
        if call.name in _ONE_TO_ONE:
            for given, tensor in zip(tensors_in(call.args), made, strict=False):
                self._set(tensor, self.of(given))
            return
        if _overwrites(call):
            self._overwrite(call)
        cut = read.cut
        if read.signals and (cut is None or not torch.is_grad_enabled()):
            cut = Cut(self._name(call), self._place(read.signals))
        for tensor in made:
            found = self._made(call, read, cut, tensor)
            self._set(tensor, found)
            base = tensor._base if _overwrites(call) else None
            if base is not None and found is not None:
                self._set(base, found)
        if cut is not None and not made:
            self._leave(result, cut)

    def _made(self, call: Call, read: Read, cut: Cut | None, tensor: Tensor) -> Cut | None:
        """Return what is cut off in one tensor that a call has made."""
        if tensor.dtype == torch.bool or cut is None:
            return None
        if not (tensor.is_floating_point() or tensor.is_complex()):
            casts = call.name in _INTEGER_CASTS
            return cut if casts or (read.cut is not None and not read.signals) else None
        steps = call.name in _STEPS or call.kwargs.get("rounding_mode") is not None
        if not read.signals or not tensor.requires_grad or steps:
            return cut
        if not torch.is_grad_enabled():
            return replace(cut, joined=call.name) if _overwrites(call) else read.joined
        if read.cut is not None:
            self._joined = replace(cut, joined=call.name)
            return self._joined
        return read.joined

    def _set(self, tensor: Tensor, cut: Cut | None) -> None:
        self._cuts[tensor] = cut, _history(tensor)

    def _overwrite(self, call: Call) -> None:
        """Look for signals that a call has overwritten through what was cut off, as ``x.data``."""
        target = call.args[0] if call.args else None
        cut = self.of(target) if isinstance(target, Tensor) else None
        if not isinstance(target, Tensor) or cut is None or cut.joined or self._is_signal(target):
            return
        storage = target.untyped_storage().data_ptr()
        for tensor in list(self._cuts):
            if self._is_signal(tensor) and tensor.untyped_storage().data_ptr() == storage:
                self._joined = replace(cut, joined=call.name)
                self._set(tensor, self._joined)

    def _leave(self, result: Any, cut: Cut) -> None:
        """Remember values that leave for Python or NumPy, from where they may come back."""
        for value in _plain(result):
            if isinstance(value, np.ndarray):
                if value.dtype.kind in "fc":
                    self._array = cut
            elif not value.is_integer():  # zeros and ones come from anywhere
                self._numbers[value] = cut

    def _is_signal(self, tensor: Tensor) -> bool:
        tag = self._tags.latest(tensor)
        if tag is None:  # made unseen, if it has a history
            return tensor.requires_grad and not tensor.is_leaf and id(tensor) not in self._held
        return tag.signal and tensor.requires_grad

    def _only_chooses(self, call: Call, tensor: Tensor, values: Any) -> bool:
        """Whether a tensor of integers says which values of a signal are taken."""
        if tensor.is_floating_point() or call.name not in _INDEXING:
            return False
        return any(self._is_signal(t) for t in tensors_in(values) if t is not tensor)

    def _left(self, value: Any) -> Cut | None:
        if isinstance(value, np.ndarray):
            return self._array if value.dtype.kind in "fc" else None
        return self._numbers.get(value)

    def _name(self, call: Call) -> str:
        if not torch.is_grad_enabled():
            return "torch.no_grad()"
        if call.name == "get":
            return repr(getattr(getattr(call.function, "__self__", None), "__name__", "data"))
        return repr(call.name)

    def _place(self, signals: list[Tensor]) -> str:
        """Name the place of the signal that has come farthest, for messages."""
        tags = [tag for t in signals if (tag := self._tags.latest(t)) is not None]
        return max(tags, key=lambda tag: bool(tag.nearest)).place if tags else "unseen"


def _history(tensor: Tensor) -> int:
    """Number of the operation that autograd has made a tensor by; a Function sets it unseen."""
    try:
        return _NONE + 1 if tensor.grad_fn is None else tensor.grad_fn._sequence_nr()
    except RuntimeError:  # a view made under torch.no_grad(), of what changed since
        return _NONE + 1


def _overwrites(call: Call) -> bool:
    return call.inplace or call.name == "setitem"


def _values(call: Call) -> Any:
    """Return the arguments whose values go into the result."""
    if call.name.endswith("_like") or call.name == "new" or call.name.startswith("new_"):
        return () if call.name != "new_tensor" else call.args[1:]
    if call.name in _OF_FIRST:
        return call.args[:1]
    if call.name in _OVERWRITING:
        return call.args[1:], call.kwargs
    return call.args, call.kwargs


def _plain(value: Any) -> Iterator[Any]:
    """All floats and arrays of NumPy in a value."""
    if isinstance(value, (float, np.ndarray)):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _plain(item)
    elif isinstance(value, dict):
        yield from _plain(list(value.values()))
