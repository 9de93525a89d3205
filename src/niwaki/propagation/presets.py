"""The composites in use, under zennit's names (Anders et al. 2021) and defaults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from niwaki.propagation.composites import Assign, Composite, base_rows, first_rows
from niwaki.propagation.gates import BetaSmooth, Rescale
from niwaki.propagation.operation import Rule
from niwaki.propagation.rules import (
    AlphaBeta,
    Deconvnet,
    Epsilon,
    Flat,
    Gradient,
    Guided,
    ZBox,
    ZPlus,
)
from niwaki.propagation.transport import STABILIZER
from niwaki.propagation.weight_rules import Gamma

__all__ = [
    "PRESETS",
    "beta_smooth",
    "deconvnet",
    "epsilon",
    "epsilon_alpha2_beta1",
    "epsilon_alpha2_beta1_flat",
    "epsilon_gamma_box",
    "epsilon_plus",
    "epsilon_plus_flat",
    "excitation_backprop",
    "gradient",
    "guided_backprop",
    "rescale",
]


def epsilon(
    epsilon: float = STABILIZER, *, sums: Rule | None = None, bias: bool = True
) -> Composite:
    """LRP-epsilon in every layer.

    Parameters
    ----------
    epsilon : float
        Stabilizer of the epsilon rule.
    sums : Rule, optional
        For residual sums; default: `Epsilon`.
    bias : bool
        Whether biases take their share.
    """
    rule = Epsilon(epsilon, bias=bias)
    return Composite(
        "Epsilon",
        (
            Assign(rule, kind=("convolution", "linear", "batch_norm")),
            *base_rows(sums or Epsilon(), Epsilon()),
        ),
    )


def epsilon_plus(
    epsilon: float = STABILIZER,
    stabilizer: float = STABILIZER,
    *,
    sums: Rule | None = None,
    bias: bool = True,
) -> Composite:
    """Z-plus in convolutions, epsilon in linear layers: zennit's ``EpsilonPlus``.

    A batch norm that stands alone gets z-plus, as the diagonal convolution that it is.

    Parameters
    ----------
    epsilon : float
        Stabilizer of the epsilon rule in linear layers.
    stabilizer : float
        Stabilizer of the other rules.
    sums : Rule, optional
        For residual sums; default: `Epsilon`, as in zennit. `ZPlus` keeps relevances bounded where
        the branches nearly cancel.
    bias : bool
        Whether biases take their share.
    """
    return Composite(
        "EpsilonPlus",
        (
            Assign(ZPlus(stabilizer, bias=bias), kind=("convolution", "batch_norm")),
            Assign(Epsilon(epsilon, bias=bias), kind="linear"),
            *base_rows(sums or Epsilon(stabilizer), Epsilon(stabilizer)),
        ),
    )


def epsilon_plus_flat(
    epsilon: float = STABILIZER,
    stabilizer: float = STABILIZER,
    *,
    sums: Rule | None = None,
    bias: bool = True,
) -> Composite:
    """`epsilon_plus` with the flat rule in the first layer: zennit's ``EpsilonPlusFlat``."""
    rest = epsilon_plus(epsilon, stabilizer, sums=sums, bias=bias)
    return replace(rest.with_rows(*first_rows(Flat(stabilizer))), name="EpsilonPlusFlat")


def gradient() -> Composite:
    """Every operation's own derivative: the plain gradient."""
    return Composite("Gradient", (Assign(Gradient()),))


def epsilon_alpha2_beta1(
    epsilon: float = STABILIZER,
    stabilizer: float = STABILIZER,
    *,
    sums: Rule | None = None,
    bias: bool = True,
) -> Composite:
    """Alpha 2 beta 1 in convolutions, epsilon in linear layers: ``EpsilonAlpha2Beta1``."""
    rule = AlphaBeta(2.0, 1.0, stabilizer, bias=bias)
    rest = epsilon_plus(epsilon, stabilizer, sums=sums, bias=bias)
    row = Assign(rule, kind=("convolution", "batch_norm"))
    return replace(rest.with_rows(row), name="EpsilonAlpha2Beta1")


def epsilon_alpha2_beta1_flat(
    epsilon: float = STABILIZER,
    stabilizer: float = STABILIZER,
    *,
    sums: Rule | None = None,
    bias: bool = True,
) -> Composite:
    """`epsilon_alpha2_beta1` with the flat rule in the first layer: ``EpsilonAlpha2Beta1Flat``."""
    rest = epsilon_alpha2_beta1(epsilon, stabilizer, sums=sums, bias=bias)
    return replace(rest.with_rows(*first_rows(Flat(stabilizer))), name="EpsilonAlpha2Beta1Flat")


def epsilon_gamma_box(
    low: float | tuple[float, ...] = -3.0,
    high: float | tuple[float, ...] = 3.0,
    epsilon: float = STABILIZER,
    gamma: float = 0.25,
    stabilizer: float = STABILIZER,
    *,
    sums: Rule | None = None,
    bias: bool = True,
) -> Composite:
    """Z-box first, gamma in convolutions, epsilon in linear layers: ``EpsilonGammaBox``.

    Parameters
    ----------
    low, high : float or tuple of float
        Smallest and largest value of the inputs, as the network gets them; a tuple gives one per
        channel. A normalisation inside the network is allowed for. The default fits images
        normalised to unit variance.
    gamma : float
        The gamma rule's preference for positive weights.
    epsilon, stabilizer, sums, bias
        See `epsilon_plus`.
    """
    rest = epsilon_plus(epsilon, stabilizer, sums=sums, bias=bias)
    rows = (
        *first_rows(ZBox(low, high, stabilizer), kind="convolution"),
        Assign(Gamma(gamma, stabilizer, bias=bias), kind=("convolution", "batch_norm")),
    )
    return replace(rest.with_rows(*rows), name="EpsilonGammaBox")


def excitation_backprop(stabilizer: float = STABILIZER, *, bias: bool = True) -> Composite:
    """Z-plus in every layer: ``ExcitationBackprop`` (Zhang et al. 2016).

    Parameters
    ----------
    stabilizer : float
        Stabilizer of all rules.
    bias : bool
        Whether positive biases take their share: in zennit, by default; not in the paper.
    """
    rule = ZPlus(stabilizer, bias=bias)
    return Composite(
        "ExcitationBackprop",
        (
            Assign(rule, kind=("convolution", "linear", "batch_norm")),
            *base_rows(Epsilon(stabilizer), Epsilon(stabilizer)),
        ),
    )


def guided_backprop() -> Composite:
    """Gradient with guided gates at activations: ``GuidedBackprop``."""
    return Composite("GuidedBackprop", (Assign(Guided(), kind="activation"), *gradient().rows))


def deconvnet() -> Composite:
    """Gradient with the deconvolutional network's gates at activations: ``DeconvNet``."""
    return Composite("DeconvNet", (Assign(Deconvnet(), kind="activation"), *gradient().rows))


def beta_smooth(beta: float = 10.0) -> Composite:
    """Gradient with smoothed ReLUs: ``BetaSmooth`` (Dombrowski et al. 2019)."""
    row = Assign(BetaSmooth(beta), kind="activation", operation="relu")
    return Composite("BetaSmooth", (row, *gradient().rows))


def rescale() -> Composite:
    """DeepLIFT's rescale rule at everything that is not linear; see `Rescale`."""
    row = Assign(Rescale(), kind=("activation", "max_pool"))
    return Composite("Rescale", (row, *gradient().rows))


#: zennit's names
PRESETS: dict[str, Callable[..., Composite]] = {
    "BetaSmooth": beta_smooth,
    "DeconvNet": deconvnet,
    "EpsilonAlpha2Beta1": epsilon_alpha2_beta1,
    "EpsilonAlpha2Beta1Flat": epsilon_alpha2_beta1_flat,
    "EpsilonGammaBox": epsilon_gamma_box,
    "EpsilonPlus": epsilon_plus,
    "EpsilonPlusFlat": epsilon_plus_flat,
    "ExcitationBackprop": excitation_backprop,
    "GuidedBackprop": guided_backprop,
}
