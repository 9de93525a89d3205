"""Scores of single weights, each against a twin in plain PyTorch."""

import pytest
import torch
import torch.nn.functional as F
from criteria_networks import Functional, Plain, randomise
from torch import nn

from niwaki.criteria import (
    Scores,
    create,
    names,
    score_weights,
)
from niwaki.errors import DataError, ModelError
from niwaki.propagation import epsilon, epsilon_plus, propagate

NAMES = ["gradient", "lamp", "lrp", "magnitude", "random", "taylor"]
REDUCED = ["gradient", "lrp", "taylor"]
GATHER = {
    "absolute": lambda each: each.abs().mean(0),
    "absolute_of_sum": lambda each: each.mean(0).abs(),
    "squares": lambda each: each.square().mean(0),
}


@pytest.fixture
def plain():
    torch.manual_seed(0)
    return randomise(Plain())


@pytest.fixture
def samples():
    torch.manual_seed(1)
    return torch.randn(5, 3, 12, 12).double(), torch.tensor([0, 1, 2, 3, 0])


def unbiased():
    torch.manual_seed(2)
    return (
        nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=2, bias=False),
            nn.ReLU(),
            nn.Conv2d(4, 5, 3, groups=1, bias=False),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(45, 6, bias=False),
            nn.ReLU(),
            nn.Linear(6, 4, bias=False),
        )
        .double()
        .eval()
    )


def each_sample(model, samples, value):
    """Values of every weight for every sample, from autograd."""
    found = {}
    for x, label in zip(*samples, strict=True):
        model.zero_grad()
        value(model(x[None]), label[None]).backward()
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                found.setdefault(name.removesuffix(".weight"), []).append(parameter.grad.clone())
    return {layer: torch.stack(values) for layer, values in found.items()}


def close(scores, expected):
    assert set(scores) == set(expected)
    for layer, values in expected.items():
        torch.testing.assert_close(scores[layer], values.detach(), rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("reduce", GATHER)
def test_relevance_is_weight_times_derivative_without_biases(samples, reduce):
    """In a ReLU network without biases the epsilon rule is exact: R_w = w dy/dw."""
    model = unbiased()
    gradients = each_sample(model, samples, lambda y, label: y[0, label[0]] / y[0, label[0]].item())
    weights = {layer: model.get_submodule(layer).weight for layer in gradients}
    expected = {k: GATHER[reduce](g * weights[k].detach()) for k, g in gradients.items()}
    options = {"composite": epsilon(1e-14), "reduce": reduce, "max_loss": None}
    scores = score_weights(model, samples, "lrp", **options)
    close(scores, expected)


@pytest.mark.parametrize("reduce", GATHER)
@pytest.mark.parametrize("criterion", ["gradient", "taylor"])
def test_derivatives_of_the_loss(plain, samples, criterion, reduce):
    gradients = each_sample(plain, samples, F.cross_entropy)
    expected = {}
    for layer, each in gradients.items():
        weight = plain.get_submodule(layer).weight.detach()
        expected[layer] = GATHER[reduce](each * weight if criterion == "taylor" else each)
    plain.requires_grad_(False)  # frozen or not
    close(score_weights(plain, samples, criterion, reduce=reduce), expected)
    assert not any(p.requires_grad for p in plain.parameters())


def test_lrp_gathers_each_samples_pass(plain, samples):
    found = {}
    for x, label in zip(*samples, strict=True):
        done = propagate(
            plain,
            x[None],
            epsilon_plus(),
            lambda y, label=label: F.one_hot(label[None], 4).to(y),
            weights=True,
            max_loss=None,
        )
        for op in done.operations:
            if op.kind in ("convolution", "linear"):
                found.setdefault(op.layer, []).append(op.ledger.weights)
    expected = {layer: torch.stack(each).abs().mean(0) for layer, each in found.items()}
    options = {"composite": epsilon_plus(), "max_loss": None}
    close(score_weights(plain, samples, "lrp", **options, batch_size=2), expected)


def test_magnitude_and_lamp(plain, samples):
    magnitude, lamp = (score_weights(plain, samples, name) for name in ("magnitude", "lamp"))
    for layer in magnitude:
        weight = plain.get_submodule(layer).weight.detach()
        assert torch.equal(magnitude[layer], weight.abs())
        squares = weight.square().flatten()
        expected = [v / squares[squares >= v].sum() for v in squares]
        torch.testing.assert_close(lamp[layer].flatten(), torch.stack(expected))
        assert float(lamp[layer].max()) == 1
    assert list(magnitude) == ["0", "3", "5", "8", "10", "12"]


def test_random_follows_its_seed(plain, samples):
    first, again, other = (score_weights(plain, samples, "random", seed=s) for s in (4, 4, 5))
    assert torch.equal(first.flat(), again.flat())
    assert not torch.equal(first.flat(), other.flat())


@pytest.mark.parametrize("criterion", NAMES)
def test_scores_have_the_shapes_of_weights_and_the_model_stays(plain, samples, criterion):
    state = {name: value.clone() for name, value in plain.state_dict().items()}
    options = {"max_loss": None} if criterion == "lrp" else {}
    scores = score_weights(plain, samples, criterion, **options)
    for layer, values in scores.items():
        assert values.shape == plain.get_submodule(layer).weight.shape
        assert bool((values >= 0).all())
        assert values.sum() > 0
    assert all(torch.equal(v, state[n]) for n, v in plain.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in plain.parameters())
    assert scores.criterion == criterion


@pytest.mark.parametrize("criterion", NAMES)
def test_layers_that_are_no_modules_or_are_used_twice(criterion):
    torch.manual_seed(0)
    model = Functional().eval()
    data = torch.randn(4, 3, 8, 8), torch.arange(4)
    scores = score_weights(model, data, criterion)
    shapes = {layer: tuple(values.shape) for layer, values in scores.items()}
    assert shapes == {"kernel": (5, 3, 3, 3), "twice": (5, 5, 3, 3), "matrix": (4, 5)}


def test_scores_of_weights_are_compared_saved_and_loaded(plain, samples, tmp_path):
    one, other = (score_weights(plain, samples, name) for name in ("magnitude", "taylor"))
    count = sum(p.numel() for p in plain.parameters() if p.dim() > 1)
    assert len(one.flat()) == count
    assert one.rank_correlation(one) == pytest.approx(1)
    assert 0 < one.rank_correlation(other) < 1
    assert one.overlap(one, 50) == 1
    assert f"{count} " in repr(one)
    one.save(tmp_path / "scores")
    again = Scores.load(tmp_path / "scores")
    assert all(torch.equal(again[layer], values) for layer, values in one.items())


def test_what_cannot_be_scored(plain, samples):
    assert names("weight") == NAMES
    with pytest.raises(ValueError, match="did you mean taylor"):
        score_weights(plain, samples, "tailor")
    with pytest.raises(ValueError, match="scores units, not weights"):
        score_weights(plain, samples, create("lrp"))
    with pytest.raises(ValueError, match="made already"):
        score_weights(plain, samples, create("random", "weight"), seed=2)
    with pytest.raises(ValueError, match="reduce 'mean'"):
        score_weights(plain, samples, "taylor", reduce="mean")
    with pytest.raises(DataError, match="label 9"):
        score_weights(plain, (samples[0], samples[1] + 9), "taylor")
    plain[3].weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"3\.weight"):
        score_weights(plain, samples, "magnitude")
