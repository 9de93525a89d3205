"""Remedies that leave clean images alone, penalise where a network looks, and rebuild it."""

import copy

import numpy as np
import pytest
import torch
from audit_networks import inputs_of
from torch import nn

import niwaki
from niwaki.auditing import input_penalty, project_out, prune_artefact, right_reasons
from niwaki.datasets import plant
from niwaki.errors import DataError
from niwaki.models import zoo
from niwaki.pruning import FineTune, fine_tune


@pytest.fixture(scope="module")
def trained(tiles):
    """A network that has learned from tiles of which most tumour tiles are marked."""
    planted = plant(tiles.pixels, tiles.labels, "square", on=1, share=0.8, seed=1)
    marked = inputs_of(tiles, planted.pixels)
    torch.manual_seed(0)
    model = zoo.tissue_net().eval()
    fine_tune(model, marked, FineTune(epochs=4, optimizer="adamw", lr=3e-3, batch_size=32))
    return model, marked, planted


def test_reactive_projection_changes_images_with_the_artefact_alone(tiles, trained):
    model, (inputs, _), planted = trained
    has = torch.as_tensor(planted.chosen)
    clean, _ = inputs_of(tiles)
    artefact = inputs[has], planted.mask[planted.chosen]
    plain = project_out(model, "relu2", artefact, clean)
    reactive = project_out(model, "relu2", artefact, clean, reactive=True)
    with torch.no_grad():
        said = {
            name: (network(clean), network(inputs[has]))
            for name, network in (("as it was", model), ("plain", plain), ("reactive", reactive))
        }
    kept = (said["reactive"][0] == said["as it was"][0]).all(1)
    assert kept.double().mean() == pytest.approx(0.95, abs=0.02)
    # Where it is present, it is the plain projection.
    same = torch.isclose(said["reactive"][1], said["plain"][1], atol=1e-5).all(1)
    assert same.double().mean() > 0.95
    heat = niwaki.explain(reactive, inputs[:4], method="lrp.epsilon_plus")
    assert heat.shape == inputs[:4].shape


def test_the_penalty_is_that_of_a_linear_network_by_hand():
    rng = np.random.default_rng(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(18, 3)).double().eval()
    inputs = torch.from_numpy(rng.normal(size=(5, 2, 3, 3)))
    masks = torch.from_numpy(rng.integers(0, 2, (5, 1, 3, 3)).astype(float))
    weight = model[1].weight.detach().numpy()
    share = torch.softmax(model(inputs), 1).detach().numpy()
    slope = weight.sum(0) - 3 * share @ weight  # of the sum of log-probabilities
    inside = slope.reshape(5, 2, 3, 3) * masks.numpy()
    truth = (inside**2).sum((1, 2, 3)).mean()
    assert input_penalty(model, inputs, masks).item() == pytest.approx(truth)


def test_a_network_that_is_told_where_not_to_look_does_not():
    """Two pixels give the class away; one of them is the artefact."""
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(rng.integers(0, 2, 200))
    inputs = torch.from_numpy(rng.normal(size=(200, 1, 4, 4))).float() * 0.3
    inputs[:, 0, 0, 0] += labels * 2.0 - 1
    inputs[:, 0, 3, 3] += labels * 2.0 - 1
    masks = np.zeros((200, 4, 4), bool)
    masks[:, 0, 0] = True
    settings = FineTune(epochs=30, optimizer="adamw", lr=0.03, weight_decay=0.0)
    weights = {}
    for name in ("plain", "told"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).eval()
        if name == "plain":
            fine_tune(model, (inputs, labels), settings)
        else:
            told = right_reasons(model, (inputs, labels), masks, settings, strength=10)
            assert len(told.epochs) == 30
        assert not model.training
        gap = (model[1].weight[1] - model[1].weight[0]).detach().abs()
        weights[name] = gap[0] / gap[15], float((model(inputs).argmax(1) == labels).double().mean())
    assert weights["plain"][0] > 0.6
    assert weights["told"][0] < 0.15
    assert weights["told"][1] > 0.95


def test_masks_that_do_not_fit_are_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).eval()
    data = torch.zeros(3, 1, 4, 4), torch.zeros(3, dtype=torch.long)
    with pytest.raises(DataError, match=r"masks are \(3, 4\)"):
        right_reasons(model, data, np.zeros((3, 4), bool))
    with pytest.raises(DataError, match="the masks are empty"):
        right_reasons(model, data, np.zeros((3, 4, 4), bool))
    with pytest.raises(ValueError, match="needs a teacher"):
        right_reasons(model, data, np.ones((3, 4, 4), bool), FineTune(distil=0.5))


@pytest.mark.long
def test_a_rebuilt_network_answers_clean_images_more_like_the_given_one(tiles, trained):
    model, (inputs, labels), planted = trained
    before = copy.deepcopy(model.state_dict())
    has = torch.as_tensor(planted.chosen)
    clean = inputs_of(tiles)
    marked = inputs[has], labels[has], planted.mask[planted.chosen]
    # Both are made of the same units, as the scores are the same.
    gaps = []
    for rebuilt in (False, True):
        found = prune_artefact(model, marked, clean[0][has], clean, tolerance=1.0, rebuilt=rebuilt)
        assert [trial.units for trial in found.trials][:2] == [0, 1]
        largest = found.trials[-1]
        gaps.append(largest.accuracy)
    assert gaps[1] >= gaps[0]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
