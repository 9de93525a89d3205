"""Layers fitted in closed form: a ridge regression that is pulled toward the weights there are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from niwaki.accumulation import Totals

__all__ = ["Fit", "fit", "moments"]


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
    totals: Totals, start: Tensor, offset: Tensor | None, strength: float, free: Tensor | None
) -> Fit:
    """Find the weights that bring a layer's outputs nearest to their targets.

    They minimise the squared error plus the squared distance from the weights there are, weighted
    by `strength` times the mean diagonal of the Gram matrix. Where the layer has an offset, that is
    fitted too and is pulled nowhere. An output whose error would grow, by rounding, stays.

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
    free : Tensor or None
        Which weights may change, in the shape of `start`; the others stay as they are.
    """
    sums = totals.sums
    rows, w0 = sums["rows"], start.double()
    gram, cross, power = sums["xx"], sums["tx"], sums["tt"]
    spread = sums["tt"] - sums["t"].square() / rows
    start_error = _error(gram, cross, power, w0)
    if offset is not None:
        b0, mean = offset.double(), sums["x"] / rows
        far = rows * b0.square() - 2 * b0 * (sums["t"] - (w0 @ sums["x"][..., None])[..., 0])
        start_error = start_error + far
        gram = gram - rows * mean[:, :, None] * mean[:, None]
        cross = cross - sums["t"][..., None] * mean[:, None]
        power = spread
    wanted = cross - w0 @ gram
    change = _solved(gram, wanted, strength, free)
    found = w0 + change
    worse = _error(gram, cross, power, found) > _error(gram, cross, power, w0)
    found = torch.where(worse[..., None], w0, found)
    after = _error(gram, cross, power, found)
    raised = None
    if offset is not None:
        raised = (sums["t"] - (found @ sums["x"][..., None])[..., 0]) / rows
    whole = float(spread.sum())
    shares = [float(e.clamp(min=0).sum()) / whole if whole > 0 else 0.0 for e in (start_error, after)]
    return Fit(found, raised, *shares)


def _error(gram: Tensor, cross: Tensor, power: Tensor, weights: Tensor) -> Tensor:
    """Squared error of each output, from the sums alone."""
    return power - 2 * (weights * cross).sum(-1) + ((weights @ gram) * weights).sum(-1)


def _solved(gram: Tensor, wanted: Tensor, strength: float, free: Tensor | None) -> Tensor:
    """Solve ``change @ (gram + pull) = wanted``, over the weights that are free."""
    features = gram.shape[-1]
    pull = strength * gram.diagonal(dim1=1, dim2=2).mean(1)
    if not bool((pull > 0).any()):
        return torch.zeros_like(wanted)  # the inputs are constant: there is nothing to learn from
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
    for goal, mask in zip(wanted.split(each), free.to(gram).split(each), strict=True):
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
