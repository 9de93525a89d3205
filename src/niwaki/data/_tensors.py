"""Inputs in the forms in which people hold them, as one tensor."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from niwaki.errors import DataError

__all__ = ["as_tensor"]


def as_tensor(values: Any, what: str = "the inputs") -> Tensor:
    """Return a tensor for a tensor, a NumPy array, or a list of equal tensors, arrays or numbers.

    Parameters
    ----------
    values
        A list is stacked: its items become the samples.
    what
        Names them in messages.

    Raises
    ------
    DataError
        For anything else, and items of different shapes.
    """
    if isinstance(values, Tensor):
        return values
    if isinstance(values, np.ndarray):
        return _of_array(values, what)
    if not isinstance(values, list):
        raise DataError(f"{what} are {_kind(values)}; {_way_out(values)}")
    if all(isinstance(value, (int, float)) for value in values):
        return torch.tensor(values)
    for value in values:
        if not isinstance(value, (Tensor, np.ndarray, np.generic)):
            raise DataError(f"{what} are a list with {_kind(value)}; {_way_out(value)}")
    parts = [torch.as_tensor(value) for value in values]
    shapes = {tuple(part.shape) for part in parts}
    if len(shapes) > 1:
        raise DataError(
            f"{what} are a list of tensors of different shapes, such as "
            f"{' and '.join(map(str, sorted(shapes)[:2]))}: bring them to one size, or pass them "
            "one by one"
        )
    return torch.stack(parts)


def _of_array(values: np.ndarray[Any, Any], what: str) -> Tensor:
    try:
        return torch.from_numpy(np.ascontiguousarray(values)).reshape(values.shape)
    except TypeError:
        raise DataError(
            f"{what} are an array of {values.dtype}, for which there is no tensor: convert it to "
            "numbers, such as values.astype('float32')"
        ) from None


def _kind(value: Any) -> str:
    return f"a {type(value).__module__.partition('.')[0]} {type(value).__name__}".replace(
        "a builtins ", "a "
    )


def _way_out(value: Any) -> str:
    if hasattr(value, "convert"):  # an image of Pillow
        return (
            "turn images into a batch: torch.stack([preprocessing(image) for image in images]) "
            "with a niwaki.data.Preprocessing"
        )
    if isinstance(value, (tuple, dict)):
        return (
            "pass one tensor of shape (N, ...). For a network of several inputs, wrap it in a "
            "module whose forward takes the one to explain and holds the others"
        )
    return "pass one tensor of shape (N, ...)"
