"""Conductance against captum, its completeness, and a closed form."""

import itertools

import pytest
import torch
from captum.attr import LayerConductance
from criteria_networks import UNITS, Functional, Plain, per_sample, randomise
from torch import nn

from niwaki.criteria import create, score
from niwaki.errors import DataError

CRITERION = "integrated_gradients"


@pytest.fixture
def plain():
    torch.manual_seed(0)
    model = randomise(Plain())
    model[2] = nn.ReLU().eval()  # captum reads the norm's output when all is done
    return model


@pytest.fixture
def samples():
    torch.manual_seed(1)
    return torch.randn(3, 3, 12, 12).double(), torch.tensor([0, 2, 1])


@pytest.mark.filterwarnings("ignore")  # captum's own
def test_what_captum_says(plain, samples):
    """Captum takes the slope at the near end of each piece; of many pieces it makes no matter."""
    inputs, labels = samples
    scores = score(plain, samples, CRITERION, steps=300)
    for layer, (behind, _) in UNITS.items():
        captum = LayerConductance(plain, plain.get_submodule(behind))
        theirs = captum.attribute(inputs, 0, target=labels, n_steps=600, method="riemann_middle")
        expected = per_sample(theirs).abs().mean(0).detach()
        torch.testing.assert_close(scores[layer], expected, rtol=0.02, atol=2e-4)


def positive_network():
    """All conductances are positive, so that nothing cancels and absolute values add up."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Softplus(), nn.Conv2d(4, 5, 3), nn.Softplus(),
        nn.Flatten(), nn.Linear(20, 6), nn.ReLU(), nn.Linear(6, 3),
    )  # fmt: skip
    for parameter in model.parameters():
        parameter.data.abs_()
    return model.double().eval(), (torch.rand(4, 3, 6, 6).double(), torch.arange(4) % 3)


@pytest.mark.parametrize("baseline", [0.0, 0.2, torch.full((3, 1, 1), -0.1)])
def test_the_conductances_of_a_layer_add_up_to_the_logits_difference(baseline):
    model, (inputs, labels) = positive_network()
    start = torch.as_tensor(baseline).double().expand_as(inputs)
    difference = (model(inputs) - model(start)).gather(1, labels[:, None]).abs().mean()
    found = score(model, (inputs, labels), CRITERION, baseline=baseline, steps=32)
    for layer in ("0", "2", "5"):
        torch.testing.assert_close(found[layer].sum(), difference.detach(), rtol=1e-4, atol=0)


def test_of_a_linear_network_one_step_is_exact():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)).double().eval()
    x, labels = torch.randn(6, 5).double(), torch.arange(6) % 3
    through = (x @ model[0].weight.T) * model[1].weight[labels]
    expected = through.abs().mean(0).detach()
    for steps in (1, 5):
        found = score(model, (x, labels), CRITERION, steps=steps)["0"]
        torch.testing.assert_close(found, expected)


def test_the_uses_of_a_layer_add_up():
    torch.manual_seed(0)
    model = Functional().double().eval()
    inputs, labels = torch.randn(3, 3, 8, 8).double(), torch.arange(3)

    def uses(point):
        """Outputs of both uses, and the true logits' derivatives by them."""
        seen = []
        handle = model.twice.register_forward_hook(lambda m, a, y: seen.append(y))
        logits = model(point).gather(1, labels[:, None]).sum()
        handle.remove()
        return seen, torch.autograd.grad(logits, seen)

    expected, points = 0, [uses(inputs * k / 4) for k in range(5)]
    for (before, slopes), (after, later) in itertools.pairwise(points):
        for y0, g0, y1, g1 in zip(before, slopes, after, later, strict=True):
            expected = expected + per_sample((y1 - y0) * (g0 + g1) / 2)
    found = score(model, (inputs, labels), CRITERION, steps=4)["twice"]
    torch.testing.assert_close(found, expected.abs().mean(0).detach())


def test_what_does_not_fit_is_refused(plain, samples):
    with pytest.raises(ValueError, match="steps = 0"):
        create(CRITERION, steps=0)
    with pytest.raises(DataError, match=r"baseline of shape \(5,\)"):
        score(plain, samples, CRITERION, baseline=torch.zeros(5))
