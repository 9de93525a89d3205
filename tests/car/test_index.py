"""The index against its truth: every unit physically removed."""

import pytest
from car_networks import SMALL, brute_force, judged, noise, randomise, real

from niwaki.car import index


def assert_equal(found, unit, truth):
    """The same counts, except for images that rounding may decide."""
    for kind in ("broken", "mended"):
        off = (getattr(found, kind)[unit] - truth[kind]).abs().sum()
        assert off <= truth["tied"], (kind, unit)
    assert abs(int(found.near_ties[unit]) - truth["near_ties"]) <= 1
    for kind in ("loss_change", "margin_change"):
        assert float(getattr(found, kind)[unit]) == pytest.approx(truth[kind], abs=2e-4), kind


def assert_twin(model, images, labels, found, every=1):
    for name, layer in found.items():
        for unit in range(0, len(layer), every):
            truth = brute_force(model, images, labels, name, layer.units[unit])
            assert_equal(layer, unit, truth)


PATHS = {"untraceable": {"removed"}, "norm over channels": {"removed", "spliced"}}


@pytest.mark.parametrize("name", SMALL)
def test_small_networks(name):
    model = randomise(SMALL[name]())
    images, labels = judged(model, noise(40, 10))
    found = index(model, (images, labels), batch_size=16)
    assert found.baseline.total == 40
    assert {layer.path for layer in found.values()} <= PATHS.get(name, {"spliced"})
    assert sum(int((layer.broken + layer.mended).sum()) for layer in found.values()) > 20
    assert_twin(model, images, labels, found)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layers", "per_class", "every"),
    [
        ("lenet", ["conv1", "conv2", "fc1"], 20, 31),
        ("vgglike", ["conv1_3", "conv4_1"], 2, 31),
        ("resnet20", ["layer1.1", "layer2.0"], 2, 31),
        pytest.param("vgglike", None, 2, 97, marks=pytest.mark.long),
        pytest.param("resnet20", None, 2, 47, marks=pytest.mark.long),
    ],
)
def test_trained_networks(shared, name, layers, per_class, every):
    model, images, labels = real(shared, name, per_class)
    found = index(model, (images, labels), layers=layers, batch_size=32)
    assert {layer.path for layer in found.values()} == {"spliced"}
    assert found.baseline.accuracy > 0.7
    assert_twin(model, images, labels, found, every)
