"""What a perturbation analysis found for one method, with means and standard errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import sqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor

from niwaki.errors import DataError

__all__ = ["Estimate", "PerturbationCurves", "estimate"]


class Estimate(NamedTuple):
    """A mean over images and its standard error (NaN for a single image)."""

    mean: float
    error: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.error:.3f}"


def estimate(values: Tensor) -> Estimate:
    """Return mean and standard error of one value per image."""
    return Estimate(float(values.mean()), float(_error(values[:, None])[0]))


@dataclass(frozen=True)
class PerturbationCurves:
    """Scores of a class while an image is perturbed region by region, in the order of a heatmap.

    Attributes
    ----------
    method : str
        What made the heatmaps.
    share : Tensor
        Share of the regions that are perturbed, shape (steps + 1,), from 0.
    scores : mapping of str to Tensor
        Order ("most" relevant first, "least", "random") to the scores, shape (images, steps + 1).
    settings : mapping
        How they were made.
    """

    method: str
    share: Tensor
    scores: Mapping[str, Tensor]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def mean(self, order: str = "most") -> Tensor:
        """Mean score over the images after each step, shape (steps + 1,)."""
        return self._of(order).mean(0)

    def error(self, order: str = "most") -> Tensor:
        """Return the standard error of `mean`, shape (steps + 1,); NaN for a single image."""
        return _error(self._of(order))

    def area(self, order: str = "most") -> Estimate:
        """Area under the curve over a width of 1: the mean height of the curve.

        Small for "most" and large for "least" is good.
        """
        return estimate(self._areas(order))

    def gap(self) -> Estimate:
        """Area between the curves of least- and of most-relevant-first; large is good.

        Unlike either area, it does not reward a method for the network's being fragile. The error
        is that of the differences within each image.
        """
        return estimate(self._areas("least") - self._areas("most"))

    def aopc(self, order: str = "most") -> Estimate:
        """Area over the perturbation curve (Samek et al. 2017): the mean fall over all steps."""
        scores = self._of(order)
        return estimate((scores[:, :1] - scores).mean(1))

    def normalised(self) -> PerturbationCurves:
        """Return the curves divided by each image's score before the perturbation.

        Raises
        ------
        ValueError
            If such a score is not positive, as outputs before a softmax can be.
        """
        if any(bool((scores[:, 0] <= 0).any()) for scores in self.scores.values()):
            raise ValueError(
                "a score before the perturbation is not positive, so that curves cannot be divided "
                "by it; use score='probability', or normalise=False"
            )
        divided = {order: scores / scores[:, :1] for order, scores in self.scores.items()}
        return replace(self, scores=divided, settings={**self.settings, "normalise": True})

    def to_json(self) -> dict[str, Any]:
        """Return plain data that `from_json` understands."""
        return {
            "method": self.method,
            "share": self.share.tolist(),
            "scores": {order: scores.tolist() for order, scores in self.scores.items()},
            "settings": dict(self.settings),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> PerturbationCurves:
        """Rebuild what `to_json` returned."""
        scores = {
            order: torch.tensor(rows, dtype=torch.float64)
            for order, rows in values["scores"].items()
        }
        share = torch.tensor(values["share"], dtype=torch.float64)
        return cls(values["method"], share, scores, values["settings"])

    def __repr__(self) -> str:
        images, points = next(iter(self.scores.values())).shape
        areas = ", ".join(f"{order} {self.area(order)}" for order in self.scores)
        return f"PerturbationCurves({self.method}, {images} images, {points - 1} steps: {areas})"

    def _areas(self, order: str) -> Tensor:
        scores = self._of(order)
        return torch.trapezoid(scores, dim=1) / (scores.shape[1] - 1)

    def _of(self, order: str) -> Tensor:
        if order not in self.scores:
            raise DataError(f"order {order!r} was not measured, only {', '.join(self.scores)}")
        return self.scores[order]


def _error(values: Tensor) -> Tensor:
    count = len(values)
    if count < 2:
        return torch.full_like(values[0], torch.nan)
    return values.std(0) / sqrt(count)
