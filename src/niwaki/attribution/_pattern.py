"""PatternNet and PatternAttribution (Kindermans et al. 2018)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from niwaki.attribution._method import Propagating, Start
from niwaki.attribution._patterns import Patterns
from niwaki.attribution._registry import register
from niwaki.propagation import pattern_attribution, pattern_net

__all__ = ["PatternAttribution", "PatternNet"]


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
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        composite = self._composite(patterns.to(device))
        super().__init__(model, composite, start=start, max_loss=None)
        self.patterns = patterns


@register("pattern.net")
class PatternNet(_PatternMethod):
    """The signal that made the chosen output, sent back through patterns (Kindermans et al. 2018).

    The gradient's pass back with every weight replaced by its unit's pattern. For a linear network
    and the output's value as start, it is the signal s = a y itself. Defined for ReLU networks;
    other activations are passed by their derivative.

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

    The gradient's pass back with every weight replaced by itself times its unit's pattern: for a
    linear network and the output's value as start, w * a y, which sums to y, as w^T a = 1. It is
    deep Taylor decomposition with the estimated distractor as root point.

    Parameters
    ----------
    patterns : Patterns, str or Path
        From `niwaki.attribution.fit_patterns`, or the path of a file that `Patterns.save` wrote.
    start : {"output", "one"}
        What the chosen output starts with: its value, as in iNNvestigate, or 1.
    """

    _composite = staticmethod(pattern_attribution)
