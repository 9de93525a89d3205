"""Criteria of the weights alone: against torch-pruning, and by hand."""

import pytest
import torch
import torch_pruning as tp
from criteria_networks import Functional, Plain, close, randomise
from torch import nn
from torch_pruning.pruner.importance import FPGMImportance

from niwaki.criteria import create, score
from niwaki.errors import ModelError

FIRST = {"group_reduction": "first"}
RAW = {**FIRST, "normalizer": None}


@pytest.fixture
def chain():
    """Layers with weights above zero, as FPGM there squares them before it compares."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32, 5),
        nn.ReLU(),
        nn.Linear(5, 4),
    )
    for module in model[0], model[3], model[7]:
        module.weight.data.abs_()
    return randomise(model).float()


@pytest.fixture
def data():
    return torch.randn(2, 3, 6, 6), torch.tensor([0, 1])


def importances(model, data, importance):
    """What torch-pruning says of each layer that is pruned alone."""
    graph = tp.DependencyGraph().build_dependency(model, data[0])
    names = {module: name for name, module in model.named_modules()}
    found = {names[g[0].dep.target.module]: importance(g) for g in graph.get_all_groups()}
    return {name: values for name, values in found.items() if values is not None and name != "9"}


@pytest.mark.parametrize(
    ("criterion", "importance", "power"),
    [
        ("weight", tp.importance.MagnitudeImportance(p=1, **RAW), 1),
        ("weight.l2", tp.importance.MagnitudeImportance(p=2, **RAW), 2),
        ("lamp", tp.importance.LAMPImportance(**FIRST), 1),
        ("fpgm", FPGMImportance(p=1, **RAW), 1),
        ("bn_scale", tp.importance.BNScaleImportance(**RAW), 1),
    ],
    ids=["weight", "weight.l2", "lamp", "fpgm", "bn_scale"],
)
def test_what_torch_pruning_says(chain, data, criterion, importance, power):
    scores = score(chain, data, criterion, normalise="none")
    theirs = importances(chain, data, importance)
    assert {layer for layer in theirs if layer != "7"} <= set(scores) <= set(theirs)
    for layer in scores:
        torch.testing.assert_close(
            scores[layer].float() ** power, theirs[layer].detach(), rtol=1e-4, atol=1e-5
        )


def rows(layer):
    """The weights that each unit's output depends on: the derivative of the output says which."""
    x = torch.ones(1, layer.weight.shape[0], 9, 9).double()
    if not isinstance(layer, nn.ConvTranspose2d):
        return layer.weight.detach().flatten(1)
    found = []
    for unit in layer(x)[0]:
        (used,) = torch.autograd.grad(unit.sum(), layer.weight, retain_graph=True)
        found.append(layer.weight.detach()[used != 0])
    return torch.stack(found)


def test_by_hand_for_every_kind_of_layer():
    torch.manual_seed(0)
    model = randomise(Plain())
    data = torch.zeros(1, 3, 12, 12).double(), torch.tensor([0])
    filters = {name: rows(model.get_submodule(name)) for name in ("0", "3", "5", "8", "10")}

    def lamp(w):
        squares = [float(row.square().sum()) for row in w]
        return torch.tensor([s / sum(t for t in squares if t >= s) for s in squares]).double()

    def fpgm(w):
        return torch.stack([sum((row - other).norm() for other in w) for row in w])

    for criterion, by_hand in {
        "weight": lambda w: w.abs().sum(1),
        "weight.l2": lambda w: w.norm(dim=1),
        "lamp": lamp,
        "fpgm": fpgm,
    }.items():
        scores = score(model, data, criterion, normalise="none")
        assert list(scores) == list(filters)
        for layer, values in scores.items():
            torch.testing.assert_close(values, by_hand(filters[layer]), rtol=1e-6, atol=1e-7)


def linear_pair(weight):
    model = nn.Sequential(nn.Linear(weight.shape[1], len(weight)), nn.Linear(len(weight), 2))
    model[0].weight.data = weight
    return model.eval(), (torch.zeros(1, weight.shape[1]), torch.tensor([0]))


def test_lamp_counts_ties_and_the_zero_filter():
    model, data = linear_pair(torch.tensor([[3.0], [1.0], [-1.0], [0.0]]))
    found = score(model, data, "lamp")["0"]
    torch.testing.assert_close(found, torch.tensor([1, 1 / 11, 1 / 11, 0]).double())
    model[0].weight.data.zero_()
    assert score(model, data, "lamp")["0"].tolist() == [0, 0, 0, 0]


def test_fpgm_finds_the_filter_in_the_middle():
    model, data = linear_pair(torch.tensor([[0.0, 0], [4, 0], [0, 3], [1, 1]]))
    found = score(model, data, "fpgm", normalise="none")["0"]
    assert int(found.argmin()) == 3
    torch.testing.assert_close(found[0], torch.tensor(4 + 3 + 2**0.5).double())


def test_bn_scale_skips_layers_without_a_norm():
    torch.manual_seed(0)
    model = randomise(Plain())
    model[1].weight.data[2] *= -1
    data = torch.zeros(1, 3, 12, 12).double(), torch.tensor([0])
    close(score(model, data, "bn_scale"), {"0": model[1].weight.abs(), "5": model[6].weight.abs()})


class Norms(nn.Module):
    """A layer used behind two norms, one behind an activation in place, one without a scale."""

    def __init__(self):
        super().__init__()
        self.twice, self.one, self.two = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.later, self.late = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.bare, self.plain = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, affine=False)
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        x = self.two(self.twice(self.one(self.twice(x)).relu())).relu()
        x = self.late(self.later(x).relu_())
        return self.head(self.plain(self.bare(x)).mean((2, 3)))


def test_bn_scale_is_that_of_the_norm_directly_behind():
    model = randomise(Norms())
    data = torch.randn(1, 3, 4, 4).double(), torch.tensor([0])
    close(score(model, data, "bn_scale"), {"twice": model.one.weight + model.two.weight})


def test_bn_scale_without_any_norm_names_a_layer():
    with pytest.raises(ModelError, match=r"Functional, such as 'kernel'.* another criterion"):
        score(Functional().eval(), (torch.randn(1, 3, 6, 6), torch.tensor([0])), "bn_scale")


def test_the_norm_is_one_or_two():
    with pytest.raises(ValueError, match="p = 3"):
        create("weight", p=3)
