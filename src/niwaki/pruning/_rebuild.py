"""Repair in closed form: what is left of a network learns to compute what the whole one does."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn

from niwaki.accumulation import Totals
from niwaki.data import Data, batches
from niwaki.errors import DataError, FewSamplesWarning, ModelError
from niwaki.models import home
from niwaki.models._network import Network, UntraceableError, last_uses
from niwaki.pruning._least_squares import Fit, fit, moments
from niwaki.pruning._plan import Plan
from niwaki.pruning._rows import Places, inputs_at, is_linear, matrix_of, outputs_at, set_matrix
from niwaki.ranges import FACTOR, checked

__all__ = ["Rebuilt", "check_rebuildable", "rebuild"]

_BLOCK = 25  # images that are computed at once, whatever the user's batches: results do not depend
_ROWS = 20  # rows of the regression for each feature, beyond which places are left out
_FEWEST_ROWS = 5_000
_FEW_IMAGES = 5
_Norm = nn.modules.batchnorm._BatchNorm
_NEUTRAL = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_SUMS = (operator.add, operator.iadd, torch.add)
_FLAT = 1e-3  # share of the largest scale below which a channel of a norm hands nothing on

#: The values of an operation, one for each block of images.
Values: TypeAlias = list[Any]
#: Those of the unpruned network, and of the pruned one.
_Pairs: TypeAlias = Mapping[fx.Node, tuple[Values, Values]]


@dataclass(frozen=True)
class Rebuilt:
    """What a repair has done.

    Attributes
    ----------
    errors : dict of str to tuple of float
        For each layer that was fitted, the mean squared error of its outputs on the reference
        images before and afterwards, as a share of the variance of what the unpruned network
        computes there.
    left_out : tuple of str
        Layers that read something else than before but could not be fitted.
    """

    errors: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    def __str__(self) -> str:
        rows = [f"{'layer':40} {'before':>8} {'after':>8}"]
        rows += [f"{name:40} {a:>8.1%} {b:>8.1%}" for name, (a, b) in self.errors.items()]
        return "\n".join(rows)


@checked(pull=FACTOR)
def rebuild(
    model: nn.Module,
    original: nn.Module,
    data: Data,
    plan: Plan | None = None,
    *,
    masks: Mapping[str, Tensor] | None = None,
    pull: float = 10.0,
) -> Rebuilt:
    """Fit the layers of a pruned network to what the unpruned one computes, without training.

    In the order of the forward pass, every convolution and linear layer that reads something else
    than before gets the weights (and the bias, or the running mean of the batch norm behind it)
    that bring its outputs nearest to those of the unpruned network on the reference images, given
    what the layers before it, already fitted, now feed it: a ridge regression over all places of
    all images, pulled toward the weights that the layer has. At the sum of a residual block the
    last layer of the branch aims at the whole sum less what the shortcut now gives. No layer's
    error on the reference images grows.

    Parameters
    ----------
    model : nn.Module
        The pruned network, changed in place.
    original : nn.Module
        The unpruned network. It stays as it is.
    data : DataLoader, Dataset or pair of tensors
        The reference samples; labels are not used.
    plan : Plan, optional
        What was removed from `original`. Default: nothing.
    masks : mapping of str to Tensor, optional
        Layer name to a mask in the shape of its weight: only weights where it is True change.
    pull : float
        How many images the weights that a layer has count for, beside the reference images: with
        ten images they weigh as much as the images do.

    Returns
    -------
    Rebuilt
        The error of each layer, before and afterwards.

    Raises
    ------
    ModelError
        If the operations of the network cannot be listed, or the two do not belong together.
    DataError
        For samples on which the network computes NaN or infinite values.

    References
    ----------
    He, Zhang and Sun (2017), "Channel pruning for accelerating very deep neural networks", for the
    least squares; El Halabi, Srinivas and Lacoste-Julien (2022), "Data-efficient structured pruning
    via submodular optimization", for inputs taken from the pruned network.
    """
    inputs = torch.cat([some for some, _ in batches(data, 64, home(original))])
    if len(inputs) < _FEW_IMAGES:
        warnings.warn(
            f"rebuild: {len(inputs)} reference image(s) say little of how units vary; the weights "
            "stay close to what they are. Give more: they need no labels",
            FewSamplesWarning,
            stacklevel=3,
        )
    walk = _Walk(_listed(original, inputs), _listed(model, inputs), plan or Plan(), masks or {}, pull)
    with torch.no_grad():
        walk.run(inputs)
        for name, layer in walk.fitted.items():
            for key, value in layer.state_dict().items():
                model.get_submodule(name).state_dict()[key].copy_(value)
    return Rebuilt(walk.errors, tuple(walk.left_out))


def check_rebuildable(model: nn.Module, example: Tensor) -> str | None:
    """Say why a network cannot be rebuilt; None if it can."""
    try:
        _listed(model, example)
    except ModelError as error:
        return str(error)
    return None


def _listed(model: nn.Module, inputs: Tensor) -> Network:
    try:
        return Network(model, inputs[:2])
    except UntraceableError as error:
        raise ModelError(
            f"{type(model).__name__} cannot be rebuilt, because its operations cannot be listed: "
            f"{error}. Use another repair (such as 'recalibrate') or none"
        ) from error


class _Walk:
    """A walk through both networks in lockstep, operation by operation.

    Only values that are still to be read are kept. Where nothing has changed yet, both networks
    share them.
    """

    def __init__(
        self,
        whole: Network,
        small: Network,
        plan: Plan,
        masks: Mapping[str, Tensor],
        pull: float,
    ) -> None:
        if [(n.op, n.name) for n in whole.nodes] != [(n.op, n.name) for n in small.nodes]:
            raise ModelError("the pruned network does other operations than the unpruned one")
        self.whole, self.small, self.plan, self.masks, self.pull = whole, small, plan, masks, pull
        self.errors: dict[str, tuple[float, float]] = {}
        self.left_out: list[str] = []
        self.fitted: dict[str, nn.Module] = {}
        self._at = {node: place for place, node in enumerate(small.nodes)}
        self._calls: dict[str, list[fx.Node]] = {}
        for node in small.nodes:
            if node.op == "call_module":
                self._calls.setdefault(str(node.target), []).append(node)
        self._elsewhere: dict[str, Totals] = {}
        self._only: set[str] | None = None
        self._values: dict[fx.Node, tuple[Values, Values]] = {}

    def run(self, inputs: Tensor) -> None:
        """Fit all layers, in the order of the forward pass."""
        again = {name for name, calls in self._calls.items() if len(calls) > 1}
        again = {name for name in again if is_linear(self.small.modules[name])}
        if again:  # what they read at their other calls has to be known at the first
            self._only = again
            self._pass(inputs)
            self._only = None
        self._pass(inputs)

    def _pass(self, inputs: Tensor) -> None:
        release = last_uses(self.small.nodes, ())
        blocks = list(inputs.split(_BLOCK))
        for old, new in zip(self.whole.nodes, self.small.nodes, strict=True):
            if new is self.small.input:
                self._values[new] = (blocks, blocks)
            else:
                self._values[new] = self._computed(old, new, len(blocks))
            for done in release[new]:
                del self._values[done]

    def _computed(self, old: fx.Node, new: fx.Node, blocks: int) -> tuple[Values, Values]:
        before = [self.whole.call(old, _Env(self._values, 0, b, old, new)) for b in range(blocks)]
        if self._unchanged(old, new) and str(new.target) not in self._elsewhere:
            return before, before
        if new.op == "call_module":
            self._visit(new, before)
        after = [self.small.call(new, _Env(self._values, 1, b, new, new)) for b in range(blocks)]
        return before, after

    def _unchanged(self, old: fx.Node, new: fx.Node) -> bool:
        """Whether an operation does in the smaller network what it does in the whole one."""
        if any(self._values[n][0] is not self._values[n][1] for n in new.all_input_nodes):
            return False
        if new.op == "call_module":
            one, other = self.whole.modules[str(old.target)], self.small.modules[str(new.target)]
            return str(new.target) not in self.masks and _same(one, other)
        if new.op == "get_attr":
            env: dict[Any, Any] = {}
            one, other = self.whole.call(old, env), self.small.call(new, env)
            return not isinstance(one, Tensor) or torch.equal(one, other)
        return True

    def _visit(self, node: fx.Node, before: Values) -> None:
        """Fit a layer, unless what it reads is what it has always read."""
        name = str(node.target)
        layer, source = self.small.modules[name], node.args[0]
        if self._only is not None and name not in self._only:
            return
        if not isinstance(source, fx.Node) or not isinstance(before[0], Tensor):
            return
        read = self._values[source]
        if read[0] is read[1] and name not in (*self.masks, *self._elsewhere):
            return
        if not is_linear(layer):
            if isinstance(layer, (nn.modules.conv._ConvNd, nn.Linear)) and name not in self.left_out:
                self.left_out.append(name)
            return
        totals = self._sums(node, layer, before)
        if self._only is not None:
            if node is not self._calls[name][0]:
                known = self._elsewhere.get(name, Totals())
                self._elsewhere[name] = known.merge(totals)
            return
        if node is self._calls[name][0]:
            self._fit(node, layer, totals.merge(self._elsewhere.get(name, Totals())))

    def _sums(self, node: fx.Node, layer: Any, before: Values) -> Totals:
        """Gather what a layer reads now, and what it should give."""
        name, source = str(node.target), node.args[0]
        assert isinstance(source, fx.Node)
        images = sum(len(block) for block in before)
        spatial = before[0].shape[1:-1] if isinstance(layer, nn.Linear) else before[0].shape[2:]
        features = matrix_of(layer).shape[-1]
        rows = max(_FEWEST_ROWS, _ROWS * features)
        places = Places(prod(spatial), -(-rows // images))
        kept = self._kept(name, layer)
        channel = -1 if isinstance(layer, nn.Linear) else 1
        aim, norm = self._shortcut(node), self._norm_behind(node)
        totals, first = Totals(), 0
        for b, (whole, inputs) in enumerate(zip(before, self._values[source][1], strict=True)):
            target = whole.index_select(channel, kept)
            if norm is not None:
                target = _through(self._whole_norm(norm), kept, norm, target)
            if aim is not None:
                target = target + aim.missing(self._values, b, kept, channel, target)
            where = places.of(first, len(whole))
            x = inputs_at(layer, inputs, target.shape, where)
            totals = moments(totals, x, outputs_at(layer, target, where), len(whole))
            first += len(whole)
        if not all(bool(value.isfinite().all()) for value in totals.sums.values()):
            raise DataError(
                f"rebuild: what {name!r} reads or gives on the reference images is NaN or infinite; "
                "check the images and the network"
            )
        return totals

    def _fit(self, node: fx.Node, layer: Any, totals: Totals) -> None:
        name, start = str(node.target), matrix_of(layer)
        norm = self._norm_behind(node)
        offset = None
        if layer.bias is not None:
            offset = layer.bias.detach().view(len(start), -1)
        elif norm is not None:
            offset = start.new_zeros(start.shape[:2])
        free = None
        if name in self.masks:
            free = _as_matrix(layer, self.masks[name])
        found = fit(totals, start, offset, self.pull / totals.samples, free)
        set_matrix(layer, found.matrix)
        self._raise(layer, norm, found)
        self.fitted[name] = layer
        if layer.bias is None and norm is not None:
            self.fitted[self._name_of(norm)] = norm
        self.errors[name] = (found.before, found.after)

    def _raise(self, layer: Any, norm: Any, found: Fit) -> None:
        if found.offset is None:
            return
        raised = found.offset.flatten()
        if layer.bias is not None:
            layer.bias.copy_(raised)
        else:
            norm.running_mean.sub_(raised.to(norm.running_mean))

    def _name_of(self, module: nn.Module) -> str:
        return next(name for name, one in self.small.modules.items() if one is module)

    def _whole_norm(self, norm: nn.Module) -> Any:
        return self.whole.modules[self._name_of(norm)]

    def _kept(self, name: str, layer: Any) -> Tensor:
        """Return which outputs of the unpruned layer are left."""
        other: Any = self.whole.modules[name]
        kept = torch.arange(_width(other))
        for step in self.plan.steps:
            for removal in step:
                if removal.layer == name:
                    stays = torch.ones(len(kept), dtype=torch.bool)
                    stays[list(removal.channels)] = False
                    kept = kept[stays]
        if len(kept) != _width(layer):
            raise ModelError(
                f"the plan leaves {len(kept)} outputs of {name!r}, the network has {_width(layer)}: "
                "they do not belong together"
            )
        return kept.to(layer.weight.device)

    def _norm_behind(self, node: fx.Node) -> Any:
        """Return the batch norm that alone reads a layer, and that layer alone; None if none."""
        users = list(node.users)
        if len(users) != 1 or users[0].op != "call_module" or len(self._calls[str(node.target)]) > 1:
            return None
        name = str(users[0].target)
        norm = self.small.modules[name]
        alone = len(self._calls[name]) == 1 and users[0].args[0] is node
        measured = isinstance(norm, _Norm) and norm.running_mean is not None
        return norm if alone and measured else None

    def _shortcut(self, node: fx.Node) -> _Aim | None:
        """Find the sum that a layer is the last to reach, with nothing but a norm in between."""
        scale = None
        while len(node.users) == 1:
            (user,) = node.users
            if user.op == "call_module":
                module = self.small.modules[str(user.target)]
                if isinstance(module, _Norm) and scale is None and module.running_var is not None:
                    scale = _scale(module)
                elif not isinstance(module, _NEUTRAL):
                    return None
                node = user
                continue
            is_sum = user.op == "call_function" and user.target in _SUMS
            is_sum |= user.op == "call_method" and user.target == "add"
            if not is_sum or user.kwargs or len(user.args) != 2:
                return None
            others = [a for a in user.args if a is not node]
            if len(others) != 1 or not isinstance(others[0], fx.Node):
                return None
            return _Aim(others[0], scale) if others[0] in self._values else None
        return None


@dataclass(frozen=True)
class _Aim:
    """A sum that a branch ends in: what the other summand misses, the branch has to give.

    Attributes
    ----------
    other : fx.Node
        The other summand, which is known already.
    scale : Tensor or None
        Of the norm between the layer and the sum, one value per output.
    """

    other: fx.Node
    scale: Tensor | None

    def missing(self, values: _Pairs, block: int, kept: Tensor, channel: int, beside: Tensor) -> Any:
        """Return what the layer should give on top of its own outputs, or 0."""
        whole, small = (side[block] for side in values[self.other])
        if whole is small or not isinstance(small, Tensor) or small.shape != beside.shape:
            return 0
        missing = whole.index_select(channel, kept) - small
        if self.scale is None:
            return missing
        flat = self.scale.abs() <= _FLAT * self.scale.abs().max()
        factor = torch.where(flat, 0, 1 / torch.where(flat, 1, self.scale))
        return missing * factor.view(-1, *(1,) * (whole.dim() - 1 - channel % whole.dim()))


class _Env(Mapping[fx.Node, Any]):
    """The values of one network, for one block of images, as an operation asks for them."""

    def __init__(self, values: Any, side: int, block: int, node: fx.Node, other: fx.Node) -> None:
        self._values, self._side, self._block = values, side, block
        pairs = zip(node.all_input_nodes, other.all_input_nodes, strict=True)
        self._names = dict(pairs)

    def __getitem__(self, node: fx.Node) -> Any:
        return self._values[self._names[node]][self._side][self._block]

    def __iter__(self) -> Any:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _same(one: nn.Module, other: nn.Module) -> bool:
    """Whether two modules hold the same parameters and buffers."""
    pairs = zip(_tensors(one), _tensors(other), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _through(whole: Any, kept: Tensor, norm: Any, values: Tensor) -> Tensor:
    """Say what a norm has to get to give what the unpruned network's norm does."""
    shape = (1, -1, *(1,) * (values.dim() - 2))
    factor, scale = _scale(whole)[kept], _scale(norm)
    shift = -whole.running_mean[kept] * factor
    if whole.bias is not None:
        shift = shift + whole.bias[kept] - norm.bias
    flat = scale.abs() <= _FLAT * scale.abs().max()
    scale = torch.where(flat, 1, scale)
    factor = torch.where(flat, 1, factor / scale)
    shift = torch.where(flat, 0, shift / scale + norm.running_mean)
    return values * factor.view(shape) + shift.view(shape)


def _scale(norm: Any) -> Tensor:
    weight = torch.ones_like(norm.running_var) if norm.weight is None else norm.weight.detach()
    found: Tensor = weight / (norm.running_var + norm.eps).sqrt()
    return found


def _width(layer: Any) -> int:
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def _as_matrix(layer: Any, mask: Tensor) -> Tensor:
    """Order a mask as `matrix_of` orders the weight."""
    kept = layer.weight
    try:
        layer.weight = nn.Parameter(mask.to(kept), requires_grad=False)
        return matrix_of(layer) != 0
    finally:
        layer.weight = kept
