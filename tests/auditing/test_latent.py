"""Found inside the network: groups, concepts that retrieve, odd filters, and what is confirmed."""

import csv
import warnings

import numpy as np
import pytest
import torch
from audit_networks import Coloured, looking
from sklearn.metrics import roc_auc_score

from niwaki.auditing import (
    Latent,
    audit,
    concept_of,
    gather,
    latent_of,
    odd_filters,
    prune_artefact,
    read_confirmed,
    write_candidates,
)
from niwaki.auditing._candidates import find_candidates, places_of
from niwaki.auditing._concepts import separation
from niwaki.datasets import draw_tissue, plant
from niwaki.errors import DataError, LeftOutWarning, NearChanceWarning
from niwaki.models import zoo

pytestmark = pytest.mark.slow

LABELS = np.repeat([0, 1], 100)


def latent(values):
    none = {"layer": np.zeros((200, 1))}
    return Latent(("layer",), {"layer": values}, none, none, np.zeros((200, 2)))


# Concepts.


def test_a_handful_of_images_retrieve_the_rest():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(200, 30)) + LABELS[:, None] * rng.normal(size=30) * 3
    has = np.arange(100, 130)
    values[np.ix_(has, [4, 7])] += 3
    found = concept_of(latent(values), LABELS, has[:6])
    others = np.arange(106, 200)  # of the class, not shown to it
    assert roc_auc_score(np.isin(others, has), found.scores[others]) > 0.98
    assert set(np.argsort(-found.weights)[:2]) == {4, 7}
    assert found.kind == "activity"
    assert found.auc == pytest.approx(
        roc_auc_score(np.isin(np.arange(100, 200), has[:6]), found.scores[100:])
    )


def test_images_without_a_thing_in_common_tell_nothing():
    """Held out, chance hardly looks like a concept, though the best of three kinds counts."""
    aucs = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        values = rng.normal(size=(200, 40))
        aucs.append(concept_of(latent(values), LABELS, rng.permutation(100)[:8]).auc)
    assert 0.5 <= np.mean(aucs) < 0.65


def test_the_separation_is_the_area_under_the_curve():
    rng = np.random.default_rng(0)
    inside, outside = rng.normal(0.7, 1, 20), rng.normal(size=50)
    truth = roc_auc_score(np.repeat([1, 0], [20, 50]), np.concatenate([inside, outside]))
    assert separation(inside, outside) == pytest.approx(truth)


def test_too_few_images_and_all_of_them_are_refused():
    values = np.random.default_rng(0).normal(size=(200, 3))
    with pytest.raises(DataError, match="2 images do not say"):
        concept_of(latent(values), LABELS, np.array([1, 2]))
    with pytest.raises(DataError, match="none are left"):
        concept_of(latent(values), LABELS, np.arange(100))


# Odd filters.


def test_the_filter_that_serves_other_images_is_the_oddest():
    rng = np.random.default_rng(0)
    common = rng.random((200, 1))
    relevance = common * rng.random(12) + 0.05 * rng.random((200, 12))
    relevance[:, 3] = rng.random(200) * (np.arange(200) < 20)  # what only a few images have
    relevance[:, 8] = 0
    found = odd_filters(
        Latent(("layer",), {}, {}, {"layer": relevance}, np.zeros((200, 2))), neighbours=2
    )["layer"].numpy()
    assert found.argmax() == 3
    assert found[8] == found.min()
    # Its definition, unit by unit.
    alive = [k for k in range(12) if k != 8]
    distances = []
    for a in alive:
        cosines = [
            relevance[:, a]
            @ relevance[:, b]
            / np.linalg.norm(relevance[:, a])
            / np.linalg.norm(relevance[:, b])
            for b in alive
            if b != a
        ]
        distances.append(np.mean(sorted(1 - c for c in cosines)[:2]))
    off = np.array(distances) - np.median(distances)
    assert found[alive] == pytest.approx(off / np.median(np.abs(off)))


# Candidates.


@pytest.fixture(scope="module")
def marked(tiles):
    """A mark on a third of the tumour tiles, and a network that goes by it."""
    planted = plant(tiles.pixels, tiles.labels, "square", on=1, share=0.35, seed=1)
    return tiles.images(pixels=planted.pixels), planted.chosen


@pytest.fixture(scope="module")
def found(marked):
    return audit(Coloured(), marked[0], questions=["position"])


def test_images_that_another_channel_decides_are_a_candidate(marked, found):
    shares = {
        candidate.name: marked[1][list(candidate.positions[: candidate.count])].mean()
        for candidate in found.candidates
    }
    assert shares["tumour 1"] > 0.9
    ranked = np.array(found.candidates[[*shares].index("tumour 1")].positions)
    assert roc_auc_score(marked[1][ranked], -np.arange(len(ranked))) > 0.95
    told = found.to_json()["candidates"][0]
    assert {"name", "class", "layer", "images", "strip"} <= set(told)


def test_a_network_without_channels_has_no_candidates(tiles):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 64 * 64, 2)).eval()
    found = audit(model, tiles.images(), method="gradient", questions=["position"])
    assert found.candidates == ()


# Confirmed.


def answers(path, found, accepted):
    """Fill the table in as a person would."""
    write_candidates(path, found.candidates, found.material)
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert len(rows) <= 20 * len(found.candidates)
    for row in rows:
        of_candidate = row["candidate"] == "tumour 1"
        row["accept"] = "yes" if of_candidate and accepted[int(row["image"])] else "no"
    lines = ["candidate,image,accept", *(",".join(row.values()) for row in rows)]
    path.write_text("\n".join(lines))
    return read_confirmed(path)


def test_what_a_person_accepts_is_retrieved_and_tried(marked, found, tmp_path):
    confirmed = answers(tmp_path / "candidates.csv", found, marked[1])
    again = audit(Coloured(), marked[0], questions=["confirmed"], confirmed=confirmed)
    (finding,) = again.flagged
    assert finding.key == "confirmed/tumour/tumour 1"
    # Nearly all images that have the mark, and hardly any other, are retrieved.
    has = np.flatnonzero(marked[1])
    assert len(np.intersect1d(finding.having, has)) > 0.7 * len(has)
    assert len(np.setdiff1d(finding.having, has)) < 0.2 * len(has)
    assert finding.cause.flips > finding.cause.control_flips + 0.3


def test_what_a_network_does_not_go_by_is_answered_by_no(marked, found, tmp_path):
    confirmed = answers(tmp_path / "candidates.csv", found, marked[1])
    dark = looking(torch.full((64, 64), 1e-3))  # knows nothing of colours
    with torch.no_grad():
        outputs = gather(dark, marked[0], method="gradient").outputs[:, 1]
        cut = float(np.median(outputs))
        dark.fc.bias.copy_(torch.tensor([cut, -cut]))
    again = audit(dark, marked[0], questions=["confirmed"], confirmed=confirmed)
    assert not again.flagged


def test_few_confirmed_images_are_too_few(marked):
    has = np.flatnonzero(marked[1])[:4].tolist()
    found = audit(Coloured(), marked[0], questions=["confirmed"], confirmed={"mark": has})
    assert "Accept 6 images" in found.findings[0].note
    with pytest.raises(DataError, match="of the 2 images accepted as 'mark', 2 are among"):
        audit(Coloured(), marked[0], questions=["confirmed"], confirmed={"mark": has[:2]})
    assert places_of(found.material, {"mark": has})["mark"].tolist() == has


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("candidate,image\na,b\n", "lacks one of the columns"),
        ("candidate,image,accept\na,b,maybe\n", "row 2: accept is 'maybe'"),
        ("candidate,image,accept\na,b,no\na,c,\n", "accepts no image"),
    ],
)
def test_a_table_that_cannot_be_read_says_why(tmp_path, text, message):
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_confirmed(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_confirmed(tmp_path / "none.csv")


# Pruning.


def test_odd_filters_are_an_order_to_prune_in(tiles):
    torch.manual_seed(0)
    model = zoo.tissue_net().eval()
    material = gather(model, tiles.images(), method="gradient", limit=40)
    scores = odd_filters(latent_of(material))
    inputs, labels = material.inputs[:], torch.from_numpy(material.labels)
    marked = (inputs[:10], labels[:10], np.ones((10, 64, 64), bool))
    made = prune_artefact(
        model, marked, inputs[:10] * 0.9, (inputs[10:], labels[10:]), scores=scores, tolerance=1
    )
    assert made.scores is scores
    gone = {(r.layer, c) for r in made.removals for c in r.channels}
    assert all(scores[layer][channel] > 0 for layer, channel in gone)
    assert len(find_candidates(material, latent_of(material))) == 0  # too few images of a class


class Lossy(torch.nn.Module):
    """A layer whose outputs have no positive contribution, which the z-plus rule cannot pass."""

    def __init__(self):
        super().__init__()
        self.start = torch.nn.Conv2d(3, 4, 1)
        self.first = torch.nn.Conv2d(4, 4, 1)
        self.last = torch.nn.Linear(4, 2)
        with torch.no_grad():
            for layer, sign in ((self.start, 1), (self.first, -1)):
                layer.weight.copy_(sign * layer.weight.abs())
                layer.bias.zero_()
            self.start.bias.fill_(200.0)  # its outputs are positive
        self.eval()

    def forward(self, x):
        return self.last(self.first(torch.relu(self.start(x))).mean((2, 3)))


def test_a_network_inside_of_which_relevance_gets_lost_is_told():
    tiles = draw_tissue(60, seed=4)
    with (
        pytest.warns(NearChanceWarning),
        pytest.warns(LeftOutWarning, match=r"no candidates are shown.*% of the relevance of most"),
    ):
        found = audit(Lossy(), tiles.images(), method="gradient", questions=["quality"])
    assert found.candidates == ()


def test_a_network_without_an_inside_has_no_candidates_and_no_warning():
    tiles = draw_tissue(60, seed=4)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 64 * 64, 2)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NearChanceWarning)
        warnings.simplefilter("error", LeftOutWarning)
        assert audit(model, tiles.images(), questions=["quality"]).candidates == ()
