"""Layer-wise relevance propagation under the composites that are in use."""

from __future__ import annotations

from torch import nn

from niwaki.attribution._method import Propagating, Start
from niwaki.attribution._registry import register
from niwaki.propagation import Composite, Rule, epsilon, epsilon_plus, epsilon_plus_flat
from niwaki.propagation.transport import STABILIZER

__all__ = ["lrp", "lrp_epsilon", "lrp_epsilon_plus", "lrp_epsilon_plus_flat"]


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
    composite : Composite, optional
        Gives each operation its rule; default: `epsilon_plus`.
    start : {"output", "one"}
        Relevance of the chosen output.
    max_loss : float, optional
        See `Propagating`.
    """
    return Propagating(model, composite or epsilon_plus(), start=start, max_loss=max_loss)


@register("lrp.epsilon")
def lrp_epsilon(
    model: nn.Module,
    *,
    epsilon: float = STABILIZER,
    bias: bool = True,
    start: Start = "output",
    max_loss: float | None = 1e-3,
) -> Propagating:
    """LRP-epsilon in every layer (Bach et al. 2015)."""
    return Propagating(model, _EPSILON(epsilon, bias=bias), start=start, max_loss=max_loss)


@register("lrp.epsilon_plus")
def lrp_epsilon_plus(
    model: nn.Module,
    *,
    epsilon: float = STABILIZER,
    stabilizer: float = STABILIZER,
    sums: Rule | None = None,
    bias: bool = True,
    start: Start = "output",
    max_loss: float | None = 1e-3,
) -> Propagating:
    """Z-plus in convolutions, epsilon in linear layers (zennit's EpsilonPlus)."""
    composite = epsilon_plus(epsilon, stabilizer, sums=sums, bias=bias)
    return Propagating(model, composite, start=start, max_loss=max_loss)


@register("lrp.epsilon_plus_flat")
def lrp_epsilon_plus_flat(
    model: nn.Module,
    *,
    epsilon: float = STABILIZER,
    stabilizer: float = STABILIZER,
    sums: Rule | None = None,
    bias: bool = True,
    start: Start = "output",
    max_loss: float | None = 1e-3,
) -> Propagating:
    """Like lrp.epsilon_plus, with the flat rule in the first layer (zennit's EpsilonPlusFlat)."""
    composite = epsilon_plus_flat(epsilon, stabilizer, sums=sums, bias=bias)
    return Propagating(model, composite, start=start, max_loss=max_loss)


_EPSILON = epsilon  # the option of the same name hides it
