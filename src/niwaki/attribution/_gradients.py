"""Methods made of the gradient, modified or not, and controls that explain nothing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from niwaki.attribution._averages import chosen
from niwaki.attribution._catalogue import register
from niwaki.attribution._completeness import check_sums
from niwaki.attribution._method import Method, Propagating, Start, baseline_of
from niwaki.attribution._targets import Target, select
from niwaki.propagation import (
    Rescale,
    beta_smooth,
    check_inputs,
    deconvnet,
    gradient,
    guided_backprop,
    propagate,
    rescale,
)
from niwaki.ranges import FACTOR, PIXELS, SEED, checked


@register("gradient.baseline")  # iNNvestigate's second implementation of the same
@register("gradient")
class GradientMethod(Propagating):
    """Derivative of the chosen output by the input (Simonyan et al. 2014).

    Parameters
    ----------
    start : {"one", "output"}
        Factor of the derivative: 1, or the output's value.
    """

    def __init__(self, model: nn.Module, *, start: Start = "one") -> None:
        super().__init__(model, gradient(), start=start, max_loss=None)


@register("input_t_gradient")
class InputTimesGradient(Method):
    """Input times gradient (Shrikumar et al. 2016).

    Parameters
    ----------
    start : {"one", "output"}
        See `GradientMethod`.
    """

    def __init__(self, model: nn.Module, *, start: Start = "one") -> None:
        super().__init__(model)
        self.gradient = GradientMethod(model, start=start)

    def attribute(self, inputs: Tensor, target: Target = None) -> Tensor:
        """See `Method.attribute`."""
        inputs = check_inputs(self.model, inputs)
        return inputs.detach() * self.gradient.attribute(inputs, target)


@register("deconvnet")
def deconvnet_method(model: nn.Module, *, start: Start = "output") -> Propagating:
    """Deconvolutional network: only positive gradients pass an activation (Zeiler 2014)."""
    return Propagating(model, deconvnet(), start=start, max_loss=None)


@register("guided_backprop")
def guided_backprop_method(model: nn.Module, *, start: Start = "output") -> Propagating:
    """Guided backprop: only positive gradients of active units pass (Springenberg 2014)."""
    return Propagating(model, guided_backprop(), start=start, max_loss=None)


@register("beta_smooth")
def beta_smooth_method(
    model: nn.Module, *, beta: float = 10.0, start: Start = "one"
) -> Propagating:
    """Gradient of the network with its ReLUs smoothed (Dombrowski et al. 2019)."""
    return Propagating(model, beta_smooth(beta), start=start, max_loss=None)


_FOLDED = (
    "The network loops over its samples or folds others into their dimension, so that inputs may "
    "have been compared with other references than their own: take integrated_gradients"
)
_LEFT_OUT = (
    "The rescale rule has nothing for products of signals, norms over the values at hand or "
    "choices by value, which get the derivative: integrated_gradients has no such limit"
)


@checked(baseline=PIXELS)
@register("deep_lift.wrapper")
@register("deep_lift")
class DeepLift(Method):
    """DeepLIFT with the rescale rule (Shrikumar et al. 2017).

    The heatmap sums to the difference of the output at the input and at the baseline, where all
    that is not linear acts on each value alone or is a max pooling.

    Parameters
    ----------
    model : nn.Module
        See `Method`.
    baseline : float or Tensor
        The reference: a number, or a tensor that broadcasts to the inputs.

    Raises
    ------
    PropagationError
        If the network hides which samples belong together, so that sums are not right.

    Warns
    -----
    CompletenessWarning
        If a sum misses the difference by more than a thousandth of it: the rescale rule has nothing
        for products of signals, norms over the values at hand or choices by value, which get the
        derivative.
    """

    def __init__(self, model: nn.Module, *, baseline: float | Tensor = 0.0) -> None:
        super().__init__(model)
        self.baseline = baseline

    def attribute(self, inputs: Tensor, target: Target = None) -> Tensor:
        """See `Method.attribute`."""
        inputs = check_inputs(self.model, inputs).detach()
        reference = baseline_of(self.baseline, inputs)

        def start(output: Tensor) -> Tensor:
            weights = select(output[: len(inputs)], target)
            return torch.cat([weights, torch.zeros_like(weights)])

        both = torch.cat([inputs, reference])
        result = propagate(self.model, both, rescale(), start, max_loss=None)
        assert result.relevance is not None
        heatmaps = result.relevance[: len(inputs)] * (inputs - reference)
        weights = select(result.output[: len(inputs)], target)
        ends = [chosen(part, weights) for part in result.output.chunk(2)[::-1]]
        compared = [op for op in result.operations if isinstance(op.rule, Rescale)]
        folded = any(op.input_shape[0] != len(both) for op in compared)
        advice = _FOLDED if folded else _LEFT_OUT
        check_sums(heatmaps, torch.stack(ends, 1), "DeepLIFT", advice, refuse=folded)
        return heatmaps


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
        Seed of the noise, which is the same for every sample.
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
