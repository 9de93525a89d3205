"""The picture of a network as it stands: layers, cost and channels, each looked at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

from torch import Tensor, nn

from niwaki.criteria import hidden_layers
from niwaki.evaluation import Cost
from niwaki.propagation import Layer, trace
from niwaki.pruning.units._budget import Budget, Of
from niwaki.pruning.units._coupling import Coupling, Group, couple

__all__ = ["Structure"]


class Structure:
    """What is known of a network that does not change: each part is found when first asked for.

    Parameters
    ----------
    model : nn.Module
        Ours, and not changed any more; what is found here holds for its copies, too.
    example : Tensor
        Inputs to trace it with.
    """

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        self.model, self.example = model, example
        self._coupling: tuple[tuple[Sequence[str], ...], Coupling] | None = None

    @cached_property
    def layers(self) -> list[Layer]:
        """The layers that count."""
        return trace(self.model, self.example[:1])

    @cached_property
    def hidden(self) -> list[Layer]:
        """Those whose units are not the network's outputs."""
        return hidden_layers(self.model, self.example[:1], self.layers)

    @cached_property
    def cost(self) -> Cost:
        """What the network costs."""
        return Cost.of(self.model, self.layers)

    def coupling(self, scored: Sequence[str], ignore: Sequence[str]) -> Coupling:
        """Return the groups that may be removed, see `couple`."""
        asked = tuple(scored), tuple(ignore)
        if self._coupling is None or self._coupling[0] != asked:
            self._coupling = asked, couple(self.model, self.example, scored, ignore)
        return self._coupling[1]

    def budget(
        self, groups: Sequence[Group], of: Of, prices: Mapping[str, float] | None = None
    ) -> Budget:
        """Return what the network costs, to count on."""
        return Budget(self.model, self.layers, groups, of, prices)
