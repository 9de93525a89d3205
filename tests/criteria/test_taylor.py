"""Taylor criteria and the Hessian against autograd sample by sample, and torch-pruning."""

import pytest
import torch
import torch.nn.functional as F
import torch_pruning as tp
from criteria_networks import UNITS, Functional, Plain, captured, close, l2, per_sample, randomise
from torch import nn

from niwaki.criteria import create, score
from niwaki.errors import ModelError


@pytest.fixture
def plain():
    torch.manual_seed(0)
    return randomise(Plain())


@pytest.fixture
def samples():
    torch.manual_seed(1)
    return torch.randn(5, 3, 12, 12).double(), torch.tensor([0, 1, 2, 3, 0])


def loss_of(model, data, k):
    inputs, labels = data
    return F.cross_entropy(model(inputs[k : k + 1]), labels[k : k + 1])


@pytest.mark.parametrize("criterion", ["taylor_gates", "taylor_squared"])
def test_gates_by_autograd(plain, samples, criterion):
    inputs, labels = samples
    where = {layer: behind for layer, (behind, _) in UNITS.items()}
    outputs, logits = captured(plain, inputs, where.values())
    loss = F.cross_entropy(logits, labels, reduction="sum")
    derivatives = torch.autograd.grad(loss, [outputs[w] for w in where.values()])
    expected = {}
    for (layer, behind), derivative in zip(where.items(), derivatives, strict=True):
        gates = per_sample(outputs[behind] * derivative)
        sizes = {"taylor_gates": gates.abs(), "taylor_squared": gates.square()}
        expected[layer] = sizes[criterion].mean(0)
    close(score(plain, samples, criterion, normalise="none"), expected)


def test_a_gate_is_a_factor_at_the_units_output(plain, samples):
    """Independent of outputs and their derivatives: real gates behind the first norm."""
    inputs, labels = samples
    gates = torch.ones(5, 6, dtype=torch.float64, requires_grad=True)
    x = plain[1](plain[0](inputs)) * gates[:, :, None, None]
    loss = F.cross_entropy(nn.Sequential(*list(plain)[2:])(x), labels, reduction="sum")
    (derivative,) = torch.autograd.grad(loss, gates)
    found = score(plain, samples, "taylor_gates")["0"]
    torch.testing.assert_close(found, l2(derivative.abs().mean(0)))


def units_of(layer, values):
    """Values of the weight's shape, a row per unit."""
    if not isinstance(layer, nn.ConvTranspose2d):
        return values.flatten(1)
    groups = values.chunk(layer.groups)
    return torch.cat([group.transpose(0, 1).flatten(1) for group in groups])


@pytest.mark.parametrize("criterion", ["taylor_weights", "hessian"])
def test_weights_by_autograd(plain, samples, criterion):
    expected = {name: 0 for name in UNITS}
    for k in range(5):
        layers = [plain.get_submodule(name) for name in UNITS]
        gradients = torch.autograd.grad(loss_of(plain, samples, k), [m.weight for m in layers])
        for name, layer, gradient in zip(UNITS, layers, gradients, strict=True):
            products = units_of(layer, layer.weight * gradient)
            if criterion == "taylor_weights":
                expected[name] += products.sum(1).square() / 5
            else:
                expected[name] += products.square().sum(1) / 2 / 5
    close(score(plain, samples, criterion), expected)


@pytest.mark.parametrize("criterion", ["taylor_weights", "hessian", "taylor_gates"])
def test_a_layer_used_twice_is_one_layer(criterion):
    """Its uses add up before anything is squared."""
    torch.manual_seed(0)
    model = Functional().double().eval()
    data = torch.randn(3, 3, 8, 8).double(), torch.arange(3)
    expected = 0
    for k in range(3):
        if criterion == "taylor_gates":
            gate = torch.ones(5, dtype=torch.float64, requires_grad=True)
            handle = model.twice.register_forward_hook(lambda m, a, y, g=gate: y * g[:, None, None])
            (gradient,) = torch.autograd.grad(loss_of(model, data, k), gate)
            handle.remove()
            expected += gradient.abs() / 3
            continue
        (gradient,) = torch.autograd.grad(loss_of(model, data, k), model.twice.weight)
        products = (gradient * model.twice.weight).flatten(1)
        if criterion == "hessian":
            expected += products.square().sum(1) / 6
        else:
            expected += products.sum(1).square() / 3
    found = score(model, data, criterion, normalise="none")["twice"]
    torch.testing.assert_close(found, expected.detach())


@pytest.mark.parametrize("criterion", ["taylor_weights", "hessian"])
def test_what_torch_pruning_says_of_each_sample(criterion):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.Flatten(), nn.Linear(32, 4)
    ).eval()
    data = torch.randn(3, 3, 6, 6), torch.arange(3)
    raw = {"group_reduction": "first", "normalizer": None}
    expected = {"0": 0, "2": 0}
    for k in range(3):  # its Hessian keeps the last sample only, so it is asked for each alone
        model.zero_grad()
        loss_of(model, data, k).backward()
        if criterion == "hessian":
            importance = tp.importance.HessianImportance(**raw)
            importance.accumulate_grad(model)
        else:
            importance = tp.importance.TaylorImportance(multivariable=True, **raw)
        graph = tp.DependencyGraph().build_dependency(model, data[0])
        fresh = importance.__dict__.get("_accu_grad", {}).copy()
        for name in expected:
            if criterion == "hessian":  # it forgets after each question
                importance._accu_grad, importance._counter = dict(fresh), dict.fromkeys(fresh, 1)
            prune = tp.prune_conv_out_channels
            layer = model.get_submodule(name)
            group = graph.get_pruning_group(layer, prune, list(range(layer.out_channels)))
            theirs = importance(group)
            expected[name] += (theirs / 2 if criterion == "hessian" else theirs.square()) / 3
    scores = score(model, data, criterion)
    for name, values in expected.items():
        torch.testing.assert_close(scores[name].float(), values.detach(), rtol=1e-4, atol=1e-9)


def test_half_the_squared_derivative_is_what_the_loss_loses():
    """Removing a unit whose weights are small changes the loss by what the score says.

    With labels drawn from the network's own predictions, the squared derivatives are the curvature
    in the mean.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 3, bias=False), nn.Linear(3, 2, bias=False)).double().eval()
    model[0].weight.data = torch.tensor([[0.3], [0.05], [0.01]]).double()
    x = torch.randn(20000, 1).double()
    labels = torch.distributions.Categorical(logits=model(x)).sample()
    found = score(model, (x, labels), "taylor_weights", batch_size=20000)["0"] / 2
    changes = []
    for unit in range(3):
        smaller = nn.Sequential(nn.Linear(1, 3, bias=False), model[1]).double()
        smaller[0].weight.data = model[0].weight.data.clone()
        smaller[0].weight.data[unit] = 0
        # The mean over labels, exactly.
        with torch.no_grad():
            p, q = torch.softmax(model(x), 1), torch.log_softmax(smaller(x), 1)
        changes.append(float((p * (p.log() - q)).sum(1).mean()))
    torch.testing.assert_close(found, torch.tensor(changes).double(), rtol=0.1, atol=1e-9)


@pytest.mark.parametrize("criterion", ["taylor_gates", "taylor_weights", "integrated_gradients"])
def test_samples_that_cannot_be_told_apart_are_an_error(criterion):
    class Folds(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = nn.Linear(4, 3), nn.Linear(3, 2)

        def forward(self, x):
            folded = self.layer(x.reshape(-1, 4)).relu()
            return self.head(folded.reshape(len(x), -1, 3).mean(1))

    data = torch.randn(3, 5, 4), torch.tensor([0, 1, 0])
    with pytest.raises(ModelError, match=r"linear \(layer\).*15, 3.*3 samples"):
        score(Folds().eval(), data, criterion)


def test_defaults_are_those_of_the_sources():
    assert create("taylor_gates").normalise == "l2"
    assert create("taylor_squared").normalise == create("hessian").normalise == "none"
