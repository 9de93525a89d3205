"""What training lacks: images unlike any of it, on which the network fails."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from audit_networks import looking
from torch import nn

from niwaki.auditing import Evidence, Training, _training, audit, gather, gather_training
from niwaki.auditing._finding import decide
from niwaki.auditing._training import layer_statistics, layers_of
from niwaki.auditing.questions import find_missing
from niwaki.data import Described, Images
from niwaki.datasets import TISSUE, draw_tissue
from niwaki.errors import DataError


def images_of(pixels, labels):
    return Images.of_pixels(pixels, list(labels), ["normal", "tumour"], TISSUE)


def darkened(pixels, chosen):
    """A scanner with too little light."""
    changed = pixels.copy()
    changed[chosen] = (changed[chosen] * 0.55).astype(np.uint8)
    return changed


@pytest.fixture(scope="module")
def tiles():
    drawn = draw_tissue(600, seed=5)
    return drawn.pixels, drawn.labels


@pytest.fixture(scope="module")
def network(tiles):
    """Tumour is where much is dark; the threshold parts the classes as well as that can."""
    model = looking(torch.full((64, 64), 1e-3))
    outputs = gather(model, images_of(*tiles), method="gradient").outputs
    dark = outputs[:, 1]
    cuts = np.quantile(dark, np.linspace(0.01, 0.99, 99))
    best = max(cuts, key=lambda cut: ((dark > cut) == (tiles[1] == 1)).mean())
    with torch.no_grad():
        model.fc.bias.copy_(torch.tensor([best, -best]))
    return model


def halves(tiles):
    pixels, labels = tiles
    return (pixels[:300], labels[:300]), (pixels[300:], labels[300:])


def asked(model, data, training, seed=0):
    material = gather(model, images_of(*data), method="gradient")
    learned = gather_training(material, images_of(*training))
    found = find_missing(Evidence(material, training=learned), np.random.default_rng(seed))
    return material, {finding.label: finding for finding in decide(list(found))}


@pytest.mark.slow
def test_a_kind_of_image_that_training_lacks_is_named(network, tiles):
    learned, (pixels, labels) = halves(tiles)
    dark = np.flatnonzero(labels == 0)[:30]
    changed = darkened(pixels, dark)
    material, found = asked(network, (changed, labels), learned)
    finding = found[0]
    assert finding.flagged
    assert not found[1].flagged
    assert finding.title == "images unlike any in training (class normal)"
    # What it says of errors is counted again by hand.
    count = int(finding.numbers["images_unlike"])
    assert 25 <= count <= 35
    assert set(finding.examples) <= set(dark.tolist())
    assert not set(finding.ordinary) & set(dark.tolist())
    wrong = ~material.right
    others = np.setdiff1d(np.flatnonzero(labels == 0), dark)
    assert finding.cause.flips == pytest.approx(wrong[dark].mean(), abs=0.1)
    assert finding.cause.control_flips == pytest.approx(wrong[others].mean(), abs=0.1)
    assert f"{finding.cause.flips:.0%} of them wrong" in finding.sentence


def test_what_training_has_is_not_missing(network, tiles):
    (pixels, labels), (others, truth) = halves(tiles)
    dark = [np.flatnonzero(part == 0)[:30] for part in (labels, truth)]
    training = darkened(pixels, dark[0]), labels
    _, found = asked(network, (darkened(others, dark[1]), truth), training)
    assert not found[0].flagged
    assert found[0].effect < 3.5


@pytest.mark.slow
def test_images_that_are_unlike_but_judged_well_are_mentioned_only(network, tiles):
    learned, (pixels, labels) = halves(tiles)
    dark = np.flatnonzero(labels == 1)[:30]  # tumour is dark anyway
    _, found = asked(network, (darkened(pixels, dark), labels), learned)
    assert found[1].effect > 3.5
    assert found[1].p_seen < 0.01
    assert not found[1].flagged
    assert "does not fail on them" in found[1].note


COUNT = 150  # of training, and as many audited


@pytest.fixture(scope="module")
def blank(network):
    """Images of one class that show nothing, and a network that is wrong on three of seven."""
    pixels, labels = np.zeros((COUNT, 64, 64, 3), np.uint8), np.zeros(COUNT, int)
    material = gather(network, images_of(pixels, labels), method="gradient", batch_size=COUNT)
    outputs = np.stack([-np.arange(COUNT) % 7 + 3.5, np.zeros(COUNT)], 1)
    return replace(material, outputs=outputs - [3, 0])


def invented(monkeypatch, blank, looks, groups=None):
    """Ask with looks that are made up: the first half of them of training, the other audited."""
    monkeypatch.setattr(_training, "layer_statistics", lambda *_: (looks[COUNT:], None))
    numbers = np.arange(2 * COUNT) if groups is None else groups
    none = np.zeros(COUNT, int)
    learned = Training(looks[:COUNT], none, none == 0, (), numbers[:COUNT], numbers[COUNT:])
    return next(find_missing(Evidence(blank, training=learned), np.random.default_rng(0)))


@pytest.mark.slow
def test_chance_is_even_where_there_is_no_difference(monkeypatch, blank):
    ps = []
    for seed in range(30):
        looks = np.random.default_rng(seed).normal(size=(2 * COUNT, 20))
        ps.append(invented(monkeypatch, blank, looks).p_seen)
    assert 0.25 < np.mean(ps) < 0.75
    assert np.mean(np.array(ps) < 0.05) <= 0.15
    assert max(ps) > 0.8


@pytest.mark.slow
def test_a_new_slide_is_not_a_new_kind_of_image(monkeypatch, blank):
    """Ten slides each, all unlike each other: to know slides is to expect that of new ones."""
    blind, knowing = [], []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        slides = np.repeat(np.arange(20), COUNT // 10)
        looks = 3 * rng.normal(size=(20, 20))[slides] + rng.normal(size=(2 * COUNT, 20))
        blind.append(invented(monkeypatch, blank, looks))
        knowing.append(invented(monkeypatch, blank, looks, slides))
    assert all(finding.p_seen < 0.01 and finding.effect > 20 for finding in blind)
    assert np.median([finding.p_seen for finding in knowing]) > 0.05
    assert not any(finding.p_seen < 0.01 for finding in knowing)


@pytest.mark.slow
def test_a_data_set_that_is_all_of_another_kind_is_named(network, tiles):
    learned, (pixels, labels) = halves(tiles)
    dark = labels == 0
    material, found = asked(network, (darkened(pixels, dark), labels), learned)
    assert found[0].flagged
    assert found[0].numbers["share_of_class"] == 1.0
    # There are no others to compare with; errors on training images are counted by hand.
    trained = gather(network, images_of(*learned), method="gradient")
    errors = 1 - trained.right[learned[1] == 0].mean()
    assert found[0].cause.control_flips == pytest.approx(errors)
    assert found[0].cause.flips == pytest.approx(1 - material.right[dark].mean())
    assert "training images" in found[0].sentence


def test_one_slide_tells_nothing(monkeypatch, blank):
    looks = np.random.default_rng(0).normal(size=(2 * COUNT, 20)) + np.repeat([[0], [9]], COUNT, 0)
    slides = np.repeat([0, 1], COUNT)
    finding = invented(monkeypatch, blank, looks, slides)
    assert "one slide" in finding.note
    assert finding.p_both == 1


class Twice(nn.Module):
    """A convolution, a linear layer over channels last, and an output."""

    def __init__(self):
        super().__init__()
        self.conv, self.mix, self.out = nn.Conv2d(3, 4, 3), nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x):
        x = self.mix(self.conv(x).relu().permute(0, 2, 3, 1)).relu()
        return self.out(x.mean((1, 2)))


def test_looks_are_means_and_deviations_of_hidden_layers():
    model, inputs = Twice().eval(), torch.randn(6, 3, 8, 8)
    before = copy.deepcopy(model.state_dict())
    first = model.conv(inputs)
    second = model.mix(first.relu().permute(0, 2, 3, 1))
    hand = [first.mean((2, 3)), first.std((2, 3)), second.mean((1, 2))]
    hand.append(second.flatten(1, 2).std(1))
    layers = layers_of(model, inputs[:1])
    assert layers == ("conv", "mix")
    looks, outputs = layer_statistics(model, inputs, layers)
    assert np.allclose(looks, torch.cat(hand, 1).detach().numpy(), atol=1e-5)
    assert np.array_equal(outputs, model(inputs).detach().numpy())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(RuntimeError):
        layer_statistics(model, torch.randn(2, 3, 2, 2), layers)
    assert not any(module._forward_hooks for module in model.modules())


def test_without_hidden_layers_the_images_themselves_count():
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)).eval()
    inputs = torch.randn(4, 3, 5, 5)
    hand = torch.cat([inputs.mean((2, 3)), inputs.std((2, 3))], 1)
    assert layers_of(model, inputs[:1]) == ()
    assert np.allclose(layer_statistics(model, inputs, ())[0], hand.numpy(), atol=1e-6)


class Borrowed(nn.Module):
    """Uses the weights of its second layer without calling it, as attention does."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.out = nn.Conv2d(3, 4, 3), nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x):
        x = self.first(x).relu().mean((2, 3))
        return self.out(nn.functional.linear(x, self.second.weight, self.second.bias).relu())


def test_layers_that_are_not_called_are_left_out():
    model, inputs = Borrowed().eval(), torch.randn(3, 3, 6, 6)
    first = model.first(inputs).detach()
    hand = torch.cat([first.mean((2, 3)), first.std((2, 3))], 1)
    layers = layers_of(model, inputs[:1])
    assert "second" in layers
    assert np.allclose(layer_statistics(model, inputs, layers)[0], hand.numpy(), atol=1e-6)


def test_what_does_not_fit_is_refused(network, tiles):
    pixels, labels = tiles[0][:40], tiles[1][:40]
    data = images_of(pixels, labels)
    material = gather(network, data, method="gradient")
    with pytest.raises(DataError, match="go together"):
        gather_training(material, Described(data, groups=range(40)))
    with pytest.raises(DataError, match="3 entries for 40"):
        gather_training(material, Described(data, groups=range(3)))
    smaller = torch.utils.data.TensorDataset(torch.zeros(4, 3, 32, 32), torch.tensor([0, 1, 0, 1]))
    with pytest.raises(DataError, match="prepare both in the same way"):
        gather_training(material, smaller)
    other = Images.of_pixels(pixels, list(labels), ["a", "b"], TISSUE)
    with pytest.raises(DataError, match="'a' in one and 'normal' in the other"):
        audit(network, data, method="gradient", training=other)
    way = replace(TISSUE, mean=(0.5, 0.5, 0.5))
    other = Images.of_pixels(pixels, list(labels), data.classes, way)
    with pytest.raises(DataError, match="in the same way, or all of them are unlike"):
        audit(network, data, method="gradient", training=other)


def test_of_few_images_it_cannot_be_told(network, tiles):
    pixels, labels = tiles[0][:16], tiles[1][:16]
    _, found = asked(network, (pixels, labels), (pixels, labels))
    assert all("few images" in finding.note and finding.p == 1 for finding in found.values())
