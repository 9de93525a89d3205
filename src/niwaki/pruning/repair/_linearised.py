"""Outputs to first order around some weights: how they move, and what moves them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from niwaki.pruning.repair._kronecker import Theta

__all__ = ["Linearised"]


class Linearised:
    """A function of weights, to first order around some.

    Parameters
    ----------
    function : callable
        Returns outputs, of any shape.
    theta : dict of str to Tensor
        The weights.

    Attributes
    ----------
    given : Tensor
        What it returns for these weights.
    """

    def __init__(self, function: Callable[[Theta], Tensor], theta: Theta) -> None:
        self._leaves = {name: v.detach().clone().requires_grad_() for name, v in theta.items()}
        with torch.enable_grad():
            self._given = function(self._leaves)
        self.given = self._given.detach()
        self._swept: tuple[Tensor, Theta] | None = None

    def back(self, signal: Tensor) -> Theta:
        """Multiply a signal by the derivatives of the outputs, by weight."""
        return self._back(signal, create_graph=False)

    def moved(self, way: Theta) -> Tensor:
        """Return how the outputs move as the weights go a way."""
        # What is propagated back is linear in the signal; its own derivative by the signal is how
        # the outputs move with the weights.
        if self._swept is None:
            signal = torch.zeros_like(self.given, requires_grad=True)
            self._swept = signal, self._back(signal, create_graph=True)
        signal, swept = self._swept
        ways = [way[name].to(value) for name, value in swept.items()]
        (moved,) = torch.autograd.grad([*swept.values()], signal, ways, retain_graph=True)
        return moved

    def _back(self, signal: Tensor, *, create_graph: bool) -> Theta:
        leaves = [*self._leaves.values()]
        with torch.enable_grad():
            found = torch.autograd.grad(
                self._given, leaves, signal, retain_graph=True, create_graph=create_graph
            )
        return dict(zip(self._leaves, found, strict=True))
