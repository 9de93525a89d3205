"""The shape and the values of every array that may be given, checked before anything is computed.

A `Shaped` says which arrays an argument may be; `shaped` puts these on the parameters of a
function. Axes that have the same letter in two of them must be of the same length. So an array of
another shape is not stretched to fit, numbers are not taken for a mask, and NaN does not turn into
a p-value.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, replace
from functools import wraps
from math import inf
from typing import Any, Literal, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray

from niwaki.errors import DataError

__all__ = ["LABELS", "MAPS", "MASKS", "NUMBERS", "TRUTHS", "Array", "Shaped", "shaped"]

Array = NDArray[Any]
Target = TypeVar("Target", bound=Callable[..., Any])

_KINDS = {"number": "biuf", "whole": "iu", "truth": "b", "name": "biufUSO"}


@dataclass(frozen=True)
class Shaped:
    """Which arrays are allowed.

    Attributes
    ----------
    axes : str
        A letter or name for each axis, such as ``"N H W"``; other shapes that are allowed follow
        after a bar, as in ``"H W | N H W"``. A number is the length itself; an underscore is an
        axis that no other array shares.
    kind : {"number", "whole", "truth", "name"}
        Numbers, whole numbers, booleans, or whatever can name a class or a group.
    low, high : float
        Ends of the values.
    missing : bool
        Whether values may be NaN; they may never be infinite.
    """

    axes: str
    kind: Literal["number", "whole", "truth", "name"] = "number"
    _: KW_ONLY
    low: float = -inf
    high: float = inf
    missing: bool = False

    def but(self, **changes: Any) -> Shaped:
        """Return the same with other axes or other values."""
        return replace(self, **changes)

    def sizes(self, what: str, value: Any) -> dict[str, int]:
        """Check an array, and return the lengths of its axes by name.

        Raises
        ------
        DataError
            With what is wrong, and what the array must be.
        """
        shape, wanted = tuple(value.shape), [form.split() for form in self.axes.split("|")]
        fitting = [names for names in wanted if _fits(names, shape)]
        if not fitting:
            told = " or ".join(f"({', '.join(names)})" for names in wanted)
            raise DataError(f"{what} is of shape {shape}; it must be {told}")
        values = _values(value)
        if values.dtype.kind not in _KINDS[self.kind]:
            raise DataError(f"{what} is of type {values.dtype}; {_WANTED[self.kind]}")
        if values.dtype.kind in "iuf":
            self._check_values(what, values)
        found: dict[str, int] = {}
        for name, size in zip(fitting[0], shape, strict=True):
            if name.isalpha() and found.setdefault(name, size) != size:
                raise DataError(f"{what} is of shape {shape}; both axes must be of the same length")
        return found

    def _check_values(self, what: str, values: np.ndarray[Any, Any]) -> None:
        wrong = np.isinf(values) if self.missing else ~np.isfinite(values)
        if wrong.any():
            not_allowed = "infinite values" if self.missing else "NaN or infinite values"
            raise DataError(
                f"{what} has {not_allowed}, {int(wrong.sum())} of {wrong.size}, the first at "
                f"{tuple(int(i) for i in np.argwhere(wrong)[0])}"
            )
        known = values[~np.isnan(values)] if self.missing else values
        if known.size and not (known.min() >= self.low and known.max() <= self.high):
            ends = f"from {self.low:g} to {self.high:g}" if self.high < inf else (
                f"{self.low:g} or more"
            )  # fmt: skip
            raise DataError(
                f"{what} has values from {known.min():g} to {known.max():g}; they must be {ends}"
            )


_WANTED = {
    "number": "it must hold numbers",
    "whole": "it must hold whole numbers",
    "truth": "it must hold booleans: give a comparison, such as masks > 0",
    "name": "it must hold numbers or names",
}

MAPS = Shaped("N H W")
MASKS = Shaped("N H W", "truth")
NUMBERS = Shaped("N")
TRUTHS = Shaped("N", "truth")
LABELS = Shaped("N", "whole", low=0)


def shaped(**forms: Shaped) -> Callable[[Target], Target]:
    """Check the arrays that a function is given, and that they fit each other.

    Parameters
    ----------
    **forms : Shaped
        By the name of the parameter. None is not checked; lists count as arrays.

    Raises
    ------
    DataError
        When the function is called with an array of another shape or with other values.
    """

    def decorate(target: Target) -> Target:
        signature = inspect.signature(target)
        if unknown := forms.keys() - signature.parameters.keys():
            raise TypeError(f"{target.__qualname__} has no parameters {sorted(unknown)}")

        @wraps(target)
        def call(*args: Any, **options: Any) -> Any:
            try:
                given = signature.bind_partial(*args, **options).arguments
            except TypeError:  # the function says better what is wrong with its arguments
                return target(*args, **options)
            known = {n: v for n, v in given.items() if n in forms and v is not None}
            _check_together({name: forms[name] for name in known}, known)
            return target(*args, **options)

        call.__niwaki_arrays__ = forms  # type: ignore[attr-defined]
        return cast(Target, call)

    return decorate


def _check_together(forms: Mapping[str, Shaped], given: Mapping[str, Any]) -> None:
    """Check each array, and that axes of the same name have the same length."""
    first: dict[str, tuple[str, int]] = {}
    for name, form in forms.items():
        value = given[name] if hasattr(given[name], "shape") else np.asarray(given[name])
        for axis, size in form.sizes(name, value).items():
            other, there = first.setdefault(axis, (name, size))
            if size != there:
                raise DataError(
                    f"{name} is of shape {tuple(value.shape)} and {other} of shape "
                    f"{tuple(np.shape(given[other]))}: both must have the same {axis} in "
                    f"({', '.join(form.axes.split())})"
                )


def _fits(names: list[str], shape: tuple[int, ...]) -> bool:
    return len(names) == len(shape) and all(
        not name.isdigit() or int(name) == size for name, size in zip(names, shape, strict=True)
    )


def _values(value: Any) -> np.ndarray[Any, Any]:
    if not isinstance(value, torch.Tensor):
        return np.asarray(value)
    plain = value.detach().cpu()
    return (plain.float() if plain.dtype in (torch.bfloat16, torch.float16) else plain).numpy()
