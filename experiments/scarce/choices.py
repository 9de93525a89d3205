"""How others choose what goes, written from the formulas.

Those that choose within a layer leave its width to the user, or to a search of its own. Here every
layer loses the same share; or, where that is said, what it loses to `lrp` in the same step, which
is generous: the choice of widths is a good part of the merit. A unit that several layers read
(residual sums) is judged by all of them: gains and losses add up over the readers, each as a share
of the energy of what that reader should give.
Units that nothing plain reads (grouped convolutions) go by their order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from recipes import (
    Scene,
    columns,
    groups_of,
    inputs_of,
    kept,
    matrix,
    profile,
    ranked,
    readers,
    removals,
    rows,
)
from torch import Tensor, nn

from niwaki.accumulation import Totals
from niwaki.criteria import Criterion
from niwaki.propagation import Layer
from niwaki.pruning import Group, Removal

__all__ = ["Within", "asymmetric", "cluster", "lasso", "osscar_ranked", "osscar", "pivoted"]


@dataclass(frozen=True)
class Reader:
    """A layer that reads a group, with what least squares need to know.

    Attributes
    ----------
    gram : Tensor
        Of its patches X in the current network; shape (features, features).
    cross : Tensor
        ``T^T X``, T its outputs in the unpruned network (those that it still has).
    energy : float
        Of T.
    weight : Tensor
        Shape (outputs, features).
    blocks : Tensor
        The features of each unit, shape (units, features each).
    """

    gram: Tensor
    cross: Tensor
    energy: float
    weight: Tensor
    blocks: Tensor


#: Gets what reads a group, and how many units stay; tells which.
Order: TypeAlias = Callable[[Sequence[Reader], int], Sequence[int]]


@dataclass(frozen=True)
class Within:
    """A choice within layers.

    Attributes
    ----------
    stay : callable
        See `Order`.
    by_lrp : bool
        Whether layers get the widths that `lrp` chooses, or lose the same share.
    """

    stay: Order
    by_lrp: bool

    def __call__(self, scene: Scene) -> list[Removal]:
        """Choose."""
        groups, counts = _widths(scene, self.by_lrp)
        found, doomed = _moments(scene, groups), []
        for group, count in zip(groups, counts, strict=True):
            there = _readers(scene.before, group, found) if count else []
            alive: set[int] = set()
            if there:
                alive = set(self.stay(there, len(group) - count))
                assert len(alive) == len(group) - count
            elif count:
                alive = set(range(count, len(group)))
            doomed.append([u for u in range(len(group)) if u not in alive] if count else [])
        return removals(groups, doomed)


def asymmetric(there: Sequence[Reader], count: int) -> list[int]:
    """AsymInChange (El Halabi et al. 2022): greedily, what explains most of the whole network.

    A unit is added that most lowers ``min_V ||T - X_S V||^2``: inputs X of the pruned network, T of
    the unpruned one. Forward selection, the Gram matrix reduced by what is chosen already.
    """
    left = [(r.gram.clone(), r.cross.clone()) for r in there]
    alive = torch.zeros(len(there[0].blocks), dtype=torch.bool)
    for _ in range(count):
        gain = torch.zeros(len(alive)).double()
        for reader, (gram, cross) in zip(there, left, strict=True):
            inner = _ridged(_diagonal(gram, reader.blocks), reader.gram)
            part = cross[:, reader.blocks].transpose(0, 1)  # (units, outputs, each)
            explained = torch.linalg.solve(inner, part.transpose(1, 2)) * part.transpose(1, 2)
            gain += explained.sum((1, 2)) / max(reader.energy, 1e-300)
        gain[alive] = -1.0
        unit = int(gain.argmax())
        alive[unit] = True
        for place, reader in enumerate(there):
            left[place] = _reduced(*left[place], reader, unit)
    return alive.nonzero()[:, 0].tolist()


def osscar(there: Sequence[Reader], count: int) -> list[int]:
    """OSSCAR (2024): go backwards, each time the unit of the smallest rebuilt error.

    ``1/2 tr(W_u^T (H^-1_uu)^-1 W_u)``, weights and ``H^-1`` updated after each. Greedy, without
    the local search by swaps that the authors add.
    """
    state = [(r.weight.clone(), _inverse(r)) for r in there]
    alive = torch.ones(len(there[0].blocks), dtype=torch.bool)
    while int(alive.sum()) > count:
        loss = sum(_harm(r, w, h) for r, (w, h) in zip(there, state, strict=True))
        assert isinstance(loss, Tensor)
        loss[~alive] = float("inf")
        unit = int(loss.argmin())
        alive[unit] = False
        for place, (reader, (weight, inverse)) in enumerate(zip(there, state, strict=True)):
            at = reader.blocks[unit]
            solved = torch.linalg.solve(inverse[at][:, at], inverse[at])  # (each, features)
            state[place] = weight - weight[:, at] @ solved, inverse - inverse[:, at] @ solved
            state[place][1][at, at] += 1.0  # it is gone: what its block holds no longer counts
    return alive.nonzero()[:, 0].tolist()


def lasso(there: Sequence[Reader], count: int) -> list[int]:
    """Channel pruning (He et al. 2017): the channels that a LASSO leaves.

    ``min_beta ||T - sum_i beta_i X_i W_i||^2 / 2 + lambda |beta|_1``, lambda raised until no more
    than `count` coefficients are left; those that are missing then come by their last order.
    """
    units = len(there[0].blocks)
    gram, goal = torch.zeros(units, units).double(), torch.zeros(units).double()
    for reader in there:
        size = max(reader.energy, 1e-300)
        for unit, at in enumerate(reader.blocks):
            shares = (reader.weight[:, at] @ reader.gram[at]) * reader.weight
            gram[unit] += shares[:, reader.blocks.flatten()].sum(0).view(units, -1).sum(1) / size
        goal += (reader.cross * reader.weight).sum(0)[reader.blocks].sum(1) / size
    low, high, beta, last = 0.0, float(goal.abs().max()), torch.ones(units).double(), goal
    for _ in range(40):
        strength = (low + high) / 2
        beta = _lasso(gram, goal, strength, beta)
        left = int((beta != 0).sum())
        low, high = (strength, high) if left > count else (low, strength)
        if left >= count:
            last = beta.clone()
        if left == count:
            break
    return last.abs().topk(count).indices.tolist()


def pivoted(there: Sequence[Reader], count: int) -> list[int]:
    """Interpolative decomposition (Chee et al. 2022): pivots of a QR of the activations.

    The channel that the chosen ones explain least comes next.
    """
    # Channel by channel: the sum over all places in the kernel.
    grams = [torch.stack([r.gram[at][:, at] for at in r.blocks.T]).sum(0) for r in there]
    grams = [gram / gram.diagonal().sum().clamp(min=1e-300) for gram in grams]
    chosen: list[int] = []
    for _ in range(count):
        size = torch.stack([gram.diagonal() for gram in grams]).sum(0)
        size[chosen] = -1.0
        unit = int(size.argmax())
        chosen.append(unit)
        grams = [
            g - g[:, unit, None] * g[unit] / g[unit, unit] if g[unit, unit] > 1e-12 else g
            for g in grams
        ]
    return chosen


def cluster(scene: Scene) -> list[Removal]:
    """Model folding (2025): k-means over the weights of all layers that give a unit.

    The unit nearest to the centre stands for its cluster. Without data; every layer loses the same
    share, as in the paper.
    """
    groups, counts = _widths(scene, by_lrp=False)
    doomed: list[list[int]] = []
    for group, count in zip(groups, counts, strict=True):
        points, keep = profile(scene.before, group), len(group) - count
        stay = _representatives(points, keep, scene.seed) if count else range(len(group))
        doomed.append(sorted(set(range(len(group))) - set(stay)))
    return removals(groups, doomed)


def osscar_ranked(scene: Scene) -> tuple[Removal, ...]:
    """OSSCAR's saliency as a criterion: ranked over all layers, per cost as `lrp` is by default."""
    groups = groups_of(scene.before, scene.example)
    found, scores = _moments(scene, groups), {}
    for group in groups:
        there = _readers(scene.before, group, found)
        harm = sum(_harm(r, r.weight, _inverse(r)) for r in there)
        values = scores.setdefault(group.root, _no_scores(scene.before, group))
        for unit, channels in enumerate(group.units):
            values[channels[0]] = harm[unit] if isinstance(harm, Tensor) else float("inf")
    return ranked(scene, Given(scores))


class Given(Criterion):
    """Scores that are known already; zeros for other layers, as these go with others."""

    name = "given"
    needs_data = False

    def __init__(self, values: dict[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def scores(
        self, totals: Totals, layers: Sequence[Layer], model: nn.Module
    ) -> dict[str, Tensor]:
        """See `Criterion.scores`."""
        return {
            layer.name: self.values.get(layer.name, torch.zeros(layer.units).double())
            for layer in layers
        }


def _widths(scene: Scene, by_lrp: bool) -> tuple[Sequence[Group], list[int]]:
    """Return the groups of a network, and how many units of each go."""
    groups = groups_of(scene.before, scene.example)
    found = ranked(scene, "lrp") if by_lrp else ranked(scene, Given(_shares(scene, groups)), 0.0)
    gone = {removal.layer: set(removal.channels) for removal in found}
    counts = [
        sum(set(channels) <= gone.get(group.root, set()) for channels in group.units)
        for group in groups
    ]
    return groups, counts


def _shares(scene: Scene, groups: Sequence[Group]) -> dict[str, Tensor]:
    """Score units by the share of its group that is gone with it, so that groups lose alike."""
    whole = {g.root: len(g) for g in groups_of(scene.original, scene.example)}
    scores: dict[str, Tensor] = {}
    for group in groups:
        values = scores.setdefault(group.root, _no_scores(scene.before, group))
        lost = 1 - len(group) / whole[group.root]
        for unit, channels in enumerate(group.units):
            values[channels[0]] = lost + (unit + 1) / whole[group.root]
    return scores


def _no_scores(model: nn.Module, group: Group) -> Tensor:
    return torch.zeros(int(model.get_submodule(group.root).weight.shape[0])).double()


def _moments(scene: Scene, groups: Sequence[Group]) -> dict[str, tuple[Tensor, Tensor, float]]:
    """Return Gram matrix, cross moments and energy of all layers that read groups."""
    names = list(dict.fromkeys(m.layer for g in groups for m in readers(scene.before, g)))
    stays = kept(scene.original, scene.example, scene.plan)
    found: dict[str, tuple[Tensor, Tensor, float]] = {}
    images = scene.references[0]
    networks = (scene.before, scene.original)
    for now, then in zip(*(inputs_of(n, names, images) for n in networks), strict=True):
        for name in names:
            layer: Any = scene.original.get_submodule(name)
            x = rows(scene.before.get_submodule(name), now[name])
            target = rows(layer, then[name]) @ matrix(layer)[stays[name][0]].T
            gram, cross, energy = found.get(name, (0.0, 0.0, 0.0))
            found[name] = (
                gram + x.T @ x,
                cross + target.T @ x,
                energy + float(target.square().sum()),
            )
    return found


def _readers(
    model: nn.Module, group: Group, found: dict[str, tuple[Tensor, Tensor, float]]
) -> list[Reader]:
    there = []
    for member in readers(model, group):
        layer: Any = model.get_submodule(member.layer)
        blocks = torch.stack([columns(layer, channels) for channels in member.channels])
        there.append(Reader(*found[member.layer], matrix(layer), blocks))
    return there


def _diagonal(square: Tensor, blocks: Tensor) -> Tensor:
    """Return the blocks of a matrix that belong to one unit each; shape (units, each, each)."""
    return square[blocks[:, :, None], blocks[:, None]]


def _ridged(inner: Tensor, gram: Tensor, share: float = 1e-6) -> Tensor:
    size = share * gram.diagonal().mean().clamp(min=1e-300)
    return inner + size * torch.eye(inner.shape[-1]).double()


def _reduced(gram: Tensor, cross: Tensor, reader: Reader, unit: int) -> tuple[Tensor, Tensor]:
    """Take out of moments what a unit explains."""
    at = reader.blocks[unit]
    inner = _ridged(gram[at][:, at], reader.gram)
    solved = torch.linalg.solve(inner, gram[at])
    return gram - gram[:, at] @ solved, cross - cross[:, at] @ solved


def _inverse(reader: Reader) -> Tensor:
    return torch.linalg.inv(_ridged(reader.gram, reader.gram, 1e-2))


def _harm(reader: Reader, weight: Tensor, inverse: Tensor) -> Tensor:
    """Return OSSCAR's saliency of each unit, as a share of the energy."""
    part = weight[:, reader.blocks].permute(1, 2, 0)  # (units, each, outputs)
    inner = _diagonal(inverse, reader.blocks)
    harm = (torch.linalg.solve(inner, part) * part).sum((1, 2)) / 2
    return harm / max(reader.energy, 1e-300)


def _lasso(gram: Tensor, goal: Tensor, strength: float, beta: Tensor) -> Tensor:
    """Coordinate descent from a start."""
    beta = beta.clone()
    for _ in range(200):
        before = beta.clone()
        for i in range(len(beta)):
            if gram[i, i] <= 0:
                beta[i] = 0.0
                continue
            rest = goal[i] - gram[i] @ beta + gram[i, i] * beta[i]
            beta[i] = rest.sign() * (rest.abs() - strength).clamp(min=0) / gram[i, i]
        if float((beta - before).abs().max()) < 1e-6:
            break
    return beta


def _representatives(points: Tensor, count: int, seed: int) -> list[int]:
    """k-means (k-means++ starts); the point nearest to each centre, no two the same."""
    generator = torch.Generator().manual_seed(seed)
    best: tuple[float, Tensor] = (float("inf"), points[:count])
    for _ in range(5):
        centres = points[torch.randint(len(points), (1,), generator=generator)]
        while len(centres) < count:
            apart = torch.cdist(points, centres).min(1).values.square() + 1e-12
            new = torch.multinomial(apart, 1, generator=generator)
            centres = torch.cat([centres, points[new]])
        for _ in range(50):
            nearest = torch.cdist(points, centres).argmin(1)
            member = torch.nn.functional.one_hot(nearest, count).double()
            sizes = member.sum(0)[:, None]
            centres = torch.where(sizes > 0, member.T @ points / sizes.clamp(min=1), centres)
        loss = float(torch.cdist(points, centres).min(1).values.square().sum())
        if loss < best[0]:
            best = loss, centres
    apart = torch.cdist(best[1], points)
    chosen: list[int] = []
    for row in apart:
        row[chosen] = float("inf")
        chosen.append(int(row.argmin()))
    return chosen
