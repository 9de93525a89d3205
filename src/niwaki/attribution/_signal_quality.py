"""How well a pattern, a weight or anything else tells a unit's signal from its distractor."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from niwaki.accumulation import Totals
from niwaki.attribution._pattern_statistics import CHUNK, LayerInputs, run
from niwaki.contexts import undisturbed
from niwaki.data import Data, batches
from niwaki.errors import ModelError
from niwaki.models import home
from niwaki.propagation import Operation
from niwaki.ranges import BATCH, FACTOR, ROUNDS, SEED, checked

__all__ = ["signal_quality"]

Estimates = (
    Mapping[str, Tensor]
    | tuple[Mapping[str, Tensor], Mapping[str, Tensor]]
    | Literal["weight", "identity", "random"]
)
SPLITS = ("fit", "held out")


@undisturbed
@checked(patches=ROUNDS, seed=SEED, ridge=FACTOR, batch_size=BATCH)
def signal_quality(
    model: nn.Module,
    data: Data,
    estimator: Estimates,
    *,
    patches: int = 64,
    seed: int = 0,
    ridge: float = 1e-6,
    batch_size: int = 32,
    layers: Collection[str] | None = None,
) -> dict[str, Tensor]:
    """Measure the quality rho of a signal estimator S for every unit (Kindermans et al. 2018).

    rho(S) = 1 - max_v corr(w^T x, v^T (x - S(x))): how little of a unit's output can be read off
    what the estimator leaves as distractor. From 0, all of it, to 1, nothing. The readout v is
    found on every other image and the correlation measured on those between.

    All estimators but the identity are S(x) = a w^T x with w^T a = 1. Patterns make rho 1 by
    construction, up to the difference between the data they were fitted on and these: those of
    ``"linear"`` alone, and those of ``"relu"`` and ``"negative"`` together, as the two-component
    estimator (a of the one where the unit is active behind its bias, of the other elsewhere). Half
    of that estimator alone is wrong on the other half of the data, and its rho is low.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode. It is read, never changed.
    data : DataLoader, Dataset or pair of tensors
        Images that the patterns were not fitted on; more than twice as many patches as a patch
        has values, else v fits noise and every estimator looks good. Labels are not used.
    estimator : Patterns, pair of Patterns, "weight", "identity" or "random"
        The directions a: by layer, in the shape of its weight; two such, for active and inactive
        units, where one stands in for the other if that is zero; the weight; the input itself; or
        drawn from a normal distribution. The identity leaves no distractor to read from. Its rho
        is 0, the limit of S(x) = (1 - t) x for t to 0: the slightest residual, t x, tells the
        output in full.
    patches : int
        How many patches of each image, drawn at random; all if there are fewer.
    seed : int
        Seed of the draw and of the random directions.
    ridge : float
        Added to the diagonal of the distractor's covariance, times the mean diagonal of that of
        the patches.
    batch_size : int
        Samples in a batch of a data set or tensors; a loader has its own.
    layers : collection of str, optional
        Names of the layers; default: those that the patterns have, or all. Memory grows
        with the square of a patch's size: choose, in large networks.

    Returns
    -------
    dict of str to Tensor
        By layer, one value per unit, in double precision: 0 for a unit whose direction is zero or
        orthogonal to its weight, NaN for one whose output does not vary.

    Raises
    ------
    ValueError
        For an estimator or a number of patches that makes no sense.
    ModelError
        For directions that do not fit the network.
    """
    if isinstance(estimator, str) and estimator not in ("weight", "identity", "random"):
        raise ValueError(f"estimator {estimator!r} is not one of 'weight', 'identity', 'random'")
    parts: Sequence[Mapping[str, Tensor]] = () if isinstance(estimator, str) else _pair(estimator)
    if layers is None and parts:
        layers = list(parts[0])
    generator = torch.Generator().manual_seed(seed)
    totals, weights = Totals(), dict[str, Tensor]()
    for inputs, _ in batches(data, batch_size, home(model), "measuring signal estimators"):
        moments = _Moments(layers, patches=patches, generator=generator, before=totals.samples)
        run(model, inputs, moments)
        totals = totals.update(moments.sums, len(inputs))
        weights = moments.weights
    weights = dict(reversed(weights.items()))  # they were met on the way back
    _check(parts, weights)
    if estimator == "identity":
        parts = _pair({name: torch.zeros_like(w) for name, w in weights.items()})
    elif estimator == "weight":
        parts = _pair(weights)
    elif estimator == "random":
        drawn = {
            name: torch.randn(w.shape, generator=generator, dtype=torch.float32)
            for name, w in weights.items()
        }
        parts = _pair(drawn)
    return {
        name: _rho(totals, name, weight, parts[0][name], parts[1][name], ridge)
        for name, weight in weights.items()
    }


def _pair(estimator: Any) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    return estimator if isinstance(estimator, tuple) else (estimator, estimator)


def _check(parts: Collection[Mapping[str, Tensor]], weights: Mapping[str, Tensor]) -> None:
    for part in parts:
        for name, weight in weights.items():
            if name not in part or part[name].shape != weight.shape:
                has = f"shape {tuple(part[name].shape)}" if name in part else "no pattern"
                raise ModelError(
                    f"the patterns are of another network: layer {name!r} has a weight of shape "
                    f"{tuple(weight.shape)} and {has}"
                )


@dataclass(frozen=True, eq=False)
class _Moments(LayerInputs):
    """First and second moments of patches, for even and odd images apart."""

    patches: int = 64
    generator: torch.Generator = field(default_factory=torch.Generator)
    before: int = 0  # images in earlier batches

    def read(
        self,
        operation: Operation,
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        shape: torch.Size,
    ) -> None:
        """See `LayerInputs.read`."""
        size = weight[0].numel()
        values = max(1, shape[1:].numel() // len(weight) * size * operation.groups)
        for offset, split in enumerate(SPLITS):
            chosen = inputs[(self.before + offset) % 2 :: 2]
            for part in torch.split(chosen, max(1, CHUNK // values)) if len(chosen) else ():
                found = _patches(operation, part, weight)  # (images, groups, size, positions)
                self._add(f"{operation.layer}/{split}", self._draw(found), weight, bias)

    def _add(self, name: str, drawn: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        drawn = drawn.double()
        y = weight.double().reshape(len(drawn), -1, drawn.shape[1]) @ drawn
        shift = 0 if bias is None else bias.double().view(len(drawn), -1, 1)
        active = y * (y + shift > 0)
        self.add(f"{name}/patches", drawn.new_tensor(drawn.shape[-1]))
        self.add(f"{name}/x", drawn.sum(-1))
        self.add(f"{name}/xx", drawn @ drawn.mT)
        self.add(f"{name}/active", active.sum(-1))
        self.add(f"{name}/active squared", active.square().sum(-1))
        self.add(f"{name}/x active", active @ drawn.mT)

    def _draw(self, found: Tensor) -> Tensor:
        """Keep some positions of each image; shape (groups, size, all that were kept)."""
        images, groups, size, positions = found.shape
        if positions > self.patches:
            order = torch.rand(
                images, positions, generator=self.generator, dtype=torch.float32
            ).argsort(1)
            index = order[:, None, None, : self.patches].to(found.device)
            found = found.gather(3, index.expand(-1, groups, size, -1))
        return found.permute(1, 2, 0, 3).flatten(2)


def _patches(operation: Operation, inputs: Tensor, weight: Tensor) -> Tensor:
    """Lay out the patches that a layer sees, by the layer itself with a weight for each value."""
    size = weight[0].numel()
    if operation.kind == "linear":
        return inputs.reshape(len(inputs), 1, -1, size).mT
    each = torch.eye(size, dtype=weight.dtype, device=weight.device).view(size, *weight.shape[1:])
    each = each.repeat(operation.groups, *[1] * (each.dim() - 1))
    output = operation.function((inputs,), each, None)
    return output.reshape(len(inputs), operation.groups, size, -1)


class _Second(NamedTuple):
    """Second moments, about the mean, of patches x and of the active and inactive part of y.

    With g groups, u units and i values: `x` (g, i, i), `x_above` and `x_below` (g, u, i), and for
    each unit `above`, `below` and `between` (g, u).
    """

    x: Tensor
    x_above: Tensor
    x_below: Tensor
    above: Tensor
    below: Tensor
    between: Tensor

    @classmethod
    def of(cls, totals: Totals, name: str, w: Tensor) -> _Second:
        patches, x, xx, y, yy, xy = (
            totals.sums[f"{name}/{what}"]
            for what in ("patches", "x", "xx", "active", "active squared", "x active")
        )
        mean, above = x / patches, y / patches
        below = (w @ mean[..., None]).squeeze(-1) - above
        second = xx / patches
        covariance = second - mean[:, :, None] * mean[:, None, :]
        x_above = xy / patches - above[..., None] * mean[:, None]
        return cls(
            covariance,
            x_above,
            w @ covariance - x_above,
            yy / patches - above.square(),
            (w @ second * w).sum(-1) - yy / patches - below.square(),
            -above * below,
        )


def _rho(
    totals: Totals, layer: str, weight: Tensor, above: Tensor, below: Tensor, ridge: float
) -> Tensor:
    """Compute the quality of one layer's units, see `signal_quality`."""
    groups, size = totals.sums[f"{layer}/{SPLITS[0]}/x"].shape
    w = weight.double().reshape(groups, -1, size)
    fit, held_out = (_Second.of(totals, f"{layer}/{split}", w) for split in SPLITS)
    a, b = _scaled(above.to(w).reshape(w.shape), below.to(w).reshape(w.shape), w)
    v = _readout(fit, w, a, b, ridge)

    # The readout v^T d is v^T x less the active and inactive part of y, times these:
    p, q = (v * a).sum(-1), (v * b).sum(-1)
    s = held_out
    variance = (
        (v @ s.x * v).sum(-1)
        + p**2 * s.above
        + q**2 * s.below
        + 2 * p * q * s.between
        - 2 * (p * (v * s.x_above).sum(-1) + q * (v * s.x_below).sum(-1))
    )
    both = (v * _with_output(s, a, b)).sum(-1)
    varies = s.above + s.below + 2 * s.between
    readable = variance > 1e-24 * varies  # else it is a constant
    correlation = both / (torch.where(readable, variance, 1) * varies).sqrt()
    rho = 1 - torch.where(readable, correlation, 0).clamp(0, 1)
    rho = torch.where(a.any(-1), rho, 0)
    return torch.where(varies > 0, rho, torch.nan).flatten().cpu()


def _scaled(above: Tensor, below: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Scale directions to w^T a = 1; one that is zero, or orthogonal to w, is as the other."""
    scaled = []
    for a in (above, below):
        product = (a * w).sum(-1, keepdim=True)
        sound = product.abs() > 1e-12 * a.norm(dim=-1, keepdim=True) * w.norm(dim=-1, keepdim=True)
        scaled.append(torch.where(sound, a / product, 0))
    a, b = scaled
    empty = [~part.any(-1, keepdim=True) for part in scaled]
    return torch.where(empty[0], b, a), torch.where(empty[1], a, b)


def _with_output(s: _Second, a: Tensor, b: Tensor) -> Tensor:
    """Covariance of each unit's distractor with its output."""
    above, below = s.above + s.between, s.below + s.between
    return s.x_above + s.x_below - a * above[..., None] - b * below[..., None]


def _readout(s: _Second, w: Tensor, a: Tensor, b: Tensor, ridge: float) -> Tensor:
    """Return the best v by least squares: the solution of cov[d, d] v = cov[d, y].

    The covariance of a unit's distractor is that of x, which all units share, and a correction of
    rank 4, so that Woodbury's identity solves it with one factorisation for all units. As w^T d is
    0, it is singular along w; adding w w^T there leaves the solution as it is.
    """
    scale = s.x.diagonal(dim1=1, dim2=2).mean(1).clamp(min=torch.finfo(w.dtype).tiny)
    damped = s.x + (ridge * scale)[:, None, None] * torch.eye(w.shape[-1]).to(w)
    unit = w / w.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(w.dtype).tiny)
    columns = torch.stack([s.x_above, s.x_below, a, b, unit], -2)  # (g, u, 5, i)
    target = _with_output(s, a, b)
    every = torch.cat([columns, target[..., None, :]], -2)
    factor = torch.linalg.cholesky(damped)
    solved = torch.cholesky_solve(every.flatten(1, 2).mT, factor).mT.reshape(every.shape)
    solved, rest = solved[..., :5, :], solved[..., 5, :]

    # The inverse of the 5 x 5 matrix between the columns.
    middle = w.new_zeros(*w.shape[:2], 5, 5)
    middle[..., 0, 0], middle[..., 1, 1] = -s.above, -s.below
    middle[..., 0, 1] = middle[..., 1, 0] = -s.between
    middle[..., [0, 1, 2, 3], [2, 3, 0, 1]] = -1
    middle[..., 4, 4] = (1 / scale)[:, None]
    inner = middle + columns @ solved.mT
    share, _ = torch.linalg.solve_ex(inner, columns @ rest[..., None])
    corrected: Tensor = rest - (share * solved).sum(-2)
    return corrected
