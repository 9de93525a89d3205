"""Repair in closed form: what is left of a network is fitted to what the whole one computes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn

from niwaki.accumulation import Totals
from niwaki.data import Data
from niwaki.errors import DataError, FewSamplesWarning, ModelError
from niwaki.machine import parse_bytes, physical
from niwaki.models import home
from niwaki.models.network import Network, UntraceableError
from niwaki.pruning._plan import Plan
from niwaki.pruning.repair._least_squares import fit, moments
from niwaki.pruning.repair._lockstep import Lockstep, Values
from niwaki.pruning.repair._rows import (
    Places,
    inputs_at,
    is_linear,
    matrix_of,
    outputs_at,
    set_matrix,
)
from niwaki.pruning.repair._samples import FEWEST_ROWS, ROWS, drawn
from niwaki.pruning.repair._targets import Target, kept_outputs, norm_behind
from niwaki.pruning.units._plain_copy import plain_copy
from niwaki.pruning.units._surgery import completed
from niwaki.ranges import FACTOR, checked

__all__ = ["Rebuilt", "rebuild", "unlisted"]

PULL = 10.0
_FEW = 5  # samples
_ALIKE = (nn.modules.conv._ConvNd, nn.Linear)


#: Sums over one half of the samples, and over the other.
Halves: TypeAlias = tuple[Totals, Totals]
_NOTHING: Halves = (Totals(), Totals())


@dataclass(frozen=True)
class Rebuilt:
    """What a repair has done.

    Attributes
    ----------
    errors : dict of str to tuple of float
        For each layer that was fitted, the mean squared error of its outputs on the reference
        samples before and afterwards, as a share of the variance of what it should give.
    left_out : tuple of str
        Layers that read something else than before but could not be fitted: they compute in a way
        of their own, or share a weight with another layer.
    """

    errors: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    def __str__(self) -> str:
        rows = [f"{'layer':40} {'before':>8} {'after':>8}"]
        rows += [f"{name:40} {a:>8.1%} {b:>8.1%}" for name, (a, b) in self.errors.items()]
        return "\n".join([*rows, *(f"{name:40} left as it is" for name in self.left_out)])


@checked(pull=FACTOR)
def rebuild(
    model: nn.Module,
    original: nn.Module,
    data: Data,
    plan: Plan | None = None,
    *,
    masks: Mapping[str, Tensor] | None = None,
    pull: float = PULL,
    max_memory: int | str | None = None,
) -> Rebuilt:
    """Fit the layers of a pruned network to what the unpruned one computes, without training.

    In the order of the forward pass, every convolution and linear layer that reads something else
    than before gets the weights and the bias (without one, the running mean of the batch norm
    behind it) that bring its outputs nearest to those of the unpruned network on the reference
    samples, given what the layers before it, already fitted, now feed it. This is a ridge
    regression over the places of all samples, pulled toward the weights that the layer has. At the
    sum of a residual block, the last layer of the branch aims at the whole sum, less what the
    shortcut now gives. On the places that are looked at, no layer's error grows.

    The result does not depend on how the samples are batched.

    Parameters
    ----------
    model : nn.Module
        The pruned network, in evaluation mode; changed in place, unless an error is raised.
    original : nn.Module
        The unpruned network, in evaluation mode. It stays as it is.
    data : DataLoader, Dataset or pair of tensors
        The reference samples; labels are not used. Of more than 1,000, a random part of that size
        serves, the same in every call.
    plan : Plan, optional
        What was removed from `original`. Default: nothing.
    masks : mapping of str to Tensor, optional
        Layer name to a mask in the shape of its weight: these layers are fitted too, and of their
        weights only those where the mask is True change.
    pull : float
        How many samples the weights that a layer has count for, beside the reference samples: by
        the default they weigh as much as ten samples do.
    max_memory : int or str, optional
        Bytes, or such as ``"2GB"``, beyond which values inside the networks are kept on disk.
        Default: half of the machine's memory.

    Returns
    -------
    Rebuilt
        The error of each layer, before and afterwards.

    Raises
    ------
    ModelError
        If the operations of the network cannot be listed, or the two do not belong together.
    DataError
        If a layer reads or gives NaN or infinite values on the samples.

    Warns
    -----
    FewSamplesWarning
        If there are fewer than five samples.

    References
    ----------
    He, Zhang and Sun (2017), "Channel pruning for accelerating very deep neural networks", for the
    least squares; El Halabi, Srinivas and Lacoste-Julien (2022), "Data-efficient structured pruning
    via submodular optimization", for inputs taken from the pruned network.

    Examples
    --------
    >>> pruned = niwaki.prune(model, references, keep=0.5, repair=None)
    >>> print(niwaki.pruning.rebuild(pruned.model, model, references, pruned.plan))
    """
    memory = physical() // 2 if max_memory is None else parse_bytes(max_memory)
    inputs = drawn(data, home(original))
    if len(inputs) < _FEW:
        warnings.warn(
            f"rebuild: {len(inputs)} reference sample(s) hardly tell how units vary, so that the "
            f"weights stay near what they are; give {_FEW} or more. They need no labels",
            FewSamplesWarning,
            stacklevel=3,
        )
    _check_together(model, original, masks or {})
    walk = Lockstep(_listed(original, inputs), _listed(model, inputs), memory)
    with torch.no_grad():
        plan = plan or Plan()
        if not _lists_all(plan, original, model):
            plan = completed(original, inputs[:2], plan)
        fitting = _Fitting(walk, plan, masks or {}, pull)
        fitting.run(inputs)
        for name in fitting.changed:
            there = model.get_submodule(name).state_dict(keep_vars=True)
            for key, tensor in walk.small.modules[name].state_dict().items():
                there[key].copy_(tensor)
    return Rebuilt(fitting.errors, tuple(fitting.left_out))


def unlisted(model: nn.Module, example: Tensor) -> str | None:
    """Say why a network cannot be rebuilt; None if it can."""
    try:
        _listed(model, example)
    except ModelError as error:
        return str(error)
    return None


def _listed(model: nn.Module, inputs: Tensor) -> Network:
    try:
        return Network(plain_copy(model), inputs[:2])
    except UntraceableError as error:
        raise ModelError(
            f"{type(model).__name__} cannot be rebuilt, because its operations cannot be listed "
            f"({error}); take another repair, such as 'recalibrate', or none"
        ) from error


def _check_together(model: nn.Module, original: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Refuse networks of other layers, weights that are computed, and masks that fit nothing."""
    if plain_copy(model).state_dict().keys() != model.state_dict().keys():
        raise ModelError(
            "rebuild: weights of the pruned network are computed anew in each pass (by a "
            "parametrization or a hook); make them permanent first"
        )
    names = {name for name, _ in model.named_modules()}
    odd = names ^ {name for name, _ in plain_copy(original).named_modules()}
    if odd:
        raise ModelError(
            "rebuild: the pruned and the unpruned network do not belong together: only one of them "
            f"has a module {min(odd)!r}"
        )
    for name, mask in masks.items():
        weight = getattr(model.get_submodule(name), "weight", None) if name in names else None
        if weight is None or weight.shape != mask.shape:
            there = "there is no such layer" if weight is None else f"has {tuple(weight.shape)}"
            raise ModelError(f"rebuild: a mask of shape {tuple(mask.shape)} for {name!r}: {there}")


def _lists_all(plan: Plan, original: nn.Module, model: nn.Module) -> bool:
    """Whether a plan lists every layer that has lost outputs, as those of `prune` do."""
    removed, after = plan.removed(), dict(model.named_modules())
    return all(
        _width(module) - removed.get(name, 0) == _width(after[name])
        for name, module in original.named_modules()
        if isinstance(module, _ALIKE)
    )


class _Fitting:
    """Fits the layers of the smaller network as the walk comes by."""

    def __init__(
        self, walk: Lockstep, plan: Plan, masks: Mapping[str, Tensor], pull: float
    ) -> None:
        self._walk, self._plan, self._masks, self._pull = walk, plan, masks, pull
        self.errors: dict[str, tuple[float, float]] = {}
        self.left_out: list[str] = []
        self.changed: list[str] = []
        # Of layers that are called several times: the sums over all calls but the first.
        self._later: dict[str, Halves] = {}
        self._tied = _tied(walk.small.modules)

    def run(self, inputs: Tensor) -> None:
        """Fit them all."""
        if any(len(calls) > 1 and self._fits(name) for name, calls in self._walk.calls.items()):
            self._walk.run(inputs, self._look_ahead)
        self._walk.run(inputs, self._visit, always={*self._masks, *self._later})

    def _fits(self, name: str) -> bool:
        return is_linear(self._walk.small.modules[name]) and name not in self._tied

    def _look_ahead(self, node: fx.Node, before: Values) -> None:
        """Take in what a layer reads and should give at its later calls."""
        name = str(node.target)
        if self._fits(name) and node is not self._walk.calls[name][0]:
            known = self._later.get(name, _NOTHING)
            self._later[name] = _merged(known, self._sums(node, before))

    def _visit(self, node: fx.Node, before: Values) -> None:
        """Fit a layer at its first call, unless it reads what it has always read."""
        name, source = str(node.target), node.args[0]
        wanted = name in self._masks or name in self._later
        wanted |= isinstance(source, fx.Node) and self._walk.differs(source)
        if not wanted or node is not self._walk.calls[name][0]:
            return
        if self._fits(name) and isinstance(source, fx.Node):
            self._fit(node, _merged(self._sums(node, before), self._later.get(name, _NOTHING)))
        elif isinstance(self._walk.small.modules[name], _ALIKE):
            self.left_out.append(name)

    def _sums(self, node: fx.Node, before: Values) -> Halves:
        """Gather what a layer reads now, and what it should give, for two halves of the samples."""
        name, source = str(node.target), node.args[0]
        assert isinstance(source, fx.Node)
        layer: Any = self._walk.small.modules[name]
        linear = isinstance(layer, nn.Linear)
        shape = before[0].shape
        images = sum(len(before[b]) for b in range(len(before)))
        rows = max(FEWEST_ROWS, ROWS * matrix_of(layer).shape[-1])
        places = Places(prod(shape[1:-1] if linear else shape[2:]), -(-rows // images))
        channel = -1 if linear else 1
        kept = kept_outputs(self._plan, name, shape[channel], _width(layer))
        target = Target(self._walk, node, kept.to(layer.weight.device), channel)
        halves, first = _NOTHING, 0
        for block, inputs in enumerate(self._walk.values[source][1]):
            goal = target.of(before[block], block)
            at = places.of(first, len(goal))
            x, t = inputs_at(layer, inputs, goal.shape, at), outputs_at(layer, goal, at)
            half = len(goal) // 2
            cut = half * at.shape[1]
            one = moments(halves[0], x[:, :cut], t[:, :cut], half)
            halves = one, moments(halves[1], x[:, cut:], t[:, cut:], len(goal) - half)
            first += len(goal)
        if not all(bool(v.isfinite().all()) for one in halves for v in one.sums.values()):
            raise DataError(
                f"rebuild: what {name!r} reads or should give is NaN or infinite on the reference "
                "samples; check these and the network"
            )
        return halves

    def _fit(self, node: fx.Node, halves: Halves) -> None:
        name = str(node.target)
        layer: Any = self._walk.small.modules[name]
        start, behind = matrix_of(layer), norm_behind(self._walk, node)
        norm: Any = self._walk.small.modules[behind] if behind else None
        offset = None
        if layer.bias is not None:
            offset = layer.bias.detach().view(len(start), -1)
        elif norm is not None:
            offset = start.new_zeros(start.shape[:2])
        free = _mask_matrix(layer, self._masks[name]) if name in self._masks else None
        strength = self._pull / (halves[0].samples + halves[1].samples)
        found = fit(halves, start, offset, strength, free)
        set_matrix(layer, found.matrix)
        self.changed.append(name)
        if layer.bias is not None and found.offset is not None:
            layer.bias.copy_(found.offset.flatten())
        elif behind is not None and found.offset is not None:
            norm.running_mean.sub_(found.offset.flatten().to(norm.running_mean))
            self.changed.append(behind)
        self.errors[name] = (found.before, found.after)


def _merged(one: Halves, other: Halves) -> Halves:
    return one[0].merge(other[0]), one[1].merge(other[1])


def _tied(modules: Mapping[str, nn.Module]) -> set[str]:
    """Name the modules that share a parameter with another one, which cannot be fitted alone."""
    owners: dict[int, list[str]] = {}
    for name, module in modules.items():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(name)
    return {name for names in owners.values() if len(names) > 1 for name in names}


def _width(layer: Any) -> int:
    return int(layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels)


def _mask_matrix(layer: Any, mask: Tensor) -> Tensor:
    """Order a mask as `matrix_of` orders the weight."""
    weight = layer.weight
    try:
        layer.weight = nn.Parameter(mask.to(weight), requires_grad=False)
        return matrix_of(layer) != 0
    finally:
        layer.weight = weight
