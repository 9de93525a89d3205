"""The profile against what whole tensors in memory say."""

import copy

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from niwaki import filters
from niwaki.attribution import create
from niwaki.errors import DataError, ModelError


def activations_of(model, inputs):
    """What the units of both layers send on, by hand."""
    with torch.no_grad():
        first = model[1](model[0](inputs).clone())
        second = model[5](model[4](model[3](model[2](first))))
    return {"0": first.flatten(2), "3": second.flatten(2)}


@pytest.fixture
def known(model, images, pixels):
    return filters.profile(model, images, preprocessing=pixels, patches=4, batch_size=4)


def test_shares_means_and_correlation(model, images, known):
    inputs, labels = images
    for name, activations in activations_of(model, inputs).items():
        layer = known[name]
        torch.testing.assert_close(layer.active, (activations > 0).double().mean((0, 2)))
        torch.testing.assert_close(layer.active_images, (activations > 0).any(2).double().mean(0))
        means = torch.stack([activations[labels == c].double().mean((0, 2)) for c in range(3)], 1)
        torch.testing.assert_close(layer.class_means, means, rtol=1e-5, atol=1e-7)
        flat = activations.double().transpose(0, 1).flatten(1)
        torch.testing.assert_close(layer.correlation, torch.corrcoef(flat), rtol=1e-6, atol=1e-8)


def test_strongest_places_by_activation_and_by_relevance(model, images, known):
    inputs, labels = images
    maps = {
        "by_activation": activations_of(model, inputs),
        "by_relevance": {
            name: value.flatten(2)
            for name, value in create("lrp.epsilon_plus", model)
            .layers(inputs, labels, ["0", "3"])
            .items()
        },
    }
    for kind, by_layer in maps.items():
        for name in known:
            # Positions at the border see 6 of 9 pixels in the first layer, 5 of 8 lines in the
            # second, the others 7 of 8 and more.
            side = round(by_layer[name].shape[2] ** 0.5)
            placed = torch.zeros(side, side, dtype=torch.bool)
            placed[1:-1, 1:-1] = True
            best = by_layer[name].where(placed.flatten(), -torch.inf).max(2)
            values, numbers = best.values.T.sort(1, descending=True)
            found = getattr(known[name], kind)
            some = values[:, :4] > 0
            torch.testing.assert_close(
                found.values[some], values[:, :4][some], rtol=1e-4, atol=1e-6
            )
            assert torch.equal(found.images[some], numbers[:, :4][some])
            places = best.indices.T.gather(1, numbers)[:, :4]
            assert torch.equal(found.positions[some], places[some])
            assert (found.images[~some] == -1).all()


def test_class_relevance_is_the_mean_over_the_images_of_a_class(model, images, known):
    inputs, labels = images
    maps = create("lrp.epsilon_plus", model).layers(inputs, labels, ["3"])["3"].double().sum((2, 3))
    means = torch.stack([maps[labels == c].mean(0) for c in range(3)], 1)
    torch.testing.assert_close(known["3"].class_relevance, means, rtol=1e-4, atol=1e-6)


def test_colour_selectivity_by_hand(model, images, pixels, known):
    inputs, _ = images
    shown = pixels.denormalise(inputs)
    luma = (shown * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    mean, std = (torch.tensor(v)[:, None, None] for v in (pixels.mean, pixels.std))
    in_grey = activations_of(model, (luma.expand(-1, 3, -1, -1) - mean) / std)
    for name, layer in known.items():
        best = layer.by_activation
        for unit in range(len(layer)):
            some = best.images[unit] >= 0
            left = in_grey[name][best.images[unit][some], unit, best.positions[unit][some]]
            expected = 1 - left.sum() / best.values[unit].sum()
            torch.testing.assert_close(layer.colour[unit], expected, rtol=1e-4, atol=1e-5)


def test_a_colour_opponent_loses_all_and_a_brightness_filter_nothing(model, images, pixels):
    weight, std = torch.zeros_like(model[0].weight), torch.tensor(pixels.std)
    mean = torch.tensor(pixels.mean)
    weight[0, :, 1, 1] = torch.tensor([1.0, -1.0, 0.0]) * std  # red minus green, in pixels
    weight[1, :, 1, 1] = torch.tensor([0.299, 0.587, 0.114]) * std
    model[0].weight.data = weight
    model[0].bias.data = weight.sum((2, 3)) @ (mean / std)
    layer = filters.profile(model, images, layers=["0"], preprocessing=pixels)["0"]
    assert layer.colour[0] == pytest.approx(1, abs=1e-5)
    assert layer.colour[1] == pytest.approx(0, abs=1e-5)
    assert layer.active[2] == 0
    assert layer.colour[2].isnan()
    assert layer.class_selectivity[2].isnan()


def test_batches_do_not_matter_and_the_model_stays(model, images, pixels, known):
    before = copy.deepcopy(model.state_dict())
    model[0].weight.requires_grad_(False)
    loader = DataLoader(TensorDataset(*images), batch_size=5)
    again = filters.profile(model, loader, preprocessing=pixels, patches=4)
    assert again.rows() == known.rows()
    assert again.samples == known.samples == (5, 5, 4)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()][:2] == [False, True]
    assert not any(m._forward_hooks or m._backward_hooks for m in model.modules())


def test_refusals(model, images, pixels):
    shuffled = DataLoader(TensorDataset(*images), shuffle=True, generator=torch.Generator())
    with pytest.raises(DataError, match="without shuffling"):
        filters.profile(model, shuffled, preprocessing=pixels)
    with pytest.raises(DataError, match="no hidden layer '9'"):
        filters.profile(model, images, layers=["9"])
    with pytest.raises(ModelError, match="does not propagate"):
        filters.profile(model, images, method="occlusion")
    with pytest.raises(ValueError, match="patches = 0"):
        filters.profile(model, images, patches=0)


def test_without_preprocessing_or_in_grey_there_is_no_colour(model, images):
    layer = filters.profile(model, images, layers=["0"])["0"]
    assert layer.colour.isnan().all()
    assert filters.profile(model, images, layers=["0"]).rows()[0]["colour"] is None
