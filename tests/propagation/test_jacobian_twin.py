"""Every rule on every kind of linear operation equals its formula in dense linear algebra."""

from collections.abc import Callable

import pytest
import torch
from linear_maps import MAPS, Map, dense, matrix_of, randomised
from torch import Tensor, nn

from niwaki.errors import PropagationError
from niwaki.propagation import (
    AlphaBeta,
    Assign,
    Composite,
    Deconvnet,
    Epsilon,
    Flat,
    Gamma,
    Gradient,
    Guided,
    Norm,
    Pass,
    Ratio,
    Rule,
    WSquare,
    ZBox,
    ZPlus,
    propagate,
)

Formula = Callable[[Tensor, Tensor, Tensor, Tensor, bool], Tensor]
"""Of input, matrix, offset, relevance, and whether the map has parameters."""

STABILIZER = 1e-6
LOW, HIGH = -3.0, 2.5


def stabilized(z: Tensor, epsilon: float = STABILIZER) -> Tensor:
    return torch.where(z < 0, z - epsilon, z + epsilon)


def epsilon(epsilon: float, bias: bool) -> Formula:
    def formula(x: Tensor, W: Tensor, b: Tensor, R: Tensor, _: bool) -> Tensor:
        return x * (R / stabilized(x @ W.T + b * bias, epsilon) @ W)

    return formula


def alpha_beta(alpha: float, beta: float, bias: bool = True) -> Formula:
    def formula(x: Tensor, W: Tensor, b: Tensor, R: Tensor, _: bool) -> Tensor:
        contributions = x[:, None, :] * W  # sample, output, input
        b = b * bias

        def share(part: Tensor, offset: Tensor) -> Tensor:
            return torch.einsum("noi,no->ni", part, R / stabilized(part.sum(2) + offset))

        plus = share(contributions.clamp(min=0), b.clamp(min=0))
        return alpha * plus - beta * share(contributions.clamp(max=0), b.clamp(max=0))

    return formula


def ratio(bias: bool) -> Formula:
    def formula(x: Tensor, W: Tensor, b: Tensor, R: Tensor, _: bool) -> Tensor:
        sizes = (x[:, None, :] * W).abs()  # sample, output, input
        whole = sizes.sum(2) + b.abs() * bias
        return torch.einsum("noi,no->ni", sizes, R / stabilized(whole))

    return formula


def z_box(low: float, high: float) -> Formula:
    def formula(x: Tensor, W: Tensor, b: Tensor, R: Tensor, _: bool) -> Tensor:
        contributions = x[:, None, :] * W - low * W.clamp(min=0) - high * W.clamp(max=0)
        return torch.einsum("noi,no->ni", contributions, R / stabilized(contributions.sum(2)))

    return formula


def flat(x: Tensor, W: Tensor, b: Tensor, R: Tensor, parameters: bool) -> Tensor:
    pattern = (W != 0).double() if parameters else W.abs()
    return R / stabilized(pattern.sum(1)) @ pattern


def both_biases(alpha: float, beta: float) -> Formula:
    """iNNvestigate's: the whole bias, whatever its sign, in both denominators."""

    def formula(x: Tensor, W: Tensor, b: Tensor, R: Tensor, _: bool) -> Tensor:
        contributions = x[:, None, :] * W
        plus, minus = (
            torch.einsum("noi,no->ni", part, R / stabilized(part.sum(2) + b))
            for part in (contributions.clamp(min=0), contributions.clamp(max=0))
        )
        return alpha * plus - beta * minus

    return formula


def w_square(bias: bool) -> Formula:
    def formula(x: Tensor, W: Tensor, b: Tensor, R: Tensor, parameters: bool) -> Tensor:
        squared = W**2 if parameters else W.abs()
        return R / stabilized(squared.sum(1) + b**2 * bias) @ squared

    return formula


def gamma(gamma: float, bias: bool = True) -> Formula:
    """Outputs above zero favour contributions above zero, outputs below zero those below."""

    def formula(x: Tensor, W: Tensor, b: Tensor, R: Tensor, _: bool) -> Tensor:
        contributions = x[:, None, :] * W
        sign = torch.sign(contributions.sum(2) + b)  # of the output as it is, with its bias
        b = b * bias
        own = (sign[:, :, None] * contributions).clamp(min=0) * sign[:, :, None]
        z = (contributions + gamma * own).sum(2) + b + gamma * sign * (sign * b).clamp(min=0)
        return torch.einsum(
            "noi,no->ni", contributions + gamma * own, R * sign.abs() / stabilized(z)
        )

    return formula


def derivative(x: Tensor, W: Tensor, b: Tensor, R: Tensor, _: bool) -> Tensor:
    return R @ W


RULES: dict[str, tuple[Rule, Formula]] = {
    "epsilon": (Epsilon(), epsilon(STABILIZER, True)),
    "epsilon-large": (Epsilon(0.25), epsilon(0.25, True)),
    "epsilon-unbiased": (Epsilon(bias=False), epsilon(STABILIZER, False)),
    "z-plus": (ZPlus(), alpha_beta(1, 0)),
    "z-plus-unbiased": (ZPlus(bias=False), alpha_beta(1, 0, bias=False)),
    "alpha1-beta0": (AlphaBeta(1, 0), alpha_beta(1, 0)),
    "alpha2-beta1": (AlphaBeta(2, 1), alpha_beta(2, 1)),
    "alpha3-beta2-unbiased": (AlphaBeta(3, 2, bias=False), alpha_beta(3, 2, bias=False)),
    "ratio": (Ratio(), ratio(True)),
    "ratio-unbiased": (Ratio(bias=False), ratio(False)),
    "z-box": (ZBox(LOW, HIGH), z_box(LOW, HIGH)),
    "flat": (Flat(), flat),
    "alpha2-beta1-both": (AlphaBeta(2, 1, bias="both"), both_biases(2, 1)),
    "w-square": (WSquare(), w_square(True)),
    "w-square-unbiased": (WSquare(bias=False), w_square(False)),
    "gamma": (Gamma(), gamma(0.25)),
    "gamma-large": (Gamma(10.0), gamma(10.0)),
    "gamma-unbiased": (Gamma(0.5, bias=False), gamma(0.5, bias=False)),
    "norm": (Norm(), epsilon(STABILIZER, False)),
    "gradient": (Gradient(), derivative),
}
PASSED_ON = ("max_pool", "move", "activation", "scale")


def under(rule: Rule, passing: Rule | None = None) -> Composite:
    activations = Assign(passing or Pass(), kind="activation")
    return Composite("Twin", (activations, Assign(Gradient(), kind=PASSED_ON), Assign(rule)))


def shares(model: nn.Module, x: Tensor, composite: Composite) -> tuple[Tensor, Tensor]:
    """Random start relevance, and what reaches the input, both flat."""
    relevance = torch.randn(model(x).shape, dtype=x.dtype)
    result = propagate(model, x, composite, lambda _: relevance, max_loss=None).relevance
    assert result is not None
    return relevance.flatten(1), result.flatten(1)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("map_", MAPS, ids=lambda m: m.name)
@pytest.mark.parametrize("behind_relu", [False, True], ids=["signed", "behind-relu"])
def test_rule_equals_its_formula(map_: Map, rule: str, behind_relu: bool) -> None:
    torch.manual_seed(1)
    module, W, b = matrix_of(map_)
    x = torch.randn(2, *map_.shape, dtype=torch.float64)
    engine, formula = RULES[rule]
    if rule == "z-box" and map_.name.startswith(("sum", "difference")) and "dims" not in map_.name:
        with pytest.raises(PropagationError, match="needs one input"):
            shares(module, x, under(engine))
        return
    seen = x.clamp(min=0) if behind_relu else x
    model = nn.Sequential(nn.ReLU(), module).eval() if behind_relu else module
    relevance, result = shares(model, x, under(engine))
    sums = map_.name in ("sum", "sum-alpha", "sum-in-place", "sum-broadcast", "difference")
    if rule == "z-box" and behind_relu:  # the box is that of the network's input
        formula = z_box(max(LOW, 0.0), max(HIGH, 0.0))
    # A difference, or a sum with a factor, has its factor in the inputs: its weights are ones.
    plain = sums and rule.startswith("w-square")
    weights = (W != 0).double() if plain else W
    close(result, formula(seen.flatten(1), weights, b, relevance, map_.parameters or sums))


@pytest.mark.parametrize("units", ["features", "channels"])
def test_z_box_with_a_box_per_channel(units: str) -> None:
    torch.manual_seed(2)
    low, high = (-1.0, -2.0, -3.0), (1.0, 2.0, 4.0)
    module = randomised(nn.Linear(3, 4) if units == "features" else nn.Conv2d(3, 2, 2))
    shape = (3,) if units == "features" else (3, 3, 3)
    W, _ = dense(module, shape)
    x = torch.rand(2, *shape, dtype=torch.float64) - 0.5
    relevance, result = shares(module, x, under(ZBox(low, high)))
    per_input = W.shape[1] // 3
    lows, highs = (torch.tensor(v).double().repeat_interleave(per_input) for v in (low, high))
    parts = x.flatten(1)[:, None] * W - lows * W.clamp(min=0) - highs * W.clamp(max=0)
    close(result, torch.einsum("noi,no->ni", parts, relevance / stabilized(parts.sum(2))))


@pytest.mark.parametrize("in_place", ["module", "module-in-place", "relu_"])
@pytest.mark.parametrize("gate", [Gradient(), Guided(), Deconvnet(), Pass()], ids=str)
def test_gates(gate: Rule, in_place: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(5, 6)
            self.relu = nn.ReLU(inplace=in_place == "module-in-place")

        def forward(self, x: Tensor) -> Tensor:
            y = self.linear(x)
            return y.relu_() if in_place == "relu_" else self.relu(y)

    torch.manual_seed(3)
    model = randomised(Net())
    x = torch.randn(4, 5, dtype=torch.float64)
    relevance, result = shares(model, x, under(Gradient(), passing=gate))
    W, b = dense(model.linear, (5,))
    active = (x @ W.T + b > 0).double()
    let_through = {
        Gradient: relevance * active,
        Guided: relevance.clamp(min=0) * active,
        Deconvnet: relevance.clamp(min=0),
        Pass: relevance,
    }[type(gate)]
    close(result, let_through @ W)


def test_pass_needs_an_operation_that_keeps_the_shape() -> None:
    x = torch.randn(2, 4, dtype=torch.float64)
    square = randomised(nn.Linear(4, 4))
    relevance, result = shares(square, x, under(Pass()))
    close(result, relevance)
    with pytest.raises(PropagationError, match="does not fit its input"):
        shares(randomised(nn.Linear(4, 3)), x, under(Pass()))


@pytest.mark.parametrize(("alpha", "beta"), [(1, 1), (2, 0), (0.5, -0.5)])
def test_alpha_and_beta_that_do_not_conserve_are_refused(alpha: float, beta: float) -> None:
    with pytest.raises(ValueError, match=r"alpha - beta = 1|beta = -0\.5"):
        AlphaBeta(alpha, beta)
