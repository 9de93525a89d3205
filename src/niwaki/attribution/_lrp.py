"""Methods that propagate by a composite: LRP and patterns."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from niwaki.attribution._catalogue import register
from niwaki.attribution._method import Propagating, Start
from niwaki.attribution._patterns import Patterns
from niwaki.models import device_of
from niwaki.propagation import (
    PRESETS,
    Composite,
    epsilon,
    epsilon_plus,
    epsilon_plus_flat,
    pattern_attribution,
    pattern_net,
)

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


class _PatternMethod(Propagating):
    """What both methods share: patterns that must fit the network.

    Parameters
    ----------
    patterns : Patterns, str or Path
        See `niwaki.attribution.fit_patterns`; a path: of a file that `Patterns.save` wrote.
    start : {"output", "one"}
        What the chosen output starts with: its value, as in iNNvestigate, so that the signal is
        scaled by how much of it there is; or 1, for its direction alone.

    Raises
    ------
    ValueError
        Without patterns.
    ModelError
        If the patterns are of a network of other shapes.
    """

    _composite = staticmethod(pattern_net)

    def __init__(
        self,
        model: nn.Module,
        *,
        patterns: Patterns | str | Path | None = None,
        start: Start = "output",
    ) -> None:
        if patterns is None:
            raise ValueError(
                "this method needs patterns, which are learned from data: "
                "patterns = niwaki.attribution.fit_patterns(model, data); "
                "patterns.save('patterns.safetensors') keeps them. Then pass patterns=patterns, "
                "or the path of the file"
            )
        if isinstance(patterns, (str, Path)):
            patterns = Patterns.load(patterns)
        patterns.check(model)
        device = device_of(model)
        composite = self._composite(patterns.to(device))
        super().__init__(model, composite, start=start, max_loss=None)
        self.patterns = patterns


@register("pattern.net")
class PatternNet(_PatternMethod):
    """The signal that made the chosen output, sent back through patterns (Kindermans et al. 2018).

    The gradient's backward pass with every weight replaced by its unit's pattern. For a linear
    network and the output's value as start, it is the signal s = a y itself. Defined for ReLU
    networks; other activations are passed by their derivative.

    Parameters
    ----------
    patterns : Patterns, str or Path
        From `niwaki.attribution.fit_patterns`, or the path of a file that `Patterns.save` wrote.
    start : {"output", "one"}
        What the chosen output starts with: its value, as in iNNvestigate, or 1.
    """


@register("pattern.attribution")
class PatternAttribution(_PatternMethod):
    """How much each input value's signal adds to the chosen output (Kindermans et al. 2018).

    The gradient's backward pass with every weight replaced by itself times its unit's pattern: for
    a linear network and the output's value as start, w * a y, which sums to y, as w^T a = 1. It is
    deep Taylor decomposition with the estimated distractor as root point.

    Parameters
    ----------
    patterns : Patterns, str or Path
        From `niwaki.attribution.fit_patterns`, or the path of a file that `Patterns.save` wrote.
    start : {"output", "one"}
        What the chosen output starts with: its value, as in iNNvestigate, or 1.
    """

    _composite = staticmethod(pattern_attribution)
