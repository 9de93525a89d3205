"""The gradient and its product with the input."""

from __future__ import annotations

from torch import Tensor, nn

from niwaki.attribution._method import Method, Propagating, Start
from niwaki.attribution._registry import register
from niwaki.attribution._targets import Target
from niwaki.propagation import check_inputs, gradient

__all__ = ["GradientMethod", "InputTimesGradient"]


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
