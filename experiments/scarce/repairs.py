"""What others do for a pruned network without training, written from the formulas.

X are a layer's input patches on the reference images, G their Gram matrix, K the inputs that stay
and S those that go. Repairs that add up errors if they are repeated start in each step from the
unpruned network and all that is gone so far. Layers in which not every output reads every input
(grouped and depthwise convolutions) are left as they are by all but `rebuild`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from recipes import (
    Scene,
    columns,
    groups_of,
    inputs_of,
    kept,
    matrix,
    profile,
    readers,
    rows,
)
from torch import Tensor, nn

from niwaki.pruning import Group, compensate, rebuild, recalibrate, replay

__all__ = [
    "compensated",
    "folded",
    "grail",
    "interpolated",
    "least_squares",
    "merged",
    "none",
    "osscar",
    "osscar_recalibrated",
    "rebuilt",
    "rebuilt_jointly",
    "recalibrated",
    "symmetric",
]


def none(scene: Scene) -> None:
    """Leave the network as it is."""


def recalibrated(scene: Scene) -> None:
    """Measure batch norms anew: REPAIR (Jordan et al. 2022)."""
    recalibrate(_smaller(scene), scene.references)


def rebuilt(scene: Scene) -> None:
    """Rebuild each layer by itself."""
    rebuild(_smaller(scene), scene.original, scene.references, scene.plan)


def rebuilt_jointly(scene: Scene) -> None:
    """Rebuild as niwaki does by default: layers together with those that feed them alone."""
    rebuild(_smaller(scene), scene.original, scene.references, scene.plan, jointly=True)


def least_squares(scene: Scene) -> None:
    """Fit layers as He et al. (2017) do: targets of the whole network, inputs of the pruned one.

    Without the pull toward the weights there are (1 % of one sample decides where rows do not).
    The bias is fitted as well, and a residual branch aims at the sum, as in the paper.
    """
    rebuild(_smaller(scene), scene.original, scene.references, scene.plan, pull=0.01)


def compensated(scene: Scene) -> None:
    """Fold the mean of what goes into the biases behind it."""
    before = copy.deepcopy(scene.before)
    compensate(before, scene.example, scene.plan.steps[-1], scene.references)
    replay(before, scene.example, type(scene.plan)((scene.plan.steps[-1],)))
    _smaller(scene).load_state_dict(before.state_dict())


def grail(scene: Scene) -> None:
    """GRAIL (2026): removed channels as linear combinations of those that stay; recalibrated.

    ``B = G[:, K] (G_KK + lambda I)^-1``, G the Gram matrix of the channels that a layer reads in
    the unpruned network, lambda a thousandth of its mean diagonal; the layer's weights become
    ``W B``. Each reader of coupled channels has a Gram matrix of its own.
    """
    _mix(scene, lambda layer, x, stay: _channels_from_others(layer, x, stay, 1e-3))
    recalibrate(_smaller(scene), scene.references)


def interpolated(scene: Scene) -> None:
    """Interpolative decomposition (Chee et al. 2022): channels by least squares from the others.

    ``T = [I, R11^-1 R12]`` of the pivoted QR of activations is, once it is known which channels
    stay, GRAIL's B without its ridge.
    """
    _mix(scene, lambda layer, x, stay: _channels_from_others(layer, x, stay, 0.0))


def symmetric(scene: Scene) -> None:
    """Fit layers with inputs and targets of the unpruned network: ``W G[:, K] G_KK^-1``.

    Unlike GRAIL, with one weight for every place in the kernel.
    """

    def mixing(layer: Any, x: Tensor, stay: Tensor) -> Tensor:
        patches = rows(layer, x)
        return _from_others(patches.T @ patches, columns(layer, stay), 1e-6)

    _mix(scene, mixing)


def osscar(scene: Scene) -> None:
    """OSSCAR's update (2024): ``W -= H^-1[:, S] (H^-1_SS)^-1 W_S``, in the current network.

    ``H = X^T X + lambda I``, lambda a hundredth of its mean diagonal, X from the network before
    the step. All layers that read what goes are updated, also readers of a residual sum.
    """
    last = type(scene.plan)((scene.plan.steps[-1],))
    before, smaller = scene.before, _smaller(scene)
    stays = kept(before, scene.example, last)
    losing = [n for n, (_, k) in stays.items() if len(k) < before.get_submodule(n).weight.shape[1]]
    grams: dict[str, Tensor] = {}
    for found in inputs_of(before, losing, scene.references[0]):
        for name, x in found.items():
            patches = rows(before.get_submodule(name), x)
            grams[name] = grams.get(name, 0) + patches.T @ patches
    for name in losing:
        layer: Any = before.get_submodule(name)
        outputs, inputs = stays[name]
        stay = columns(layer, inputs)
        gone = torch.ones(len(grams[name]), dtype=torch.bool)
        gone[stay] = False
        weight, inverse = matrix(layer), torch.linalg.inv(_ridged(grams[name], 1e-2))
        block = torch.linalg.solve(inverse[gone][:, gone], weight[:, gone].T)
        weight = weight - (inverse[:, gone] @ block).T
        _write(smaller, name, weight[outputs][:, stay])


def osscar_recalibrated(scene: Scene) -> None:
    """OSSCAR's update, then batch norms measured anew."""
    osscar(scene)
    recalibrate(_smaller(scene), scene.references)


def merged(scene: Scene) -> None:
    """Neuron merging (Kim et al. 2020): a removed filter is a multiple of the most similar one.

    Distance: .85 times one minus the cosine of the filters, plus .15 times what the batch norms
    leave between the two as a constant, each divided by its largest value. Known for a chain of
    a layer, a norm and a ReLU: units that several layers give (residual sums) are not merged.
    """

    def mixing(network: nn.Module, group: Group, stay: Tensor) -> Tensor:
        producers = [m for m in group.members if m.output and m.layer in group.layers]
        if len(producers) > 1:
            return torch.eye(len(group)).double()[:, stay]
        return _most_similar(*_filters(network, group), stay)

    _mix_units(scene, mixing)


def folded(scene: Scene) -> None:
    """Model folding (2025): a removed unit joins the nearest that stays; recalibrated.

    Units are compared by the weights and norms of all layers that give them, of unit length in
    each. Within a cluster these are averaged, and the readers' weights are summed. In place of the
    paper's correction of the variance from weights, batch norms are measured on the references,
    which the authors report as the better one.
    """

    def mixing(network: nn.Module, group: Group, stay: Tensor) -> Tensor:
        points = profile(network, group)
        nearest = torch.cdist(points, points[stay]).argmin(1)
        nearest[stay] = torch.arange(len(stay))
        return nn.functional.one_hot(nearest, len(stay)).double()

    _mix_units(scene, mixing, average=True)
    recalibrate(_smaller(scene), scene.references)


def _smaller(scene: Scene) -> nn.Module:
    assert scene.smaller is not None
    return scene.smaller


def _ridged(gram: Tensor, share: float) -> Tensor:
    return gram + share * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)


def _from_others(gram: Tensor, stay: Tensor, ridge: float) -> Tensor:
    """All features as linear combinations of those that stay; shape (all, stay)."""
    inner = gram[stay][:, stay]
    if ridge:
        return torch.linalg.solve(_ridged(inner, ridge), gram[stay]).T
    return gram[:, stay] @ torch.linalg.pinv(inner, hermitian=True, rtol=1e-10)


def _channels_from_others(layer: Any, x: Tensor, stay: Tensor, ridge: float) -> Tensor:
    """Likewise by channels, whatever their place in the kernel."""
    values = (x if isinstance(layer, nn.Linear) else x.movedim(1, -1)).flatten(0, -2).double()
    mixing = _from_others(values.T @ values, stay, ridge)
    return torch.kron(mixing, torch.eye(layer.weight[0, 0].numel()).double())


def _write(network: nn.Module, name: str, weight: Tensor) -> None:
    layer: Any = network.get_submodule(name)
    with torch.no_grad():
        layer.weight.copy_(weight.reshape(layer.weight.shape))


def _afresh(scene: Scene) -> nn.Module:
    """The unpruned network without all that is gone so far."""
    network = copy.deepcopy(scene.original)
    replay(network, scene.example, scene.plan)
    return network


def _mix(scene: Scene, mixing: Callable[[Any, Tensor, Tensor], Tensor]) -> None:
    """Let each reader of removed inputs take them from the others; by the inputs it reads.

    `mixing` gets the unpruned layer, what it reads, and the inputs that stay; it returns a matrix
    of all features by those that stay.
    """
    network, stays = _afresh(scene), kept(scene.original, scene.example, scene.plan)
    whole = scene.original
    losing = [n for n, (_, k) in stays.items() if len(k) < whole.get_submodule(n).weight.shape[1]]
    parts = [found for found in inputs_of(whole, losing, scene.references[0])]
    for name in losing:
        layer: Any = whole.get_submodule(name)
        outputs, inputs = stays[name]
        found = mixing(layer, torch.cat([part[name] for part in parts]), inputs)
        _write(network, name, matrix(layer)[outputs] @ found)
    _smaller(scene).load_state_dict(network.state_dict())


def _mix_units(
    scene: Scene, mixing: Callable[[nn.Module, Group, Tensor], Tensor], average: bool = False
) -> None:
    """Let each reader take removed units from those that stay, by the weights that give them."""
    whole, network = copy.deepcopy(scene.original), _afresh(scene)
    stays = kept(whole, scene.example, scene.plan)
    maps: dict[str, Tensor] = {}  # reader to a matrix of all inputs by all inputs
    for group in groups_of(whole, scene.example):
        root = group.layers[0]
        there = next(m for m in group.members if m.output and m.layer == root).channels
        alive = set(stays[root][0].tolist())
        stay = torch.tensor([u for u in range(len(group)) if alive.issuperset(there[u])])
        found = mixing(scene.original, group, stay)
        for member in readers(whole, group):
            width = whole.get_submodule(member.layer).weight.shape[1]
            full = maps.setdefault(member.layer, torch.eye(width).double())
            channels = torch.tensor(member.channels)  # (units, each)
            for place in range(channels.shape[1]):
                at = channels[:, place]
                full[at[:, None], at[stay]] = found
        if average:
            _average(whole, group, found)
    averaged = copy.deepcopy(whole)
    replay(averaged, scene.example, scene.plan)
    network.load_state_dict(averaged.state_dict())
    for name, full in maps.items():
        layer: Any = whole.get_submodule(name)
        outputs, inputs = stays[name]
        wide = torch.kron(full[:, inputs], torch.eye(layer.weight[0, 0].numel()).double())
        _write(network, name, matrix(layer)[outputs] @ wide)
    _smaller(scene).load_state_dict(network.state_dict())


def _average(network: nn.Module, group: Group, member_of: Tensor) -> None:
    """Give all units of a cluster the mean of their weights, biases and norms, in place."""
    same = member_of @ member_of.T
    mean = same / same.sum(1, keepdim=True)
    with torch.no_grad():
        for member in group.members:
            if not member.output:
                continue
            module = network.get_submodule(member.layer)
            channels = torch.tensor(member.channels)
            tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
            for tensor in tensors:
                if tensor.dim() and tensor.is_floating_point():
                    for place in range(channels.shape[1]):
                        at = channels[:, place]
                        values = mean @ tensor[at].reshape(len(at), -1).double()
                        tensor[at] = values.view_as(tensor[at]).to(tensor)


def _filters(network: nn.Module, group: Group) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return weights, and scale, shift, mean and deviation of the norm of a group's one producer.

    Without a norm, its bias is the shift.
    """
    layer: Any = network.get_submodule(group.layers[0])
    norms = [
        module
        for m in group.members
        if m.output and isinstance(module := network.get_submodule(m.layer), nn.BatchNorm2d)
    ]
    units = torch.tensor(
        next(m for m in group.members if m.output and m.layer == group.layers[0]).channels
    )[:, 0]
    one, zero = torch.ones(len(units)).double(), torch.zeros(len(units)).double()
    bias = zero if layer.bias is None else layer.bias.detach()[units].double()
    if not norms:
        return matrix(layer)[units], one, bias, zero, one
    norm: Any = norms[0]
    deviation = (norm.running_var + norm.eps).sqrt()[units].double()
    mean = norm.running_mean[units].double() - bias
    scale, shift = (t.detach()[units].double() for t in (norm.weight, norm.bias))
    return matrix(layer)[units], scale, shift, mean, deviation


def _most_similar(
    weight: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, deviation: Tensor, stay: Tensor
) -> Tensor:
    """The matrix of neuron merging: units as multiples of the most similar one that stays."""
    length = weight.norm(dim=1).clamp(min=1e-12)
    apart = 1 - (weight @ weight[stay].T) / (length[:, None] * length[stay])
    slope = scale / deviation
    ratio = length[:, None] / length[stay]
    factor = ratio * slope[:, None] / slope[stay]
    offset = shift - slope * mean  # of a unit whose filter gives zero
    constant = (offset[:, None] - factor * offset[stay]).abs() / factor.abs().clamp(min=1e-12)
    distance = 0.85 * apart / apart.max() + 0.15 * constant / constant.max().clamp(min=1e-12)
    distance = torch.where(factor > 0, distance, float("inf"))  # a ReLU keeps positive factors
    best = distance.argmin(1)
    found = torch.zeros_like(distance)
    fits = distance.min(1).values < float("inf")
    found[fits, best[fits]] = factor[fits, best[fits]]
    found[stay] = torch.eye(len(stay)).double()
    return found
