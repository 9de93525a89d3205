"""Networks that split, slice, shuffle and mix their channels: every unit against its truth."""

import copy

import pytest
import torch
from car_networks import judged, noise, randomise
from car_structures import STRUCTURES

from niwaki.car import Stop, greedy, index
from niwaki.car._images import judge
from niwaki.criteria import hidden_layers
from niwaki.pruning import Removal, couple, operate


def prepared(name):
    model = randomise(STRUCTURES[name]())
    return model, *judged(model, noise(40, 8))


def right(model, images, labels):
    with torch.no_grad():
        return int(judge(model(images), labels).right.sum())


def masked(model, layer, channels):
    """Zeros come out of the layer, and out of all that acts on its channels one by one."""
    silent = copy.deepcopy(model)
    with torch.no_grad():
        silent.get_submodule(layer).weight[list(channels)] = 0
        silent.get_submodule(layer).bias[list(channels)] = 0
        if layer == "a" and hasattr(model, "norm"):  # sigmoid(-60) is 1e-26
            silent.norm.weight[list(channels)] = 0
            silent.norm.bias[list(channels)] = -60
    return silent


@pytest.mark.parametrize("name", STRUCTURES)
def test_every_unit(name):
    model, images, labels = prepared(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = index(model, (images, labels))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    whole = right(model, images, labels)
    judged_channels = {}
    for layer in found:
        for unit, channels in enumerate(found[layer].units):
            judged_channels.setdefault(layer, set()).update(channels)
            if found[layer].paths[unit] == "masked":
                without = masked(model, layer, channels)
            else:
                without = copy.deepcopy(model)
                operate(without, images[:4], [Removal(layer, channels)])
            truth = whole - right(without, images, labels)
            assert int(found[layer].lost[unit]) == truth, (layer, channels)
    assert judged_channels["a"] >= set(range(8)) or "a" not in found
    assert "a" in found


@pytest.mark.parametrize("name", ["Slices", "GateByHalves", "OneChannelMask"])
def test_the_search_removes_what_can_go(name):
    model, images, labels = prepared(name)
    pruned = greedy(model, (images, labels), Stop(remove=2))
    network = copy.deepcopy(model)
    for row in pruned.settings["removals"]:
        found = index(network, (images, labels))
        can = [
            pair
            for pair in found.ranking()
            if found[pair[0]].paths[pair[1]] not in ("cut", "masked")
        ]
        layer, unit = can[0]
        assert (row["layer"], tuple(row["channels"])) == (layer, found[layer].units[unit])
        operate(network, images[:4], [Removal(layer, found[layer].units[unit])])
    with torch.no_grad():
        assert torch.allclose(network(images), pruned.model(images), atol=1e-5)
    assert couple(network, images[:2], [x.name for x in hidden_layers(network, images[:1])])
