"""Layer-wise relevance propagation under the composites that are in use, by several names."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import nn

from niwaki.attribution._method import Propagating, Start
from niwaki.attribution._registry import register
from niwaki.propagation import (
    PRESETS,
    Composite,
    epsilon,
    epsilon_plus,
    epsilon_plus_flat,
)

__all__ = ["lrp"]

_GRADIENTS = ("BetaSmooth", "DeconvNet", "GuidedBackprop")


@register("lrp")
def lrp(
    model: nn.Module,
    *,
    composite: Composite | None = None,
    start: Start = "output",
    max_loss: float | None = 1e-3,
) -> Propagating:
    """Layer-wise relevance propagation under a composite of one's own.

    Parameters
    ----------
    model : nn.Module
        See `Propagating`.
    composite : Composite, optional
        Gives each operation its rule; default: `epsilon_plus`.
    start : {"output", "one"}
        Relevance of the chosen output.
    max_loss : float, optional
        See `Propagating`.
    """
    return Propagating(model, composite or epsilon_plus(), start=start, max_loss=max_loss)


def _under(
    preset: Callable[..., Composite],
    model: nn.Module,
    *,
    start: Start,
    max_loss: float | None = 1e-3,
    **options: Any,
) -> Propagating:
    """Make a method of a preset, whose options stay open."""
    return Propagating(model, preset(**options), start=start, max_loss=max_loss)


def _define(name: str, about: str, preset: Callable[..., Composite], **fixed: Any) -> None:
    method: Callable[..., Propagating] = functools.partial(_under, preset, **fixed)
    method.__doc__ = about
    register(name)(method)


_define("lrp.epsilon", "LRP-epsilon in every layer (Bach et al. 2015).", epsilon, start="output")
_define(
    "lrp.epsilon_plus",
    "Z-plus in convolutions, epsilon in linear layers (zennit's EpsilonPlus).",
    epsilon_plus,
    start="output",
)
_define(
    "lrp.epsilon_plus_flat",
    "Like lrp.epsilon_plus, with the flat rule in the first layer (zennit's EpsilonPlusFlat).",
    epsilon_plus_flat,
    start="output",
)
for _name, _preset in PRESETS.items():
    _define(
        _name,
        f"zennit's composite {_name}, starting with 1 at the chosen output.",
        _preset,
        start="one",
        **({"max_loss": None} if _name in _GRADIENTS else {}),
    )
