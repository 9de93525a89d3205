"""Layers fitted in closed form: a ridge regression that is pulled toward the weights there are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from niwaki.accumulation import Totals

__all__ = ["Fit", "fit", "moments"]

Sums: TypeAlias = Mapping[str, Tensor]

_NONE = 1e-9  # a pull that only decides where the rows do not
_CONSTANT = 1e-11  # share of the squared inputs below which their variance is rounding
_EXACT = 1e-9  # share of the targets' variance that rounding may leave
_TINY = 1e-300


@dataclass(frozen=True)
class Fit:
    """What a layer is to become.

    Attributes
    ----------
    matrix : Tensor
        Shape (groups, outputs, features), in double precision.
    offset : Tensor or None
        What its outputs are raised by, shape (groups, outputs); None where nothing can be.
    before, after : float
        Mean squared error of its outputs before and afterwards, as a share of their variance.
    """

    matrix: Tensor
    offset: Tensor | None
    before: float
    after: float


def moments(totals: Totals, inputs: Tensor, targets: Tensor, images: int) -> Totals:
    """Add rows of inputs and targets to the sums that a fit needs.

    Parameters
    ----------
    totals : Totals
        So far.
    inputs : Tensor
        Shape (groups, rows, features).
    targets : Tensor
        Shape (groups, rows, outputs).
    images : int
        That they come from.
    """
    x, t = inputs.double(), targets.double()
    return totals.update(
        {
            "rows": torch.tensor(x.shape[1], dtype=torch.float64, device=x.device),
            "x": x.sum(1),
            "t": t.sum(1),
            "xx": x.transpose(1, 2) @ x,
            "tx": t.transpose(1, 2) @ x,
            "tt": t.square().sum(1),
        },
        images,
    )


def fit(
    halves: tuple[Totals, Totals],
    start: Tensor,
    offset: Tensor | None,
    strength: float,
    free: Tensor | None = None,
) -> Fit:
    """Find the weights that bring a layer's outputs nearest to their targets.

    They minimise the squared error plus the squared distance from the weights there are, times
    `strength` and the mean diagonal of the Gram matrix. Where the layer has an offset, that is
    fitted too, and pulled nowhere. Outputs that can be met exactly are: where weights that are
    learnt from one half of the samples meet the other half. An output whose error would grow, by
    rounding, keeps its weights.

    Parameters
    ----------
    halves : pair of Totals
        From `moments`, of two halves of the samples.
    start : Tensor
        The weights there are, shape (groups, outputs, features).
    offset : Tensor or None
        What its outputs are raised by as it is, shape (groups, outputs); None where nothing can be.
    strength : float
        Of the pull.
    free : Tensor, optional
        Which weights may change, in the shape of `start`; the others stay as they are.
    """
    sums, w0 = halves[0].merge(halves[1]).sums, start.double()
    before = _miss(sums, w0, None if offset is None else offset.double())
    found = _fitted(sums, w0, offset is not None, max(strength, _NONE), free)
    met = _met_exactly(halves, w0, offset is not None, free)
    if bool(met.any()):
        exact = _fitted(sums, w0, offset is not None, _NONE, free)
        found = torch.where(met[..., None], exact, found)
    raised, kept = (_raised(sums, w) if offset is not None else None for w in (found, w0))
    worse = _miss(sums, found, raised) > _miss(sums, w0, kept)
    found = torch.where(worse[..., None], w0, found)
    raised = _raised(sums, found) if offset is not None else None
    whole = max(float(_spread(sums).sum()), _TINY)
    after = _miss(sums, found, raised)
    shares = [max(float(error.sum()), 0.0) / whole for error in (before, after)]
    return Fit(found, raised, *shares)


def _fitted(sums: Sums, w0: Tensor, raising: bool, strength: float, free: Tensor | None) -> Tensor:
    """Solve the regression; without a fitted offset around zero, else around the means."""
    gram, cross = sums["xx"], sums["tx"]
    if raising:
        mean = sums["x"] / sums["rows"]
        gram = gram - sums["rows"] * mean[:, :, None] * mean[:, None]
        cross = cross - sums["t"][..., None] * mean[:, None]
    around, raw = (m.diagonal(dim1=1, dim2=2).sum(1) for m in (gram, sums["xx"]))
    varies = (around > _CONSTANT * raw)[:, None, None]
    return w0 + _solved(gram, torch.where(varies, cross - w0 @ gram, 0), strength, free)


def _met_exactly(
    halves: tuple[Totals, Totals], w0: Tensor, raising: bool, free: Tensor | None
) -> Tensor:
    """Say which outputs the weights learnt from one half of the samples meet on the other half."""
    one, other = halves[0].sums, halves[1].sums
    if not (float(one["rows"]) and float(other["rows"])):
        return torch.zeros(w0.shape[:2], dtype=torch.bool, device=w0.device)
    learnt = _fitted(one, w0, raising, _NONE, free)
    missed = _miss(other, learnt, _raised(one, learnt) if raising else None)
    return missed < _EXACT * _spread(other)


def _spread(sums: Sums) -> Tensor:
    """Return the summed squares of each target around its mean."""
    return sums["tt"] - sums["t"].square() / sums["rows"]


def _raised(sums: Sums, weights: Tensor) -> Tensor:
    """Return the offset that is best beside given weights."""
    return _residuals(sums, weights) / sums["rows"]


def _miss(sums: Sums, weights: Tensor, offset: Tensor | None) -> Tensor:
    """Return the summed squared error of each output, from the sums alone."""
    missed = _error(sums["xx"], sums["tx"], sums["tt"], weights)
    if offset is None:
        return missed
    return missed + sums["rows"] * offset.square() - 2 * offset * _residuals(sums, weights)


def _residuals(sums: Sums, weights: Tensor) -> Tensor:
    """Sum over rows of what weights miss of the targets, for each output."""
    return sums["t"] - (weights @ sums["x"][..., None])[..., 0]


def _error(gram: Tensor, cross: Tensor, power: Tensor, weights: Tensor) -> Tensor:
    """Squared error of each output, from the sums alone."""
    return power - 2 * (weights * cross).sum(-1) + ((weights @ gram) * weights).sum(-1)


def _solved(gram: Tensor, wanted: Tensor, strength: float, free: Tensor | None) -> Tensor:
    """Solve ``change @ (gram + pull) = wanted``, over the weights that are free."""
    features = gram.shape[-1]
    pull = strength * gram.diagonal(dim1=1, dim2=2).mean(1)
    if not bool((pull > 0).any()):
        return torch.zeros_like(wanted)  # the inputs are zero everywhere
    ridge = pull[:, None, None] * torch.eye(features, dtype=gram.dtype, device=gram.device)
    if free is None:
        return _divided(gram + ridge, wanted.transpose(1, 2)).transpose(1, 2)
    return torch.stack(
        [
            _masked(one + r, w, f)
            for one, r, w, f in zip(gram, ridge, wanted, free.to(gram.device), strict=True)
        ]
    )


_BLOCK = 2**27  # bytes of the matrices that are solved at once


def _masked(gram: Tensor, wanted: Tensor, free: Tensor) -> Tensor:
    """Solve for each output over the features that are free in it, in blocks of outputs."""
    features = len(gram)
    each = max(1, _BLOCK // (8 * features**2))
    unit = torch.eye(features, dtype=gram.dtype, device=gram.device)
    parts = []
    for first in range(0, len(wanted), each):
        goal, mask = wanted[first : first + each], free[first : first + each].to(gram)
        matrices = gram * mask[:, :, None] * mask[:, None] + unit * (1 - mask)[:, :, None]
        parts.append(_divided(matrices, (goal * mask)[..., None])[..., 0])
    return torch.cat(parts)


def _divided(matrices: Tensor, right: Tensor) -> Tensor:
    """Solve symmetric systems: by Cholesky, or where rounding leaves none, by eigenvalues."""
    factors, failed = torch.linalg.cholesky_ex(matrices)
    found = torch.cholesky_solve(right, factors)
    for place in (failed != 0).nonzero()[:, 0].tolist():
        found[place] = torch.linalg.pinv(matrices[place], hermitian=True) @ right[place]
    return found
