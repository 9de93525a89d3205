"""A call to a torch function, and what is remembered of the tensors it made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from niwaki.errors import PropagationError
from niwaki.propagation.operation import Operation

__all__ = ["MOVES", "Call", "Tag", "Tags", "tensors_in"]

_MOVES = (
    "view view_as reshape reshape_as flatten unflatten permute transpose t swapaxes swapdims "
    "movedim moveaxis squeeze unsqueeze ravel contiguous clone to type float double half bfloat16 "
    "expand expand_as repeat repeat_interleave tile broadcast_to getitem get slice narrow select "
    "index_select gather take_along_dim chunk split tensor_split unbind unsafe_chunk unsafe_split "
    "cat concat concatenate stack hstack vstack flip roll rot90 pad channel_shuffle "
    "native_channel_shuffle pixel_shuffle pixel_unshuffle identity requires_grad setitem "
    "dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout feature_dropout "
    "mT H unfold diagonal view_as_real atleast_1d atleast_2d masked_select positive "
    "type_as cpu cuda where masked_fill"
)
#: Operations that move values about and leave them what they are.
MOVES = frozenset(_MOVES.split())


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in a value, also in (named) tuples, lists and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))


_AUGMENTED = {
    "iadd": "add",
    "isub": "sub",
    "imul": "mul",
    "idiv": "div",
    "itruediv": "div",
    "ipow": "pow",
}


@dataclass
class Call:
    """One call of a torch function.

    Attributes
    ----------
    name : str
        Without underscores: ``"add"`` for ``Tensor.add_``, ``"getitem"`` for ``__getitem__``.
    inplace : bool
        Whether it overwrites its first argument.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    name: str = ""
    inplace: bool = False

    def __post_init__(self) -> None:
        name: str = getattr(self.function, "__name__", str(self.function))
        dunder = name.startswith("__") and name.endswith("__")
        self.inplace = (name.endswith("_") and not dunder) or bool(self.kwargs.get("inplace"))
        self.name = name.strip("_")
        if dunder and self.name in _AUGMENTED:  # x += y
            self.name, self.inplace = _AUGMENTED[self.name], True

    def run(self) -> Any:
        """Do what was called, as it was called."""
        return self.function(*self.args, **self.kwargs)

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """Look up an argument that may be given by position or by name."""
        if name in self.kwargs:
            return self.kwargs[name]
        return self.args[position] if position < len(self.args) else default

    def again(self, *names: str) -> Callable[..., Any]:
        """Return this call as a function of its leading arguments, `names`; out of place.

        It holds none of those arguments, so that the signal is not kept in memory by it.
        """
        function = self.out_of_place()
        kwargs = {k: v for k, v in self.kwargs.items() if k not in names and k != "inplace"}
        rest = self.args[len(names) - sum(n in self.kwargs for n in names) :]
        return lambda *leading: function(*leading, *rest, **kwargs)

    def out_of_place(self) -> Callable[..., Any]:
        """Return the function that does the same and overwrites nothing."""
        name = getattr(self.function, "__name__", "")
        plain = not name.endswith("_") or name.startswith("__")
        if plain and name.strip("_") not in _AUGMENTED:
            return self.function
        homes = (home for home in (Tensor, torch, F) if hasattr(home, self.name))
        return getattr(next(homes), self.name)  # type: ignore[no-any-return]


@dataclass
class Tag:
    """What is known of one tensor of the forward pass.

    Attributes
    ----------
    signal : bool
        Whether it depends on the input.
    version, requires_grad : int, bool
        The tensor's when tagged; a later difference shows that somebody changed it unseen.
    nonnegative : bool
        Whether it is known to have no value below zero.
    gate : bool
        Whether it is the output of a sigmoid and the like: a weight between 0 and 1.
    ending : str
        Name of the softmax or sigmoid that made it, else empty.
    pending : Operation or None
        The softmax that made it, if it has no rule: nothing but moves may follow it.
    nearest : frozenset of Operation
        The layers passed last on the ways from the input to here.
    unit : Operation or None
        The layer whose units' output this is, directly or behind its norm or activation.
    raw : bool
        Whether it is `unit`'s own output, that a batch norm may follow.
    uses : int
        How many operations have read it.
    norm : Operation or None
        The batch norm that follows it as if it alone read it; see `Watch.separate`.
    owner : str
        For a constant: the layer from whose parameters it was made, as by a parametrization.
    carry : callable or None
        In front of the first layer: how its bounds come from those of the network's input.
    """

    signal: bool
    version: int = 0
    requires_grad: bool = True
    nonnegative: bool = False
    gate: bool = False
    ending: str = ""
    pending: Operation | None = None
    nearest: frozenset[Operation] = frozenset()
    unit: Operation | None = None
    raw: bool = False
    uses: int = 0
    norm: Operation | None = None
    owner: str = ""
    carry: Any = None

    @property
    def place(self) -> str:
        """Name a place for messages: behind which layers."""
        names = sorted(op.layer for op in self.nearest)
        return "after " + " and ".join(names) if names else "at the input"


class Tags:
    """The tags of the tensors of one forward pass; forgets those that are gone."""

    def __init__(
        self, constants: Mapping[int, tuple[Tensor, str]], *, trusting: bool = False
    ) -> None:
        self._tags: Any = WeakTensorKeyDictionary()
        # What the model holds from before cannot carry the signal: by id, with its layer's name.
        self._constants = constants
        # Where everything gets its derivative, what was made unseen is no worry: autograd saw it.
        self._trusting = trusting

    def __setitem__(self, tensor: Tensor, tag: Tag) -> None:
        tag.version = tensor._version
        tag.requires_grad = tensor.requires_grad
        self._tags[tensor] = tag

    def __getitem__(self, tensor: Tensor) -> Tag:
        tag: Tag | None = self._tags.get(tensor)
        if tag is None:
            if tensor.requires_grad and not tensor.is_leaf and id(tensor) not in self._constants:
                return self._unseen(tensor)
            return Tag(signal=False)
        if tag.requires_grad != tensor.requires_grad and tensor.requires_grad:
            return self._unseen(tensor)
        if tag.version != tensor._version:
            made_by = "" if tensor.grad_fn is None else tensor.grad_fn.name()
            through_view = tensor._is_view() or made_by == "CopySlices"
            if tag.signal and tensor.requires_grad and not through_view:
                return self._unseen(tensor)
            tag.nonnegative, tag.version = False, tensor._version
        return tag

    def _unseen(self, tensor: Tensor) -> Tag:
        """Take a tensor that nobody saw being made for a signal, or refuse it."""
        if not self._trusting:
            raise _unseen(tensor)
        self[tensor] = Tag(signal=True)
        return self[tensor]

    def owner(self, tensor: Tensor) -> str:
        """Name of the layer that holds a constant or from whose parameters it was made, or ""."""
        if id(tensor) in self._constants:
            return self._constants[id(tensor)][1]
        tag: Tag | None = self._tags.get(tensor)
        return "" if tag is None else tag.owner

    def latest(self, tensor: Tensor) -> Tag | None:
        """Return what was last known of a tensor that has changed, if anything."""
        tag: Tag | None = self._tags.get(tensor)
        return tag

    def note_constants(self, arguments: Any, result: Any) -> None:
        """Remember that what was made from constants is constant, and from whose."""
        found = (self.owner(t) for t in tensors_in(arguments))
        owner = next((name for name in found if name), "")
        for tensor in tensors_in(result):
            if (tensor.requires_grad or owner) and tensor not in self._tags:
                self[tensor] = Tag(signal=False, owner=owner)


def _unseen(tensor: Tensor) -> PropagationError:
    made_by = tensor.grad_fn.name() if tensor.grad_fn is not None else "an unknown operation"
    return PropagationError(
        f"a tensor of shape {tuple(tensor.shape)} was made by {made_by}, which cannot be watched: "
        "a scripted or compiled module, or a torch.autograd.Function of the model's own. Pass the "
        "plain nn.Module, and write the operation with torch functions"
    )


def carries_gradient(result: Any) -> bool:
    """Whether any tensor in a result is differentiable, so that a signal may be in it."""
    return any(t.requires_grad and torch.is_floating_point(t) for t in tensors_in(result))
