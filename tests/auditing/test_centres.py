"""Centres: a network that goes by the scanner is named, and one that does not care is not."""

import numpy as np
import pytest
import torch
from audit_networks import looking
from scipy.stats import kstest
from torch import nn

from niwaki.auditing import audit, gather, latent_of, robustness_index
from niwaki.auditing._centres import CentreExchange, accuracy_of_telling, told_by
from niwaki.auditing._feature_swap import layer_means, outputs_moved, random_step, step_between
from niwaki.auditing._latent import channels_of, look_inside
from niwaki.auditing._signature import looks, response, signature_between, signature_of_dye
from niwaki.data import Described, Images
from niwaki.datasets import TISSUE, draw_tissue
from niwaki.errors import DataError, ModelError
from niwaki.models import zoo
from niwaki.propagation import Maps, epsilon_plus, propagate

pytestmark = pytest.mark.slow


def images_of(pixels, labels):
    return Images.of_pixels(pixels, list(labels), ["normal", "tumour"], TISSUE)


# The robustness index.


def index_twin(features, labels, centres, slides, count):
    """The definition, image by image; every class and centre has as many images."""
    right = confounded = 0
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    for i in range(len(labels)):
        others = [j for j in range(len(labels)) if slides[j] != slides[i]]
        others.sort(key=lambda j: np.linalg.norm(unit[i] - unit[j]))
        for j in others[:count]:
            right += labels[i] == labels[j] and centres[i] != centres[j]
            confounded += labels[i] != labels[j] and centres[i] == centres[j]
    return right / (right + confounded)


@pytest.mark.parametrize("count", [1, 5])
def test_the_index_is_what_its_definition_says(count):
    rng = np.random.default_rng(0)
    labels, centres = np.repeat([0, 1], 20), np.tile([0, 1], 20)
    slides = np.arange(40) // 2 * 2 + centres
    features = rng.normal(size=(40, 6)) + labels[:, None] * 0.5
    found = robustness_index(features, labels, centres, slides, neighbours=count)
    assert found == pytest.approx(index_twin(features, labels, centres, slides, count))


def test_the_index_tells_an_order_by_class_from_one_by_centre():
    rng = np.random.default_rng(0)
    labels, centres = np.repeat([0, 1], 60), np.tile([0, 1, 2], 40)
    noise = rng.normal(size=(120, 4)) * 0.1
    by_class = np.eye(4)[labels] + noise
    by_centre = np.eye(4)[centres] + noise
    assert robustness_index(by_class, labels, centres) == 1
    assert robustness_index(by_centre, labels, centres, neighbours=5) == 0
    # Two classes and two centres that weigh the same.
    both = np.concatenate([np.eye(2)[labels], np.eye(3)[centres][:, :2]], 1)
    two = centres < 2
    even = robustness_index(both[two] + noise[two] / 10, labels[two], centres[two], neighbours=59)
    assert even == pytest.approx(0.5, abs=0.01)


def test_where_a_class_lacks_a_centre_there_is_no_index():
    labels = np.repeat([0, 1], 10)
    assert np.isnan(robustness_index(np.ones((20, 3)), labels, labels))
    with pytest.raises(DataError, match=r"labels is of shape \(19,\)"):
        robustness_index(np.ones((20, 3)), labels[1:], labels)


# Exchange of centres, and whether they are told.


def slides_with_centres(rng, slides=30, images=8):
    """Slides of one class each; of each class a third comes from the second centre."""
    groups = np.repeat(np.arange(slides), images)
    labels = (groups >= slides // 2).astype(int)
    centre = rng.permutation(slides // 2) < slides // 6
    return groups, labels, np.concatenate([centre, ~centre])[groups].astype(int)


def test_whole_slides_exchange_centres_within_their_class():
    rng = np.random.default_rng(0)
    groups, labels, centres = slides_with_centres(rng)
    exchange = CentreExchange(centres, groups, labels)
    drawn = np.concatenate(list(exchange.blocks(rng, 600)))
    assert drawn.shape == (600, 30)
    assert (drawn[:, :15].sum(1) == 5).all()
    assert (drawn[:, 15:].sum(1) == 10).all()
    assert drawn[:, :15].mean(0) == pytest.approx(1 / 3, abs=0.08)
    # 15 choose 5, twice.
    assert np.exp(exchange.arrangements(1)) == pytest.approx(3003**2)
    assert (exchange.unit == groups).all()


def test_chance_gives_even_p_values_though_slides_differ():
    ps = []
    for seed in range(120):
        rng = np.random.default_rng(seed)
        groups, labels, centres = slides_with_centres(rng)
        of_slide = rng.normal(size=(30, 5))[groups]  # images of a slide are alike
        features = of_slide + rng.normal(size=(240, 5)) + labels[:, None] * 3
        exchange = CentreExchange(centres, groups, labels)
        ps.append(told_by(features, labels, exchange, 1, exchange.blocks(rng, 199))[1])
    assert kstest(ps, "uniform").pvalue > 0.01


def test_a_difference_that_goes_with_the_centre_is_told():
    rng = np.random.default_rng(0)
    groups, labels, centres = slides_with_centres(rng)
    features = rng.normal(size=(240, 5)) + labels[:, None] * 3
    features[:, 2] += centres
    exchange = CentreExchange(centres, groups, labels)
    effect, p = told_by(features, labels, exchange, 1, exchange.blocks(rng, 999))
    assert p < 0.005
    assert effect > 2
    assert accuracy_of_telling(features, labels, centres, groups) > 0.6
    only_class = rng.normal(size=(240, 5)) + labels[:, None] * 3
    assert accuracy_of_telling(only_class, labels, centres, groups) == pytest.approx(0.5, abs=0.1)


# Signatures.


def scans(tiles, factors=(1.15, 1.0, 0.85), shift=0.02):
    """The same tiles by another scanner: densities multiplied and moved."""
    pixels = torch.from_numpy(tiles.pixels).permute(0, 3, 1, 2).double() / 255
    density = -torch.log(pixels.clamp_min(1 / 255))
    return pixels, torch.exp(-(density * torch.tensor(factors)[:, None, None] + shift))


def test_a_signature_makes_one_scan_of_the_other(tiles):
    plain, other = scans(tiles)
    labels = np.concatenate([tiles.labels, tiles.labels])
    is_other = np.arange(400) >= 200
    # Other tiles than those that get it.
    seen = torch.cat([plain, other])
    known = np.arange(400) % 200 < 100
    look = looks(seen[torch.as_tensor(known)])
    found = signature_between(look, labels[known], ~is_other[known], is_other[known])
    given, wanted = found.put_on(plain[100:]), other[100:]
    assert (given - wanted).abs().mean() < 0.15 * (plain[100:] - wanted).abs().mean()


def test_a_signature_blurs_what_another_scanner_blurs(tiles):
    from scipy.ndimage import gaussian_filter

    plain, _ = scans(tiles)
    soft = torch.from_numpy(gaussian_filter(plain.numpy(), (0, 0, 0.8, 0.8)))
    look = looks(torch.cat([plain, soft]))
    half = np.arange(400) < 200
    found = signature_between(look, np.zeros(400), half, ~half)
    assert found.power[-3:].mean() < -1
    assert (found.put_on(plain) - soft).abs().mean() < 0.5 * (plain - soft).abs().mean()


def test_a_turned_signature_is_as_large_and_another(tiles):
    plain, other = scans(tiles)
    look = looks(torch.cat([plain, other]))
    half = np.arange(400) < 200
    found = signature_between(look, np.zeros(400), half, ~half)
    turned = [found.turned(np.random.default_rng(seed)) for seed in range(300)]
    sizes = [np.linalg.norm(one.ratio) for one in turned]
    assert sizes == pytest.approx([np.linalg.norm(found.ratio)] * 300)
    # On average it has nothing of the direction itself.
    cosines = [one.ratio @ found.ratio / np.linalg.norm(found.ratio) ** 2 for one in turned]
    assert np.mean(cosines) == pytest.approx(0, abs=0.1)


def test_the_response_is_the_slope_by_hand(tiles):
    """The margin is the mean of blue: a density more by d has exp(-d) of the light."""
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)).eval()
    with torch.no_grad():
        model[2].weight.copy_(torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]))
        model[2].bias.zero_()
    material = gather(model, tiles.images(), method="gradient")
    material = material.select(material.members(0))
    look = looks(material.pixels[:])
    steps = np.full(18, 1e-3)
    steps[4] = 0
    found = response(material, look, steps)
    blue = material.pixels[:][:, 2].double().numpy()
    above = -np.log(blue) - look.mean[:, 2].mean()
    assert found[2] == pytest.approx(blue.mean() / TISSUE.std[2], rel=0.01)
    assert found[5] == pytest.approx((blue * above).mean() / TISSUE.std[2], rel=0.05)
    assert found[[0, 1, 3, 4]] == pytest.approx(0, abs=1e-4 * found[2])
    # More contrast about the same mean density lets more light pass, as exp(-d) is convex.
    assert (found[6:] < 0).all()


def test_of_classes_apart_only_the_dye_is_taken(tiles):
    plain, other = scans(tiles, shift=0.0)
    normal, tumour = (torch.as_tensor(tiles.labels == label) for label in (0, 1))
    two = plain[normal], other[tumour]
    found = signature_of_dye(two, (looks(two[0]), looks(two[1])))
    truth = np.log([1.15, 1.0, 0.85])
    assert found.ratio == pytest.approx(truth - truth.mean(), abs=0.06)
    assert (found.shift == 0).all()


# Inside the network.


def test_channels_are_those_of_a_pass_of_lrp(tiles):
    torch.manual_seed(0)
    model = zoo.tissue_net().eval()
    inputs = torch.randn(3, 3, 64, 64)
    found = look_inside(model, inputs, channels_of(model, inputs))
    assert found.layers == ("conv1", "conv2", "conv3", "conv4")
    maps = Maps({"conv3"})

    def begin(output):
        return torch.eye(2)[output.argmax(1)]

    propagate(model, inputs, epsilon_plus(), begin, [maps], to_input=False, max_loss=None)
    whole = maps.relevances["conv3"].double()
    share = whole.sum((2, 3)) / whole.abs().sum((1, 2, 3), keepdim=True)[:, :, 0, 0]
    assert found.relevance["conv3"] == pytest.approx(share.detach().numpy())
    behind = model[:10](inputs).mean((2, 3)).detach()  # conv, norm, relu of the third block
    assert found.activity["conv3"] == pytest.approx(behind.numpy(), rel=1e-4, abs=1e-6)


def test_features_are_moved_where_the_layer_is(tiles):
    torch.manual_seed(0)
    model = zoo.tissue_net().eval()
    material = gather(model, tiles.images(), method="gradient", limit=40)
    means = layer_means(material, "conv4")
    step = np.random.default_rng(0).normal(size=(40, means.shape[1]))
    with torch.no_grad():
        inside = model[:11](material.inputs[:])
        moved = model[12:](model.conv4(inside) + torch.from_numpy(step)[:, :, None, None].float())
        assert means == pytest.approx(model.conv4(inside).mean((2, 3)).numpy(), rel=1e-4, abs=1e-5)
    found = outputs_moved(material, "conv4", step)
    assert found == pytest.approx(moved.numpy(), rel=1e-4, abs=1e-5)
    assert not model.conv4._forward_hooks
    assert np.linalg.norm(random_step(means, 2.0, np.random.default_rng(0))) == pytest.approx(2)
    labels = np.arange(40) % 2
    assert step_between(means, labels, labels == 0, labels == 1) is None  # no class has both


def test_a_network_without_hidden_layers_says_so(tiles):
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 2)).eval()
    with pytest.raises(ModelError, match="no hidden layers"):
        latent_of(gather(model, tiles.images(), method="gradient", limit=40))


# The question.


def only_reading(channel, tiles):
    """Class 1 where much is dark in one channel of colour; the threshold parts the classes."""
    model = looking(torch.full((64, 64), 1e-3))
    with torch.no_grad():
        model.conv.weight.zero_()
        model.conv.weight[0, channel] = -1.0
    outputs = gather(model, tiles.images(), method="gradient").outputs[:, 1]
    cuts = np.quantile(outputs, np.linspace(0.01, 0.99, 99))
    best = max(cuts, key=lambda cut: ((outputs > cut) == (tiles.labels == 1)).mean())
    with torch.no_grad():
        model.fc.bias.copy_(torch.tensor([best, -best]))
    return model


@pytest.fixture(scope="module")
def drawn():
    return draw_tissue(400, seed=5)


def asked(model, drawn, agreement, groups=None):
    """The second scanner sees more blue, and has so many of the tumour tiles."""
    rng = np.random.default_rng(1)
    own = rng.random(400) < agreement
    second = np.where(own, drawn.labels == 1, drawn.labels == 0)
    pixels = drawn.pixels.copy()
    dark = 255 * (pixels[second][..., 2] / 255.0) ** 1.35
    pixels[second, ..., 2] = dark.round().astype(np.uint8)
    centres = np.array(["Aachen", "Bonn"])[second.astype(int)]
    images = Described(images_of(pixels, drawn.labels), centres=centres, groups=groups)
    found = audit(model, images, method="gradient", questions=["centre"], limit=None)
    return found, {finding.key: finding for finding in found.findings}


@pytest.mark.slow
def test_a_network_that_reads_what_the_scanner_changes_is_named(drawn):
    found, keys = asked(only_reading(2, drawn), drawn, 0.8)
    finding = keys["centre/tumour/look"]
    assert finding.answer == "yes"
    assert "centre Bonn" in finding.sentence
    assert finding.cause.flips > finding.cause.control_flips + 0.05
    assert (found.material.centres[list(finding.examples)] == "Bonn").all()
    assert found.centres.errors["normal"]["Bonn"][1] > found.centres.errors["normal"]["Aachen"][1]
    assert "Bonn" in found.centres.told()
    assert found.to_json()["centres"]["errors"]["tumour"]["Bonn"]["images"] > 100


@pytest.mark.slow
def test_a_network_that_does_not_care_is_not(drawn):
    found, keys = asked(only_reading(1, drawn), drawn, 0.8)
    assert not found.flagged
    assert set(keys) == {
        f"centre/{who}/{thing}"
        for who in ("normal", "tumour")
        for thing in ("look", "features", "errors")
    }


def test_few_slides_are_too_few(drawn):
    """Two scans of each scanner can be exchanged in six ways at the most."""
    groups = np.arange(400) % 4
    rng = np.random.default_rng(1)
    second = np.where(rng.random(400) < 0.8, drawn.labels == 1, drawn.labels == 0)
    scan = [f"{group % 2} {other}" for group, other in zip(groups, second, strict=True)]
    _, keys = asked(only_reading(2, drawn), drawn, 0.8, scan)
    assert keys["centre/tumour/look"].answer == "too few images"


def test_without_centres_nothing_is_asked(drawn):
    found = audit(only_reading(2, drawn), drawn.images(), method="gradient", questions=["centre"])
    assert found.findings == ()
    assert found.centres is None
