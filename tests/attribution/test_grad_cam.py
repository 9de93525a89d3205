"""The layer that Grad-CAM reads by default: the last map that all of the signal passes."""

import captum.attr
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from niwaki.attribution import create, explain
from niwaki.attribution._grad_cam import GradCam
from niwaki.errors import BypassedWarning

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:captum")  # it sets hooks


class Join(nn.Module):
    """A place at which Captum can read what comes together."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        if self.way == "product":
            return a * torch.sigmoid(b)
        return torch.cat([a, b], 1) if self.way == "concatenation" else a + b


class TwoBranches(nn.Module):
    """Two convolutions read the same map, and come together before the head."""

    def __init__(self, way: str, inplace: bool = False) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.first, self.second = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.join, self.relu = Join(way), nn.ReLU(inplace)
        self.head = nn.Linear(8 if way == "concatenation" else 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        both = self.join(self.first(x).tanh(), self.second(x).tanh())
        return self.head(self.relu(both + 0).mean((2, 3)))


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("way", ["concatenation", "sum", "product"])
def test_it_is_the_join_of_two_branches(way: str, inplace: bool) -> None:
    model, x = TwoBranches(way, inplace).eval().double(), torch.rand(3, 1, 6, 6).double()
    method = create("grad_cam", model, positive=False)
    assert isinstance(method, GradCam)
    theirs = captum.attr.LayerGradCam(model, model.join).attribute(x, target=[0, 1, 2])
    torch.testing.assert_close(method.map(x, [0, 1, 2]), theirs)


class Halves(nn.Module):
    """Class 0 is the mean of the first branch, class 1 that of the second one."""

    def __init__(self, pooled: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 1, 1, bias=False), nn.Conv2d(1, 1, 1, bias=False)
        self.pooled = pooled
        nn.init.ones_(self.first.weight)
        nn.init.ones_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.first(x), self.second(x)
        if self.pooled:
            return torch.cat([a.mean((2, 3)), b.mean((2, 3))], 1)
        return torch.cat([a, b], 1).mean((2, 3))


def test_evidence_in_the_first_branch_is_seen() -> None:
    x = torch.zeros(1, 1, 4, 4)
    x[..., :2, :2] = 1
    heatmap = explain(Halves(pooled=False).eval(), x, 0, "grad_cam")
    torch.testing.assert_close(heatmap, x / 16)  # the mean gradient of the mean is 1/16


def test_without_a_common_map_the_bypassed_convolution_is_named() -> None:
    model, x = Halves(pooled=True).eval(), torch.rand(1, 1, 4, 4)
    for method in ("grad_cam", "guided_grad_cam"):
        with pytest.warns(BypassedWarning, match=r"'second'.*layer=NAME"):
            explain(model, x, 0, method)
    explain(model, x, 0, "grad_cam", layer="first")  # without a warning


@pytest.mark.parametrize("inplace", [False, True])
def test_a_plain_network_is_read_at_its_last_convolution(inplace: bool) -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(inplace), nn.Conv2d(4, 5, 3, bias=False), nn.BatchNorm2d(5),
        nn.ReLU(inplace), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(20, 3),
    ).eval()  # fmt: skip
    x = torch.rand(2, 1, 8, 8)
    found, named = create("grad_cam", model), create("grad_cam", model, layer="2")
    torch.testing.assert_close(found.attribute(x, 1), named.attribute(x, 1), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "place"),
    [("resnet18", "layer4.1.bn2"), ("inception_v3", "Mixed_7c"), ("squeezenet1_1", "classifier.1"),
     ("densenet121", "features.denseblock4")],
)  # fmt: skip
@pytest.mark.long
def test_networks_of_torchvision(name: str, place: str) -> None:
    """Of a ResNet the sum of the last block, which no module returns, is taken by hand."""
    options = {"init_weights": False} if name == "inception_v3" else {}
    model = torchvision.models.get_model(name, weights=None, **options).eval()
    x = torch.rand(1, 3, 139, 139)  # Inception leaves 3 x 3 of it
    method = create("grad_cam", model, positive=False)
    assert isinstance(method, GradCam)
    if name == "resnet18":
        block, kept = model.layer4[1], []
        block.relu.inplace = False
        handle = block.relu.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
        output = model(x)
        handle.remove()
        (gradient,) = torch.autograd.grad(output[0, 7], kept[-1])
        expected = (gradient.mean((2, 3), keepdim=True) * kept[-1]).sum(1, keepdim=True)
    else:
        theirs = captum.attr.LayerGradCam(model, model.get_submodule(place))
        expected = theirs.attribute(x, target=7)
    torch.testing.assert_close(method.map(x, 7), expected.detach(), rtol=1e-4, atol=1e-7)
