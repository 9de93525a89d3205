"""The randomisation test: what is randomised, and how similarity is measured."""

import copy

import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from niwaki.attribution import Method, create
from niwaki.errors import DataError, ModelError
from niwaki.evaluation import randomisation_test
from niwaki.evaluation._randomisation import (
    _layers,
    _randomised,
    rank_correlation,
    structural_similarity,
)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(24, 5),
    ).eval()


def data(count=4, size=12):
    inputs = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(5))
    return inputs, torch.arange(count)


def test_rank_correlation_is_that_of_scipy():
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(-3, 4, (6, 5, 7), generator=generator).double()  # with many ties
    second = first + torch.randn(6, 5, 7, generator=generator).double()
    found = rank_correlation(first, second)
    for one, other, value in zip(first, second, found, strict=True):
        assert value == pytest.approx(spearmanr(one.flatten(), other.flatten()).statistic)
    assert rank_correlation(first, torch.ones_like(first)).tolist() == [0] * 6


def test_structural_similarity_is_that_of_scikit_image():
    ssim = pytest.importorskip("skimage.metrics").structural_similarity
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(5, 12, 15, generator=generator)
    second = first + 0.3 * torch.randn(5, 12, 15, generator=generator)
    found = structural_similarity(first, second)
    for one, other, value in zip(first.double(), second.double(), found, strict=True):
        a, b = (x / x.abs().max() for x in (one, other))
        assert value == pytest.approx(ssim(a.numpy(), b.numpy(), data_range=2), abs=1e-6)
    assert structural_similarity(first[:, :2], second[:, :2]) is None


def test_layers_are_randomised_from_the_output_down():
    model = network()
    twin = copy.deepcopy(model)
    groups = _layers(twin, data()[0][:1])
    assert list(groups) == ["7", "3", "0"]  # the norm goes with the layer before it
    assert len(groups["0"]) == 4
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def changed():
        return {
            name.split(".")[0]
            for name, p in twin.named_parameters()
            if not torch.equal(p, before[name])
        }

    seen = {}
    for name in _randomised(model, twin, groups, list(groups), True, 0):
        seen[name] = changed()
        cascade = twin[0].weight.detach().clone()
    assert seen == {"7": {"7"}, "3": {"7", "3"}, "0": {"7", "3", "0"}}
    twin.load_state_dict(before)
    for name in _randomised(model, twin, groups, ["3", "0"], False, 0):
        assert changed() == {name}
    assert changed() == set()
    for _ in _randomised(model, twin, groups, ["0"], False, 0):
        assert torch.equal(twin[0].weight, cascade)
        spread = [float(net[0].weight.detach().std()) for net in (twin, model)]
        assert spread[0] == pytest.approx(spread[1], rel=0.2)
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


class Image(Method):
    """Shows the image, whatever the network has learnt."""

    def attribute(self, inputs, target=None):
        return inputs


@pytest.mark.parametrize("mode", ["cascading", "independent"])
def test_similarities_are_those_of_the_heatmaps(mode):
    model, (inputs, labels) = network(), data()
    found = randomisation_test(
        model, (inputs, labels), ["gradient", "lrp.epsilon_plus"], mode=mode, batch_size=3, seed=2
    )
    # By hand: the same network, randomised in the same way.
    twin = copy.deepcopy(model)
    groups = _layers(twin, inputs[:1])
    classes = model(inputs).argmax(1)
    for name, result in found.items():
        twin.load_state_dict(model.state_dict())
        assert result.layers == ("7", "3", "0")
        before = create(name, model).attribute(inputs, classes).sum(1)
        stages = _randomised(model, twin, groups, result.layers, mode == "cascading", 2)
        for row, _ in zip(result.spearman, stages, strict=True):
            after = create(name, twin).attribute(inputs, classes).sum(1)
            expected = [
                spearmanr(a.flatten(), b.flatten()).statistic
                for a, b in zip(before, after, strict=True)
            ]
            assert row.tolist() == pytest.approx(expected, abs=1e-4)
        assert result.similarity().mean == pytest.approx(float(result.spearman.mean()))
        assert len(result.by_layer()) == 3
        assert result.ssim is None or result.ssim.shape == (3, 4)
        assert repr(result).startswith(f"Randomisation({name}, 3 layers, 4 images: rank")
        assert result.to_json()["layers"] == ["7", "3", "0"]


def test_a_method_that_ignores_the_network_is_found_out():
    methods = {"image": Image, "gradient": lambda model: create("gradient", model)}
    found = randomisation_test(network(), data(), methods, layers=2, absolute=True)
    assert found["image"].layers == ("7", "0")
    assert found["image"].similarity().mean == pytest.approx(1)
    assert found["gradient"].similarity().mean < 0.8
    named = randomisation_test(network(), data(), "gradient", layers=["0", "7"])["gradient"]
    assert named.layers == ("7", "0")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"mode": "upwards"}, ValueError, "'upwards' is none of cascading"),
        ({"layers": 0}, ValueError, "layers = 0"),
        ({"layers": ["2"]}, ModelError, "no layer '2'.*7, 3, 0"),
        ({"target": 9}, DataError, "label 9"),
    ],
)
def test_mistakes_are_named(change, error, message):
    with pytest.raises(error, match=message):
        randomisation_test(network(), data(), "gradient", **change)


def test_a_network_without_parameters_is_refused():
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    with pytest.raises(ModelError, match="no parameters"):
        randomisation_test(model, data(), {"image": Image})
