"""Integrated gradients: the mean gradient along the path from a baseline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from niwaki.attribution._averages import Average, chosen
from niwaki.attribution._catalogue import register
from niwaki.attribution._completeness import check_sums
from niwaki.attribution._method import baseline_of
from niwaki.attribution._path import Ends, Looks, Point, gauss, integrate
from niwaki.attribution._targets import Target, select
from niwaki.contexts import undisturbed
from niwaki.models import respond
from niwaki.propagation.operation import at_least_single
from niwaki.ranges import BATCH, PIXELS, STEPS, checked

__all__ = ["IntegratedGradients"]

Quadrature = Literal["adaptive", "gauss", "left", "right", "midpoint"]

#: How many values of heatmaps are kept at a time, until it is known how much each counts.
KEPT = 2**26


@checked(baseline=PIXELS, steps=STEPS, refinements=STEPS.but(low=0), internal_batch_size=BATCH)
@register("integrated_gradients")
class IntegratedGradients(Average):
    """Difference to a baseline times the mean gradient along the path (Sundararajan et al. 2017).

    The heatmap should sum to the difference of the output at the input and at the baseline. On
    networks of ReLUs no quadrature with fixed points does, as the slope jumps along the path; the
    default looks for the jumps.

    Parameters
    ----------
    model : nn.Module
        See `Method`.
    baseline : float or Tensor
        Where the path begins: a number, or a tensor that broadcasts to the inputs.
    steps : int
        Number of points; of ``"adaptive"``, those that it begins with.
    quadrature : {"adaptive", "gauss", "left", "right", "midpoint"}
        Where the points lie. ``"adaptive"``: those of Gauss-Legendre; if the sum is not right then,
        the way is divided where the slope jumps (this costs one forward pass more). What is linear,
        or made of few linear pieces, comes out exact. ``"gauss"``: Gauss-Legendre alone, as in
        Captum. Equal steps: ``"left"`` as in iNNvestigate, ``"right"`` as in zennit,
        ``"midpoint"``.
    refinements : int
        Largest number of further points per sample; of ``"adaptive"`` only.
    internal_batch_size : int
        Largest number of points that go through the network together.

    Warns
    -----
    CompletenessWarning
        With ``"adaptive"``, if a sum misses the difference by more than a thousandth of it when all
        refinements are spent. The pixels are then about as wrong as the sum.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        baseline: float | Tensor = 0.0,
        steps: int = 64,
        quadrature: Quadrature = "adaptive",
        refinements: int = 192,
        internal_batch_size: int = 64,
    ) -> None:
        super().__init__(model, internal_batch_size=internal_batch_size)
        self.baseline = baseline
        self.steps = steps
        self.quadrature = quadrature
        self.refinements = refinements

    @undisturbed
    def attribute(self, inputs: Tensor, target: Target = None) -> Tensor:
        """See `Method.attribute`."""
        if self.quadrature != "adaptive":
            return super().attribute(inputs, target)
        inputs = self._checked(inputs)
        end = respond(self.model, inputs)
        weights = select(end, target)
        start = respond(self.model, baseline_of(self.baseline, inputs).contiguous())
        ends = torch.stack([chosen(output, weights) for output in (start, end)], dim=1)
        sizes = end.abs().maximum(start.abs()).reshape(len(end), -1).amax(1).tolist()
        precision = torch.finfo(end.dtype).eps
        heatmaps = torch.empty_like(inputs)
        at_once = max(1, KEPT // (inputs[0].numel() * (self.steps + self.refinements)))
        for first in range(0, len(inputs), at_once):
            ways = {
                i: integrate(self.steps, self.refinements, Ends(a, b, sizes[i], precision))
                for i, (a, b) in enumerate(ends[first : first + at_once].tolist(), first)
            }
            for i, heatmap in self._walk(ways, inputs, weights):
                heatmaps[i] = heatmap
        check_sums(heatmaps, ends, "integrated gradients", "Allow more refinements")
        return heatmaps

    def _walk(
        self, ways: Mapping[int, Looks], inputs: Tensor, weights: Tensor
    ) -> Iterator[tuple[int, Tensor]]:
        """Look at the points that the samples' integrals want, and yield those that are ready."""
        wanted = {i: next(way) for i, way in ways.items()}
        while wanted:
            places = [(i, place) for i, some in wanted.items() for place in some]
            found: dict[int, list[Point]] = {i: [] for i in wanted}
            for start in range(0, len(places), self.internal_batch_size):
                some = places[start : start + self.internal_batch_size]
                for (i, _), point in zip(some, self._look(some, inputs, weights), strict=True):
                    found[i].append(point)
            for i, points in found.items():
                try:
                    wanted[i] = ways[i].send(points)
                except StopIteration as stop:
                    del wanted[i]
                    yield i, stop.value

    def _look(
        self, places: Sequence[tuple[int, float]], inputs: Tensor, weights: Tensor
    ) -> list[Point]:
        """Compute output and heatmap at places on the ways of samples."""
        samples = torch.tensor([i for i, _ in places], device=inputs.device)
        where = torch.tensor([place for _, place in places], dtype=torch.float64).to(inputs)
        start = baseline_of(self.baseline, inputs)[samples]
        way = inputs[samples] - start
        points = start + where.view(-1, *[1] * (way.dim() - 1)) * way
        outputs, gradients = self.slopes(points, weights[samples])
        maps = at_least_single(gradients) * at_least_single(way)
        flat = maps.flatten(1)
        slopes, sizes = (v.sum(1, dtype=torch.float64).tolist() for v in (flat, flat.abs()))
        known = zip(places, outputs.tolist(), maps, slopes, sizes, strict=True)
        return [Point(place, *about) for (_, place), *about in known]

    def points(self, inputs: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield points between the baseline and the inputs."""
        start = baseline_of(self.baseline, inputs)
        way = inputs - start
        for place, weight in zip(*_quadrature(self.quadrature, self.steps), strict=True):
            yield start + place * way, weight * way


def _quadrature(name: Quadrature, steps: int) -> tuple[list[float], list[float]]:
    if name == "gauss":
        return gauss(steps)
    offset = {"left": 0.0, "midpoint": 0.5, "right": 1.0}[name]
    return [(k + offset) / steps for k in range(steps)], [1 / steps] * steps
