"""Gradients averaged over many inputs: along a path, or in a cloud of noise."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Iterator
from itertools import islice
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from niwaki.attribution._complete import CompleteMean
from niwaki.attribution._method import Method
from niwaki.attribution._registry import register
from niwaki.attribution._targets import Target, select
from niwaki.errors import DataError
from niwaki.propagation import check_inputs, gradient, propagate

__all__ = ["ExpectedGradients", "IntegratedGradients", "SmoothGrad"]

Quadrature = Literal["complete", "left", "right", "midpoint", "gauss"]


class Average(Method):
    """A sum of gradients at points made from each input, each times a factor.

    The output to explain is chosen once, at the input itself.

    Parameters
    ----------
    model : nn.Module
        See `Method`.
    internal_batch_size : int
        Largest number of points that go through the network together; bounds the memory.
    """

    def __init__(self, model: nn.Module, *, internal_batch_size: int = 64) -> None:
        super().__init__(model)
        if internal_batch_size < 1:
            raise ValueError(f"internal_batch_size = {internal_batch_size}: must be at least 1")
        self.internal_batch_size = internal_batch_size

    @abstractmethod
    def points(self, inputs: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield points of the inputs' shape, each with what its gradient is multiplied by."""

    def attribute(self, inputs: Tensor, target: Target = None) -> Tensor:
        """See `Method.attribute`."""
        inputs = self._checked(inputs)
        with torch.no_grad():
            weights = select(self.model(inputs), target)
        total = torch.zeros_like(inputs)
        for part in self.parts(inputs, weights):
            total += part
        return total

    def _checked(self, inputs: Tensor) -> Tensor:
        # Before the first forward pass, which in training mode would change batch statistics.
        check_inputs(self.model, inputs)
        return inputs.detach()

    def parts(self, inputs: Tensor, weights: Tensor) -> Iterator[Tensor]:
        """Yield the gradient of the weighted outputs at each point, times its factor."""
        steps = max(1, self.internal_batch_size // len(inputs))
        drawn = self.points(inputs)
        while some := list(islice(drawn, steps)):  # several steps of the whole batch at a time
            start = weights.repeat(len(some), *[1] * (weights.dim() - 1))
            result = propagate(
                self.model,
                torch.cat([point for point, _ in some]),
                gradient(),
                functools.partial(_constant, start),
                max_loss=None,
            )
            assert result.relevance is not None
            gradients = result.relevance.view(len(some), *inputs.shape)
            for (_, factor), slope in zip(some, gradients, strict=True):
                yield slope * factor


def _constant(start: Tensor, _: Tensor) -> Tensor:
    return start


@register("integrated_gradients")
class IntegratedGradients(Average):
    """Difference to a baseline times the mean gradient on the way (Sundararajan et al. 2017).

    The heatmap should sum to the difference of the output at the input and at the baseline. Every
    classical quadrature misses it, on trained ReLU networks by percents, because the slope jumps
    hundreds of times on the way; the default does not.

    Parameters
    ----------
    model : nn.Module
        See `Method`.
    baseline : float or Tensor
        Where the way begins: a number, or a tensor that broadcasts to the inputs.
    steps : int
        Number of points.
    quadrature : {"complete", "left", "right", "midpoint", "gauss"}
        Where the points lie and how much they count. ``"complete"``: midpoints of equal steps,
        whose weights are adjusted, as little as possible, such that the sum is right (this costs
        one forward pass). Equal weights: ``"left"`` as in iNNvestigate, ``"right"`` as in zennit,
        ``"midpoint"``. ``"gauss"`` (Gauss-Legendre) as in Captum, by far the best for networks
        without jumps.
    internal_batch_size : int
        Largest number of points that go through the network together.

    Warns
    -----
    CompletenessWarning
        If, for all the adjusting, a sum misses the difference by more than a thousandth of it: then
        there are too few steps.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        baseline: float | Tensor = 0.0,
        steps: int = 64,
        quadrature: Quadrature = "complete",
        internal_batch_size: int = 64,
    ) -> None:
        super().__init__(model, internal_batch_size=internal_batch_size)
        if steps < 1:
            raise ValueError(f"steps = {steps}: must be at least 1")
        self.baseline = baseline
        self.steps = steps
        self.places, self.weights = _quadrature(quadrature, steps)
        self.complete = quadrature == "complete"

    def attribute(self, inputs: Tensor, target: Target = None) -> Tensor:
        """See `Method.attribute`."""
        if not self.complete:
            return super().attribute(inputs, target)
        inputs = self._checked(inputs)
        with torch.no_grad():
            end = self.model(inputs)
            weights = select(end, target)
            start = self.model(_baseline(self.baseline, inputs).contiguous())
            ends = torch.stack([end, start]).double() * weights
        change = (ends[0] - ends[1]).flatten(1).sum(1)
        rounding = ends.abs().sum(0).flatten(1).sum(1) * 100 * torch.finfo(end.dtype).eps
        mean = CompleteMean(change, rounding)
        for weight, part in zip(self.weights, self.parts(inputs, weights), strict=True):
            mean.add(weight, part)
        return mean.result()

    def points(self, inputs: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield points between the baseline and the inputs."""
        start = _baseline(self.baseline, inputs)
        way = inputs - start
        for place, weight in zip(self.places, self.weights, strict=True):
            yield start + place * way, weight * way


@register("smoothgrad")
class SmoothGrad(Average):
    """Mean gradient in a cloud of noise around the input (Smilkov et al. 2017).

    Parameters
    ----------
    model : nn.Module
        See `Method`.
    samples : int
        Number of noisy copies.
    sigma : float
        Standard deviation of the noise.
    relative : bool
        Whether `sigma` is a share of each input's range (as in zennit) or absolute (iNNvestigate).
    seed : int
        Of the noise, which is the same for every sample of a batch.
    internal_batch_size : int
        Largest number of points that go through the network together.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        samples: int = 64,
        sigma: float = 1.0,
        relative: bool = False,
        seed: int = 0,
        internal_batch_size: int = 64,
    ) -> None:
        super().__init__(model, internal_batch_size=internal_batch_size)
        if samples < 1:
            raise ValueError(f"samples = {samples}: must be at least 1")
        self.samples = samples
        self.sigma = sigma
        self.relative = relative
        self.seed = seed

    def points(self, inputs: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield noisy copies of the inputs."""
        share = inputs.new_tensor(1 / self.samples)
        generator = torch.Generator().manual_seed(self.seed)
        scale: Tensor | float = self.sigma
        if self.relative:
            flat = inputs.flatten(1)
            spread = flat.amax(1) - flat.amin(1)
            scale = self.sigma * spread.view(-1, *[1] * (inputs.dim() - 1))
        for _ in range(self.samples):
            # Drawn on the CPU in double precision: the same on every device and for every type.
            noise = torch.randn(inputs.shape[1:], generator=generator, dtype=torch.float64)
            yield inputs + scale * noise.to(inputs), share


@register("expected_gradients")
class ExpectedGradients(Average):
    """Integrated gradients averaged over many baselines (Erion et al. 2021).

    Each point lies at a random place between the input and a random baseline.

    Parameters
    ----------
    model : nn.Module
        See `Method`.
    baselines : Tensor, optional
        Shape (B, ...), such as a few training images; default: one of zeros.
    samples : int
        Number of points.
    seed : int
        Of the draws, which are the same for every sample of a batch.
    internal_batch_size : int
        Largest number of points that go through the network together.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        baselines: Tensor | None = None,
        samples: int = 64,
        seed: int = 0,
        internal_batch_size: int = 64,
    ) -> None:
        super().__init__(model, internal_batch_size=internal_batch_size)
        if samples < 1:
            raise ValueError(f"samples = {samples}: must be at least 1")
        self.baselines = baselines
        self.samples = samples
        self.seed = seed

    def points(self, inputs: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield points between random baselines and the inputs."""
        generator = torch.Generator().manual_seed(self.seed)
        given = inputs.new_zeros(1, *inputs.shape[1:]) if self.baselines is None else self.baselines
        if given.shape[1:] != inputs.shape[1:] or len(given) == 0:
            raise DataError(
                f"baselines of shape {tuple(given.shape)} do not fit inputs of shape "
                f"{tuple(inputs.shape)}"
            )
        for _ in range(self.samples):
            chosen = int(torch.randint(len(given), (), generator=generator))
            place = float(torch.rand((), generator=generator))
            way = inputs - given[chosen].to(inputs)
            yield inputs - (1 - place) * way, way / self.samples


def _baseline(baseline: float | Tensor, inputs: Tensor) -> Tensor:
    try:
        return torch.as_tensor(baseline).to(inputs).expand_as(inputs)
    except RuntimeError:
        raise DataError(
            f"the baseline does not broadcast to inputs of shape {tuple(inputs.shape)}"
        ) from None


def _quadrature(name: str, steps: int) -> tuple[list[float], list[float]]:
    if name == "gauss":
        places, weights = np.polynomial.legendre.leggauss(steps)
        return list((places + 1) / 2), list(weights / 2)
    offsets = {"complete": 0.5, "left": 0.0, "midpoint": 0.5, "right": 1.0}
    if name not in offsets:
        raise ValueError(f"quadrature {name!r} is not one of {', '.join(get_args(Quadrature))}")
    return [(k + offsets[name]) / steps for k in range(steps)], [1 / steps] * steps
