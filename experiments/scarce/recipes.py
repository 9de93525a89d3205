"""A way to prune in two halves: which units go, and what is done for those that stay.

Choices and repairs of different papers are combined here step by step, each under the same
conditions: seven steps, equal MACs after each, the same reference images.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import niwaki
from niwaki.criteria import Criterion, create, hidden_layers
from niwaki.data import Data, in_memory
from niwaki.evaluation import cost
from niwaki.pruning import (
    Comparison,
    Group,
    Member,
    Plan,
    Removal,
    Run,
    Schedule,
    Summary,
    Trajectory,
    accuracy_at,
    couple,
    operate,
    replay,
)

__all__ = [
    "BATCH",
    "SHARES",
    "Choose",
    "Recipe",
    "Repair",
    "Scene",
    "columns",
    "groups_of",
    "inputs_of",
    "kept",
    "matrix",
    "means",
    "profile",
    "ranked",
    "readers",
    "removals",
    "rows",
]

SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
BATCH = 50


@dataclass(frozen=True)
class Scene:
    """What a choice and a repair get to see.

    Attributes
    ----------
    original : nn.Module
        The unpruned network. Not to be changed.
    before : nn.Module
        The network as the step before has left it. Not to be changed.
    references : tuple of Tensor
        Images and labels.
    keep : float
        Share of the MACs of `before` that the step leaves.
    seed : int
        Of the draw.
    plan : Plan
        What is gone; once units are chosen, this step's are the last.
    smaller : nn.Module or None
        The network after the removal, which a repair changes in place.
    """

    original: nn.Module
    before: nn.Module
    references: tuple[Tensor, Tensor]
    keep: float
    seed: int
    plan: Plan
    smaller: nn.Module | None = None

    @property
    def example(self) -> Tensor:
        """Two inputs to trace with."""
        return self.references[0][:2]


Choose: TypeAlias = Callable[[Scene], Sequence[Removal]]
Repair: TypeAlias = Callable[[Scene], None]


@dataclass(frozen=True)
class Recipe:
    """A contender: a choice and a repair, step after step.

    Attributes
    ----------
    choose, repair : callable
        Each gets a `Scene`.
    """

    choose: Choose
    repair: Repair

    def __call__(self, model: nn.Module, references: Data, seed: int) -> Iterator[nn.Module]:
        """Prune a network; yields it after each step."""
        images, labels = in_memory(references)
        whole = cost(model, images[:1]).macs
        scene = Scene(model, copy.deepcopy(model), (images, labels), 1.0, seed, Plan())
        for share in SHARES:
            left = cost(scene.before, images[:1]).macs
            scene = replace(scene, keep=share * whole / left)
            found = list(self.choose(scene))
            smaller = copy.deepcopy(scene.before)
            operate(smaller, scene.example, found)
            scene = replace(scene, plan=scene.plan.with_step(found), smaller=smaller)
            self.repair(scene)
            yield smaller
            scene = replace(scene, before=smaller, smaller=None)


def ranked(
    scene: Scene, criterion: str | Criterion = "lrp", per_cost: float = 0.6, **options: Any
) -> tuple[Removal, ...]:
    """Choose by a criterion of niwaki, ranked over all layers."""
    made = create(criterion, **options)
    schedule, run = Schedule(steps=1, per_cost=per_cost), Run(batch_size=BATCH)
    pruned = niwaki.prune(
        scene.before,
        scene.references,
        made,
        keep=scene.keep,
        schedule=schedule,
        repair=None,
        run=run,
    )
    return pruned.plan.steps[0]


def means(found: Comparison) -> list[Summary]:
    """Return the mean accuracy over the seven steps of each contender, a number per draw.

    It is read at 90, 80, ... 30 % of the MACs; between the steps of who does others, interpolated.
    The unpruned network, which is the same for all, does not count. Without values where a run does
    not come so far.
    """
    return [
        Summary(label, references, tuple(mean for run in runs for mean in _mean(run.trajectory)))
        for label, references, runs in found.cells()
    ]


def _mean(trajectory: Trajectory) -> list[float]:
    try:
        return [sum(accuracy_at(trajectory, share) for share in SHARES) / len(SHARES)]
    except ValueError:
        return []


def groups_of(model: nn.Module, example: Tensor) -> Sequence[Group]:
    """List the groups of coupled units."""
    return couple(model, example, [layer.name for layer in hidden_layers(model, example[:1])])


def readers(model: nn.Module, group: Group) -> list[Member]:
    """List the convolutions and linear layers that read a group's units, but grouped ones."""
    return [m for m in group.members if not m.output and _is_plain(model.get_submodule(m.layer))]


def removals(groups: Sequence[Group], doomed: Sequence[Sequence[int]]) -> list[Removal]:
    """Write down which units of each group go, for all layers that lose outputs."""
    gone: dict[str, list[int]] = {}
    for group, units in zip(groups, doomed, strict=True):
        for member in group.members:
            if units and member.output and member.layer in group.layers:
                channels = (c for unit in units for c in member.channels[unit])
                gone.setdefault(member.layer, []).extend(channels)
    return [Removal(layer, tuple(sorted(channels))) for layer, channels in gone.items()]


def profile(model: nn.Module, group: Group) -> Tensor:
    """Return weights and norms of all that give a unit; of unit length for each tensor."""
    parts: list[Tensor] = []
    for member in group.members:
        if member.output:
            channels = torch.tensor(member.channels).flatten()
            for tensor in model.get_submodule(member.layer).parameters(recurse=False):
                values = tensor.detach()[channels].double().reshape(len(group), -1)
                parts.append(values / values.norm().clamp(min=1e-12))
    return torch.cat(parts, 1)


def kept(model: nn.Module, example: Tensor, plan: Plan) -> dict[str, tuple[Tensor, Tensor]]:
    """Tell which outputs and inputs each layer of a network keeps.

    The weights of a copy are numbered, and the plan is replayed on it.
    """
    numbered = copy.deepcopy(model)
    layers = {name: m for name, m in numbered.named_modules() if _is_plain(m)}
    width = {name: int(layer.weight.shape[1]) for name, layer in layers.items()}
    with torch.no_grad():
        for layer in layers.values():
            shape = layer.weight.shape
            numbers = torch.arange(shape[0] * shape[1])
            assert len(numbers) < 2**24  # whole in single precision
            numbers = numbers.view(*shape[:2], *(1,) * (len(shape) - 2))
            layer.weight.copy_(numbers.expand(shape))
    replay(numbered, example, plan)
    found = {}
    for name, layer in layers.items():
        weight = layer.weight.detach()
        left = weight.reshape(*weight.shape[:2], -1)[..., 0].long()
        found[name] = (left[:, 0] // width[name], left[0] % width[name])
    return found


def inputs_of(
    model: nn.Module, names: Sequence[str], images: Tensor
) -> Iterator[dict[str, Tensor]]:
    """Run a network batch by batch, and return what its layers read."""
    for some in images.split(BATCH):
        found: dict[str, Tensor] = {}
        layers = {name: model.get_submodule(name) for name in names}
        handles = [m.register_forward_pre_hook(_store(found, n)) for n, m in layers.items()]
        try:
            with torch.no_grad():
                model(some)
        finally:
            for handle in handles:
                handle.remove()
        yield found


def rows(layer: Any, inputs: Tensor) -> Tensor:
    """Return the patches that a layer reads, in double precision; shape (places, features)."""
    if isinstance(layer, nn.Linear):
        return inputs.flatten(0, -2).double()
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        raise ValueError(f"{layer}: only padding with zeros by a number is known here")
    patches = F.unfold(inputs, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    return patches.transpose(1, 2).flatten(0, 1).double()


def matrix(layer: Any) -> Tensor:
    """Return a layer's weight, features as `rows` orders them; shape (outputs, features)."""
    weight: Tensor = layer.weight.detach().flatten(1).double()
    return weight


def columns(layer: Any, channels: Sequence[int] | Tensor) -> Tensor:
    """Return the features that belong to input channels."""
    each = layer.weight[0, 0].numel()
    found: Tensor = (torch.as_tensor(channels)[:, None] * each + torch.arange(each)).flatten()
    return found


def _store(found: dict[str, Tensor], name: str) -> Callable[..., None]:
    def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        found[name] = args[0]

    return hook


def _is_plain(module: nn.Module) -> bool:
    """Whether every output of a layer reads every input."""
    if isinstance(module, nn.Conv2d):
        return module.groups == 1
    return isinstance(module, nn.Linear)
