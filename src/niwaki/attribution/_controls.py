"""Controls: heatmaps that know nothing of the network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from niwaki.attribution._method import Method
from niwaki.attribution._registry import register
from niwaki.attribution._targets import Target
from niwaki.propagation import check_inputs
from niwaki.ranges import FACTOR, SEED, checked

__all__ = ["Input", "Random"]


@register("input")
class Input(Method):
    """The input itself, as a control."""

    def attribute(self, inputs: Tensor, target: Target = None) -> Tensor:
        """See `Method.attribute`."""
        return check_inputs(self.model, inputs).detach().clone()


@checked(sigma=FACTOR, seed=SEED)
@register("random")
class Random(Method):
    """Normal noise, as a control.

    Parameters
    ----------
    model : nn.Module
        See `Method`.
    sigma : float
        Standard deviation.
    seed : int
        Of the noise, which is the same for every sample.
    """

    def __init__(self, model: nn.Module, *, sigma: float = 1.0, seed: int = 0) -> None:
        super().__init__(model)
        self.sigma = sigma
        self.seed = seed

    def attribute(self, inputs: Tensor, target: Target = None) -> Tensor:
        """See `Method.attribute`."""
        inputs = check_inputs(self.model, inputs)
        generator = torch.Generator().manual_seed(self.seed)
        noise = torch.randn(inputs.shape[1:], generator=generator, dtype=torch.float64)
        return (self.sigma * noise).to(inputs).expand_as(inputs).clone()
