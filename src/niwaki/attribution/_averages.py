"""Gradients averaged over many inputs: in a cloud of noise, or on paths from many baselines."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor, nn

from niwaki.attribution._catalogue import register
from niwaki.attribution._method import Method
from niwaki.attribution._targets import Target, select
from niwaki.errors import DataError
from niwaki.models import respond
from niwaki.propagation import check_inputs, gradient, propagate
from niwaki.propagation.operation import at_least_single
from niwaki.ranges import BATCH, FACTOR, ROUNDS, SEED, checked

__all__ = ["Average", "ExpectedGradients", "SmoothGrad", "chosen"]


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
        self.internal_batch_size = internal_batch_size

    @abstractmethod
    def points(self, inputs: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield points of the inputs' shape, each with what its gradient is multiplied by."""

    def attribute(self, inputs: Tensor, target: Target = None) -> Tensor:
        """See `Method.attribute`."""
        inputs = self._checked(inputs)
        weights = select(respond(self.model, inputs), target)
        total = torch.zeros_like(at_least_single(inputs))
        for part in self.parts(inputs, weights):
            total += part
        return total.to(inputs)

    def _checked(self, inputs: Tensor) -> Tensor:
        # Before the first forward pass, which in training mode would change batch statistics.
        return check_inputs(self.model, inputs).detach()

    def parts(self, inputs: Tensor, weights: Tensor) -> Iterator[Tensor]:
        """Yield the gradient of the weighted outputs at each point, times its factor."""
        steps = max(1, self.internal_batch_size // len(inputs))
        drawn = self.points(inputs)
        while some := list(islice(drawn, steps)):  # several steps of the whole batch at a time
            start = weights.repeat(len(some), *[1] * (weights.dim() - 1))
            _, slopes = self.slopes(torch.cat([point for point, _ in some]), start)
            gradients = slopes.view(len(some), *inputs.shape)
            for (_, factor), slope in zip(some, gradients, strict=True):
                yield at_least_single(slope) * at_least_single(factor)

    def slopes(self, points: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the weighted outputs at points, in double precision, and their gradients."""
        start = functools.partial(_constant, weights)
        result = propagate(self.model, points, gradient(), start, max_loss=None)
        assert result.relevance is not None
        return chosen(result.output, weights), result.relevance


def _constant(start: Tensor, _: Tensor) -> Tensor:
    return start


@checked(samples=ROUNDS, sigma=FACTOR, seed=SEED, internal_batch_size=BATCH)
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
        Seed of the noise, which is the same for every sample of a batch.
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


@checked(samples=ROUNDS, seed=SEED, internal_batch_size=BATCH)
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
        Seed of the draws, which are the same for every sample of a batch.
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
            place = float(torch.rand((), generator=generator, dtype=torch.float32))
            way = inputs - given[chosen].to(inputs)
            yield inputs - (1 - place) * way, way / self.samples


def chosen(output: Tensor, weights: Tensor) -> Tensor:
    """Sum the weighted outputs of each sample, in double precision."""
    return (output.double() * weights).reshape(len(output), -1).sum(1)
