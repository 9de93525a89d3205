"""Layers fitted in closed form: a ridge regression that is pulled toward the weights there are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from niwaki.accumulation import Totals

__all__ = ["Fit", "fit", "moments"]

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
    totals: Totals,
    start: Tensor,
    offset: Tensor | None,
    strength: float,
    free: Tensor | None = None,
) -> Fit:
    """Find the weights that bring a layer's outputs nearest to their targets.

    They minimise the squared error plus the squared distance from the weights there are, times
    `strength` and the mean diagonal of the Gram matrix. Where the layer has an offset, that is
    fitted too, and pulled nowhere. Outputs that some weights meet exactly get these. An output
    whose error would grow, by rounding, keeps its weights.

    Parameters
    ----------
    totals : Totals
        From `moments`.
    start : Tensor
        The weights there are, shape (groups, outputs, features).
    offset : Tensor or None
        What its outputs are raised by as it is, shape (groups, outputs); None where nothing can be.
    strength : float
        Of the pull.
    free : Tensor, optional
        Which weights may change, in the shape of `start`; the others stay as they are.
    """
    sums, w0 = totals.sums, start.double()
    rows = sums["rows"]
    gram, cross, power = sums["xx"], sums["tx"], sums["tt"]
    spread = power - sums["t"].square() / rows
    error_before = _error(gram, cross, power, w0)
    if offset is not None:
        b0, mean = offset.double(), sums["x"] / rows
        error_before += rows * b0.square() - 2 * b0 * _residuals(sums, w0)
        gram = gram - rows * mean[:, :, None] * mean[:, None]
        cross, power = cross - sums["t"][..., None] * mean[:, None], spread
    varies = gram.diagonal(dim1=1, dim2=2).sum(1) > _CONSTANT * sums["xx"].diagonal(
        dim1=1, dim2=2
    ).sum(1)
    wanted = torch.where(varies[:, None, None], cross - w0 @ gram, 0)
    found = w0 + _solved(gram, wanted, strength, free)
    if rows > gram.shape[-1]:  # fewer rows are met exactly by chance
        exact = w0 + _solved(gram, wanted, _NONE, free)
        met = _error(gram, cross, power, exact) < _EXACT * spread
        found = torch.where(met[..., None], exact, found)
    worse = _error(gram, cross, power, found) > _error(gram, cross, power, w0)
    found = torch.where(worse[..., None], w0, found)
    error_after = _error(gram, cross, power, found)
    whole = max(float(spread.sum()), _TINY)
    shares = [max(float(error.sum()), 0.0) / whole for error in (error_before, error_after)]
    raised = None if offset is None else _residuals(sums, found) / rows
    return Fit(found, raised, *shares)


def _residuals(sums: Mapping[str, Tensor], weights: Tensor) -> Tensor:
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
