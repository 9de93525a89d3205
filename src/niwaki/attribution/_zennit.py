"""zennit's composites as methods, under their own names."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

from niwaki.attribution._method import Propagating, Start
from niwaki.attribution._registry import register
from niwaki.propagation import PRESETS, Composite

__all__: list[str] = []

_GRADIENTS = ("BetaSmooth", "DeconvNet", "GuidedBackprop")


def _under(
    model: nn.Module,
    *,
    preset: Callable[..., Composite],
    start: Start = "one",
    max_loss: float | None = 1e-3,
    **options: Any,
) -> Propagating:
    return Propagating(model, preset(**options), start=start, max_loss=max_loss)


for _name, _preset in PRESETS.items():
    _fixed: dict[str, Any] = {"max_loss": None} if _name in _GRADIENTS else {}
    _method: Callable[..., Propagating] = functools.partial(_under, preset=_preset, **_fixed)
    _method.__doc__ = f"zennit's composite {_name}, starting with 1 at the chosen output."
    register(_name)(_method)
