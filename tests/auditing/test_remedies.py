"""Remedies: data sets around data sets, filters that go, directions that are projected out."""

import copy

import numpy as np
import pytest
import torch
from audit_networks import Coloured, inputs_of, looking
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from niwaki import pruning
from niwaki.auditing import (
    Inpainted,
    Relabelled,
    Shifted,
    Spread,
    artefact_direction,
    audit,
    balanced,
    before_and_after,
    compare_regions,
    filled,
    gather,
    markdown,
    project_out,
    prune_artefact,
    side_by_side,
)
from niwaki.auditing._interventions import rolled
from niwaki.datasets import plant
from niwaki.errors import DataError, FallbackWarning, ModelError


@pytest.fixture(scope="module")
def marked(tiles):
    return plant(tiles.pixels, tiles.labels, "square", on=1, share=1.0, seed=1)


def test_filled_continues_the_surroundings():
    even = torch.full((2, 3, 16, 16), 0.25)
    mask = np.zeros((2, 16, 16), bool)
    mask[:, 4:12, 3:9] = True
    spoilt = torch.where(torch.tensor(mask)[:, None], torch.tensor(9.0), even)
    assert torch.allclose(filled(spoilt, mask), even)
    whole = np.ones((2, 16, 16), bool)
    assert torch.isfinite(filled(spoilt, whole)).all()
    outside = filled(torch.rand(2, 3, 16, 16), mask)
    assert outside.shape == (2, 3, 16, 16)


def test_filled_leaves_the_rest_alone():
    pixels = torch.rand(1, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    mask = np.random.default_rng(0).random((1, 20, 20)) < 0.3
    changed = filled(pixels, mask) != pixels
    assert not changed[:, :, torch.tensor(~mask[0])].any()


def test_rolled_masks_keep_their_size():
    masks = np.random.default_rng(0).random((7, 9, 11)) < 0.2
    moved = rolled(masks, np.random.default_rng(1))
    assert np.array_equal(masks.sum((1, 2)), moved.sum((1, 2)))
    assert not np.array_equal(masks, moved)


@pytest.mark.slow
def test_the_causal_check_is_exact_where_the_output_is_a_sum(tiles):
    weights = torch.zeros(64, 64)
    weights[:32] = 0.002
    material = gather(looking(weights), tiles.images(), method="gradient")
    lower = np.zeros((64, 64), bool)
    lower[40:] = True
    rng = np.random.default_rng(0)
    cause = compare_regions(material, material.members(1), lower, "inpaint", rng)
    assert cause.drop == pytest.approx(0, abs=1e-3)  # it does not look there
    assert cause.control > 0
    assert cause.p > 0.5


def test_shifted_moves_what_is_there():
    image = torch.arange(36.0).view(1, 6, 6)
    data = Shifted(TensorDataset(image[None], torch.tensor([1])), most=2, seed=0)
    seen = {tuple(data[0][0].flatten().tolist()) for _ in range(500)}
    assert len(seen) == 25
    assert tuple(range(36)) in seen
    assert data[0][1] == 1
    with pytest.raises(DataError, match="most"):
        Shifted(TensorDataset(image[None], torch.tensor([1])), most=6)[0]


def test_spread_and_inpainted_change_the_mask_only(tiles, marked):
    inputs, labels = inputs_of(tiles, marked.pixels)
    plain = TensorDataset(*inputs_of(tiles))
    masks = marked.mask[marked.chosen]
    spread = Spread(plain, inputs[torch.tensor(marked.chosen)], masks, 0.5, seed=0)
    changed = [not torch.equal(spread[i][0], plain[i][0]) for i in range(200)]
    assert 0.35 < np.mean(changed) < 0.65
    assert (
        abs(np.mean(np.array(changed)[labels == 1]) - np.mean(np.array(changed)[labels == 0])) < 0.2
    )
    painted = Inpainted(TensorDataset(inputs, labels), marked.mask)
    index = int(np.flatnonzero(marked.chosen)[0])
    difference = (painted[index][0] != inputs[index]).any(0).numpy()
    assert np.array_equal(difference, marked.mask[index])
    untouched = int(np.flatnonzero(~marked.chosen)[0])
    assert torch.equal(painted[untouched][0], inputs[untouched])


def test_relabelled_and_what_wrappers_refuse(tiles):
    images = tiles.images()
    other = Relabelled(images, [1 - label for label in images.targets])
    assert other[0][1] == 1 - images[0][1]
    assert other.targets != images.targets
    assert other.preprocessing == images.preprocessing
    for make in (
        lambda: Relabelled(images, [1]),
        lambda: Inpainted(images, np.zeros((3, 64, 64), bool)),
        lambda: Spread(images, torch.zeros(2, 3, 64, 64), np.zeros((1, 64, 64), bool)),
        lambda: balanced([1, 2], [1]),
    ):
        with pytest.raises(DataError):
            make()


def test_balanced_draws_each_group_of_each_class_equally():
    labels = np.array([0] * 90 + [1] * 110)
    groups = np.array([0] * 90 + [1] * 10 + [0] * 100)
    sampler = balanced(labels, groups, seed=0, count=6000)
    drawn = np.array(list(sampler))
    assert (labels[drawn] == 0).mean() == pytest.approx(0.5, abs=0.03)
    of_one = groups[drawn][labels[drawn] == 1]
    assert of_one.mean() == pytest.approx(0.5, abs=0.04)
    data = TensorDataset(torch.arange(200.0)[:, None], torch.tensor(labels))
    loader = DataLoader(data, batch_size=50, sampler=balanced(labels, groups, seed=0))
    assert sum(len(x) for x, _ in loader) == 200


def small(seed=0):
    """One filter sees yellow, three see darkness; batch norm and pooling between."""
    model = nn.Sequential()
    model.conv1 = nn.Conv2d(3, 4, 1)
    model.relu1 = nn.ReLU()
    model.pool = nn.AvgPool2d(8)
    model.conv2 = nn.Conv2d(4, 6, 1)
    model.relu2 = nn.ReLU()
    model.flatten = nn.Flatten()
    model.fc = nn.Linear(6 * 64, 2)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        model.conv1.weight.zero_()
        model.conv1.weight[0, 2] = -1.0
        model.conv1.bias[0] = -5.0
        for unit in (1, 2, 3):
            model.conv1.weight[unit, :] = -1 / 3
            model.conv1.bias[unit] = -0.3 * unit
        model.conv2.weight.copy_(torch.rand(6, 4, 1, 1, generator=generator))
        model.conv2.weight[0] = 0
        model.conv2.weight[0, 0] = 1
        model.conv2.weight[1:, 0] = 0
        model.conv2.bias.zero_()
        model.fc.weight.zero_()
        rows = model.fc.weight.view(2, 6, 64)
        rows[1, 0], rows[0, 0] = 3.0, -3.0
        rows[1, 1:], rows[0, 1:] = 0.05, -0.05
        model.fc.bias.copy_(torch.tensor([0.6, -0.6]))
    return model.eval()


def test_pruning_removes_the_filter_that_sees_the_artefact(tiles, marked):
    model = small()
    before = copy.deepcopy(model.state_dict())
    inputs, labels = inputs_of(tiles, marked.pixels)
    clean = inputs_of(tiles)
    has = torch.tensor(marked.chosen)
    artefact = inputs[has], labels[has], marked.mask[marked.chosen]
    found = prune_artefact(model, artefact, clean[0][has], clean, rebuilt=False)
    removed = {removal.layer: removal.channels for removal in found.removals}
    assert 0 in removed.get("conv1", ()) or 0 in removed.get("conv2", ())
    assert found.trials[0].effect > 0.5
    # What is left is what the mark covers: as much as in the network whose one filter that sees
    # yellow has been taken out by hand.
    by_hand = copy.deepcopy(model)
    with torch.no_grad():
        by_hand.conv1.weight[0] = by_hand.conv1.bias[0] = 0
        for images in (inputs[has], clean[0][has]):
            assert torch.allclose(found.model(images), by_hand(images), atol=1e-4)
    assert min(t.effect for t in found.trials) < 0.1 * found.trials[0].effect
    scores = found.scores["conv1"]
    assert scores.argmax() == 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert found.model.conv1.out_channels <= 4
    assert sum(p.numel() for p in found.model.parameters()) < sum(
        p.numel() for p in model.parameters()
    )
    with pytest.raises(DataError, match="same images"):
        prune_artefact(model, artefact, clean[0][:3], clean)


def test_what_is_left_is_rebuilt_unless_asked_otherwise(tiles, marked, monkeypatch):
    model = small()
    inputs, labels = inputs_of(tiles, marked.pixels)
    clean = inputs_of(tiles)
    has = torch.tensor(marked.chosen)
    given = model, (inputs[has], labels[has], marked.mask[marked.chosen]), clean[0][has], clean
    plain, usual = prune_artefact(*given, rebuilt=False), prune_artefact(*given)
    assert [trial.units for trial in plain.trials] == [trial.units for trial in usual.trials]
    # On clean images, the same units fewer, it answers more like the network that was given.
    gaps = {}
    for name, found in (("plain", plain), ("usual", usual)):
        with torch.no_grad():
            gaps[name] = float((found.model(clean[0]) - model(clean[0])).norm())
    assert plain.removals == usual.removals
    assert gaps["usual"] < 0.9 * gaps["plain"]

    def unlisted(*_):
        raise ModelError("Network cannot be rebuilt")

    monkeypatch.setattr(pruning, "rebuild", unlisted)
    with pytest.warns(FallbackWarning, match=r"cannot be rebuilt\. Units are removed") as said:
        instead = prune_artefact(*given)
    assert len(said) == 1
    assert instead.trials == plain.trials


@pytest.mark.parametrize("layer", ["relu1", "relu2"])
def test_projection_takes_the_direction_away_and_nothing_else(tiles, marked, layer):
    model = small()
    before = copy.deepcopy(model.state_dict())
    inputs, _ = inputs_of(tiles, marked.pixels)
    clean, _ = inputs_of(tiles)
    has = torch.tensor(marked.chosen)
    artefact = inputs[has], marked.mask[marked.chosen]
    direction, mean = artefact_direction(model, layer, artefact, clean)
    assert float(direction.norm()) == pytest.approx(1, abs=1e-5)
    changed = project_out(model, layer, artefact, clean)
    layers = {}
    for name, network in (("old", model), ("new", changed)):
        handle = network.get_submodule(layer).register_forward_hook(
            lambda _, __, out, name=name: layers.update({name: out})
        )
        with torch.no_grad():
            network(inputs[:5])
        handle.remove()
    old, new = (layers[name].movedim(1, -1) for name in ("old", "new"))
    assert torch.allclose(new @ direction, (direction @ mean).expand(new.shape[:-1]), atol=1e-4)
    difference = new - old
    along = (difference @ direction)[..., None] * direction
    assert torch.allclose(difference, along, atol=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    with torch.no_grad():
        gap = (model(inputs[has]) - model(clean[has])).abs().mean()
        left = (changed(inputs[has]) - changed(clean[has])).abs().mean()
    assert left < gap


def test_projection_refuses(tiles, marked):
    model = small()
    inputs, _ = inputs_of(tiles)
    with pytest.raises(DataError, match="relu9"):
        project_out(model, "relu9", (inputs, marked.mask), inputs)
    with pytest.raises(ModelError, match="no trace"):
        project_out(model, "relu1", (inputs * 0, marked.mask), inputs * 0)


@pytest.mark.slow
def test_before_and_after_shows_what_a_remedy_did(tiles, marked):
    images = tiles.images(pixels=marked.pixels)
    clean = copy.deepcopy(Coloured())
    with torch.no_grad():
        clean.fc.weight.view(2, 3, -1)[:, 0] = 0
    audits = {
        "biased": audit(Coloured(), images, method="lrp.epsilon", limit=120),
        "repaired": audit(clean, images, method="lrp.epsilon", limit=120),
    }
    rows = before_and_after(
        audits, {"biased": {"auc elsewhere": 0.5}, "repaired": {"auc elsewhere": 0.9}}
    )
    assert rows[0]["colour/tumour/foreign: seen"] > 5 * rows[1]["colour/tumour/foreign: seen"]
    assert rows[1]["flagged"] < rows[0]["flagged"]
    turned = side_by_side(rows, audits)
    assert list(turned[0]) == ["measure", "biased", "repaired"]
    said = {row["measure"]: (row["biased"], row["repaired"]) for row in turned}
    assert said["AUC elsewhere"] == ("0.500", "0.900")
    assert said["questions answered with yes"][1] == str(rows[1]["flagged"])
    seen = rows[0]["colour/tumour/foreign: seen"]
    assert said["colours of its own (class tumour): seen"][0] == f"{seen:.3f}"
    table = markdown(rows)
    assert table.splitlines()[0].startswith("| network | accuracy | auc | auc elsewhere")
    assert len(table.splitlines()) == 4
