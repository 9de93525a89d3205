"""What a heatmap costs."""

from __future__ import annotations

import time
from statistics import median

import torch
from torch import Tensor, nn

from niwaki.evaluation._explainers import Methods, factories, tolerant
from niwaki.ranges import ROUNDS, checked

__all__ = ["seconds_per_image"]


@checked(repeats=ROUNDS)
def seconds_per_image(
    model: nn.Module, inputs: Tensor, methods: Methods, *, repeats: int = 3
) -> dict[str, float]:
    """Median seconds that a heatmap takes, with the threads that torch is set to.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode.
    inputs : Tensor
        Images of shape (N, ...), which are explained as one batch.
    methods : str, sequence of str, or mapping of str to callable
        Names of the catalogue, or titles with functions that make the method for a model.
    repeats : int
        Measured passes over the batch, after one that does not count.

    Returns
    -------
    dict of str to float
        For each method.
    """
    found = {}
    for name, make in factories(methods).items():
        method, seconds = tolerant(make(model)), []
        for _ in range(repeats + 1):
            _wait(inputs)
            before = time.perf_counter()
            method.attribute(inputs)
            _wait(inputs)
            seconds.append(time.perf_counter() - before)
        found[name] = median(seconds[1:]) / len(inputs)
    return found


def _wait(inputs: Tensor) -> None:
    if inputs.is_cuda:
        torch.cuda.synchronize()
