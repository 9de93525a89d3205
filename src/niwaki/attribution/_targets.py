"""What is explained: the choice of outputs, and the relevance they start with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from niwaki.data import as_tensor
from niwaki.errors import DataError

__all__ = ["Target", "select"]

Target: TypeAlias = "int | Sequence[int] | np.ndarray[Any, Any] | Tensor | None"


def select(output: Tensor, target: Target) -> Tensor:
    """Turn a target into weights over the outputs.

    Parameters
    ----------
    output : Tensor
        Shape (N, classes) or (N, classes, ...); or (N,), for networks with one output.
    target : None, int, sequence of int, array, or Tensor
        None: each sample's largest output; an int: that class for all; integers, one per sample;
        a floating-point tensor that broadcasts to the output's shape: the weights themselves.

    Returns
    -------
    Tensor
        Of the output's shape and type.

    Raises
    ------
    DataError
        For a class that does not exist, or a target that does not fit the output.
    """
    if output.dim() == 0:
        raise DataError("the output is a single number; expected (N, classes), (N, 1) or (N,)")
    if output.dim() == 1:  # one output per sample, as a regression gives or a binary classifier
        return select(output[:, None], _with_column(target, output))[:, 0]
    if isinstance(target, np.ndarray):
        target = as_tensor(target, "the targets")
    if isinstance(target, Tensor) and target.is_floating_point():
        return _weights(output, target)
    weights = torch.zeros_like(output)
    if target is None:
        flat = weights.view(len(output), -1)
        return flat.scatter_(1, output.reshape(len(output), -1).argmax(1, keepdim=True), 1).view(
            output.shape
        )
    index = _numbers(target).to(output.device)
    if index.is_floating_point() or index.dtype == torch.bool:
        raise DataError(f"a target must be integer class numbers, not {index.dtype}")
    index = index.expand(len(output)) if index.dim() == 0 else index
    if index.shape != (len(output),):
        raise DataError(
            f"{tuple(index.shape)} targets for {len(output)} samples: give one class for all, one "
            "per sample, or a floating-point tensor over the outputs"
        )
    classes = output.shape[1]
    wrong = index[(index < 0) | (index >= classes)]
    if len(wrong):
        raise DataError(f"class {int(wrong[0])} does not exist: {_known(classes)}")
    weights[torch.arange(len(output), device=output.device), index.long()] = 1
    return weights


def _numbers(target: object) -> Tensor:
    try:
        return torch.as_tensor(target)
    except (TypeError, ValueError, RuntimeError):
        raise DataError(
            f"the target {target!r} is no number of a class: a network has no names for its "
            "outputs. Look the number up, such as by classes.index('cat') in the list of them"
        ) from None


def _known(classes: int) -> str:
    if classes > 1:
        return f"the network has {classes} outputs, 0 to {classes - 1}"
    return (
        "the network has one output, 0. If that is the logit of the second of two classes, "
        "niwaki.propagation.per_class(model, inputs) has an output for each of them"
    )


def _with_column(target: Target, output: Tensor) -> Target:
    """Give weights of the output's shape (N,) the column that it gets."""
    if isinstance(target, Tensor) and target.is_floating_point() and target.shape == output.shape:
        return target[:, None]
    return target


def _weights(output: Tensor, target: Tensor) -> Tensor:
    if not torch.isfinite(target).all():
        raise DataError("the target holds NaN or infinite values")
    try:
        return target.to(output).expand_as(output)
    except RuntimeError:
        raise DataError(
            f"a target of shape {tuple(target.shape)} does not broadcast to the output's shape "
            f"{tuple(output.shape)}"
        ) from None
