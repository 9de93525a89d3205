"""LRP and deep Taylor as iNNvestigate 1.0.8 names and defines them (Alber et al. 2019).

Relevance starts with the output's value. ``_IB`` ignores biases. iNNvestigate stabilises only
denominators that are exactly zero; here all get a stabilizer that is too small to matter.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from niwaki.attribution._catalogue import register
from niwaki.attribution._method import Propagating, Start
from niwaki.attribution._targets import Target, select
from niwaki.propagation import (
    AlphaBeta,
    Assign,
    Composite,
    Epsilon,
    Flat,
    Gradient,
    Kind,
    Rule,
    WSquare,
    ZBox,
    ZPlus,
    base_rows,
    first_rows,
)

__all__ = ["DeepTaylor", "Lrp"]

EXACT = 1e-12
_LAYERS: tuple[Kind, ...] = ("convolution", "linear", "batch_norm")


class Lrp(Propagating):
    """LRP with one rule, or one for convolutions and one for linear layers.

    Parameters
    ----------
    model : nn.Module
        See `Method`.
    rule : Rule
        For convolutions, and for linear layers if `dense` is not given.
    dense : Rule, optional
        For linear layers.
    first : str or pair of float, optional
        Another rule for the first layer: ``"flat"``, ``"w_square"``, or the bounds of the z-box.
    start : {"output", "one"}
        Relevance of the chosen output.
    max_loss : float, optional
        See `Propagating`.
    """

    def __init__(
        self,
        model: nn.Module,
        rule: Rule,
        *,
        dense: Rule | None = None,
        first: str | tuple[float, float] | None = None,
        start: Start = "output",
        max_loss: float | None = 1e-3,
    ) -> None:
        rows = (
            Assign(rule, kind=("convolution", "batch_norm")),
            Assign(dense or rule, kind="linear"),
            *base_rows(Epsilon(EXACT), Epsilon(EXACT)),
        )
        if first is not None:
            given = _first_rule(first)
            rows = (*first_rows(given), *rows)
        super().__init__(model, Composite("LRP", rows), start=start, max_loss=max_loss)


def _first_rule(first: str | tuple[float, float]) -> Rule:
    named = {"flat": Flat(EXACT), "w_square": WSquare(EXACT, bias=False)}
    if isinstance(first, tuple) and len(first) == 2:
        return ZBox(*first, stabilizer=EXACT)
    if not isinstance(first, str) or first not in named:
        raise ValueError(f"first = {first!r}: give 'flat', 'w_square', or the bounds (low, high)")
    return named[first]


def _define(name: str, about: str, **fixed: Any) -> None:
    """Register an `Lrp` with fixed rules; its other options stay open."""
    method: Callable[..., Propagating] = functools.partial(Lrp, **fixed)
    method.__doc__ = about
    register(name)(method)


def _alpha_beta(alpha: float, beta: float, *, bias: bool = True) -> Rule:
    return AlphaBeta(alpha, beta, EXACT, bias="both" if bias else False)


_define("lrp.z", "LRP-z: shares in proportion to the contributions.", rule=Epsilon(EXACT))
_define("lrp.z_IB", "LRP-z that ignores biases.", rule=Epsilon(EXACT, bias=False))
# These two look at no inputs: units that are silent get relevance, and cannot hand it on.
_define(
    "lrp.w_square",
    "LRP w-square in every layer.",
    rule=WSquare(EXACT, bias=False),
    max_loss=None,
)
_define("lrp.flat", "LRP flat: equal shares in every layer.", rule=Flat(EXACT), max_loss=None)
for _alpha, _beta in ((1, 0), (2, 1)):
    for _suffix, _bias in (("", True), ("_IB", False)):
        _define(
            f"lrp.alpha_{_alpha}_beta_{_beta}{_suffix}",
            f"LRP alpha-beta with alpha {_alpha}, beta {_beta}"
            f"{'' if _bias else ', ignoring biases'}.",
            rule=_alpha_beta(_alpha, _beta, bias=_bias),
        )
for _name in ("lrp.z_plus", "lrp.z_plus_fast"):
    _define(
        _name,
        "LRP z-plus: only contributions above zero, ignoring biases.",
        rule=ZPlus(EXACT, bias=False),
    )
for _letter, _alpha, _beta in (("a", 1, 0), ("b", 2, 1)):
    for _suffix, _flat in (("", None), ("_flat", "flat")):
        _define(
            f"lrp.sequential_preset_{_letter}{_suffix}",
            f"LRP preset {_letter.upper()}: epsilon 0.1 in linear layers, alpha {_alpha} beta "
            f"{_beta} in convolutions{', flat in the first layer' if _flat else ''}.",
            rule=_alpha_beta(_alpha, _beta),
            dense=Epsilon(0.1),
            first=_flat,
        )


@register("lrp.epsilon_IB")
def lrp_epsilon_ignore_bias(
    model: nn.Module, *, epsilon: float = 1e-7, **options: Any
) -> Propagating:
    """LRP-epsilon that ignores biases."""
    return Lrp(model, Epsilon(epsilon, bias=False), **options)


@register("lrp.alpha_beta")
def lrp_alpha_beta(
    model: nn.Module, *, alpha: float = 2.0, beta: float = 1.0, bias: bool = True, **options: Any
) -> Propagating:
    """LRP alpha-beta with any alpha and beta whose difference is 1."""
    return Lrp(model, _alpha_beta(alpha, beta, bias=bias), **options)


@register("deep_taylor")
class DeepTaylor(Propagating):
    """Deep Taylor decomposition: z-plus in every layer (Montavon et al. 2017).

    Relevance starts with the output's value, where that is above zero. Average pooling gets the
    gradient, as in iNNvestigate, and so hands relevance to silent units too, where it may be lost.

    Parameters
    ----------
    model : nn.Module
        See `Method`.
    max_loss : float, optional
        See `Propagating`.
    """

    def __init__(self, model: nn.Module, *, max_loss: float | None = None) -> None:
        rows = (
            Assign(ZPlus(EXACT, bias=False), kind=_LAYERS),
            *base_rows(ZPlus(EXACT), Gradient()),
        )
        super().__init__(model, Composite("DeepTaylor", rows), max_loss=max_loss)

    def begin(self, output: Tensor, target: Target) -> Tensor:
        """Return the relevance that the outputs start with."""
        return select(output, target) * output.clamp(min=0)


@register("deep_taylor.bounded")
class BoundedDeepTaylor(DeepTaylor):
    """Deep Taylor decomposition with the z-box in the first layer, for inputs with bounds.

    Parameters
    ----------
    model : nn.Module
        See `Method`.
    low, high : float or tuple of float
        Smallest and largest value of the inputs; a tuple gives one per channel. The default fits
        images normalised to unit variance.
    max_loss : float, optional
        See `Propagating`.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        low: float | tuple[float, ...] = -3.0,
        high: float | tuple[float, ...] = 3.0,
        max_loss: float | None = None,
    ) -> None:
        super().__init__(model, max_loss=max_loss)
        self.composite = self.composite.with_rows(*first_rows(ZBox(low, high, EXACT)))
