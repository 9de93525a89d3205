"""What patterns are computed from: sums over every patch that a unit sees, and their closed form.

The sum over all patches of a patch times a number is the gradient of the layer by its weight, with
these numbers as the gradient of its output. So autograd gathers them for every kind of layer,
stride, padding, dilation and grouping, without ever laying the patches out in memory.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from niwaki.accumulation import Totals
from niwaki.errors import PropagationError
from niwaki.propagation import (
    Assign,
    Composite,
    Gradient,
    Operation,
    Rule,
    propagate,
    unit_dimension,
)
from niwaki.propagation.operation import Signals

__all__ = ["Estimator", "LayerInputs", "PatternSums", "estimate", "run"]

Estimator = Literal["linear", "relu", "negative"]

CHUNK = 2**23  # values of a layer's input or output that are worked on at once


@dataclass(frozen=True, eq=False)
class LayerInputs(Rule):
    """A rule that reads the inputs of layers and sends no relevance on.

    It works in the backward pass, where the batch norm behind a layer is known and folded into the
    layer's weight.

    Parameters
    ----------
    layers : collection of str, optional
        Names of the layers to read; default: all.

    Attributes
    ----------
    sums : dict of str to Tensor
        What was gathered, as ``"LAYER/WHAT"``.
    weights : dict of str to Tensor
        The weight of each layer that was read, its batch norm folded in.
    met : list of str
        Names of all layers, read or not, in the order of the backward pass.
    """

    layers: Collection[str] | None = None
    sums: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    met: list[str] = field(default_factory=list)

    def relevance(self, operation: Operation, inputs: Signals, relevance: Tensor) -> Signals:
        """See `Rule.relevance`."""
        name = operation.layer
        self.met.append(name)
        if self.layers is None or name in self.layers:
            weight, bias = self._parameters(operation)
            before = self.weights.setdefault(name, weight)
            if before.shape != weight.shape or not torch.equal(before, weight):
                raise PropagationError(
                    f"{operation} is used more than once, each time behind another batch norm: "
                    "it has no single weight, and so no single pattern"
                )
            self.read(operation, inputs[0].detach().to(weight), weight, bias, relevance.shape)
        return (torch.zeros_like(inputs[0]),)

    def read(
        self,
        operation: Operation,
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        shape: torch.Size,
    ) -> None:
        """Gather what is needed from a layer's inputs; `shape` is that of its output."""
        raise TypeError(f"{type(self).__name__} does not say what it reads of a layer's inputs")

    def add(self, key: str, value: Tensor) -> None:
        """Add to a sum, in double precision."""
        more = value.double()
        self.sums[key] = self.sums[key] + more if key in self.sums else more

    @staticmethod
    def _parameters(operation: Operation) -> tuple[Tensor, Tensor | None]:
        weight, bias = operation.parameters()
        if weight is None or operation.channel_dim or operation.name in ("matmul", "mm"):
            raise PropagationError(
                f"{operation} has no patterns: they are defined for convolutions and linear "
                "layers, not for transposed convolutions and bare matrix products"
            )
        kind = torch.promote_types(weight.dtype, torch.float32)
        return weight.to(kind), None if bias is None else bias.to(kind)

    def __str__(self) -> str:
        return type(self).__name__


@dataclass(frozen=True, eq=False)
class PatternSums(LayerInputs):
    """The sums that a pattern is made of.

    For each unit, over the patches that the estimator counts: their number (``active``), the sum
    of patches (``x``) and of patches times output (``xy``); over all patches the sum of outputs
    (``y``); and the number of patches (``patches``). Outputs are without the bias.

    Parameters
    ----------
    estimator : {"linear", "relu", "negative"}
        Counts all patches, those for which the unit is active behind its bias, or the others.
    """

    estimator: Estimator = "relu"

    def read(
        self,
        operation: Operation,
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        shape: torch.Size,
    ) -> None:
        """See `LayerInputs.read`."""
        per_sample = max(inputs[0].numel(), shape[1:].numel(), 1)
        for part in torch.split(inputs, max(1, CHUNK // per_sample)):
            self._read(operation, part, weight, bias)

    def _read(
        self, operation: Operation, inputs: Tensor, weight: Tensor, bias: Tensor | None
    ) -> None:
        with torch.enable_grad():
            leaf = weight.detach().requires_grad_()
            output = operation.function((inputs,), leaf, None)
        y = output.detach()
        units = unit_dimension(operation) % y.dim()
        others = [d for d in range(y.dim()) if d != units]
        wide = [-1 if d == units else 1 for d in range(y.dim())]
        counted = self._counted(y if bias is None else y + bias.view(wide))
        # Of outputs with their mean taken off first: else a large mean would eat up the digits of
        # the covariance. It is put back in double precision.
        mean = y.mean(others)
        (x,) = torch.autograd.grad(output, leaf, counted, retain_graph=True)
        (xy,) = torch.autograd.grad(output, leaf, counted * (y - mean.view(wide)))
        put_back = mean.double().view(-1, *[1] * (weight.dim() - 1)) * x.double()

        name = operation.layer
        self.add(f"{name}/active", counted.sum(others, dtype=torch.float64))
        self.add(f"{name}/x", x)
        self.add(f"{name}/xy", xy.double() + put_back)
        self.add(f"{name}/y", y.sum(others, dtype=torch.float64))
        self.add(f"{name}/patches", torch.tensor(y.numel() // y.shape[units], device=y.device))

    def _counted(self, activity: Tensor) -> Tensor:
        if self.estimator == "linear":
            return torch.ones_like(activity)
        active = activity > 0
        return (active if self.estimator == "relu" else ~active).to(activity)


def run(model: nn.Module, inputs: Tensor, reader: LayerInputs) -> None:
    """Let `reader` read the inputs of a network's layers in one pass."""
    rows = (Assign(reader, kind=("convolution", "linear")), Assign(Gradient()))
    composite = Composite(str(reader), rows)
    propagate(model, inputs, composite, torch.zeros_like, max_loss=None)


def estimate(totals: Totals, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Compute patterns from the sums (Kindermans et al. 2018).

    With E the mean over all patches and E' that over those which the estimator counts, a pattern
    is c / (w^T c), where c = E'[x y] - E'[x] E[y]. It is zero for a unit that no patch counts for,
    and where w^T c vanishes in rounding errors.

    Parameters
    ----------
    totals : Totals
        The sums of `PatternSums`.
    weights : mapping of str to Tensor
        The weights of the layers, with batch norms folded in.

    Returns
    -------
    dict of str to Tensor
        Patterns with the shapes and types of the weights, on the CPU.
    """
    patterns = {}
    for name, weight in weights.items():
        active, x, xy, y, patches = (
            totals.sums[f"{name}/{what}"] for what in ("active", "x", "xy", "y", "patches")
        )
        w = weight.double().flatten(1)
        count = active.clamp(min=1)[:, None]
        first = xy.flatten(1) / count
        second = x.flatten(1) / count * (y / patches)[:, None]
        covariance = first - second
        denominator = (w * covariance).sum(1, keepdim=True)
        size = (w * (first.abs() + second.abs())).abs().sum(1, keepdim=True)
        sound = denominator.abs() > size * torch.finfo(weight.dtype).eps
        pattern = torch.where(sound, covariance / denominator, torch.zeros_like(covariance))
        patterns[name] = pattern.view(weight.shape).to(weight.dtype).cpu()
    return patterns
