"""What a pass back starts from: the derivative of the loss, or the class to explain."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["cross_entropy", "one_hot"]

Start = Callable[[Tensor], Tensor]


def cross_entropy(labels: Tensor) -> Start:
    """Start with the derivative of the summed cross-entropy by the outputs."""

    def start(output: Tensor) -> Tensor:
        return torch.softmax(output, 1).scatter_add_(
            1, labels[:, None], -output.new_ones(len(output), 1)
        )

    return start


def one_hot(labels: Tensor | None) -> Start:
    """Start with 1 at the class of each label; None: at each sample's largest output."""

    def start(output: Tensor) -> Tensor:
        classes = output.argmax(1) if labels is None else labels
        return torch.zeros_like(output).scatter_(1, classes[:, None], 1)

    return start
