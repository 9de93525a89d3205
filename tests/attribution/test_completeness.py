"""Integrated gradients sum to the change of the output: on trained networks, by least change."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from niwaki import models
from niwaki.attribution import create, explain
from niwaki.attribution._complete import CompleteMean
from niwaki.data import Preprocessing, open_data
from niwaki.errors import CompletenessWarning, ModelError
from niwaki.models import zoo

IMAGENET = Preprocessing(224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
NETWORKS = {  # how it is built, its weights, images, how many
    "lenet": (zoo.lenet, "lenet_mnist", "mnist", "test", 8),
    "vgglike": (zoo.vgglike, "vgglike_cifar10", "cifar10", "test", 4),
    "resnet20": (zoo.resnet20, "resnet20_cifar10", "cifar10", "test", 3),
    "squeezenet": (
        torchvision.models.squeezenet1_1,
        "squeezenet1_1_imagenet",
        "imagenette",
        "val",
        1,
    ),
}


def trained(name: str, shared: Path) -> tuple[nn.Module, Tensor]:
    build, weights, folder, split, count = NETWORKS[name]
    model = build().eval()
    models.load_weights(model, shared / "data" / "weights" / f"{weights}.safetensors")
    preprocessing = getattr(build, "preprocessing", IMAGENET)
    data = open_data(shared / "data" / folder, preprocessing, split=split)
    return model, torch.stack([data[i * len(data) // count][0] for i in range(count)])


def missing(model: nn.Module, x: Tensor, heatmaps: Tensor) -> Tensor:
    """Share of the change of each image's output that its heatmap does not account for."""
    with torch.no_grad():
        output = model(x)
        change = output - model(torch.zeros_like(x))
    change = change.gather(1, output.argmax(1, keepdim=True)).squeeze(1).double()
    return (heatmaps.double().flatten(1).sum(1) - change).abs() / change.abs()


@pytest.mark.parametrize("name", NETWORKS)
def test_complete_on_trained_networks(name: str, shared: Path) -> None:
    model, x = trained(name, shared)
    assert float(missing(model, x, explain(model, x, None, "integrated_gradients")).max()) < 1e-3


def test_classical_quadratures_are_not(shared: Path) -> None:
    model, x = trained("vgglike", shared)
    for quadrature in ("left", "midpoint", "gauss"):
        found = explain(model, x, None, "integrated_gradients", quadrature=quadrature)
        assert float(missing(model, x, found).median()) > 3e-3, quadrature


def test_adjusting_costs_no_accuracy(shared: Path) -> None:
    model, x = trained("lenet", shared)
    x = x[:2]

    def heatmaps(quadrature: str, steps: int) -> Tensor:
        options = {"quadrature": quadrature, "steps": steps}
        return explain(model, x, None, "integrated_gradients", **options)

    limit = heatmaps("midpoint", 512)
    errors = {
        quadrature: float((heatmaps(quadrature, 64) - limit).norm() / limit.norm())
        for quadrature in ("complete", "midpoint", "left")
    }
    assert errors["complete"] < 1.1 * errors["midpoint"]
    assert errors["complete"] < errors["left"]


def test_weights_change_as_little_as_possible() -> None:
    torch.manual_seed(0)
    weights = torch.rand(6, dtype=torch.float64) + 0.5
    weights /= weights.sum()
    maps = torch.randn(6, 2, 3, dtype=torch.float64)
    slopes = maps.sum(2)  # (points, samples)
    change = (weights[:, None] * slopes).sum(0) + torch.tensor([0.3, -0.2])
    mean = CompleteMean(change, torch.zeros(2))
    for weight, heatmap in zip(weights.tolist(), maps, strict=True):
        mean.add(weight, weight * heatmap)
    for sample, found in enumerate(mean.result()):
        # Least sum of u (v / u - 1)^2 under two conditions, by its Lagrange equations.
        conditions = np.stack([np.ones(6), slopes[:, sample].numpy()])
        u = weights.numpy()
        right = np.array([1.0, float(change[sample])]) - conditions @ u
        v = u + u * (conditions.T @ np.linalg.solve(conditions * u @ conditions.T, right))
        expected = torch.from_numpy(v) @ maps[:, sample]
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


class Jump(nn.Module):
    """A slope of 1, and a steep step at 2 that points may miss."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 100 * torch.sigmoid(1000 * (x - 2.001))


def test_points_that_say_too_little_are_warned_of() -> None:
    x = torch.tensor([[3.0], [1.0]], dtype=torch.float64)
    with pytest.warns(CompletenessWarning, match=r"1 of 2 heatmaps.* sample 0 misses .*more steps"):
        explain(Jump().eval(), x, 0, "integrated_gradients", steps=8)
    found = explain(Jump().eval(), x, 0, "integrated_gradients", steps=3000)
    torch.testing.assert_close(found, torch.tensor([[103.0], [1.0]]).double(), rtol=1e-9, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_networks_whose_slope_does_not_vary(dtype: torch.dtype) -> None:
    model = nn.Linear(30, 2).to(dtype).eval()
    x = torch.randn(5, 30, dtype=dtype)
    x[0] = 0  # no way at all
    x[1] *= 1e-6  # a change that drowns in rounding
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = explain(model, x, 1, "integrated_gradients")
    torch.testing.assert_close(found, x * model.weight[1], rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("name", ["integrated_gradients", "smoothgrad", "expected_gradients"])
def test_a_network_in_training_mode_is_left_alone(name: str) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ModelError, match="training mode"):
        create(name, model.train()).attribute(torch.randn(3, 1, 4, 4))
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
