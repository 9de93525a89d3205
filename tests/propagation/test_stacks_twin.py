"""Whole networks under every preset equal a pass layer by layer with dense matrices.

The tables below are written from the papers' and the reference libraries' definitions, not from
niwaki's presets.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from linear_maps import dense, randomised
from torch import Tensor, nn

from niwaki.attribution import Propagating, create
from niwaki.propagation import epsilon_plus, propagate

Formula = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Of input, matrix, offset and relevance."""

EXACT, USUAL = 1e-12, 1e-6
LOW, HIGH = -3.0, 3.0


def divide(R: Tensor, z: Tensor, epsilon: float) -> Tensor:
    return R / torch.where(z < 0, z - epsilon, z + epsilon)


def contribute(parts: Tensor, offset: Tensor | float, R: Tensor, epsilon: float) -> Tensor:
    """Share in proportion to contributions of shape (sample, output, input)."""
    return torch.einsum("noi,no->ni", parts, divide(R, parts.sum(2) + offset, epsilon))


def z(epsilon: float, bias: float = 1) -> Formula:
    return lambda x, W, b, R: contribute(x[:, None] * W, b * bias, R, epsilon)


def alpha_beta(alpha: float, beta: float, bias: str, epsilon: float = EXACT) -> Formula:
    def formula(x: Tensor, W: Tensor, b: Tensor, R: Tensor) -> Tensor:
        parts = x[:, None] * W
        above = {"both": b, "own": b.clamp(min=0), "none": 0 * b}[bias]
        below = {"both": b, "own": b.clamp(max=0), "none": 0 * b}[bias]
        plus = contribute(parts.clamp(min=0), above, R, epsilon)
        return alpha * plus - beta * contribute(parts.clamp(max=0), below, R, epsilon)

    return formula


def without_inputs(change: Callable[[Tensor], Tensor], epsilon: float = EXACT) -> Formula:
    return lambda x, W, b, R: divide(R, change(W).sum(1), epsilon) @ change(W)


def box(epsilon: float) -> Formula:
    def formula(x: Tensor, W: Tensor, b: Tensor, R: Tensor) -> Tensor:
        parts = x[:, None] * W - LOW * W.clamp(min=0) - HIGH * W.clamp(max=0)
        return contribute(parts, 0.0, R, epsilon)

    return formula


def gamma(x: Tensor, W: Tensor, b: Tensor, R: Tensor) -> Tensor:
    parts = x[:, None] * W
    positive = parts.sum(2) + b > 0
    of_positive = contribute(
        parts + 0.25 * parts.clamp(min=0), b + 0.25 * b.clamp(min=0), R * positive, USUAL
    )
    of_negative = contribute(
        parts + 0.25 * parts.clamp(max=0), b + 0.25 * b.clamp(max=0), R * ~positive, USUAL
    )
    return of_positive + of_negative


def derivative(x: Tensor, W: Tensor, b: Tensor, R: Tensor) -> Tensor:
    return R @ W


FLAT = without_inputs(lambda W: (W != 0).double())
FLAT_USUAL = without_inputs(lambda W: (W != 0).double(), USUAL)
SQUARE = without_inputs(torch.square)
Z_PLUS = alpha_beta(1, 0, "none")


@dataclass(frozen=True)
class Preset:
    """The formula of each kind of layer."""

    convolution: Formula
    linear: Formula
    average: Formula
    first: Formula | None = None
    start: str = "one"  # "output"; "above zero"


def same(formula: Formula, start: str = "output", **others: Formula) -> Preset:
    return Preset(formula, formula, others.pop("average", z(EXACT)), start=start, **others)


def sequential(alpha: float, beta: float, first: Formula | None = None) -> Preset:
    convolution = alpha_beta(alpha, beta, "both")
    return Preset(convolution, z(0.1), z(EXACT), first, start="output")


def zennits(convolution: Formula, first: Formula | None = None) -> Preset:
    return Preset(convolution, z(USUAL), z(USUAL), first)


PRESETS = {
    "lrp.z": same(z(EXACT)),
    "lrp.z_IB": same(z(EXACT, bias=0)),
    "lrp.epsilon_IB": same(z(1e-7, bias=0)),
    "lrp.w_square": same(SQUARE),
    "lrp.flat": same(FLAT),
    "lrp.z_plus": same(Z_PLUS),
    "lrp.alpha_beta": same(alpha_beta(2, 1, "both")),
    "lrp.alpha_1_beta_0": same(alpha_beta(1, 0, "both")),
    "lrp.alpha_1_beta_0_IB": same(alpha_beta(1, 0, "none")),
    "lrp.alpha_2_beta_1": same(alpha_beta(2, 1, "both")),
    "lrp.alpha_2_beta_1_IB": same(alpha_beta(2, 1, "none")),
    "lrp.sequential_preset_a": sequential(1, 0),
    "lrp.sequential_preset_b": sequential(2, 1),
    "lrp.sequential_preset_a_flat": sequential(1, 0, FLAT),
    "lrp.sequential_preset_b_flat": sequential(2, 1, FLAT),
    "deep_taylor": same(Z_PLUS, "above zero", average=derivative),
    "deep_taylor.bounded": same(Z_PLUS, "above zero", average=derivative, first=box(EXACT)),
    "EpsilonPlus": zennits(alpha_beta(1, 0, "own", USUAL)),
    "EpsilonPlusFlat": zennits(alpha_beta(1, 0, "own", USUAL), FLAT_USUAL),
    "EpsilonAlpha2Beta1": zennits(alpha_beta(2, 1, "own", USUAL)),
    "EpsilonAlpha2Beta1Flat": zennits(alpha_beta(2, 1, "own", USUAL), FLAT_USUAL),
    "EpsilonGammaBox": zennits(gamma, box(USUAL)),
    "ExcitationBackprop": same(alpha_beta(1, 0, "own", USUAL), "one", average=z(USUAL)),
}


def stack(seed: int, signed: bool = False) -> tuple[nn.Sequential, Tensor]:
    """A stack whose biases have both signs; `signed`: without ReLU behind one convolution."""
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1),
        nn.Identity() if signed else nn.ReLU(),
        nn.Conv2d(3, 4, 2, stride=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2, 1),
        nn.Conv2d(4, 4, 2, groups=2),
        nn.ReLU(),
        nn.AvgPool2d(2, 1),
        nn.Flatten(),
        nn.Linear(16, 5),
        nn.ReLU(),
        nn.Linear(5, 3),
    )
    model = nn.Sequential(*randomised(model, seed))
    generator = torch.Generator().manual_seed(seed)
    return model.eval(), torch.randn(3, 2, 6, 6, dtype=torch.float64, generator=generator)


def affine_parts(model: nn.Sequential, x: Tensor) -> list[tuple[int, str, Tensor, Tensor, Tensor]]:
    """Position, kind, input, matrix and offset of each step; batch norms joined to their layers."""
    steps = []
    modules = list(model)
    for position, module in enumerate(modules):
        if isinstance(module, nn.BatchNorm2d):
            continue
        following = modules[position + 1] if position + 1 < len(modules) else None
        whole = (
            nn.Sequential(module, following) if isinstance(following, nn.BatchNorm2d) else module
        )
        before = x.flatten(1)
        if isinstance(module, (nn.Conv2d, nn.Linear, nn.AvgPool2d)):
            matrix, offset = dense(whole, tuple(x.shape[1:]))
            kind = {nn.Conv2d: "convolution", nn.Linear: "linear"}.get(type(module), "average")
            steps.append((position, kind, before, matrix, offset))
        elif isinstance(module, nn.MaxPool2d):
            winners = torch.autograd.functional.jacobian(module, x, vectorize=True)
            samples = len(x)
            jacobian = winners.reshape(samples, -1, samples, before.shape[1])
            own = jacobian[range(samples), :, range(samples)]
            steps.append((position, "max", before, own, before.new_zeros(())))
        with torch.no_grad():
            x = whole(x)
    return steps


def twin(
    model: nn.Sequential, x: Tensor, preset: Preset, start: Tensor, masks: dict[int, Tensor]
) -> Tensor:
    """Relevance of the input; `masks` multiply what reaches the output of the layer there."""
    R = start
    for position, kind, before, matrix, offset in reversed(affine_parts(model, x)):
        R = R * masks.get(position, 1.0)
        if kind == "max":
            R = torch.einsum("noi,no->ni", matrix, R)
            continue
        formula = getattr(preset, kind)
        if position == 0 and preset.first is not None:
            formula = preset.first
        R = formula(before, matrix, offset, R)
    return R.view_as(x)


def begins(preset: Preset, output: Tensor, target: int) -> Tensor:
    weights = torch.zeros_like(output)
    weights[:, target] = 1
    return {
        "one": weights,
        "output": weights * output,
        "above zero": weights * output.clamp(min=0),
    }[preset.start]


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10 * float(b.abs().max()))


@pytest.mark.parametrize("signed", [False, True], ids=["relus", "signed"])
@pytest.mark.parametrize("name", PRESETS)
def test_a_stack_equals_dense_matrices(name: str, signed: bool) -> None:
    model, x = stack(3, signed)
    options = {"low": LOW, "high": HIGH} if name == "deep_taylor.bounded" else {}
    method = create(name, model, max_loss=None, **options)
    with torch.no_grad():
        output = model(x)
    assert bool((output > 0).any())  # else deep Taylor would have nothing to start with
    assert bool((output < 0).any())
    for target in range(3):
        expected = twin(model, x, PRESETS[name], begins(PRESETS[name], output, target), {})
        close(method.attribute(x, target), expected)


@pytest.mark.parametrize("name", ["EpsilonPlus", "lrp.alpha_2_beta_1", "EpsilonGammaBox"])
@pytest.mark.parametrize(
    "units", [{"2": [1]}, {"6": [0, 3]}, {"10": [0, 2, 4]}, {"0": [2], "6": [1, 2]}], ids=str
)
def test_conditions_equal_a_masked_twin(name: str, units: dict[str, list[int]]) -> None:
    model, x = stack(4)
    method = create(name, model, max_loss=None)
    assert isinstance(method, Propagating)
    masks = {}
    for position, _, _, matrix, _ in affine_parts(model, x):
        if str(position) in units:
            layer = model[position]
            count = getattr(layer, "out_channels", None) or layer.out_features
            chosen = torch.zeros(count, dtype=torch.float64)
            chosen[units[str(position)]] = 1
            masks[position] = chosen.repeat_interleave(len(matrix) // count)
    with torch.no_grad():
        start = begins(PRESETS[name], model(x), 1)
    found = method.attribute(x, 1, conditions=units)
    close(found, twin(model, x, PRESETS[name], start, masks))


@pytest.mark.parametrize("layer", ["0", "2", "6", "10", "12"])
def test_conditional_heatmaps_sum_to_the_whole(layer: str) -> None:
    model, x = stack(5)
    method = create("EpsilonPlus", model, max_loss=None)
    assert isinstance(method, Propagating)
    count = {"0": 3, "2": 4, "6": 4, "10": 5, "12": 3}[layer]
    parts = [method.attribute(x, 0, conditions={layer: [unit]}) for unit in range(count)]
    close(sum(parts), method.attribute(x, 0))


@pytest.mark.parametrize("name", ["EpsilonPlus", "lrp.sequential_preset_b_flat", "EpsilonGammaBox"])
def test_several_starts_equal_separate_passes(name: str) -> None:
    model, x = stack(6)
    method = create(name, model, max_loss=None)
    assert isinstance(method, Propagating)
    targets = [0, None, [2, 1, 0], torch.tensor([1.0, -1.0, 0.5])]
    together = method.attribute_each(x, targets)
    assert together.shape == (4, *x.shape)
    for target, found in zip(targets, together, strict=True):
        assert torch.equal(found, method.attribute(x, target))
    starts = torch.randn(3, 3, 3, dtype=torch.float64)
    options = {"max_loss": None, "conditions": {"6": [0, 3]}}
    each = [propagate(model, x, epsilon_plus(), lambda _, s=s: s, **options) for s in starts]
    whole = propagate(model, x, epsilon_plus(), lambda _: starts, **options)
    assert torch.equal(whole.relevance, torch.stack([e.relevance for e in each]))
