"""What a layer of a pruned network should give, so that the network computes what the whole did."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from niwaki.errors import ModelError
from niwaki.pruning._plan import Plan
from niwaki.pruning.repair._lockstep import Lockstep, Values

__all__ = ["Ends", "Target", "ends_of", "kept_outputs", "norm_behind"]

#: An activation is constant up to the first and from the second.
Ends: TypeAlias = tuple[float, float]

_RELU, _RELU6, _HARDSWISH, _HARDSIGMOID = (0.0, inf), (0.0, 6.0), (-3.0, inf), (-3.0, 3.0)
_MODULES: dict[type[nn.Module], Ends] = {
    nn.ReLU: _RELU,
    nn.ReLU6: _RELU6,
    nn.Hardswish: _HARDSWISH,
    nn.Hardsigmoid: _HARDSIGMOID,
}
_FUNCTIONS: dict[Any, Ends] = {
    torch.relu: _RELU,
    torch.relu_: _RELU,
    F.relu: _RELU,
    F.relu_: _RELU,
    F.relu6: _RELU6,
    F.hardswish: _HARDSWISH,
    F.hardsigmoid: _HARDSIGMOID,
    "relu": _RELU,
    "relu_": _RELU,
}


def ends_of(module: nn.Module | None, node: fx.Node) -> Ends | None:
    """Say where an activation is flat.

    Parameters
    ----------
    module : nn.Module or None
        The module that the operation calls.
    node : fx.Node
        The operation.

    Returns
    -------
    pair of float or None
        None for every other operation.
    """
    if isinstance(module, nn.Hardtanh) and not isinstance(module, nn.ReLU6):
        return float(module.min_val), float(module.max_val)
    if module is not None:
        return _MODULES.get(type(module))
    return _FUNCTIONS.get(node.target) if node.op != "get_attr" else None


_Norm = nn.modules.batchnorm._BatchNorm
_FORWARDS = (_Norm.forward, nn.SyncBatchNorm.forward)
_NEUTRAL = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_SUMS = (operator.add, torch.add)
_FLAT = 1e-3  # share of the largest scale below which a channel of a norm hands nothing on


class Target:
    """What a layer should give: its outputs in the unpruned network, put right for what follows.

    A batch norm behind it may have other statistics than in the unpruned network. And where the
    layer is the last of a branch to reach a residual sum, it aims at the sum: it is to give what
    the other summand now misses as well.

    Where an activation follows that is flat, as a ReLU is below zero, an output does not have to be
    reproduced: any other that the activation turns into the same value will do.

    Parameters
    ----------
    walk : Lockstep
        At the layer: values before it are known.
    node : fx.Node
        The layer's call in the smaller network.
    kept : Tensor
        Which outputs of the unpruned layer are left.
    """

    def __init__(self, walk: Lockstep, node: fx.Node, kept: Tensor) -> None:
        self._walk, self._kept = walk, kept
        self._norms: tuple[Any, Any] | None = None
        name = norm_behind(walk, node)
        if name is not None:
            self._norms = walk.whole.modules[name], walk.small.modules[name]
        self._behind = _behind(walk, node)

    @property
    def ends(self) -> Ends | None:
        """Where the activation behind is flat; None where none follows, or none that is flat."""
        return self._behind.ends

    @property
    def beside(self) -> tuple[Values, ...]:
        """What the other summand of a residual sum is in the whole network, and in the smaller."""
        return () if self._behind.other is None else self._walk.values[self._behind.other]

    @property
    def scale(self) -> Tensor | None:
        """What the norm behind multiplies each output by; None where none follows."""
        return None if self._behind.norm is None else _scale(self._behind.norm)

    def of(self, whole: Tensor, beside: Sequence[Tensor]) -> Tensor:
        """Turn what the unpruned layer gives into what the layer should give.

        Parameters
        ----------
        whole : Tensor
            Shape (rows, outputs of the unpruned layer).
        beside : sequence of Tensor
            The same rows of `beside`.
        """
        target = whole.index_select(1, self._kept)
        if self._norms is not None:
            target = self._through_norms(target, *self._norms)
        other = self._behind.other
        if other is not None and self._walk.differs(other):
            target = self._with_missing(target, *beside)
        return target

    def range_of(self, target: Tensor, beside: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the least and the largest output that the activation behind cannot tell apart.

        Parameters
        ----------
        target : Tensor
            From `of`.
        beside : sequence of Tensor
            The same rows of `beside`.
        """
        if self.ends is None:
            return target, target
        least, largest = target, target
        value, scale = target, target.new_ones(())
        norm = self._behind.norm
        if norm is not None:
            scale = _scale(norm)
            shift = -norm.running_mean * scale + (0 if norm.bias is None else norm.bias)
            value = value * scale + shift
        if beside:
            value = value + beside[1]
        flat = scale.abs() <= _FLAT * scale.abs().max()
        first, second = self.ends
        for end, beyond, side in ((first, value <= first, 1), (second, value >= second, -1)):
            edge = target + (end - value) / torch.where(flat, 1, scale)
            down, up = (beyond & ~flat & (side * way * scale > 0) for way in (1, -1))
            least = torch.where(down, -torch.inf, torch.where(up, edge, least))
            largest = torch.where(up, torch.inf, torch.where(down, edge, largest))
        return least, largest

    def _through_norms(self, target: Tensor, whole: Any, small: Any) -> Tensor:
        """Find what the norm has to get to give what the unpruned network's norm does."""
        factor, scale = _scale(whole)[self._kept], _scale(small)
        shift = -whole.running_mean[self._kept] * factor
        if whole.bias is not None:
            shift = shift + whole.bias[self._kept] - small.bias
        flat = scale.abs() <= _FLAT * scale.abs().max()
        divisor = torch.where(flat, 1, scale)
        factor = torch.where(flat, 1, factor / divisor)
        shift = torch.where(flat, 0, shift / divisor + small.running_mean)
        return target * factor + shift

    def _with_missing(self, target: Tensor, whole: Tensor, small: Tensor) -> Tensor:
        missing = whole.index_select(1, self._kept) - small
        if self._behind.norm is None:
            return target + missing
        scale = _scale(self._behind.norm)
        flat = scale.abs() <= _FLAT * scale.abs().max()
        factor = torch.where(flat, 0, 1 / torch.where(flat, 1, scale))
        return target + missing * factor


@dataclass(frozen=True)
class _Behind:
    """What follows a layer and nothing else reads, up to an activation.

    Attributes
    ----------
    other : fx.Node or None
        The other summand of a sum of two.
    norm : nn.Module or None
        A batch norm before the sum or the activation.
    ends : pair of float or None
        Where the activation is flat.
    """

    other: fx.Node | None = None
    norm: Any = None
    ends: Ends | None = None


def _behind(walk: Lockstep, node: fx.Node) -> _Behind:
    """Follow what a layer gives through a norm and a sum to the activation that reads it."""
    norm, other = None, None
    while len(node.users) == 1:
        (user,) = node.users
        module = walk.small.module(user)
        if _is_norm(module) and norm is None and other is None:
            norm, activation = module, _activation(module)
            if activation is not None:
                return _Behind(None, norm, ends_of(activation, user))
        elif _is_sum(user) and other is None:
            other = _other_summand(walk, user, node)
            if other is None:
                return _Behind()
        elif not (isinstance(module, _NEUTRAL) or _drops_paths(user)):
            return _Behind(other, norm, ends_of(module, user))
        node = user
    return _Behind(other, norm)


def _is_sum(node: fx.Node) -> bool:
    called = node.op == "call_function" and node.target in _SUMS
    return called or (node.op == "call_method" and node.target == "add")


def _other_summand(walk: Lockstep, sum_: fx.Node, node: fx.Node) -> fx.Node | None:
    """Return what is added to a branch; None if it comes later, or has another shape."""
    others = [summand for summand in sum_.args if summand is not node]
    if sum_.kwargs or len(sum_.args) != 2 or len(others) != 1:
        return None
    other = others[0]
    if not isinstance(other, fx.Node) or other not in walk.values:
        return None
    return other if walk.small.shapes.get(other) == walk.small.shapes.get(node) else None


def norm_behind(walk: Lockstep, node: fx.Node) -> str | None:
    """Name the batch norm that alone reads a layer, and reads that layer alone."""
    users = list(node.users)
    if len(users) != 1 or users[0].op != "call_module" or len(walk.calls[str(node.target)]) > 1:
        return None
    name = str(users[0].target)
    alone = len(walk.calls[name]) == 1 and users[0].args[0] is node
    return name if alone and _is_norm(walk.small.modules[name]) else None


def _is_norm(module: nn.Module | None) -> bool:
    """Whether a module is a batch norm with running statistics, perhaps with an activation."""
    if not isinstance(module, _Norm) or module.running_mean is None:
        return False
    return type(module).forward in _FORWARDS or hasattr(module, "act")


def _activation(norm: Any) -> nn.Module | None:
    """Return the activation that timm's norms end in; None where there is none."""
    found = getattr(norm, "act", None)
    return None if isinstance(found, nn.Identity) else found


def _drops_paths(node: fx.Node) -> bool:
    """Whether an operation leaves out whole branches in training, and does nothing otherwise."""
    name = getattr(node.target, "__name__", "")
    return node.op == "call_function" and name in ("stochastic_depth", "drop_path")


def kept_outputs(plan: Plan, name: str, whole: int, left: int) -> Tensor:
    """Return which outputs of an unpruned layer are left.

    Parameters
    ----------
    plan : Plan
        What was removed.
    name : str
        The layer.
    whole, left : int
        Its width, before and afterwards.

    Raises
    ------
    ModelError
        If the plan leaves another width.
    """
    kept = torch.arange(whole)
    for step in plan.steps:
        for removal in step:
            if removal.layer == name:
                stays = torch.ones(len(kept), dtype=torch.bool)
                stays[list(removal.channels)] = False
                kept = kept[stays]
    if len(kept) != left:
        raise ModelError(
            f"the plan leaves {len(kept)} outputs of {name!r}, the network has {left}: they do not "
            "belong together"
        )
    return kept


def _scale(norm: Any) -> Tensor:
    weight = torch.ones_like(norm.running_var) if norm.weight is None else norm.weight.detach()
    found: Tensor = weight / (norm.running_var + norm.eps).sqrt()
    return found
