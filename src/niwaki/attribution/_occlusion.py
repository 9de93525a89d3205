"""Occlusion: what the output loses when a window is covered."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from niwaki.attribution._averages import chosen
from niwaki.attribution._catalogue import register
from niwaki.attribution._method import Method
from niwaki.attribution._targets import Target, select
from niwaki.errors import DataError
from niwaki.models import respond
from niwaki.propagation import check_inputs
from niwaki.ranges import BATCH, PIXELS, SIDE, checked

__all__ = ["Occlusion"]


@checked(window=SIDE, stride=SIDE, value=PIXELS, internal_batch_size=BATCH)
@register("occlusion")
class Occlusion(Method):
    """Drop of the output when a window is covered (Zeiler and Fergus 2014).

    Every value in a window gets the drop; where windows overlap, the mean, as in Captum.

    Parameters
    ----------
    model : nn.Module
        See `Method`.
    window : int or tuple of int
        Side of the window in each dimension of space; default: an eighth of the image, at least 1.
    stride : int or tuple of int, optional
        Step of the window; default: half of the window.
    value : float
        The value that covers a window.
    internal_batch_size : int
        Largest number of images that go through the network together.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        window: int | tuple[int, ...] | None = None,
        stride: int | tuple[int, ...] | None = None,
        value: float = 0.0,
        internal_batch_size: int = 64,
    ) -> None:
        super().__init__(model)
        self.window = window
        self.stride = stride
        self.value = value
        self.internal_batch_size = internal_batch_size

    def attribute(self, inputs: Tensor, target: Target = None) -> Tensor:
        """See `Method.attribute`."""
        inputs = check_inputs(self.model, inputs).detach()
        windows = list(self._windows(inputs))
        # Drops are small differences of outputs: half precision, as under autocast, drowns them.
        with torch.no_grad(), torch.autocast(inputs.device.type, enabled=False):
            output = respond(self.model, inputs)
            weights = select(output, target)
            whole = chosen(output, weights)
            drops = torch.zeros_like(inputs, dtype=torch.float64)
            counts = torch.zeros_like(inputs[0])
            step = max(1, self.internal_batch_size // len(inputs))
            for first in range(0, len(windows), step):
                some = windows[first : first + step]
                covered = inputs.repeat(len(some), *[1] * (inputs.dim() - 1))
                for k, window in enumerate(some):
                    covered[k * len(inputs) : (k + 1) * len(inputs)][_last(window)] = self.value
                repeated = weights.repeat(len(some), *[1] * (weights.dim() - 1))
                now = chosen(respond(self.model, covered), repeated).view(len(some), len(inputs))
                for k, window in enumerate(some):
                    drop = (whole - now[k]).view(-1, *[1] * (inputs.dim() - 1))
                    drops[_last(window)] += drop
                    counts[_last(window)] += 1
        return (drops / counts.clamp(min=1)).to(inputs)

    def _windows(self, inputs: Tensor) -> Iterator[tuple[slice, ...]]:
        """Yield the windows that cover all of space, the last ones cut off at the border."""
        space = inputs.shape[2:]
        if not space:
            raise DataError(
                f"occlusion needs inputs with space, (N, C, H, W), not {tuple(inputs.shape)}"
            )
        sides = _per_dimension(self.window, [max(1, size // 8) for size in space])
        steps = _per_dimension(self.stride, [max(1, side // 2) for side in sides])
        starts = [
            range(0, max(size - side + step - 1, 0) // step * step + 1, step)
            for size, side, step in zip(space, sides, steps, strict=True)
        ]
        grid = torch.cartesian_prod(*[torch.tensor(list(s)) for s in starts]).view(-1, len(space))
        for corner in grid.tolist():
            yield tuple(slice(c, c + side) for c, side in zip(corner, sides, strict=True))


def _last(window: tuple[slice, ...]) -> Any:
    """Index the last dimensions."""
    return (..., *window)


def _per_dimension(value: int | tuple[int, ...] | None, default: list[int]) -> list[int]:
    if value is None:
        return default
    values = [value] * len(default) if isinstance(value, int) else list(value)
    if len(values) != len(default) or min(values) < 1:
        raise ValueError(f"{value!r}: give one positive number, or one per dimension of space")
    return values
