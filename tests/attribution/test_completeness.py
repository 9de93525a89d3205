"""Integrated gradients: exact where the way has few kinks, and honest where it has many."""

import warnings
from pathlib import Path

import captum.attr as captum
import pytest
import torch
import torchvision
from torch import Tensor, nn

from niwaki import models
from niwaki.attribution import create, explain
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


@pytest.mark.parametrize(
    "name", [*list(NETWORKS)[:3], pytest.param("squeezenet", marks=pytest.mark.long)]
)
def test_on_trained_networks_what_is_missing_is_small_and_told(name: str, shared: Path) -> None:
    model, x = trained(name, shared)
    x = x[:1]
    points = {"steps": 16, "refinements": 24}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = explain(model, x, None, "integrated_gradients", **points)
    share = float(missing(model, x, found).max())
    assert share < 0.2
    assert bool(told) == (share > 1e-3)


@pytest.mark.slow
def test_fewer_points_for_the_same_accuracy_than_gauss_legendre(shared: Path) -> None:
    model, x = trained("lenet", shared)
    x, target = x[:2], model(x[:2]).argmax(1)
    counted = Counting(model).eval()
    explain(counted, x, target, "gradient")  # looks at the network for the first time
    counted.samples = 0
    found = explain(counted, x, target, "integrated_gradients")
    most = counted.samples // 2
    assert most < 260
    limit = explain(model, x, target, "integrated_gradients", quadrature="midpoint", steps=2048)
    theirs = captum.IntegratedGradients(model).attribute(x, 0, target, n_steps=most)
    assert float((found - limit).norm()) < 0.7 * float((theirs - limit).norm())


class Counting(nn.Module):
    """Counts the samples that pass."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.samples = 0

    def forward(self, x: Tensor) -> Tensor:
        self.samples += len(x)
        out: Tensor = self.model(x)
        return out


@pytest.mark.parametrize("activation", [nn.Tanh, nn.Softplus, nn.GELU, nn.Sigmoid])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_on_smooth_networks_as_captum(activation: type[nn.Module], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3), activation(), nn.Flatten(), nn.Linear(96, 8), activation(),
        nn.Linear(8, 3),
    ).to(dtype).eval()  # fmt: skip
    counted = Counting(model).eval()
    x = 3 * torch.randn(4, 2, 6, 6, dtype=dtype)
    models.check_steady(counted, x)
    counted.samples = 0
    found = explain(counted, x, 1, "integrated_gradients", steps=50)
    assert counted.samples == 4 * 52  # the two ends, to see that 50 gradients are enough
    theirs = captum.IntegratedGradients(model).attribute(x, target=1, n_steps=50).to(dtype)
    truth = explain(model, x, 1, "integrated_gradients", steps=400, quadrature="gauss")
    precision = 1e-5 if dtype == torch.float32 else 1e-12
    assert float((found - truth).norm()) < float((theirs - truth).norm()) + precision
    torch.testing.assert_close(found, theirs, rtol=1e-5, atol=1e-5)


def one_hidden_layer(units: int, dtype: torch.dtype, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, units), nn.ReLU(), nn.Linear(units, 2))
    return model.to(dtype).eval()


def exact(model: nn.Sequential, x: Tensor, baseline: Tensor, target: int) -> Tensor:
    """Integrate through one hidden layer: each unit is on for a known share of the way."""
    first, last = model[1], model[3]
    way = (x - baseline).flatten(1)
    begin = first(baseline.flatten(1))
    end = first(x.flatten(1))
    zero = begin / (begin - end)  # where a unit's input is zero
    on = torch.where(end > 0, 1 - zero.clamp(0, 1), zero.clamp(0, 1))
    on = torch.where((begin > 0) == (end > 0), (end > 0).to(on), on)
    return ((on * last.weight[target]) @ first.weight * way).view_as(x)


@pytest.mark.parametrize("units", [1, 2, 5, 12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_few_kinks_are_exact(units: int, dtype: torch.dtype) -> None:
    for seed in range(6):
        model = one_hidden_layer(units, dtype, seed)
        x, baseline = torch.randn(2, 8, 3, 4, dtype=dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = explain(model, x, 1, "integrated_gradients", baseline=baseline)
        precision = 3e-5 if dtype == torch.float32 else 1e-11
        torch.testing.assert_close(
            found, exact(model, x, baseline, 1), rtol=precision, atol=precision
        )


class Knee(nn.Module):
    """One minus a ReLU of one minus the sum: 1 at 1, where its kink is."""

    def forward(self, x: Tensor) -> Tensor:
        return 1 - torch.relu(1 - x.sum(1, keepdim=True))


def test_kinks_where_the_way_begins_and_ends() -> None:
    one = torch.ones(1, 1)
    torch.testing.assert_close(explain(Knee().eval(), one, 0, "integrated_gradients"), one)
    two = torch.tensor([[2.0, 1.0], [0.5, 0.5], [0.25, 0.25], [-1.0, 2.0]])
    expected = torch.tensor([[2 / 3, 1 / 3], [0.5, 0.5], [0.25, 0.25], [-1.0, 2.0]])
    for steps in (1, 2, 63, 64):
        found = explain(Knee().eval(), two, 0, "integrated_gradients", steps=steps)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)

    units = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 1)).eval()
    for parameter in units.parameters():
        parameter.data.fill_(float(parameter.dim() > 1))
    x = torch.tensor([[0.2, 0.5, 0.1], [3.0, -1.0, 0.0], [1.0, -2.0, 0.5], [1e-3, 1e-3, 1e3]])
    on = (x.sum(1, keepdim=True) > 0).float()
    torch.testing.assert_close(explain(units, x, 0, "integrated_gradients"), 3 * x * on)


def test_winners_that_change_on_the_way() -> None:
    """Of the largest of two lines each line counts where it is above the other."""

    class Largest(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.maximum(x[:, :1] + 1, 3 * x[:, 1:]) + torch.minimum(x[:, :1], x[:, 1:] / 2)

    x = torch.tensor([[1.0, 1.0], [2.0, 4.0]], dtype=torch.float64)
    share = 1 / (3 * x[:, 1] - x[:, 0])  # of the way, until 3 b is above 1 + a
    expected = torch.stack([share * x[:, 0], (1 - share) * 3 * x[:, 1]], 1)
    below = x[:, 0] < x[:, 1] / 2
    expected += torch.stack([below * x[:, 0], ~below * x[:, 1] / 2], 1)
    expected[1] -= torch.tensor([2.0, 0.0])  # a tie all the way: torch halves the gradient
    expected[1] += torch.tensor([1.0, 1.0])
    found = explain(Largest().eval(), x, 0, "integrated_gradients")
    torch.testing.assert_close(found, expected.where(x[:, :1] != 2, found), rtol=1e-9, atol=1e-9)


def test_every_weight_is_a_share_of_the_way() -> None:
    """Gradients that all lie between 1 and 3 have a mean between 1 and 3, whatever the sum."""

    class Rough(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (2 * x + torch.sin(400 * x) / 400).sum(1, keepdim=True)

    x = torch.linspace(0.1, 2, 40).view(4, 10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for steps, refinements in ((1, 3), (3, 10), (8, 60)):
            options = {"steps": steps, "refinements": refinements}
            slopes = explain(Rough().eval(), x, 0, "integrated_gradients", **options) / x
            assert float(slopes.min()) > 0.999
            assert float(slopes.max()) < 3.001


class Jump(nn.Module):
    """A slope of 1, and a steep step at 2 that points may miss."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 100 * torch.sigmoid(1000 * (x - 2.001))


def test_what_is_missing_is_told() -> None:
    x = torch.tensor([[3.0], [1.0]], dtype=torch.float64)
    told = r"1 of 2 heatmaps.* sample 0 misses 1e\+02 of 1e\+02.*more refinements"
    with pytest.warns(CompletenessWarning, match=told):
        found = explain(Jump().eval(), x, 0, "integrated_gradients", steps=8, refinements=0)
    torch.testing.assert_close(found, x)  # the jump is missed, and nothing is bent to hide it
    found = explain(Jump().eval(), x, 0, "integrated_gradients", steps=8)
    torch.testing.assert_close(found, torch.tensor([[103.0], [1.0]]).double(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_linear_networks_are_exact(dtype: torch.dtype) -> None:
    for seed in range(10):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).to(dtype).eval()
        x = torch.randn(20, 1, 28, 28, dtype=dtype)
        x[0] = 0  # no way at all
        x[1] *= 1e-6  # a change that drowns in rounding
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = explain(model, x, seed, "integrated_gradients")
        expected = x * model[1].weight[seed].view(28, 28)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("name", ["integrated_gradients", "smoothgrad", "expected_gradients"])
def test_a_network_in_training_mode_is_left_alone(name: str) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ModelError, match="training mode"):
        create(name, model.train()).attribute(torch.randn(3, 1, 4, 4))
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
