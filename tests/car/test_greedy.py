"""The greedy search against brute force on every candidate, unit by unit."""

import copy

import pytest
import torch
from car_networks import SMALL, judged, noise, randomise, real, without
from torch import nn

from niwaki.car import Stop, greedy
from niwaki.car._images import TIE, judge
from niwaki.criteria import hidden_layers
from niwaki.pruning import Removal, couple, operate


def key(before, after, order):
    """What decides: errors, then the mean margin in steps, then the order."""
    change = float((after.margin - before.margin).mean())
    return int((~after.right).sum()), -round(change / TIE), order


def brute_force(model, images, labels, steps):
    """Every candidate of every step, physically removed."""
    model, gone = copy.deepcopy(model), []
    for _ in range(steps):
        groups = couple(model, images[:2], [x.name for x in hidden_layers(model, images[:1])])
        with torch.no_grad():
            before = judge(model(images), labels)
        keys = {}
        for g, group in enumerate(groups):
            for u, unit in enumerate(group.units if len(group) > 1 else ()):
                after = judge(without(model, group.root, unit, images), labels)
                keys[group.root, unit] = key(before, after, (g, u))
        if not keys:  # what is left can only go as a whole
            break
        layer, unit = min(keys, key=keys.get)
        gone.append((layer, unit, keys[layer, unit][0]))
        operate(model, images[:2], [Removal(layer, unit)])
    return gone


@pytest.mark.filterwarnings("ignore::niwaki.errors.ChoiceWarning")
@pytest.mark.parametrize(
    ("name", "steps"), [("dense", 3), ("functional", 3), ("depthwise", 2), ("untraceable", 4)]
)
def test_small_networks(name, steps):
    model = randomise(SMALL[name](), seed=3)
    images, labels = judged(model, noise(60, 10))
    found = greedy(model, (images, labels), Stop(remove=steps), batch_size=16)
    rows = found.settings["removals"]
    sequence = [(r["layer"], r["channels"], round(60 * (1 - r["accuracy"]))) for r in rows]
    assert sequence == brute_force(model, images, labels, steps)
    assert [(s[0].layer, s[0].channels) for s in found.plan.steps] == [x[:2] for x in sequence]


def lenet_without(model, layer, unit):
    """LeNet without a unit, by cutting its weights; knows nothing of graphs."""
    smaller = copy.deepcopy(model)
    names = ["conv1", "conv2", "fc1", "fc2"]
    own = smaller.get_submodule(layer)
    reader = smaller.get_submodule(names[names.index(layer) + 1])
    kept = torch.arange(len(own.weight)) != unit
    own.weight, own.bias = nn.Parameter(own.weight[kept]), nn.Parameter(own.bias[kept])
    spread = reader.weight.shape[1] // len(kept)
    reader.weight = nn.Parameter(reader.weight[:, kept.repeat_interleave(spread)])
    for module in (own, reader):
        if isinstance(module, nn.Conv2d):
            module.out_channels, module.in_channels = module.weight.shape[:2]
    return smaller


@pytest.mark.slow
@pytest.mark.parametrize(
    "layers",
    [
        ("conv1", "conv2"),
        pytest.param(("conv1", "conv2", "fc1"), marks=pytest.mark.long),  # with 500 neurons
    ],
)
def test_lenet(shared, layers):
    model, images, labels = real(shared, "lenet", 2)
    found = greedy(model, (images, labels), Stop(remove=2), layers=layers, batch_size=10)
    network = model
    for row in found.settings["removals"]:
        with torch.no_grad():
            before, keys = judge(network(images), labels), {}
            for layer in layers:
                for unit in range(len(network.get_submodule(layer).weight)):
                    after = judge(lenet_without(network, layer, unit)(images), labels)
                    keys[layer, unit] = key(before, after, (layer, unit))
        layer, unit = min(keys, key=keys.get)
        assert (row["layer"], row["channels"]) == (layer, (unit,))
        network = lenet_without(network, layer, unit)
    assert found.settings["evaluated"] < (0.7 if "fc1" in layers else 1)


@pytest.mark.slow
def test_resnet_stage(shared):
    """Norms set to zero silence a channel everywhere, also in the residual stream."""
    model, images, labels = real(shared, "resnet20", 1)
    images = images[..., 8:24, 8:24]  # a quarter of the work
    found = greedy(model, (images, labels), Stop(remove=2), layers=["layer1"], batch_size=20)
    stream = ["bn1", "layer1.0.bn2", "layer1.1.bn2", "layer1.2.bn2"]
    norms = {"conv1": stream}
    norms |= {f"layer1.{i}.conv1": [f"layer1.{i}.bn1"] for i in range(3)}
    network, gone = copy.deepcopy(model), set()

    def silence(network, layer, unit):
        for name in norms[layer]:
            norm = network.get_submodule(name)
            norm.weight.data[unit] = norm.bias.data[unit] = 0

    for row in found.settings["removals"]:
        with torch.no_grad():
            before, keys = judge(network(images), labels), {}
            for order, layer in enumerate(norms):
                for unit in set(range(16)) - {u for name, u in gone if name == layer}:
                    silent = copy.deepcopy(network)
                    silence(silent, layer, unit)
                    keys[layer, unit] = key(before, judge(silent(images), labels), (order, unit))
        layer, unit = min(keys, key=keys.get)
        assert (row["layer"], row["unit"]) == (layer, unit)
        silence(network, layer, unit)
        gone.add((layer, unit))
    with torch.no_grad():
        assert torch.allclose(found.model(images), network(images), atol=1e-3)
