"""What a layer of a pruned network should give, so that the network computes what the whole did."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from niwaki.errors import ModelError
from niwaki.pruning._plan import Plan
from niwaki.pruning.repair._lockstep import Lockstep

__all__ = ["Target", "kept_outputs", "norm_behind"]

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

    Parameters
    ----------
    walk : Lockstep
        At the layer: values before it are known.
    node : fx.Node
        The layer's call in the smaller network.
    kept : Tensor
        Which outputs of the unpruned layer are left.
    channel : int
        Dimension of the channels.
    """

    def __init__(self, walk: Lockstep, node: fx.Node, kept: Tensor, channel: int) -> None:
        self._walk, self._kept, self._channel = walk, kept, channel
        self._norms: tuple[Any, Any] | None = None
        name = norm_behind(walk, node)
        if name is not None:
            self._norms = walk.whole.modules[name], walk.small.modules[name]
        self._sum = _sum_behind(walk, node)

    def of(self, whole: Tensor, block: int) -> Tensor:
        """Turn a block of what the unpruned layer gives into what the layer should give."""
        target = whole.index_select(self._channel, self._kept)
        if self._norms is not None:
            target = self._through_norms(target, *self._norms)
        if self._sum is not None:
            target = self._with_missing(target, self._sum, block)
        return target

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
        return target * self._spread(factor, target) + self._spread(shift, target)

    def _with_missing(self, target: Tensor, found: _Sum, block: int) -> Tensor:
        whole, small = (values[block] for values in self._walk.values[found.other])
        if not isinstance(small, Tensor) or small.shape != target.shape:
            return target
        missing: Tensor = whole.index_select(self._channel, self._kept) - small
        if found.scale is None:
            return target + missing
        flat = found.scale.abs() <= _FLAT * found.scale.abs().max()
        factor = torch.where(flat, 0, 1 / torch.where(flat, 1, found.scale))
        return target + missing * self._spread(factor, target)

    def _spread(self, values: Tensor, beside: Tensor) -> Tensor:
        """Shape one value per channel so that it multiplies all places."""
        trailing = beside.dim() - 1 - self._channel % beside.dim()
        return values.view(-1, *(1,) * trailing)


@dataclass(frozen=True)
class _Sum:
    """A sum of two that a branch ends in.

    Attributes
    ----------
    other : fx.Node
        The other summand.
    scale : Tensor or None
        Of the norm between the layer and the sum, one value per output.
    """

    other: fx.Node
    scale: Tensor | None


def _sum_behind(walk: Lockstep, node: fx.Node) -> _Sum | None:
    """Find the sum that a layer is the last to reach, with nothing but a norm in between."""
    scale = None
    while len(node.users) == 1:
        (user,) = node.users
        module = walk.small.module(user)
        if _is_norm(module) and _activation(module) is None and scale is None:
            scale = _scale(module)
        elif not (isinstance(module, _NEUTRAL) or _drops_paths(user)):
            break
        node = user
    if len(node.users) == 1:
        (user,) = node.users
        is_sum = user.op == "call_function" and user.target in _SUMS
        is_sum |= user.op == "call_method" and user.target == "add"
        others = [summand for summand in user.args if summand is not node]
        if not is_sum or user.kwargs or len(user.args) != 2 or len(others) != 1:
            return None
        other = others[0]
        if not isinstance(other, fx.Node) or other not in walk.values or not walk.differs(other):
            return None
        return _Sum(other, scale)
    return None


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
