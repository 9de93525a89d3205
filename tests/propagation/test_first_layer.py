"""What is done to the input before the first layer: padding, normalising, moving, resizing."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from niwaki.errors import PropagationError
from niwaki.propagation import (
    Composite,
    Flat,
    WSquare,
    ZBox,
    epsilon_alpha2_beta1_flat,
    epsilon_gamma_box,
    epsilon_plus,
    epsilon_plus_flat,
    first_rows,
    propagate,
)

MEAN, STD = torch.tensor([0.4, 0.5, 0.6]).double(), torch.tensor([0.2, 0.25, 0.3]).double()
FIRST = {
    "flat": epsilon_plus().with_rows(*first_rows(Flat())),
    "w-square": epsilon_plus().with_rows(*first_rows(WSquare())),
    "z-box": epsilon_plus().with_rows(*first_rows(ZBox((0.0, -0.5, 0.0), (1.0, 1.0, 2.0)))),
    "EpsilonPlusFlat": epsilon_plus_flat(),
    "EpsilonAlpha2Beta1Flat": epsilon_alpha2_beta1_flat(),
    "EpsilonGammaBox": epsilon_gamma_box(0.0, 1.0),
    "EpsilonPlus": epsilon_plus(),
}


class Net(nn.Module):
    """A function of the input, a convolution with padding or without, and the rest."""

    def __init__(self, before: Callable[[Tensor], Tensor] = lambda x: x, padding: int = 0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 6, 5, stride=2, padding=padding, bias=False)
        self.head = nn.Linear(6, 3, bias=False)
        self.before = before
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.conv(self.before(x)).relu().mean((2, 3)))
        return out


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(1)
    return torch.rand(2, 3, 12, 12).double()


def relevance(model: nn.Module, x: Tensor, composite: Composite) -> Tensor:
    found = propagate(model, x, composite, lambda output: output, max_loss=0.01).relevance
    assert found is not None
    return found


def canvas(x: Tensor) -> Tensor:
    out = x.new_zeros(len(x), 3, 16, 16)
    out[:, :, 2:14, 2:14] = x
    return out


def joined(x: Tensor) -> Tensor:
    wide = torch.cat([x.new_zeros(len(x), 3, 12, 2), x, x.new_zeros(len(x), 3, 12, 2)], dim=3)
    return F.pad(wide, (0, 0, 2, 2))


PADDED = {
    "module": nn.ZeroPad2d(2),
    "constant module": nn.ConstantPad2d(2, 0.0),
    "function": lambda x: F.pad(x, (2, 2, 2, 2)),
    "twice": lambda x: F.pad(F.pad(x, (2, 2)), (0, 0, 2, 2), value=0.0),
    "transposed": lambda x: F.pad(x.mT, (2, 2, 2, 2)).mT,
    "canvas": canvas,
    "concatenated": joined,
}


@pytest.mark.parametrize("padded", PADDED)
@pytest.mark.parametrize("rule", FIRST)
def test_padding_is_the_same_outside_and_inside_of_a_convolution(
    rule: str, padded: str, x: Tensor
) -> None:
    inside, outside = Net(padding=2), Net(PADDED[padded])
    torch.testing.assert_close(outside(x), inside(x))
    expected = relevance(inside, x, FIRST[rule])
    torch.testing.assert_close(relevance(outside, x, FIRST[rule]), expected)


@pytest.mark.parametrize("rule", ["flat", "w-square", "z-box"])
def test_constant_padding_of_any_value_takes_no_share(rule: str, x: Tensor) -> None:
    """A constant has no freedom: under these rules only what can vary gets relevance."""
    model = Net(lambda x: F.pad(x, (2, 2, 2, 2), value=0.7))
    output = model(x)
    torch.testing.assert_close(
        relevance(model, x, FIRST[rule]).sum((1, 2, 3)), output.sum(1), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("rule", ["flat", "w-square", "z-box"])
def test_padding_with_copies_shares_with_the_copied(rule: str, mode: str, x: Tensor) -> None:
    model = Net(lambda x: F.pad(x, (2, 2, 2, 2), mode=mode))
    there = F.pad(x, (2, 2, 2, 2), mode=mode)  # as the input of the convolution alone
    alone = relevance(Net(), there, FIRST[rule])
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(F.pad(leaf, (2, 2, 2, 2), mode=mode), leaf, alone)
    torch.testing.assert_close(relevance(model, x, FIRST[rule]), expected)


class Normalise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", MEAN.view(3, 1, 1))
        self.register_buffer("std", STD.view(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def batch_norm() -> nn.Module:
    norm = nn.BatchNorm2d(3, eps=0.0, affine=False).double().eval()
    norm.running_mean, norm.running_var = MEAN.clone(), STD.square()
    return norm


def in_place(x: Tensor) -> Tensor:
    return x.clone().sub_(MEAN.view(3, 1, 1)).div_(STD.view(3, 1, 1))


NORMALISED = {
    "module": Normalise(),
    "operations": lambda x: (x - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1),
    "scale and shift": lambda x: x * (1 / STD).view(3, 1, 1) - (MEAN / STD).view(3, 1, 1),
    "turned twice": lambda x: -((MEAN.view(3, 1, 1) - x) / STD.view(3, 1, 1)),
    "in place": in_place,
    "channels last": lambda x: ((x.permute(0, 2, 3, 1) - MEAN) / STD).permute(0, 3, 1, 2),
    "batch norm": batch_norm(),
}


@pytest.mark.parametrize("how", NORMALISED)
@pytest.mark.parametrize("padding", [0, 2])
def test_bounds_are_carried_through_a_normalisation(how: str, padding: int, x: Tensor) -> None:
    scaled = (x - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1)
    low, high = (0.0, -0.5, 0.0), (1.0, 1.0, 2.0)
    ends = [tuple(((torch.tensor(end) - MEAN) / STD).tolist()) for end in (low, high)]
    for make in (epsilon_gamma_box, lambda a, b: epsilon_plus().with_rows(*first_rows(ZBox(a, b)))):
        expected = relevance(Net(padding=padding), scaled, make(*ends))
        found = relevance(Net(NORMALISED[how], padding), x, make(low, high))
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "before",
    [
        lambda x: x.flip(3)[:, :, :, 1:].flip(3)[:, :, 2:],
        lambda x: torch.cat([x[:, :1], x[:, 1:]], dim=1),
        lambda x: torch.stack(x.unbind(1), dim=1),
        lambda x: torch.cat(x.chunk(3, 1), dim=1).contiguous(),
        lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
        lambda x: F.avg_pool2d(2 * x - 1, 2),
        lambda x: F.max_pool2d(1 - x, 2),
        lambda x: (2 * x - 1).clamp(-0.5, 0.5),
    ],
)
def test_relevance_is_conserved_whatever_is_done_before(
    before: Callable[[Tensor], Tensor], x: Tensor
) -> None:
    low, high = -1.0, 2.0  # as large as the values, so that both ends tell
    for rule in ("flat", "w-square"):
        found = relevance(Net(before, 2), x, FIRST[rule]).sum((1, 2, 3))
        torch.testing.assert_close(found, Net(before, 2)(x).sum(1), rtol=1e-3, atol=1e-4)
    composite = epsilon_plus().with_rows(*first_rows(ZBox(low, high)))
    found = relevance(Net(before, 2), x, composite).sum((1, 2, 3))
    torch.testing.assert_close(found, Net(before, 2)(x).sum(1), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "before",
    [
        lambda x: x - x.mean((2, 3), keepdim=True),
        lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"),
        lambda x: x * torch.sigmoid(x),
        F.silu,
    ],
)
def test_bounds_that_cannot_be_carried_are_refused(
    before: Callable[[Tensor], Tensor], x: Tensor
) -> None:
    composite = epsilon_plus().with_rows(*first_rows(ZBox(0.0, 1.0)))
    with pytest.raises(PropagationError, match=r"bounds of the network's input.*another rule"):
        relevance(Net(before), x, composite)


def test_bounds_per_channel_reach_a_linear_first_layer(x: Tensor) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(432, 3, bias=False)).double().eval()
    low, high = (0.0, -0.5, 0.0), (1.0, 1.0, 2.0)
    rows = first_rows(ZBox(low, high))
    found = relevance(model, x, epsilon_plus().with_rows(*rows))
    weight = model[1].weight.view(3, 3, 12, 12)
    ends = [torch.tensor(end).double().view(3, 1, 1) for end in (low, high)]
    shares = weight * x[:, None] - weight.clamp(min=0) * ends[0] - weight.clamp(max=0) * ends[1]
    ratio = model(x) / shares.flatten(2).sum(2)
    torch.testing.assert_close(found, (shares * ratio[:, :, None, None, None]).sum(1))
