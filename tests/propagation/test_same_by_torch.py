"""Functions of `torch` may take their arguments in another order than those of `functional`."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from niwaki import explain, score


class Net(nn.Module):
    """A convolution, an operation, and the rest."""

    def __init__(self, middle: Callable[["Net", Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 6, 3)
        self.slopes = nn.Parameter(torch.rand(6))
        self.head = nn.Linear(6, 4)
        for tensor in (self.norm.running_mean, self.norm.bias, self.norm.weight):
            assert tensor is not None
            tensor.data.uniform_(0.2, 0.6)
        assert self.norm.running_var is not None
        self.norm.running_var.uniform_(1.5, 2.5)  # nothing that a mistake would make NaN
        self.middle = middle
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.second(F.relu(self.middle(self, self.first(x))))).mean((2, 3)))


def by_position(net: Net, x: Tensor) -> Tensor:
    n = net.norm
    return torch.batch_norm(
        x, n.weight, n.bias, n.running_mean, n.running_var, False, 0.1, n.eps, False
    )


def by_name(net: Net, x: Tensor) -> Tensor:
    n = net.norm
    return torch.batch_norm(
        x,
        weight=n.weight,
        bias=n.bias,
        running_mean=n.running_mean,
        running_var=n.running_var,
        training=False,
        momentum=0.1,
        eps=n.eps,
        cudnn_enabled=False,
    )


def without_affine(net: Net, x: Tensor) -> Tensor:
    n = net.norm
    return torch.batch_norm(x, None, None, n.running_mean, n.running_var, False, 0.1, n.eps, False)


def functional(net: Net, x: Tensor, **given: Tensor | None) -> Tensor:
    n = net.norm
    known = {"weight": n.weight, "bias": n.bias, **given}
    return F.batch_norm(x, n.running_mean, n.running_var, **known, eps=n.eps)


PAIRS: dict[str, tuple[Callable[[Net, Tensor], Tensor], Callable[[Net, Tensor], Tensor]]] = {
    "batch norm by position": (by_position, lambda net, x: net.norm(x)),
    "batch norm by name": (by_name, lambda net, x: net.norm(x)),
    "batch norm without affine": (
        without_affine,
        lambda net, x: functional(net, x, weight=None, bias=None),
    ),
    "batch norm of functional": (functional, lambda net, x: net.norm(x)),
    "group norm": (
        lambda net, x: torch.group_norm(x, 2, net.norm.weight, net.norm.bias, 1e-5),
        lambda net, x: F.group_norm(x, 2, net.norm.weight, net.norm.bias),
    ),
    "instance norm": (
        lambda net, x: torch.instance_norm(
            x, net.norm.weight, net.norm.bias, None, None, True, 0.1, 1e-5, False
        ),
        lambda net, x: F.instance_norm(x, None, None, net.norm.weight, net.norm.bias),
    ),
    "layer norm": (
        lambda net, x: torch.layer_norm(x, (8, 8), None, None, 1e-5, False),
        lambda net, x: F.layer_norm(x, (8, 8)),
    ),
    "dropout": (
        lambda net, x: torch.dropout(x, 0.5, False),
        lambda net, x: F.dropout(x, 0.5, training=False),
    ),
    "pooling": (
        lambda net, x: torch.max_pool2d(x, 3, 1, 1),
        lambda net, x: F.max_pool2d(x, 3, 1, 1),
    ),
    "prelu": (lambda net, x: torch.prelu(x, net.slopes), lambda net, x: F.prelu(x, net.slopes)),
    "clamp": (lambda net, x: torch.clamp(x, -0.5, 0.5), lambda net, x: F.hardtanh(x, -0.5, 0.5)),
    "grouped convolution": (
        lambda net, x: torch.conv2d(x, net.second.weight[:, :3], None, 1, 1, 1, 2),
        lambda net, x: F.conv2d(x, net.second.weight[:, :3], padding=1, groups=2),
    ),
    "grouped transposed convolution": (
        lambda net, x: torch.conv_transpose2d(x, net.second.weight[:, :3], None, 1, 1, 0, 2, 1),
        lambda net, x: F.conv_transpose2d(x, net.second.weight[:, :3], padding=1, groups=2),
    ),
}
METHODS = ["lrp.epsilon", "lrp.epsilon_plus", "lrp.alpha_2_beta_1", "lrp.w_square", "deep_taylor"]


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("method", METHODS)
def test_the_same_operation_by_either_name_is_explained_alike(pair: str, method: str) -> None:
    one, other = (Net(middle) for middle in PAIRS[pair])
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(one(x), other(x))
    found, expected = (explain(net, x, 1, method, max_loss=None) for net in (one, other))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("pair", ["batch norm by position", "batch norm without affine"])
@pytest.mark.parametrize("criterion", ["lrp", "taylor", "hessian", "activation"])
def test_and_scored_alike(pair: str, criterion: str) -> None:
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    data = x, torch.arange(4)
    nets = [Net(middle) for middle in PAIRS[pair]]
    found, expected = (score(net, data, criterion) for net in nets)
    for layer in expected:
        torch.testing.assert_close(found[layer], expected[layer])
