"""Networks that move channels about: what is asked for is kept, what is said is gone."""

import copy
from functools import partial

import pytest
import torch
from pruning_networks import assert_same, data_for, lost, snapshot
from structured_networks import PARTLY, WHOLE, Autocast, Clips, normed
from torch import nn

from niwaki import pruning
from niwaki.criteria import hidden_layers
from niwaki.errors import KeptWarning
from niwaki.evaluation import cost
from niwaki.pruning import couple, load

# What is left is compared with what was there: nothing is rebuilt.
prune = partial(pruning.prune, repair=None)


def silent(model, plan):
    """Set to zero all that a plan of one step removes: no shift lies behind these layers."""
    model = copy.deepcopy(model)
    for removal in plan.steps[0]:
        layer = model.get_submodule(removal.layer)
        for channel in removal.channels:
            layer.weight.data[channel] = 0
            if layer.bias is not None:
                layer.bias.data[channel] = 0
    return model


def made(build):
    torch.manual_seed(0)
    return build().eval()


def assert_pruned(model, data, keep=0.7, criterion="taylor"):
    before = snapshot(model)
    pruned = prune(
        model, data, criterion, keep=keep, of="units", schedule=pruning.Schedule(steps=1)
    )
    assert_same(before, snapshot(model))
    asked = cost(model, data[0]).units * keep
    found = cost(pruned.model, data[0]).units
    assert found <= asked + 1e-3
    if not hasattr(model, "kernel"):  # a blur counts as a layer, and shrinks with what it reads
        assert asked - largest_unit(model, data) < found
    assert pruned.plan.removed() == lost(model, pruned.model) != {}
    for module in pruned.model.modules():
        if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):
            assert min(module.weight.shape) >= 1
    with torch.no_grad():
        expected = silent(model, pruned.plan)(data[0])
        torch.testing.assert_close(pruned.model(data[0]), expected, rtol=1e-4, atol=1e-5)
    return pruned


def largest_unit(model, data):
    """Return how many channels of layers go with the largest unit."""
    model = copy.deepcopy(model)
    layers = [layer.name for layer in hidden_layers(model, data[0][:1])]
    return max(
        sum(len(m.channels[0]) for m in group.members if m.output and m.layer in layers)
        for group in couple(model, data[0][:2], layers)
    )


@pytest.mark.parametrize("name", WHOLE)
def test_what_is_said_is_gone(name):
    assert_pruned(made(WHOLE[name]), data_for(8))


@pytest.mark.parametrize("criterion", ["weight", "lrp.epsilon_plus"])
@pytest.mark.parametrize("name", ["ghost", "half gate", "shuffle of 2", "csp"])
def test_no_layer_is_emptied(name, criterion):
    assert_pruned(made(WHOLE[name]), data_for(8), 0.4, criterion)


@pytest.mark.parametrize("name", PARTLY)
def test_what_cannot_go_is_named(name):
    build, layer, reason = PARTLY[name]
    with pytest.warns(KeptWarning, match=rf"\b{layer}\b.* units stay: .*{reason}"):
        pruned = assert_pruned(made(build), data_for(8), 0.85)
    assert reason in pruned.settings["kept"][layer]


def test_frames_that_are_folded_into_the_batch():
    data = torch.randn(4, 3, 3, 8, 8), torch.arange(4) % 3
    assert_pruned(made(Clips), data)
    assert_pruned(made(Clips), data, 0.5, "weight")


def test_lower_precision_inside_of_the_forward_pass():
    model, data = made(Autocast), data_for(8)
    pruned = prune(model, data, "taylor", keep=0.7, of="units", schedule=pruning.Schedule(steps=1))
    assert pruned.plan.removed() == lost(model, pruned.model) != {}
    expected = silent(model, pruned.plan)(data[0])
    torch.testing.assert_close(pruned.model(data[0]), expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("of", ["units", "params", "macs"])
@pytest.mark.parametrize("name", ["ghost", "half gate", "selective kernel", "pixel shuffle"])
def test_what_is_predicted_is_what_is_left(name, of, steps):
    model, data = made(WHOLE[name]), data_for(8)
    pruned = prune(model, data, "random", keep=0.6, of=of, schedule=pruning.Schedule(steps=steps))
    assert pruned.trajectory.kept(of)[-1] <= 0.6
    assert pruned.plan.removed() == lost(model, pruned.model)


@pytest.mark.parametrize("name", ["ghost", "shuffle of 4", "split attention", "tied weights"])
def test_they_come_back_from_a_folder(name, tmp_path):
    model, data = made(WHOLE[name]), data_for(8)
    pruned = prune(model, data, "random", keep=0.8, of="params", schedule=pruning.Schedule(steps=2))
    pruned.save(tmp_path / "small")
    torch.manual_seed(5)
    again = load(tmp_path / "small", WHOLE[name]())
    assert torch.equal(again(data[0]), pruned.model(data[0]))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "how",
    [
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.spectral_norm,
    ],
    ids=["weight, hook", "spectral, hook", "weight, parametrization", "spectral, parametrization"],
)
@pytest.mark.parametrize("ran", [False, True])
def test_weights_made_anew_in_each_pass_become_plain_ones(how, ran, tmp_path):
    torch.manual_seed(0)
    model, data = normed(how).eval(), data_for(8)
    if ran:  # then the weight that a hook has made hangs on the network
        model(data[0])
    before = model(data[0]).detach()
    pruned = prune(model, data, "weight", keep=0.7, of="units", schedule=pruning.Schedule(steps=1))
    assert torch.equal(model(data[0]), before)
    assert isinstance(pruned.model[0].weight, nn.Parameter)
    plain = prune(model, data, "weight", keep=0.999, of="macs", schedule=pruning.Schedule(steps=1))
    del plain
    pruned.save(tmp_path / "small")
    fresh = normed(how)
    assert torch.equal(load(tmp_path / "small", fresh)(data[0]), pruned.model(data[0]))


ACTIVATIONS = {
    name: made
    for name in nn.modules.activation.__all__
    if name not in ("GLU", "MultiheadAttention", "Threshold", "Softmax", "Softmin", "LogSoftmax")
    and not name.startswith("Softmax")
    for made in [getattr(nn, name)]
} | {"Threshold": partial(nn.Threshold, 0.1, 0.0), "PReLU per unit": partial(nn.PReLU, 12)}


@pytest.mark.parametrize("inplace", [False, True], ids=["", "in place"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_channels_are_followed_through_every_activation(name, inplace):
    """Whether or not this version of torch says that an operation acts on each value alone."""
    torch.manual_seed(0)
    try:
        activation = ACTIVATIONS[name](**({"inplace": True} if inplace else {}))
    except TypeError:
        pytest.skip("it has no form in place")
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), activation, nn.Conv2d(12, 6, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
    ).eval()  # fmt: skip
    coupling = couple(copy.deepcopy(model), torch.randn(2, 3, 8, 8), ["0", "3"])
    assert coupling.kept == {}
    assert {group.root: len(group) for group in coupling} == {"0": 12, "3": 6}
