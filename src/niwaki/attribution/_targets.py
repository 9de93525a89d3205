"""What is explained: the choice of outputs, and the relevance they start with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from niwaki.data import as_tensor, check_labels
from niwaki.errors import DataError
from niwaki.models import class_logits

__all__ = ["ClassChoice", "Target", "check_choice", "chosen_classes", "select"]

#: What is explained of given inputs, see `select`.
Target: TypeAlias = "int | Sequence[int] | np.ndarray[Any, Any] | Tensor | None"

#: What is explained of all images of a data set, see `chosen_classes`; None means "predicted".
ClassChoice: TypeAlias = "int | Literal['predicted', 'true'] | None"


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
        A tensor of the output's shape and type.

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


def check_choice(target: object) -> None:
    """Refuse what is not a `ClassChoice`.

    Raises
    ------
    DataError
        For a word other than the two, and for what is no whole number.
    """
    number = isinstance(target, (int, np.integer)) and not isinstance(target, bool)
    if target is not None and target not in ("predicted", "true") and not number:
        raise DataError(
            f"target {target!r}: give 'predicted' (or None), 'true' or the number of a class"
        )


def chosen_classes(output: Tensor, labels: Tensor, target: ClassChoice) -> Tensor:
    """Return the class of each sample that is explained, shape (N,).

    Parameters
    ----------
    output : Tensor
        The network's output, shape (N, classes), or one column, as `niwaki.models.class_logits`
        takes it.
    labels : Tensor
        The true classes, shape (N,).
    target : None, int, "predicted" or "true"
        None and "predicted": the class of the largest output; an int: that class for all samples;
        "true": the label of each.

    Raises
    ------
    DataError
        For a class that is no output, and for another target.
    """
    check_choice(target)
    logits = class_logits(output, "a choice of classes to explain")
    if target is None or target == "predicted":
        return logits.argmax(1)
    classes = labels if target == "true" else torch.full_like(labels, int(target))
    check_labels(classes, logits.shape[1])
    return classes


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
