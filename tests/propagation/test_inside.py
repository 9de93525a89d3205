"""Relevance of weights, resolved tables, and composites as text."""

import json
from pathlib import Path

import pytest
import torch
from linear_maps import randomised
from networks import Functional, Modular
from torch import Tensor, nn

from niwaki.propagation import (
    PRESETS,
    AlphaBeta,
    Assign,
    BetaSmooth,
    Composite,
    Deconvnet,
    Epsilon,
    Flat,
    Gamma,
    Gradient,
    Guided,
    Norm,
    Pass,
    Rescale,
    WSquare,
    ZBox,
    ZPlus,
    epsilon_plus,
    load_composite,
    propagate,
    resolve,
    save_composite,
)
from niwaki.propagation.text import from_json, to_json

LAYERS = {
    "linear": (lambda: nn.Sequential(nn.Linear(5, 4)), (5,)),
    "linear+norm": (lambda: nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)), (5,)),
    "conv": (lambda: nn.Sequential(nn.Conv2d(2, 3, 3, padding=1)), (2, 4, 3)),
    "conv+norm": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 2, stride=2, bias=False), nn.BatchNorm2d(3)),
        (2, 4, 4),
    ),
    "grouped+norm": (
        lambda: nn.Sequential(nn.Conv2d(4, 6, 2, groups=2), nn.BatchNorm2d(6)),
        (4, 3, 3),
    ),
    "transposed+norm": (
        lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 2, groups=2, stride=2), nn.BatchNorm2d(6)),
        (4, 2, 3),
    ),
}


def contributions(model: nn.Module, x: Tensor) -> Tensor:
    """What each weight alone adds to each output, shape (weight, sample, output): by removal."""
    weight = model[0].weight
    whole = weight.data.clone()
    found = []
    with torch.no_grad():
        weight.data.zero_()
        nothing = model(x)
        for k in range(whole.numel()):
            weight.data.zero_().view(-1)[k] = whole.reshape(-1)[k]
            found.append((model(x) - nothing).flatten(1))
        weight.data.copy_(whole)
    return torch.stack(found)


@pytest.mark.parametrize("rule", [Epsilon(), ZPlus(), Epsilon(bias=False)], ids=str)
@pytest.mark.parametrize("behind_relu", [False, True], ids=["signed", "behind-relu"])
@pytest.mark.parametrize("name", LAYERS)
def test_relevance_of_each_weight(name: str, behind_relu: bool, rule: Epsilon | ZPlus) -> None:
    torch.manual_seed(2)
    build, shape = LAYERS[name]
    layer = randomised(build())
    x = torch.randn(3, *shape, dtype=torch.float64)
    model = nn.Sequential(nn.ReLU(), layer).eval() if behind_relu else layer
    seen = x.clamp(min=0) if behind_relu else x
    with torch.no_grad():
        bias = layer(torch.zeros_like(x)).flatten(1) * rule.bias
    parts = contributions(layer, seen)
    if isinstance(rule, ZPlus):  # a weight meets an output through one input: signs cannot mix
        parts, bias = parts.clamp(min=0), bias.clamp(min=0)
    z = parts.sum(0) + bias
    stabilized = torch.where(z < 0, z - 1e-6, z + 1e-6)
    R = torch.randn_like(z)
    expected = (parts * R / stabilized).sum((1, 2))

    composite = epsilon_plus().with_rows(Assign(rule, kind=("convolution", "linear")))
    start = R.view(model(x).shape)
    result = propagate(model, x, composite, lambda _: start, weights=True, max_loss=None)
    (operation,) = (op for op in result.operations if op.kind in ("convolution", "linear"))
    found = operation.ledger.weights
    assert found.shape == layer[0].weight.shape
    torch.testing.assert_close(found.flatten(), expected, rtol=1e-9, atol=1e-10)
    # What enters is what the weights, the bias and the stabilizer get; the inputs get the same.
    to_bias = float((R * bias / stabilized).sum())
    kept = float(torch.as_tensor(operation.ledger.lost).sum())
    assert float(found.sum()) == pytest.approx(float(R.sum()) - to_bias - kept, abs=1e-8)
    assert float(found.sum()) == pytest.approx(float(result.relevance.sum()), abs=1e-8)


def test_a_weight_used_twice_and_several_starts_add_up() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(torch.relu(self.linear(x)))

    model = randomised(Twice())
    x = torch.randn(2, 4, dtype=torch.float64)
    starts = torch.randn(3, 2, 4, dtype=torch.float64)

    def of(start: Tensor) -> list[Tensor]:
        result = propagate(model, x, epsilon_plus(), lambda _: start, weights=True, max_loss=None)
        return [op.ledger.weights for op in result.operations if op.kind == "linear"]

    together, single = of(starts), [of(start) for start in starts]
    assert len(together) == 2
    for use in range(2):
        torch.testing.assert_close(together[use], sum(one[use] for one in single))


@pytest.mark.parametrize("preset", ["EpsilonPlusFlat", "EpsilonGammaBox", "GuidedBackprop"])
@pytest.mark.parametrize("name", ["functional", "modular"])
def test_resolve_shows_the_rules_that_are_used(name: str, preset: str) -> None:
    torch.manual_seed(0)
    model = (Functional if name == "functional" else Modular)().double().eval()
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    last = Assign(Epsilon(0.5), kind="linear", place="last")
    composite = PRESETS[preset]().with_rows(last)
    used = propagate(model, x, composite, lambda y: y, max_loss=None).operations
    head, *lines = resolve(model, x, composite).splitlines()
    assert head.split() == ["layer", "operation", "rule"]
    assert len(lines) == len(used)
    for line, operation in zip(lines, used, strict=True):
        layer, name, rule = _columns(head, line)
        assert (layer, name) == (operation.layer, operation.name)
        assert rule.removesuffix(", batch norm absorbed") == str(operation.rule)
        assert rule.endswith("absorbed") == (operation.absorbed is not None)
    assert "Epsilon(epsilon=0.5, bias=True)" in lines[-1]
    norms = [line for line in lines if " batch_norm " in line]
    if preset != "GuidedBackprop":  # folded into its layer, it hands on
        assert len(norms) == 3
        assert all(line.endswith("Pass()") for line in norms[:2])


def _columns(head: str, line: str) -> tuple[str, str, str]:
    second, third = head.index("operation"), head.index("rule")
    return line[:second].strip(), line[second:third].strip(), line[third:].strip()


EVERY = Composite(
    "Every",
    (
        Assign(AlphaBeta(3, 2, 1e-9, bias="both"), kind=("convolution", "linear"), layer="a.*"),
        Assign(AlphaBeta(2, 1, bias=False), operation="conv?d"),
        Assign(ZBox((-1.0, -2.0, 0.0), (1.0, 2.0, 3.0)), place="first"),
        Assign(ZBox(-1.0, 2.5), place="last"),
        Assign(Gamma(0.5, 1e-8, bias=False), kind="linear"),
        Assign(WSquare(bias=False)),
        Assign(BetaSmooth(3.0)),
        Assign(Rescale(1e-7)),
        Assign(Epsilon(0.1, bias=False)),
        *(Assign(r) for r in (ZPlus(bias=False), Flat(), Norm(), Pass(), Gradient())),
        *(Assign(r) for r in (Guided(), Deconvnet())),
    ),
)


@pytest.mark.parametrize(
    "composite", [EVERY, *(build() for build in PRESETS.values())], ids=lambda c: c.name
)
def test_composites_come_back_from_text(composite: Composite, tmp_path: Path) -> None:
    save_composite(composite, tmp_path / "composite.json")
    back = load_composite(tmp_path / "composite.json")
    assert back == composite
    assert str(back) == str(composite)


def test_text_written_by_hand() -> None:
    row = {"rule": "Epsilon", "kind": "linear", "options": {"epsilon": 0.1}}
    composite = from_json({"name": "mine", "rows": [row, {"rule": "Pass"}]})
    assert composite == Composite("mine", (Assign(Epsilon(0.1), kind="linear"), Assign(Pass())))


WRONG = {
    "rule": ({"rule": "Epsilonn"}, "there is no rule 'Epsilonn'; rules: AlphaBeta"),
    "no rule": ({"kind": ["linear"]}, "no composite: KeyError.*rule"),
    "option": ({"rule": "ZPlus", "options": {"epsilon": 1}}, "ZPlus has no option 'epsilon'"),
    "value": ({"rule": "Gamma", "options": {"gamma": -1}}, "must be a number from 0"),
    "kind": ({"rule": "Pass", "kind": ["conv"]}, "no kind of operation 'conv'"),
    "place": ({"rule": "Pass", "place": "middle"}, "place 'middle'"),
    "field": ({"rule": "Pass", "colour": "red"}, "no composite: TypeError.*colour"),
    "missing option": ({"rule": "ZBox", "options": {"low": 0}}, "no composite: TypeError.*high"),
    "options": ({"rule": "Pass", "options": 3}, "no composite"),
    "text for a number": (
        {"rule": "Epsilon", "options": {"epsilon": "0.1"}},
        r"epsilon = '0\.1' of the rule Epsilon: must be a number",
    ),
    "truth for a number": ({"rule": "Gamma", "options": {"gamma": True}}, "must be a number"),
    "NaN": ({"rule": "Gamma", "options": {"gamma": float("nan")}}, "NaN is no number"),
    "number for a truth": (
        {"rule": "ZPlus", "options": {"bias": 1}},
        "bias = 1 of the rule ZPlus: must be true or false",
    ),
    "word": (
        {"rule": "AlphaBeta", "options": {"bias": "all"}},
        'must be true or false or "both"',
    ),
    "list": (
        {"rule": "ZBox", "options": {"low": [0, "1"], "high": 1}},
        "must be a number or a list of numbers",
    ),
    "empty list": ({"rule": "ZBox", "options": {"low": [], "high": 1}}, "a list of numbers"),
    "null": ({"rule": "Flat", "options": {"stabilizer": None}}, "must be a number"),
    "layer": ({"rule": "Pass", "layer": 3}, "layer = 3 in a row of a composite: must be a text"),
    "kinds": ({"rule": "Pass", "kind": {"linear": 1}}, "kind = .* must be a text"),
    "rule in a list": ({"rule": ["Pass"]}, "composite"),
}


@pytest.mark.parametrize("case", WRONG)
def test_text_that_is_no_composite(case: str, tmp_path: Path) -> None:
    row, message = WRONG[case]
    path = tmp_path / "composite.json"
    path.write_text(json.dumps({"name": "wrong", "rows": [row]}))
    with pytest.raises(ValueError, match=message):
        load_composite(path)


def test_files_and_rules_that_are_no_composite(tmp_path: Path) -> None:
    for text in ("[", "[]", "{}", "3", '{"name": "x", "rows": 3}', '{"name": "x", "rows": [1]}'):
        (tmp_path / "wrong.json").write_text(text)
        with pytest.raises(ValueError, match=r"composite|cannot convert"):
            load_composite(tmp_path / "wrong.json")

    class Mine(Pass):
        pass

    with pytest.raises(ValueError, match="cannot be written as text"):
        to_json(Composite("mine", (Assign(Mine()),)))
