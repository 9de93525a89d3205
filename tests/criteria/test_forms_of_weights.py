"""Weights that are computed, used transposed or in parts, or that share a module: each its own."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils import spectral_norm as old_spectral_norm

import niwaki
from niwaki.criteria import score_weights
from niwaki.errors import ModelError
from niwaki.evaluation import cost

LABELS = torch.arange(8) % 4


def images() -> Tensor:
    return torch.randn(8, 3, 7, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Symmetric(nn.Module):
    """A parametrization of somebody's own."""

    def forward(self, weight: Tensor) -> Tensor:
        return (weight + weight.flip(1)) / 2


def normed(kind: str) -> nn.Module:
    """A network of which some weights are computed from parameters."""
    torch.manual_seed(0)
    first, second, head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3), nn.Linear(6, 4)
    if kind == "weight_norm":
        parametrizations.weight_norm(second)
        parametrizations.weight_norm(head, dim=None)
    elif kind == "spectral_norm":
        parametrizations.spectral_norm(first)
        parametrizations.spectral_norm(second)
    elif kind == "orthogonal":
        parametrizations.orthogonal(head)
    elif kind == "own":
        parametrize.register_parametrization(second, "weight", Symmetric())
    elif kind == "old spectral_norm":
        old_spectral_norm(second)
    pool = [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    model = nn.Sequential(first, nn.ReLU(), second, *pool, head).double()
    return model.eval()


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "kind", ["weight_norm", "spectral_norm", "orthogonal", "own", "old spectral_norm", "none"]
)
@pytest.mark.parametrize("criterion", ["gradient", "taylor"])
@pytest.mark.parametrize("reduce", ["absolute", "squares", "absolute_of_sum"])
def test_computed_weights_are_scored_as_they_are_used(
    kind: str, criterion: str, reduce: str
) -> None:
    model, x = normed(kind), images()
    model(x)  # old-style norms compute their weights in a pass
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    weights = {
        name: module.weight.detach().clone().requires_grad_()
        for name, module in model.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    }
    biases = {name: model.get_submodule(name).bias.detach() for name in weights}

    def loss(x: Tensor, y: Tensor) -> Tensor:
        x = F.relu(F.conv2d(x, weights["0"], biases["0"]))
        x = F.relu(F.conv2d(x, weights["2"], biases["2"])).mean((2, 3))
        return F.cross_entropy(F.linear(x, weights["6"], biases["6"]), y, reduction="sum")

    expected = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for i in range(len(x)):
        found = torch.autograd.grad(loss(x[i : i + 1], LABELS[i : i + 1]), [*weights.values()])
        for (name, weight), one in zip(weights.items(), found, strict=True):
            value = (one * weight if criterion == "taylor" else one).detach()
            shape = {"absolute": value.abs(), "squares": value.square()}.get(reduce, value)
            expected[name] += shape
    scores = score_weights(model, (x, LABELS), criterion, reduce=reduce)
    for name, total in expected.items():
        assert total.abs().sum() > 0
        torch.testing.assert_close(scores[name], total.detach().abs() / len(x))
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


class Written(nn.Module):
    """Linear layers around what is given."""

    def __init__(self, middle: Callable[["Written", Tensor], Tensor], width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(12, 8)
        self.tied = nn.Linear(8, width, bias=False)
        self.head = nn.Linear(8, 4)
        self.middle = middle
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self, F.relu(self.first(x))))


def there_and_back(net: Written, x: Tensor) -> Tensor:
    return F.relu(F.linear(F.relu(net.tied(x)), net.tied.weight.t()))


def by_matrices(net: Written, x: Tensor) -> Tensor:
    return F.relu(F.relu(net.tied(x)) @ net.tied.weight)


def back_first(net: Written, x: Tensor) -> Tensor:
    return F.relu(net.tied(F.relu(F.linear(x, net.tied.weight.mT))))


def in_parts(net: Written, x: Tensor) -> Tensor:
    halves = net.tied.weight.chunk(2)
    return torch.cat([F.relu(F.linear(x, half)) for half in halves], 1)


class Apart(nn.Module):
    """The same networks with a layer of its own for each use."""

    def __init__(self, net: Written, names: list[str], weights: list[Tensor]) -> None:
        super().__init__()
        self.first, self.head = net.first, net.head
        self.names = names
        self.parts = nn.ModuleList(nn.Linear(*w.shape[::-1], bias=False) for w in weights)
        for part, weight in zip(self.parts, weights, strict=True):
            part.weight = nn.Parameter(weight.detach().clone())
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        if self.names[0] == "half":
            return self.head(torch.cat([F.relu(part(x)) for part in self.parts], 1))
        for part in self.parts:
            x = F.relu(part(x))
        return self.head(x)


CASES: dict[str, tuple[Callable[[Written, Tensor], Tensor], int, list[str]]] = {
    "transposed": (there_and_back, 8, ["tied", "tied (form 2)"]),
    "transposed, of another width": (there_and_back, 5, ["tied", "tied (form 2)"]),
    "as a matrix": (by_matrices, 5, ["tied", "tied (form 2)"]),
    "transposed first": (back_first, 8, ["tied (form 2)", "tied"]),
    "in parts": (in_parts, 8, ["tied (form 2)", "tied (form 3)"]),
}


def twin(net: Written, case: str) -> Apart:
    weight = net.tied.weight
    parts = {
        "in parts": [*weight.chunk(2)],
        "transposed first": [weight.mT, weight],
    }.get(case, [weight, weight.mT])
    return Apart(net, ["half"] if case == "in parts" else ["whole"], parts)


def vectors() -> Tensor:
    return torch.randn(8, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("criterion", ["lrp", "gradient", "taylor", "activation", "weight", "apoz"])
def test_each_form_of_a_weight_is_scored_as_a_layer_of_its_own(case: str, criterion: str) -> None:
    middle, width, names = CASES[case]
    net, x = Written(middle, width), vectors()
    apart = twin(net, case)
    torch.testing.assert_close(net(x), apart(x))
    found, expected = (
        niwaki.score(model, (x, LABELS), criterion, normalise="none") for model in (net, apart)
    )
    assert set(found) == {"first", *names}
    for number, name in enumerate(names):
        torch.testing.assert_close(found[name], expected[f"parts.{number}"])
    torch.testing.assert_close(found["first"], expected["first"])


@pytest.mark.parametrize("case", CASES)
def test_heatmaps_of_layers_and_costs_tell_forms_apart(case: str) -> None:
    middle, width, names = CASES[case]
    net, x = Written(middle, width), vectors()
    apart = twin(net, case)
    maps, expected = (
        niwaki.attribution.create("lrp.epsilon", model).layers(x, 1) for model in (net, apart)
    )
    for number, name in enumerate(names):
        torch.testing.assert_close(maps[name], expected[f"parts.{number}"])
    ours, theirs = cost(net, x), cost(apart, x)
    assert (ours.units, ours.macs) == (theirs.units, theirs.macs)


@pytest.mark.parametrize("case", CASES)
def test_single_weights_of_a_tied_layer_are_scored_right_or_refused(case: str) -> None:
    middle, width, _ = CASES[case]
    net, x = Written(middle, width), vectors()
    data = x, LABELS
    if case == "in parts":
        for criterion in ("lrp", "gradient", "magnitude"):
            with pytest.raises(ModelError, match="in parts or transposed alone"):
                score_weights(net, data, criterion)
        return
    with pytest.raises(ModelError, match="used in several forms"):
        score_weights(net, data, "lrp")
    found = score_weights(net, data, "gradient", reduce="absolute_of_sum")
    loss = F.cross_entropy(net(x), LABELS, reduction="sum")
    (slope,) = torch.autograd.grad(loss, [net.tied.weight])
    torch.testing.assert_close(found["tied"], slope.abs() / len(x))
    assert set(score_weights(net, data, "magnitude")) == {"first", "tied", "head"}


@pytest.mark.parametrize("case", ["transposed", "transposed, of another width", "transposed first"])
def test_networks_with_tied_layers_are_pruned(case: str) -> None:
    middle, width, _ = CASES[case]
    net, x = Written(middle, width), vectors()
    pruned = niwaki.prune(net, (x, LABELS), "lrp", keep=0.7, repair=None)
    removed = pruned.plan.removed()
    assert pruned.model.first.out_features == 8 - removed["first"]
    tied = pruned.model.tied
    read = tied.out_features if case == "transposed first" else tied.in_features
    assert read == pruned.model.first.out_features
    assert pruned.model(x).shape == (8, 4)


class Several(nn.Module):
    """Two weights in one module, whose names begin alike."""

    def __init__(self) -> None:
        super().__init__()
        self.weight1 = nn.Parameter(torch.randn(8, 12, dtype=torch.float64) * 0.3)
        self.weight2 = nn.Parameter(torch.randn(8, 8, dtype=torch.float64) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(F.linear(F.relu(F.linear(x, self.weight1)), self.weight2))


@pytest.mark.parametrize("criterion", ["lrp", "taylor", "weight"])
def test_weights_of_one_module_are_layers_of_their_own(criterion: str) -> None:
    torch.manual_seed(0)
    inner, head, x = Several(), nn.Linear(8, 4).double(), vectors()
    model = nn.Sequential(inner, head).eval()
    layers = [nn.Linear(12, 8, bias=False), nn.Linear(8, 8, bias=False)]
    layers[0].weight, layers[1].weight = inner.weight1, inner.weight2
    apart = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), head).eval()
    found, expected = (niwaki.score(net, (x, LABELS), criterion) for net in (model, apart))
    torch.testing.assert_close(found["0.weight1"], expected["0"])
    torch.testing.assert_close(found["0.weight2"], expected["2"])
    for name in ("gradient", "magnitude"):
        ours, theirs = (score_weights(net, (x, LABELS), name) for net in (model, apart))
        torch.testing.assert_close(ours["0.weight1"], theirs["0"])
        torch.testing.assert_close(ours["0.weight2"], theirs["2"])


@pytest.mark.parametrize("criterion", ["lrp", "gradient", "taylor", "magnitude"])
def test_weights_are_scored_within_inference_mode(criterion: str) -> None:
    model, x = normed("none"), images()
    expected = score_weights(model, (x, LABELS), criterion)
    with torch.inference_mode():
        found = score_weights(model, (x.clone(), LABELS.clone()), criterion)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])
