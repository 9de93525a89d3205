"""Layers fitted in closed form: a ridge regression that is pulled toward the weights there are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from niwaki.accumulation import Totals

__all__ = ["EXACT", "TINY", "Fit", "Regression", "aims", "fit", "moments", "spread"]

Sums: TypeAlias = Mapping[str, Tensor]

_NONE = 1e-9  # a pull that only decides where the rows do not
_CONSTANT = 1e-11  # share of the squared inputs below which their variance is rounding
EXACT = 1e-9  # share of the targets' variance that rounding may leave
TINY = 1e-300


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

    def cpu(self) -> Fit:
        """Return it on the CPU, for another process."""
        offset = None if self.offset is None else self.offset.cpu()
        return replace(self, matrix=self.matrix.cpu(), offset=offset)


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
        Number of images that they come from.
    """
    x, t = inputs.double(), targets.double()
    read = {
        "rows": torch.tensor(x.shape[1], dtype=torch.float64, device=x.device),
        "x": x.sum(1),
        "xx": x.transpose(1, 2) @ x,
    }
    return totals.update({**read, **aims(x, t)}, images)


def aims(inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Return those of the sums in which the targets stand, as precise as these are."""
    return {
        "t": targets.sum(1),
        "tx": targets.transpose(1, 2) @ inputs,
        "tt": targets.square().sum(1),
    }


class Regression:
    """The weights that are nearest to targets, for any targets of the same inputs.

    Without a fitted offset it is around zero, else around the means.

    Parameters
    ----------
    sums : mapping of str to Tensor
        From `moments`.
    start : Tensor
        Where the pull goes to, shape (groups, outputs, features), in double precision.
    raising : bool
        Whether an offset is fitted as well.
    strength : float
        Strength of the pull.
    free : Tensor, optional
        The weights that may change.
    """

    def __init__(
        self, sums: Sums, start: Tensor, raising: bool, strength: float, free: Tensor | None = None
    ) -> None:
        self.sums, self.start = sums, start.double()
        self._raising, self._free = raising, free
        self._gram = gram = sums["xx"]
        self._mean = sums["x"] / sums["rows"]
        if raising:
            self._gram = gram - sums["rows"] * self._mean[:, :, None] * self._mean[:, None]
        around, raw = (m.diagonal(dim1=1, dim2=2).sum(1) for m in (self._gram, gram))
        self._varies = (around > _CONSTANT * raw)[:, None, None]
        pull = max(strength, _NONE) * self._gram.diagonal(dim1=1, dim2=2).mean(1)
        self._constant = not bool((pull > 0).any())  # the inputs are zero everywhere
        unit = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        self._pulled = self._gram + pull[:, None, None] * unit
        self._factors = None if free is not None else torch.linalg.cholesky_ex(self._pulled)

    def weights(self, targets: Sums) -> Tensor:
        """Return the weights for the targets of which these are the sums; see `aims`."""
        if self._constant:
            return self.start
        cross = targets["tx"]
        if self._raising:
            cross = cross - targets["t"][..., None] * self._mean[:, None]
        wanted = torch.where(self._varies, cross - self.start @ self._gram, 0)
        if self._free is None:
            change = _divided(self._pulled, wanted.transpose(1, 2), self._factors).transpose(1, 2)
        else:
            parts = zip(self._pulled, wanted, self._free.to(wanted.device), strict=True)
            change = torch.stack([_masked(*part) for part in parts])
        return self.start + change

    def offset(self, targets: Sums, weights: Tensor) -> Tensor | None:
        """Return the offset that is best beside given weights; None where none is fitted."""
        if not self._raising:
            return None
        return _residuals({**self.sums, **targets}, weights) / self.sums["rows"]

    def unpulled(self, sums: Sums) -> Regression:
        """Return the same over other sums, with a pull that only decides where rows do not."""
        return Regression(sums, self.start, self._raising, _NONE, self._free)


def fit(regression: Regression, halves: tuple[Totals, Totals], offset: Tensor | None) -> Fit:
    """Find the weights that bring a layer's outputs nearest to their targets.

    They minimise the squared error plus the squared distance from the weights there are, times the
    strength of the pull and the mean diagonal of the Gram matrix. Where the layer has an offset,
    that is fitted too, and pulled nowhere. Outputs that can be met exactly are: where weights that
    are learnt from one half of the samples meet the other half. An output whose error would grow,
    by rounding, keeps its weights.

    Parameters
    ----------
    regression : Regression
        Over all samples.
    halves : pair of Totals
        From `moments`, of two halves of the samples.
    offset : Tensor or None
        What its outputs are raised by as it is, shape (groups, outputs); None where nothing can be.
    """
    sums, w0 = regression.sums, regression.start
    before = _miss(sums, w0, None if offset is None else offset.double())
    found = regression.weights(sums)
    met = _met_exactly(halves, regression)
    if bool(met.any()):
        found = torch.where(met[..., None], regression.unpulled(sums).weights(sums), found)
    raised, kept = (regression.offset(sums, w) for w in (found, w0))
    worse = _miss(sums, found, raised) > _miss(sums, w0, kept)
    found = torch.where(worse[..., None], w0, found)
    raised = regression.offset(sums, found)
    whole = max(float(spread(sums).sum()), TINY)
    after = _miss(sums, found, raised)
    shares = [max(float(error.sum()), 0.0) / whole for error in (before, after)]
    return Fit(found, raised, *shares)


def _met_exactly(halves: tuple[Totals, Totals], regression: Regression) -> Tensor:
    """Say which outputs the weights learnt from one half of the samples meet on the other half."""
    one, other = halves[0].sums, halves[1].sums
    if not (float(one["rows"]) and float(other["rows"])):
        w0 = regression.start
        return torch.zeros(w0.shape[:2], dtype=torch.bool, device=w0.device)
    alone = regression.unpulled(one)
    learnt = alone.weights(one)
    return _miss(other, learnt, alone.offset(one, learnt)) < EXACT * spread(other)


def spread(sums: Sums) -> Tensor:
    """Return the summed squares of each target around its mean."""
    return sums["tt"] - sums["t"].square() / sums["rows"]


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


def _divided(matrices: Tensor, right: Tensor, factored: Any = None) -> Tensor:
    """Solve symmetric systems: by Cholesky, or where rounding leaves none, by eigenvalues."""
    factors, failed = factored or torch.linalg.cholesky_ex(matrices)
    found = torch.cholesky_solve(right, factors)
    for place in (failed != 0).nonzero()[:, 0].tolist():
        found[place] = torch.linalg.pinv(matrices[place], hermitian=True) @ right[place]
    return found
