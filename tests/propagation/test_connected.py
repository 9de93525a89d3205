"""Numbers that are none: no derivative, half precision, recomputed activations, NaN."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from niwaki.attribution import explain
from niwaki.errors import DataError, DisconnectedWarning, PropagationError

METHODS = ["gradient", "deep_lift", "beta_smooth", "lrp.epsilon_plus", "lrp.z", "guided_backprop"]


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(256, 16), nn.ReLU(), nn.Linear(16, 3),
    ).eval()  # fmt: skip


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(2, 3, 8, 8)


class Checkpointed(nn.Module):
    """Activations of its middle are computed anew in the pass back."""

    def __init__(self, reentrant: bool = False) -> None:
        super().__init__()
        self.net = plain()
        self.reentrant = reentrant
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.net[:2](x)
        x = checkpoint(self.net[2:6], x, use_reentrant=self.reentrant)
        x = checkpoint(self.net[6:], x, use_reentrant=self.reentrant)
        return x


@pytest.mark.parametrize("method", METHODS)
def test_checkpointing_changes_nothing(method: str, x: Tensor) -> None:
    expected = explain(plain(), x, 1, method, **loss(method))
    found = explain(Checkpointed(), x, 1, method, **loss(method))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def loss(method: str) -> dict[str, None]:
    return {"max_loss": None} if method.startswith("lrp") else {}


@pytest.mark.parametrize("method", METHODS)
def test_tensors_saved_elsewhere_change_nothing(method: str, x: Tensor) -> None:
    """Hooks on saved tensors that a model sets itself, and that the caller has set."""

    class Elsewhere(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autograd.graph.saved_tensors_hooks(lambda t: t + 1, lambda t: t):
                out: Tensor = net(x)
            return out

    net = plain()
    expected = explain(net, x, 1, method, **loss(method))
    found = explain(Elsewhere().eval(), x, 1, method, **loss(method))
    torch.testing.assert_close(found, expected)


def test_checkpointing_that_cannot_be_followed_is_named(x: Tensor) -> None:
    with pytest.raises(PropagationError, match="use_reentrant=False"):
        explain(Checkpointed(reentrant=True), x, 1, "gradient")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", METHODS)
def test_quantised_layers_are_refused(method: str, x: Tensor) -> None:
    quantise = torch.ao.quantization.quantize_dynamic
    model = quantise(plain(), {nn.Linear}, dtype=torch.qint8).eval()
    with pytest.raises(PropagationError, match="derivative"):
        explain(model, x, 1, method)


@pytest.mark.filterwarnings("ignore::niwaki.errors.BatchDependenceWarning")
def test_a_quantised_branch_is_refused(x: Tensor) -> None:
    """Part of the signal goes on, so that the heatmap would not be zero, but wrong."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(192, 3)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                other = nn.Sequential(nn.Linear(192, 3))
                self.other = torch.ao.quantization.quantize_dynamic(
                    other, {nn.Linear}, dtype=torch.qint8
                )

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.one(x.flatten(1)) + self.other(x.flatten(1))
            return out

    with pytest.raises(PropagationError, match="without a derivative"):
        explain(Branches().eval(), x, 1, "gradient")


@pytest.mark.filterwarnings("ignore::niwaki.errors.PrecisionWarning")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "method", ["deep_lift", "lrp.z", "lrp.w_square", "lrp.alpha_2_beta_1", "integrated_gradients"]
)
@pytest.mark.filterwarnings("ignore::niwaki.errors.CompletenessWarning")
def test_half_precision_is_near_single(method: str, dtype: torch.dtype, x: Tensor) -> None:
    expected = explain(plain(), x, 1, method, **loss(method))
    found = explain(plain().to(dtype), x.to(dtype), 1, method, **loss(method))
    assert found.dtype == dtype
    both = torch.stack([found.float().flatten(), expected.flatten()])
    assert float(torch.corrcoef(both)[0, 1]) > 0.99


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("method", ["gradient", "lrp.epsilon_plus", "occlusion", "smoothgrad"])
def test_targets_that_are_no_numbers_are_refused(method: str, value: float, x: Tensor) -> None:
    with pytest.raises(DataError, match="target holds NaN or infinite"):
        explain(plain(), x, torch.tensor([[1.0, value, 0.0]]), method)


def test_infinite_derivatives_are_refused() -> None:
    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sqrt(x)

    assert torch.isfinite(explain(Root().eval(), torch.tensor([[0.1, 1.0]]), 0, "gradient")).all()
    with pytest.raises(PropagationError, match="NaN or infinite values"):
        explain(Root().eval(), torch.tensor([[0.0, 1.0]]), 0, "gradient")


def test_occlusion_under_autocast(x: Tensor) -> None:
    expected = explain(plain(), x, 1, "occlusion")
    with torch.autocast("cpu", torch.bfloat16):
        found = explain(plain(), x, 1, "occlusion")
    torch.testing.assert_close(found, expected)


class Cutting(nn.Module):
    """A convolution, whose output goes on in two branches; `join` may cut one of them."""

    def __init__(self, join: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.other = nn.Conv2d(4, 4, 1)
        self.head = nn.LazyLinear(3)
        self.join = join
        self.head(self.join(self.conv(torch.randn(2, 3, 8, 8))).flatten(1))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.join(self.conv(x)).flatten(1))
        return out


def under_no_grad(y: Tensor) -> Tensor:
    with torch.no_grad():
        scale = y.abs().amax((1, 2, 3), keepdim=True)
    return y / scale


def overwritten_under_no_grad(y: Tensor) -> Tensor:
    z = y * 1
    with torch.no_grad():
        z.add_(y.tanh())
    return z + y


def overwritten_in_part_under_no_grad(y: Tensor) -> Tensor:
    z = y * 1
    with torch.no_grad():
        z[:, 0] += y[:, 0].tanh()
    return z + y


def in_slices(y: Tensor) -> Tensor:
    out = torch.zeros(len(y), 8, 8, 8)
    out[:, :4] = y.detach() * 2
    out[:, 4:] = y
    return out


def in_other_slices(y: Tensor) -> Tensor:
    out = torch.zeros(len(y), 8, 8, 8)
    out[:, 4:] = y
    out[:, :4] = y.detach().relu()
    return out


def through_an_alias(y: Tensor) -> Tensor:
    y.data.mul_(2)
    return y


def through_a_part_of_an_alias(y: Tensor) -> Tensor:
    y.data[:, 1:] = 1.5
    return y


def repeated(y: Tensor) -> Tensor:
    first, second = torch.broadcast_tensors(y, y.detach().amax(1, keepdim=True))
    return first * second


def in_a_copy(y: Tensor) -> Tensor:
    out = torch.zeros(len(y), 8, 8, 8)
    out[:, :4].copy_(y.detach())
    return out[:, :4] + y


CUTS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "no_grad": (under_no_grad, r"torch.no_grad\(\)"),
    "detach": (lambda y: y + y.detach().tanh(), "'detach'"),
    "data": (lambda y: y + 2 * y.data, "'data'"),
    "cat": (lambda y: torch.cat([y, y.detach() ** 2], 1), "'detach'"),
    "stack": (lambda y: torch.stack([y.detach().cos(), y]).movedim(0, 1), "'detach'"),
    "weight": (lambda y: F.conv2d(y, y.detach().mean((0, 2, 3)).expand(1, 4)[..., None, None]),
               "'detach'"),
    "slices": (in_slices, "'detach'"),
    "other slices": (in_other_slices, "'detach'"),
    "alias": (through_an_alias, "'data'"),
    "part of an alias": (through_a_part_of_an_alias, "'data'"),
    "repeated": (repeated, "'detach'"),
    "copy": (in_a_copy, "'detach'"),
    "numpy": (lambda y: y + torch.from_numpy(np.tanh(y.detach().numpy())), "'detach'"),
    "as_tensor": (lambda y: y + torch.as_tensor(np.tanh(y.detach().numpy())), "'detach'"),
    "asarray": (lambda y: y + torch.from_numpy(np.asarray(y.detach()) * 2), "'detach'"),
    "long": (lambda y: y + (3 * y).long(), "'long'"),
    "int": (lambda y: y + (3 * y).to(torch.int32).float() / 3, "'to'"),
    "round": (lambda y: y + (3 * y).round(), "'round'"),
    "floor": (lambda y: torch.cat([y, (3 * y).floor() / 3], 1), "'floor'"),
    "only rounded": (lambda y: y.round(), "'round'"),
    "item": (lambda y: y / y.mean().item(), "'item'"),
    "float": (lambda y: y * torch.tensor(float(y.std())), "'float'"),
    "tolist": (lambda y: y + torch.tensor(y.mean((0, 1, 2)).tolist()), "'tolist'"),
    "in place": (overwritten_under_no_grad, r"torch.no_grad\(\)"),
    "a leaf": (lambda y: y + y.detach().requires_grad_().tanh(), "'detach'"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad:UserWarning")
@pytest.mark.filterwarnings("ignore::niwaki.errors.BatchDependenceWarning")
@pytest.mark.parametrize("cut", CUTS)
def test_a_part_that_is_cut_off_is_told(cut: str, x: Tensor) -> None:
    join, by = CUTS[cut]
    model = Cutting(join)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)
    with pytest.warns(DisconnectedWarning, match=rf"{by} \(after conv\)") as told:
        found = explain(model, x, 1, "gradient")
    assert sum(one.category is DisconnectedWarning for one in told) == 1
    torch.testing.assert_close(found, expected)


def test_a_part_overwritten_through_a_view_is_told(x: Tensor) -> None:
    """The view has no place of its own, so that only what cut it off is named."""
    model = Cutting(overwritten_in_part_under_no_grad)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)
    with pytest.warns(DisconnectedWarning, match=r"torch.no_grad\(\)"):
        found = explain(model, x, 1, "gradient")
    torch.testing.assert_close(found, expected)


@pytest.mark.filterwarnings("ignore::niwaki.errors.BatchDependenceWarning")
@pytest.mark.parametrize("cut", ["detach", "no_grad", "cat", "item", "long", "numpy"])
def test_a_part_that_is_cut_off_is_told_under_rules(cut: str, x: Tensor) -> None:
    join, by = CUTS[cut]
    with pytest.warns(DisconnectedWarning, match=rf"{by} \(after conv\)"):
        explain(Cutting(join), x, 1, "lrp.epsilon_plus", max_loss=None)


def asks(y: Tensor) -> Tensor:
    if y.mean().item() > 1e3 or float(y.detach().max()) > 1e3 or (y - y.detach()).sum() > 1:
        return -y
    return y.view(y.shape[0], -1)


def writes_down(y: Tensor) -> Tensor:
    with torch.no_grad():
        str(y.std().item() + y.detach().numpy().sum() + sum(y.flatten().tolist()))
    return y + torch.arange(8.0) * y.new_ones(8)


def chooses(y: Tensor) -> Tensor:
    order = y.detach().mean((0, 2, 3)).argsort()
    first = y.detach().amax().long().clamp(0, 0)
    return y[:, order] + y.index_select(1, first.view(1)) + y * (y > 0) + y * (y.data > 1).float()


def takes_the_type(y: Tensor) -> Tensor:
    grid = torch.linspace(0, 1, 8, dtype=torch.float64).to(y).expand_as(y).type_as(y)
    return grid + y + torch.zeros_like(y).fill_(2.5) + y.new_full((8,), 0.1)


def of_weights(y: Tensor) -> Tensor:
    with torch.no_grad():
        weight = torch.full((4, 4, 1, 1), 0.3).round(decimals=1)
    return F.dropout(F.conv2d(y, weight / weight.detach().norm().item()), training=False)


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        ctx.mark_dirty(y)
        return y.mul_(2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * gradient


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        ctx.save_for_backward(y)
        return y * y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return 2 * y * gradient


def by_functions(y: Tensor) -> Tensor:
    return y + Double.apply(y * 1) + Square.apply(y)


def repeats(y: Tensor) -> Tensor:
    first, second = torch.broadcast_tensors(y, torch.ones(1, 1, 1, 8))
    return first * second


def overwritten(y: Tensor) -> Tensor:
    return y.detach().clone().copy_(y) + y.detach().clone().zero_()


@pytest.mark.parametrize("method", ["gradient", "lrp.epsilon_plus"])
@pytest.mark.parametrize(
    "join",
    [asks, writes_down, chooses, takes_the_type, of_weights, overwritten, repeats, by_functions],
)
def test_nothing_is_told_where_nothing_is_cut(
    join: Callable[[Tensor], Tensor], method: str, x: Tensor
) -> None:
    if method == "lrp.epsilon_plus" and join in (asks, chooses, repeats, overwritten, by_functions):
        pytest.skip("operations without a rule")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        explain(Cutting(join), x, 1, method, **loss(method))


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0"])
def test_nothing_is_told_of_published_networks(name: str) -> None:
    torch.manual_seed(0)
    model = torchvision.models.get_model(name).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error", DisconnectedWarning)
        explain(model, torch.randn(1, 3, 64, 64), 1, "gradient")
