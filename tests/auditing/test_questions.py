"""Every kind of question: planted answers are found, and networks without a bias come out clean."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from audit_networks import Coloured, inputs_of, looking

from niwaki.auditing import (
    Evidence,
    audit,
    examine,
    find_strategies,
    foreign,
    gather,
    spectral,
    stains,
    zones,
)
from niwaki.auditing._image_properties import blockiness, sharpness, tint
from niwaki.auditing._spray import heatmap_features
from niwaki.auditing.questions import find_shared_things
from niwaki.auditing.questions._strategy import peak_windows
from niwaki.datasets import TISSUE, draw_tissue, plant
from niwaki.errors import DataError, ModelError


@pytest.fixture(scope="module")
def even(tiles):
    weights = torch.full((64, 64), 0.002)
    return audit(looking(weights), tiles.images(), method="lrp.epsilon", tissue=True)


@pytest.mark.slow
def test_a_network_that_looks_everywhere_comes_out_clean(even):
    assert even.flagged == ()
    assert len(even.findings) > 20
    assert "0 answered with yes" in str(even)
    assert even.get("position/tumour/centre").effect == pytest.approx(1, abs=0.4)


@pytest.mark.slow
def test_a_network_that_looks_at_the_centre_is_found_and_named():
    centred = draw_tissue(200, seed=6, centred=1.0)
    weights = torch.zeros(64, 64)
    weights[torch.from_numpy(zones(64, 64)["centre"])] = 0.01
    model = looking(weights + 1e-5)
    with torch.no_grad():  # how dark the centre must be for class 1
        level = model(inputs_of(centred)[0])[:, 1].median()
        model.fc.bias.copy_(torch.tensor([1.0, -1.0]) * level)
    found = audit(model, centred.images(), method="lrp.epsilon")
    keys = {finding.key for finding in found.flagged}
    assert "position/tumour/centre" in keys or "position/normal/centre" in keys
    places = {"position/tumour/centre", "position/normal/centre"}
    # Labelled by their centres the classes differ in how many small dark nuclei a tile has, and so
    # in its finest detail: sharpness tells them, and blurring makes nuclei paler to this network.
    assert keys <= places | {"quality/tumour/sharpness"}
    finding = next(f for f in found.flagged if f.key in places)
    assert "centre" in finding.sentence
    assert "%" in finding.sentence
    assert finding.cause.ratio > 1.5
    assert finding.advice
    assert finding.p < 0.05


@pytest.mark.slow
def test_a_network_that_looks_at_a_mark_is_found_and_named(tiles):
    marked = plant(tiles.pixels, tiles.labels, "square", on=1, share=0.6, seed=1)
    found = audit(Coloured(), tiles.images(pixels=marked.pixels), method="lrp.epsilon")
    keys = [finding.key for finding in found.flagged]
    assert "colour/tumour/foreign" in keys
    assert not [key for key in keys if "/normal/" in key]
    finding = found.get("colour/tumour/foreign")
    assert set(finding.examples) <= set(np.flatnonzero(marked.chosen).tolist())
    assert finding.numbers["share_of_class"] == pytest.approx(0.6, abs=0.02)
    # The same network on tissue without the mark has nothing to look at.
    clean = audit(Coloured(), tiles.images(), method="lrp.epsilon")
    assert not [f for f in clean.flagged if f.key.startswith("colour")]


@pytest.mark.slow
def test_a_mark_is_found_also_where_its_images_keep_their_class_without_it(tiles):
    """Known by their nuclei too, they are right without the mark; on others it makes an answer."""
    model = Coloured()
    with torch.no_grad():  # it names all images right, by their nuclei
        said = model(inputs_of(tiles)[0])[:, 1]
        model.fc.bias.add_(torch.tensor([1.0, -1.0]) * said.median())
    known = replace(tiles, labels=(said > said.median()).long().numpy())
    marked = plant(known.pixels, known.labels, "square", on=1, share=0.3, seed=1)
    found = audit(model, known.images(pixels=marked.pixels), method="lrp.epsilon")
    finding = found.get("colour/tumour/foreign")
    assert finding.cause.changed < 0.1
    assert finding.spread.flips > 0.5
    assert finding.spread.control_flips < 0.1
    assert finding.changed == finding.spread.changed
    assert finding.flagged
    assert "Put on images of other classes, it turns" in finding.sentence
    assert any("is put on them" in what for what, _ in finding.evidence())


def test_foreign_colours_are_the_mark(tiles):
    marked = plant(tiles.pixels, tiles.labels, "square", on=1, share=1.0, seed=1)
    pixels = torch.from_numpy(marked.pixels).permute(0, 3, 1, 2).float() / 255
    mask = foreign(pixels, tiles.labels, 1)
    true = marked.mask[tiles.labels == 1]
    assert (mask & true).sum() / (mask | true).sum() > 0.7
    plain = torch.from_numpy(tiles.pixels).permute(0, 3, 1, 2).float() / 255
    assert foreign(plain, tiles.labels, 1).mean() < 0.002


def test_the_network_is_left_as_it_was(tiles):
    model = looking(torch.rand(64, 64, generator=torch.Generator().manual_seed(0)) * 0.001)
    before = copy.deepcopy(model.state_dict())
    audit(model, tiles.images(), limit=60)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training
    assert not any(module._forward_hooks for module in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.mark.slow
def test_the_same_seed_gives_the_same_audit(even, tiles):
    again = examine(even.material, seed=0, tissue=True)
    assert [f.p for f in again.findings] == [f.p for f in even.findings]
    assert [f.key for f in again.findings] == [f.key for f in even.findings]


def test_p_values_are_corrected_and_answers_follow_from_them(even):
    for finding in even.findings:
        assert finding.p >= finding.p_seen or finding.p == 1
        assert finding.p_both >= finding.p_seen
        if finding.cause is None:
            assert finding.p_both == 1
    data = even.to_json()
    assert data["questions"] == len(even.findings)
    assert data["correction"] == "Holm"


@pytest.mark.parametrize(
    ("artefact", "measure", "higher"),
    [("blur", sharpness, False), ("jpeg", blockiness, True), ("stain", tint, None)],
)
def test_properties_of_whole_images_change_with_their_artefact_only(
    tiles, artefact, measure, higher
):
    changed = plant(tiles.pixels, tiles.labels, artefact, on=1, share=1.0, elsewhere=1.0, seed=2)
    both = np.concatenate([tiles.pixels, changed.pixels])
    values = measure(torch.from_numpy(both).permute(0, 3, 1, 2).float() / 255)
    before, after = np.split(values.reshape(len(both), -1), 2)
    gap = abs(after.mean(0) - before.mean(0)) / before.std(0)
    assert gap.max() > 1.5
    if higher is not None:
        assert (after.mean() > before.mean()) == higher


@pytest.mark.parametrize("measure", [sharpness, blockiness, tint])
def test_properties_of_whole_images_do_not_depend_on_what_they_show(tiles, measure):
    values = measure(torch.from_numpy(tiles.pixels).permute(0, 3, 1, 2).float() / 255)
    for column in values.reshape(len(values), -1).T:
        assert abs(2 * auc_by_ranks(column, tiles.labels) - 1) < 0.3


def auc_by_ranks(values, labels):
    ranks = values.argsort().argsort()
    ones = int(labels.sum())
    return (ranks[labels == 1].sum() - ones * (ones - 1) / 2) / (ones * (len(labels) - ones))


def test_stains_are_told_apart(tiles):
    groups = stains(torch.from_numpy(tiles.pixels).permute(0, 3, 1, 2).float() / 255)
    assert sum(mask.astype(int) for mask in groups.values()).min() == 1
    nuclei = tiles.instances > 0
    assert groups["haematoxylin"][nuclei].mean() > 0.9
    assert groups["haematoxylin"][~nuclei].mean() < 0.05
    marked = plant(tiles.pixels, tiles.labels, "square", on=1, share=1.0, seed=1)
    groups = stains(torch.from_numpy(marked.pixels).permute(0, 3, 1, 2).float() / 255)
    assert groups["neither"][marked.mask].mean() > 0.9
    assert groups["neither"][~marked.mask].mean() < 0.05


def test_nuclei_carry_the_relevance_of_a_network_that_looks_at_nuclei(even):
    for found in even.stains.values():
        assert found["haematoxylin"]["relevance"] > 2 * found["haematoxylin"]["area"]
        assert sum(row["area"] for row in found.values()) == pytest.approx(1)


def test_spectral_embedding_tells_groups_by_its_eigengap():
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(5 * k, 0.3, (40, 4)) for k in range(3)])
    values, vectors = spectral(points)
    assert values[:3] == pytest.approx(0, abs=1e-9)  # three components
    assert values[3] > 0.01
    assert np.argmax(np.diff(values[:9])) == 2
    assert vectors.shape == (120, 32)


def test_spectral_embedding_agrees_with_scikit_learn():
    from sklearn.manifold import spectral_embedding
    from sklearn.neighbors import kneighbors_graph

    points = np.random.default_rng(1).normal(size=(60, 3))
    graph = kneighbors_graph(points, 10).toarray()
    weights = np.maximum(graph, graph.T)
    theirs = spectral_embedding(weights, n_components=3, random_state=0, drop_first=False)
    _, ours = spectral(points)
    ours = ours / np.sqrt(weights.sum(1))[:, None]
    for column in range(1, 3):
        a, b = ours[:, column], theirs[:, column]
        assert abs(np.corrcoef(a, b)[0, 1]) > 0.999


def test_pattern_features_do_not_change_when_a_heatmap_moves():
    maps = np.random.default_rng(0).random((5, 32, 32)) ** 8
    moved = np.roll(maps, (7, 11), (1, 2))
    assert np.allclose(heatmap_features(maps, "pattern"), heatmap_features(moved, "pattern"))
    assert not np.allclose(
        heatmap_features(maps, "place"), heatmap_features(moved, "place"), atol=0.1
    )
    with pytest.raises(ValueError, match="pattern"):
        heatmap_features(maps, "colour")


def test_clusters_separate_marked_images(tiles):
    marked = plant(tiles.pixels, tiles.labels, "square", on=1, share=0.4, seed=1)
    material = gather(Coloured(), tiles.images(pixels=marked.pixels), method="lrp.epsilon")
    found = {s.features: s for s in find_strategies(material) if s.label == 1}
    for strategies in found.values():
        inside = [marked.chosen[list(c.positions)] for c in strategies.clusters]
        assert max(one.sum() for one in inside) > 0.9 * marked.chosen.sum()
        assert min(one.mean() for one in inside) < 0.05
        # By their place, images with a nucleus in the corner of the mark are like marked ones.
        purity = max(one.mean() for one in inside)
        assert purity > (0.95 if strategies.features == "pattern" else 0.7)
    evidence = Evidence(material, (found["place"],))
    findings = find_shared_things(evidence, np.random.default_rng(0))
    assert {finding.label for finding in findings} == {1}


def test_peak_windows_hold_the_peak():
    maps = np.zeros((3, 20, 20))
    places = [(0, 0), (10, 12), (19, 19)]
    for index, place in enumerate(places):
        maps[index][place] = 1
    boxes = peak_windows(maps)
    for box, place in zip(boxes, places, strict=True):
        assert box[place]
        assert box.sum() == 16


def test_audit_refuses_what_it_cannot_look_at(tiles):
    model = looking(torch.ones(64, 64))
    with pytest.raises(DataError, match="preprocessing"):
        audit(
            model, torch.utils.data.TensorDataset(torch.zeros(4, 3, 64, 64), torch.zeros(4).long())
        )
    with pytest.raises(ModelError, match="eval"):
        audit(copy.deepcopy(model).train(), tiles.images())
    with pytest.raises(ValueError, match="predicted"):
        audit(model, tiles.images(), target="both")
    assert TISSUE.size == 64
