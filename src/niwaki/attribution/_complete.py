"""A mean over the points of a path that sums to what is known of its end points."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from niwaki.errors import CompletenessWarning

__all__ = ["CompleteMean"]

LARGEST_CHANGE = 0.5
TOLERANCE = 1e-3


class CompleteMean:
    """Weighted mean of heatmaps whose weights are adjusted so that it sums to a known change.

    At the k-th point of the path the heatmap h_k sums to the slope s_k of the output along the
    path. The mean slope is known: it is the change of the output from end to end. So the weight
    u_k becomes u_k (1 + a (s_k - s)), where s is the weighted mean of the slopes and a is chosen
    such that the sum is right. Of all changes to the weights that achieve this and keep their sum,
    it is the smallest in the mean square (the control variate of Monte Carlo integration).

    Where the weights would have to change by more than half in the mean square, the points say too
    little of the way: the change stays at that, and the error that is left is warned of.

    Parameters
    ----------
    change : Tensor
        What the mean shall sum to for each sample, shape (N,), double precision.
    rounding : Tensor
        By how much `change` may be wrong, shape (N,).
    """

    def __init__(self, change: Tensor, rounding: Tensor) -> None:
        self.change = change
        self.rounding = rounding
        self.mean: Tensor | float = 0.0  # of the slopes less the change, so that it is small
        self.square: Tensor | float = 0.0
        self.plain: Tensor | float = 0.0
        self.tilted: Tensor | float = 0.0

    def add(self, weight: float, part: Tensor) -> None:
        """Add the heatmaps at one point, shape (N, ...), times its weight."""
        slope = part.flatten(1).sum(1, dtype=torch.float64) / weight - self.change
        self.mean = self.mean + weight * slope
        self.square = self.square + weight * slope.square()
        self.plain = self.plain + part
        self.tilted = self.tilted + _per_sample(slope, part) * part

    def result(self) -> Tensor:
        """Return the mean heatmaps.

        Warns
        -----
        CompletenessWarning
            If one misses the change by more than a thousandth of it.
        """
        assert isinstance(self.mean, Tensor)
        assert isinstance(self.plain, Tensor)
        variance = (self.square - self.mean.square()).clamp(min=0)
        moved = self.mean.abs().minimum(LARGEST_CHANGE * variance.sqrt())
        missing = self.mean.abs() - moved
        self._warn(missing, missing > TOLERANCE * self.change.abs() + self.rounding)
        factor = torch.where(variance > 0, -self.mean.sign() * moved / variance, 0.0)
        mean, factor = _per_sample(self.mean, self.plain), _per_sample(factor, self.plain)
        return self.plain + factor * (self.tilted - mean * self.plain)

    def _warn(self, missing: Tensor, bad: Tensor) -> None:
        if not bad.any():
            return
        worst = int((missing / self.change.abs()).where(bad, -1.0).argmax())
        warnings.warn(
            f"{int(bad.sum())} of {len(bad)} heatmaps of integrated gradients do not sum to the "
            f"change of the output from the baseline: sample {worst} misses "
            f"{float(missing[worst]):.2g} of {float(self.change[worst]):.2g}. Take more steps",
            CompletenessWarning,
            stacklevel=5,
        )


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like).view(-1, *[1] * (like.dim() - 1))
