"""Grad-CAM: a coarse map of where a convolution sees the class."""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from niwaki.attribution._catalogue import create, register
from niwaki.attribution._method import Method, Propagating
from niwaki.attribution._targets import Target, select
from niwaki.errors import BypassedWarning, DataError, ModelError, PropagationError
from niwaki.models import respond
from niwaki.propagation import Operation, check_inputs, gradient, propagate

__all__ = ["GradCam", "GuidedGradCam"]


@dataclass(eq=False)
class _Map:
    """A feature map of the forward pass: its value, its gradient, its place in autograd's graph."""

    name: str
    output: Tensor
    node: Any
    gradient: Tensor | None = None

    def keep(self, gradient: Tensor) -> None:
        """Keep the gradient that reaches the map."""
        self.gradient = gradient


class _LayerReader:
    """Observer that keeps output and gradient of one layer, or of the last one with space.

    In the second case it also keeps those of all that is made after it, where branches may join.
    """

    def __init__(self, layer: str | None) -> None:
        self.layer = layer
        self.chosen: Operation | None = None
        self.map: _Map | None = None
        self.later: list[_Map] = []
        self._hooked: list[_Map] = []

    def output(self, operation: Operation, output: Tensor) -> None:
        """Keep the latest output that fits; an activation in place may overwrite it, so a copy."""
        if operation.kind != "convolution":
            return
        if operation.layer == self.layer if self.layer else output[0, 0].numel() > 1:
            self.chosen, self.later = operation, []
            self.map = _Map(operation.layer, output.detach().clone(), _node(output))

    def activation(self, operation: Operation, output: Tensor) -> None:
        """Nothing is read here."""

    def relevance(self, operation: Operation, relevance: Tensor) -> None:
        """Keep the gradient of the chosen layer."""
        if operation is self.chosen and self.map is not None:
            self.map.keep(relevance)

    def made(self, output: Tensor) -> None:
        """Keep what comes after the chosen layer."""
        if self.map is None or self.layer:
            return
        later = _Map("", output.detach().clone(), _node(output))
        output.register_hook(later.keep)  # type: ignore[no-untyped-call,unused-ignore]
        self.later.append(later)
        self._hooked.append(later)

    def release(self) -> None:
        """Let go of the graph.

        It holds the hooks that fill the maps, and the garbage collector does not see that cycle.
        """
        for one in self._hooked if self.map is None else [self.map, *self._hooked]:
            one.node = None

    def passed_by_all(self, model: nn.Module) -> _Map | None:
        """Return the chosen layer, or else the first map after it, that all of the signal passes.

        The network's output is the last that was made of all that has a gradient.
        """
        if self.map is None or self.map.gradient is None:
            return None
        known = {id(parameter) for parameter in model.parameters()}
        maps = [self.map, *(later for later in self.later if later.gradient is not None)]
        space = self.map.output.shape[2:]
        for one in maps:
            shape = one.output.shape
            channels_last = shape[1:-1] == space != shape[2:]
            fits = len(shape) == len(space) + 2 and shape[2:].numel() > 1 and not channels_last
            if fits and not _reaches_input(maps[-1].node, one.node, known):
                return one
        return None


def _despite_bypass(found: _Map) -> _Map:
    """Return a map that part of the signal bypasses, with a warning."""
    if found.gradient is not None:
        warnings.warn(
            f"Grad-CAM reads {found.name!r}, the last convolution with space, but part of the "
            "signal reaches the output without passing it, and nothing in this map stands for "
            "that part. Choose another convolution with layer=NAME, in a branch or before them",
            BypassedWarning,
            stacklevel=4,
        )
    return found


def _node(output: Tensor) -> Any:
    return torch.autograd.graph.get_gradient_edge(output).node


def _reaches_input(start: Any, barred: Any, parameters: set[int]) -> bool:
    """Whether a way leads back from a node to the input, and not through the barred node."""
    seen, ahead = {barred}, [start]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) not in parameters:
            return True
        ahead += [following for following, _ in node.next_functions]
    return False


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
        whose output has more than one position. Where branches or a shortcut bypass that one, the
        first map after it that all of the signal passes: their concatenation or sum.
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
        """Compute the map at the layer's own size, shape (N, 1, ...).

        Warns
        -----
        BypassedWarning
            If no layer is given, and there is no map after the last convolution that all of the
            signal passes; that convolution is read then.
        """
        reader = _LayerReader(self.layer)
        start = functools.partial(select, target=target)
        try:
            propagate(self.model, inputs, gradient(), start, [reader], to_input=True, max_loss=None)
            found = reader.map
            if not self.layer and found is not None:
                found = reader.passed_by_all(self.model) or _despite_bypass(found)
        finally:
            reader.release()
        if found is None or found.gradient is None:
            wanted = f"convolution {self.layer!r}" if self.layer else "convolution with space"
            raise ModelError(f"Grad-CAM: {type(self.model).__name__} has no {wanted} on the way")
        space = tuple(range(2, found.gradient.dim()))
        weights = found.gradient.mean(space, keepdim=True)
        cam = (weights * found.output).sum(1, keepdim=True)
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
        if cam.dim() != 4 or len(cam) != len(inputs):
            raise PropagationError(
                f"Grad-CAM found a map of shape {tuple(cam.shape)} for {len(inputs)} samples: the "
                "network loops over its samples or folds others into their dimension, so that it "
                "cannot be said which part belongs to which. Take a method without maps, such as "
                "integrated_gradients, or one sample at a time"
            )
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
