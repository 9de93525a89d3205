"""Grad-CAM: a coarse map of where a convolution sees the class."""

from __future__ import annotations

import functools
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from niwaki.attribution._method import Method, Propagating
from niwaki.attribution._registry import create, register
from niwaki.attribution._targets import Target, select
from niwaki.errors import DataError, ModelError
from niwaki.models import respond
from niwaki.propagation import Operation, check_inputs, gradient, propagate

__all__ = ["GradCam", "GuidedGradCam"]


class _LayerReader:
    """Observer that keeps output and gradient of one layer, or of the last one with space."""

    def __init__(self, layer: str | None) -> None:
        self.layer = layer
        self.chosen: Operation | None = None
        self.outputs: Tensor | None = None
        self.gradients: Tensor | None = None

    def output(self, operation: Operation, output: Tensor) -> None:
        """Keep the latest output that fits; an activation in place may overwrite it, so a copy."""
        fits = operation.layer == self.layer if self.layer else output[0, 0].numel() > 1
        if operation.kind == "convolution" and fits:
            self.chosen, self.outputs = operation, output.detach().clone()

    def activation(self, operation: Operation, output: Tensor) -> None:
        """Nothing is read here."""

    def relevance(self, operation: Operation, relevance: Tensor) -> None:
        """Keep the gradient of the chosen layer."""
        if operation is self.chosen:
            self.gradients = relevance


@register("grad_cam")
class GradCam(Method):
    """Channels of a convolution weighted by their mean gradient (Selvaraju et al. 2017).

    The map is enlarged to the image and shared out equally over the input's channels, so that the
    sum over channels is the map.

    Parameters
    ----------
    model : nn.Module
        See `Method`.
    layer : str, optional
        Name of a convolution, taken behind the batch norm that follows it; default: the last one
        whose output has more than one position.
    positive : bool
        Whether only what speaks for the class is shown, as in the paper.
    interpolation : {"bilinear", "nearest"}
        How the map is enlarged.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        layer: str | None = None,
        positive: bool = True,
        interpolation: Literal["bilinear", "nearest"] = "bilinear",
    ) -> None:
        super().__init__(model)
        if interpolation not in ("bilinear", "nearest"):
            raise ValueError(f"interpolation {interpolation!r} is not 'bilinear' or 'nearest'")
        self.layer = layer
        self.positive = positive
        self.interpolation = interpolation

    def map(self, inputs: Tensor, target: Target = None) -> Tensor:
        """Compute the map at the layer's own size, shape (N, 1, ...)."""
        reader = _LayerReader(self.layer)
        start = functools.partial(select, target=target)
        propagate(self.model, inputs, gradient(), start, [reader], to_input=True, max_loss=None)
        if reader.outputs is None or reader.gradients is None:
            wanted = f"convolution {self.layer!r}" if self.layer else "convolution with space"
            raise ModelError(f"Grad-CAM: {type(self.model).__name__} has no {wanted} on the way")
        space = tuple(range(2, reader.gradients.dim()))
        weights = reader.gradients.mean(space, keepdim=True)
        cam = (weights * reader.outputs).sum(1, keepdim=True)
        return cam.clamp(min=0) if self.positive else cam

    def attribute(self, inputs: Tensor, target: Target = None) -> Tensor:
        """See `Method.attribute`."""
        inputs = check_inputs(self.model, inputs)
        if inputs.dim() != 4:
            raise DataError(
                f"Grad-CAM needs images (N, C, H, W), not {tuple(inputs.shape)}: a single image is "
                "passed as image[None]"
            )
        cam = self.map(inputs, target)
        corners = False if self.interpolation == "bilinear" else None
        cam = F.interpolate(cam, inputs.shape[2:], mode=self.interpolation, align_corners=corners)
        return (cam / inputs.shape[1]).expand_as(inputs).clone()


@register("guided_grad_cam")
class GuidedGradCam(Method):
    """Guided backprop times Grad-CAM: fine where Grad-CAM is coarse (Selvaraju et al. 2017).

    Parameters
    ----------
    model : nn.Module
        See `Method`.
    layer, interpolation
        See `GradCam`.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        layer: str | None = None,
        interpolation: Literal["bilinear", "nearest"] = "bilinear",
    ) -> None:
        super().__init__(model)
        self.cam = GradCam(model, layer=layer, interpolation=interpolation)
        guided = create("guided_backprop", model, start="one")
        assert isinstance(guided, Propagating)
        self.guided = guided

    def attribute(self, inputs: Tensor, target: Target = None) -> Tensor:
        """See `Method.attribute`."""
        inputs = check_inputs(self.model, inputs)
        if target is None:  # both must explain the same class
            target = select(respond(self.model, inputs), None)
        channels = inputs.shape[1]
        return self.guided.attribute(inputs, target) * self.cam.attribute(inputs, target) * channels
