"""Rules and composites give what zennit's give, on a plain network and on a ResNet."""

import copy

import pytest
import torch
import zennit.composites
import zennit.rules
from networks import network
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet
from zennit.canonizers import SequentialMergeBatchNorm
from zennit.core import Composite as ZennitComposite
from zennit.torchvision import ResNetCanonizer
from zennit.types import Activation, AvgPool, Linear

from niwaki.propagation import (
    PRESETS,
    AlphaBeta,
    Assign,
    Composite,
    Epsilon,
    Flat,
    Gamma,
    WSquare,
    ZBox,
    ZPlus,
    epsilon_plus,
    propagate,
)

WEIGHTED = ("convolution", "linear", "batch_norm")


def randomise_norms(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.0  # zennit folds it in, and then divides by sqrt(1 + eps) once more
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.3, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
    return model


def plain() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AvgPool2d(2, 1),
        nn.Conv2d(8, 8, 3, padding=1, groups=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 10),
        nn.ReLU(),
        nn.Linear(10, 4),
    )
    return randomise_norms(model.double().eval()), torch.randn(3, 3, 14, 14).double()


class Narrow(ResNet):
    """ResNet-18 with an eighth of the channels in its blocks."""

    def _make_layer(
        self,
        block: type[BasicBlock],
        planes: int,
        blocks: int,
        stride: int = 1,
        dilate: bool = False,
    ) -> nn.Sequential:
        return super()._make_layer(block, planes // 8, blocks, stride, dilate)


def narrow() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = Narrow(BasicBlock, [2, 2, 2, 2])
    model.fc = nn.Linear(64, 7)
    model = randomise_norms(model.double().eval())
    return model, torch.randn(1, 3, 32, 32, dtype=torch.float64)


def resnet() -> tuple[nn.Module, Tensor]:
    model = randomise_norms(network("resnet18"))
    return model, torch.randn(1, 3, 32, 32, dtype=torch.float64)


def zennits(model: nn.Module, x: Tensor, composite: ZennitComposite, start: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    with composite.context(copy.deepcopy(model)) as modified:  # zennit changes the model
        return torch.autograd.grad(modified(x), x, start)[0]


def agree(model: nn.Module, x: Tensor, ours: Composite, theirs: ZennitComposite) -> None:
    start = torch.randn(model(x).shape, dtype=torch.float64)
    expected = zennits(model, x, theirs, start)
    result = propagate(model, x, ours, lambda _: start, max_loss=None).relevance
    scale = float(expected.abs().max())
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-9 * scale)


NETWORKS = {
    "plain": (plain, SequentialMergeBatchNorm),
    "narrow": (narrow, ResNetCanonizer),
    "resnet18": (resnet, ResNetCanonizer),
}
NAMES = ["plain", "narrow", pytest.param("resnet18", marks=pytest.mark.long)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("composite", PRESETS)
def test_composites(name: str, composite: str) -> None:
    build, canonizer = NETWORKS[name]
    model, x = build()
    options: dict[str, object] = {}
    if composite == "EpsilonGammaBox":
        options = {"low": torch.full_like(x, -3.0), "high": torch.full_like(x, 3.0)}
    for module in model.modules():
        # zennit's BetaSmooth reads a ReLU's input when it is overwritten.
        if isinstance(module, nn.ReLU):
            module.inplace = False
    if name != "plain" and composite == "BetaSmooth":
        pytest.skip("its blocks use a ReLU twice; zennit keeps one input: see the next test")
    theirs = getattr(zennit.composites, composite)(canonizers=[canonizer()], **options)
    agree(model, x, PRESETS[composite](), theirs)
    if composite == "ExcitationBackprop":  # as in the paper, without biases
        options = {"zero_params": "bias"}
        theirs = zennit.composites.ExcitationBackprop(canonizers=[canonizer()], **options)
        agree(model, x, PRESETS[composite](bias=False), theirs)


class Smoothed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient * torch.sigmoid(10 * ctx.saved_tensors[0])


def test_beta_smooth_of_a_relu_used_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = narrow()
    start = torch.randn(model(x).shape, dtype=torch.float64)
    found = propagate(model, x, PRESETS["BetaSmooth"](), lambda _: start, max_loss=None).relevance
    monkeypatch.setattr(nn.ReLU, "forward", lambda _, x: Smoothed.apply(x))
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(model(leaf), leaf, start)
    torch.testing.assert_close(found, expected)


RULES = {
    "epsilon": (Epsilon(0.1), zennit.rules.Epsilon(0.1)),
    "z-plus": (ZPlus(), zennit.rules.ZPlus()),
    "z-plus-unbiased": (ZPlus(bias=False), zennit.rules.ZPlus(zero_params="bias")),
    "alpha2-beta1": (AlphaBeta(2, 1), zennit.rules.AlphaBeta(2, 1)),
    "flat": (Flat(), zennit.rules.Flat()),
    "gamma": (Gamma(0.25), zennit.rules.Gamma(0.25)),
    "gamma-large": (Gamma(5.0), zennit.rules.Gamma(5.0)),
    "gamma-unbiased": (Gamma(1.0, bias=False), zennit.rules.Gamma(1.0, zero_params="bias")),
    "w-square": (WSquare(), zennit.rules.WSquare()),
    "w-square-unbiased": (WSquare(bias=False), zennit.rules.WSquare(zero_params="bias")),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rule", RULES)
def test_one_rule_everywhere(name: str, rule: str) -> None:
    build, canonizer = NETWORKS[name]
    ours, theirs = RULES[rule]
    norm = zennit.rules.Norm()
    layers = [
        (Activation, zennit.rules.Pass()),
        (AvgPool, norm),
        (zennit.layer.Sum, norm),
        (Linear, theirs),
    ]
    composite = zennit.composites.LayerMapComposite(layers, canonizers=[canonizer()])
    agree(*build(), epsilon_plus().with_rows(Assign(ours, kind=WEIGHTED)), composite)


@pytest.mark.parametrize("name", NAMES)
def test_z_box_in_the_first_layer(name: str) -> None:
    build, canonizer = NETWORKS[name]
    model, x = build()
    low, high = torch.full_like(x, -4.0), torch.full_like(x, 5.0)
    first = [(Linear, zennit.rules.ZBox(low, high))]
    rest = zennit.composites.EpsilonPlus().layer_map
    theirs = zennit.composites.SpecialFirstLayerMapComposite(rest, first, canonizers=[canonizer()])
    ours = epsilon_plus().with_rows(Assign(ZBox(-4.0, 5.0), kind=WEIGHTED[:2], place="first"))
    agree(model, x, ours, theirs)
