"""Outputs to first order around some weights: how they move, and what moves them."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from niwaki.errors import NiwakiError
from niwaki.pruning.repair._kronecker import Theta

__all__ = ["Linearised", "NotLinearisedError"]


class NotLinearisedError(NiwakiError):
    """An operation can be differentiated neither twice nor forward."""


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
        self._function = function
        self._leaves = {name: v.detach().clone().requires_grad_() for name, v in theta.items()}
        with torch.enable_grad():
            self._given = function(self._leaves)
        self.given = self._given.detach()
        self._swept: tuple[Tensor, Theta] | None = None

    def back(self, signal: Tensor) -> Theta:
        """Multiply a signal by the derivatives of the outputs, by weight."""
        return self._back(signal, create_graph=False)

    def moved(self, way: Theta) -> Tensor:
        """Return how the outputs move as the weights go a way.

        Raises
        ------
        NotLinearisedError
            If an operation can be differentiated neither twice nor forward, such as torch's fused
            attention.
        """
        try:
            return self._back_and_back(way)
        except RuntimeError as error:
            if "is not implemented" not in str(error):  # as for the hard sigmoid
                raise
        weights = {name: leaf.detach() for name, leaf in self._leaves.items()}
        ways = {name: way[name].to(value) for name, value in weights.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch warns of what it uses itself
            try:
                moved: Tensor = torch.func.jvp(self._function, (weights,), (ways,))[1]
            except NotImplementedError as error:
                raise NotLinearisedError(str(error).strip()) from error
        return moved

    def _back_and_back(self, way: Theta) -> Tensor:
        # What is propagated back is linear in the signal; its own derivative by the signal is how
        # the outputs move with the weights. Unlike forward differentiation, it can be kept.
        if self._swept is None:
            signal = torch.zeros_like(self.given, requires_grad=True)
            self._swept = signal, self._back(signal, create_graph=True)
        signal, swept = self._swept
        felt = {name: value for name, value in swept.items() if value.requires_grad}
        ways = [way[name].to(value) for name, value in felt.items()]
        if not felt:
            return torch.zeros_like(self.given)
        (moved,) = torch.autograd.grad([*felt.values()], signal, ways, retain_graph=True)
        return moved

    def _back(self, signal: Tensor, *, create_graph: bool) -> Theta:
        leaves = [*self._leaves.values()]
        with torch.enable_grad():
            found = torch.autograd.grad(
                self._given,
                leaves,
                signal,
                retain_graph=True,
                create_graph=create_graph,
                materialize_grads=True,
            )
        return dict(zip(self._leaves, found, strict=True))
