"""Properties of whole images: which images of a class have them, and what chance gives."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from niwaki.auditing import Evidence, audit, foreign, gather
from niwaki.auditing._finding import decide
from niwaki.auditing._image_properties import PROPERTIES, _compressed, _tint_alike, is_even, tint
from niwaki.auditing._outliers import outlier_score, share_of_outliers
from niwaki.auditing._statistics import Exchange
from niwaki.auditing.questions import find_qualities
from niwaki.data import Described, Images
from niwaki.datasets import TISSUE, draw_tissue, plant
from niwaki.errors import DataError

pytestmark = pytest.mark.slow


def tensor(pixels):
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255


def images_of(pixels, labels):
    return Images.of_pixels(pixels, list(labels), ["normal", "tumour"], TISSUE)


def asked(model, images, groups=None):
    """Ask the questions about whole images only."""
    material = gather(model, Described(images, groups=groups), method="gradient")
    found = decide(list(find_qualities(Evidence(material), np.random.default_rng(0))))
    return {finding.key: finding for finding in found}


@pytest.fixture(scope="module")
def tiles():
    drawn = draw_tissue(400, seed=7)
    return drawn.pixels, drawn.labels


class Bluish(nn.Module):
    """Says tumour where little blue is taken away, and much red: what the stain shift does."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Conv2d(3, 2, 1, bias=False)
        with torch.no_grad():
            self.mix.weight.zero_()
            self.mix.weight[1, 2], self.mix.weight[1, 0] = 8.0, -8.0
        self.eval()

    def forward(self, x):
        return self.mix(x).mean((2, 3)) - torch.tensor([0.0, 4.0])


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
@pytest.mark.parametrize(
    ("artefact", "name"), [("blur", "sharpness"), ("jpeg", "compression"), ("stain", "tint")]
)
@pytest.mark.parametrize("label", [0, 1])
def test_images_with_the_property_are_found_and_others_are_not(tiles, artefact, name, share, label):
    pixels, labels = tiles
    planted = plant(pixels, labels, artefact, on=label, share=share, seed=1)
    score = outlier_score(PROPERTIES[name].measure(tensor(planted.pixels)))
    found, beyond = share_of_outliers(score, labels == label)
    assert (planted.chosen & beyond).sum() > 0.6 * planted.chosen.sum()
    assert (beyond & ~planted.chosen).sum() < 0.08 * (labels == label).sum()
    assert found == beyond.sum() / (labels == label).sum()


@pytest.mark.parametrize(("count", "share"), [(40, 0.5), (150, 0.93)])
def test_how_far_images_are_off_is_the_distance_to_the_fifth_nearest_of_the_others(count, share):
    rng = np.random.default_rng(0)
    values, is_class = rng.normal(size=(count, 2)), rng.random(count) < share
    away = outlier_score(values)(~is_class)
    for index in range(count):
        others = [j for j in range(count) if not is_class[j] and j != index]
        distances = sorted(np.linalg.norm(values[index] - values[j]) for j in others)
        assert away[index] == pytest.approx(distances[4])


def test_rare_is_what_two_images_in_a_hundred_of_the_others_have():
    values = np.concatenate([np.arange(200), [195.5, 196.5, 250, 0, 0]])
    is_class = np.arange(205) >= 200
    share, beyond = share_of_outliers(outlier_score(values), is_class)
    assert share == pytest.approx(2 / 5)  # beyond 196, as 3 of the 200 others are
    assert values[beyond].tolist() == [196.5, 250]


@pytest.mark.slow
def test_a_tenth_of_a_class_is_enough_for_a_network_to_be_told(tiles):
    pixels, labels = tiles
    stained = plant(pixels, labels, "stain", on=1, share=0.12, seed=1)
    found = audit(Bluish(), images_of(stained.pixels, labels), method="gradient")
    assert "quality/tumour/tint" in [finding.key for finding in found.flagged]
    finding = found.get("quality/tumour/tint")
    assert "%" in finding.sentence
    assert finding.numbers["share_of_class"] == pytest.approx(0.12, abs=0.06)
    assert (labels[list(finding.examples + finding.ordinary)] == 1).all()
    assert stained.chosen[list(finding.examples)].mean() > 0.7
    assert not stained.chosen[list(finding.ordinary)].any()
    assert finding.cause.drop > finding.smallest_drop > 0
    assert not replace(finding, smallest_drop=2 * finding.cause.drop).flagged
    clean = asked(Bluish(), images_of(pixels, labels))
    assert not [key for key, f in clean.items() if f.flagged]


def test_a_network_that_does_not_look_at_blue_and_red_is_not_told(tiles):
    pixels, labels = tiles
    model = Bluish()
    with torch.no_grad():
        model.mix.weight.zero_()
        model.mix.weight[1, 1] = -1.0  # green, which the shift leaves as it is
    stained = plant(pixels, labels, "stain", on=1, share=0.5, seed=1).pixels
    finding = asked(model, images_of(stained, labels))["quality/tumour/tint"]
    assert finding.effect > 20
    assert not finding.flagged


def test_the_tint_that_is_given_is_that_of_the_scanner(tiles):
    """Images that are given it look as if they had been stained, far more than they did before."""
    pixels, labels = tiles
    stained = plant(pixels, labels, "stain", on=1, share=0.5, seed=1)
    truth = tensor(plant(pixels, labels, "stain", on=0, share=1.0, seed=2).pixels[labels == 0])
    plain = tensor(pixels[labels == 0])
    has = torch.as_tensor(stained.chosen)
    own = tensor(stained.pixels)
    rest = own[~has & torch.as_tensor(labels == 1)]
    given, unrelated = _tint_alike(own[has], rest, plain, np.random.default_rng(0))
    before, after = ((images - truth).abs().mean() for images in (plain, given))
    assert after < 0.5 * before
    size = (given - plain).abs().mean()
    assert all(
        (images - plain).abs().mean() == pytest.approx(size.item(), rel=0.5) for images in unrelated
    )


def test_blur_and_compression_are_given_as_strongly_as_images_have_them(tiles):
    pixels, labels = tiles
    plain, rng = tensor(pixels[labels == 0]), np.random.default_rng(0)
    for name, change in (
        (
            "sharpness",
            lambda p: tensor(plant(p, np.ones(len(p), int), "blur", on=1, share=1.0).pixels),
        ),
        ("compression", lambda p: _compressed(tensor(p), 20)),
    ):
        quality = PROPERTIES[name]
        having = change(pixels[labels == 1][:60])
        given, _ = quality.give(having, having, plain, rng)
        goal, before, after = (np.median(quality.measure(p)) for p in (having, plain, given))
        assert abs(after - goal) < 0.25 * abs(before - goal), name


def test_a_scanner_changes_light_and_dark_alike_and_what_is_shown_does_not(tiles):
    pixels, labels = tiles
    tumour = pixels[labels == 1]
    half = len(tumour) // 2
    rest = tensor(tumour[half:])
    ones = np.ones(half, int)
    stained = tensor(plant(tumour[:half], ones, "stain", on=1, share=1.0, seed=1).pixels)
    assert is_even(stained, rest, 0.5)
    # Other nuclei: only what is dark has another hue.
    own = tensor(tumour[:half])
    dark = own.amax(1, keepdim=True) < own.amax(1).flatten(1).quantile(0.15, 1)[:, None, None, None]
    density = -own.clamp(1 / 255).log() * torch.tensor([1.18, 1.0, 0.8])[:, None, None]
    assert not is_even(torch.where(dark, (-density).exp(), own), rest, 0.5)


@pytest.mark.slow
def test_a_hue_of_what_is_shown_is_not_tried_and_the_audit_says_why(tiles):
    """Nuclei of half of the tumour tiles are of another colour, and nothing else is."""
    pixels, labels = tiles
    own = tensor(pixels)
    dark = own.amax(1, keepdim=True) < own.amax(1).flatten(1).quantile(0.15, 1)[:, None, None, None]
    density = -own.clamp(1 / 255).log() * torch.tensor([1.18, 1.0, 0.8])[:, None, None]
    other = torch.as_tensor((labels == 1) & (np.arange(len(labels)) % 4 < 2))[:, None, None, None]
    shown = torch.where(dark & other, (-density).exp(), own)
    changed = (255 * shown.permute(0, 2, 3, 1)).round().byte().numpy()
    finding = asked(Bluish(), images_of(changed, labels))["quality/tumour/tint"]
    assert finding.suspicious()
    assert finding.cause is None
    assert not finding.flagged
    assert "Not tried" in finding.note


def test_images_of_one_class_are_refused(tiles):
    pixels = tiles[0][tiles[1] == 1][:40]
    with pytest.raises(DataError, match="of one class"):
        audit(Bluish(), images_of(pixels, [1] * len(pixels)), method="gradient", seed=0)


@pytest.mark.parametrize("ones", [1, 2, 4])
def test_a_class_of_a_few_images_is_asked_and_not_flagged(tiles, ones):
    pixels, labels = tiles
    kept = np.concatenate([np.flatnonzero(labels == 0)[:30], np.flatnonzero(labels == 1)[:ones]])
    found = asked(Bluish(), images_of(pixels[kept], labels[kept]))
    assert len(found) == 6
    assert not [key for key, f in found.items() if f.flagged and key.startswith("quality/tumour")]


# Groups


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5)), min_size=1, max_size=40),
    st.integers(0, 99),
)
def test_labels_are_exchanged_within_groups_and_between_groups_of_one_class(pairs, seed):
    labels, groups = (np.array(column) for column in zip(*pairs, strict=True))
    drawn = Exchange(labels, groups).draw(np.random.default_rng(seed))
    classes = {g: np.unique(labels[groups == g]) for g in np.unique(groups)}
    pure_before, pure_after = [], []
    for group, had in classes.items():
        now = drawn[groups == group]
        if len(had) > 1:
            assert sorted(now) == sorted(labels[groups == group])
        else:
            assert len(np.unique(now)) == 1
            pure_before.append(had[0])
            pure_after.append(now[0])
    assert sorted(pure_before) == sorted(pure_after)


def test_without_groups_labels_are_exchanged_freely():
    labels = np.arange(6)
    exchange, rng = Exchange(labels, np.arange(6)), np.random.default_rng(0)
    where = np.array([exchange.draw(rng) for _ in range(3000)])
    counts = np.stack([(where == label).mean(0) for label in labels])
    assert counts == pytest.approx(np.full((6, 6), 1 / 6), abs=0.035)


def slides_of_one_class(rng, per_slide=20, slides=8):
    """Images whose hue is their slide's, and slides whose class is drawn."""
    of_slide = np.repeat(np.arange(slides), per_slide)
    classes = rng.permutation(np.arange(slides) % 2)
    hue = rng.normal(size=(slides, 2))[of_slide] + 0.1 * rng.normal(size=(len(of_slide), 2))
    return hue, classes[of_slide], of_slide


def alarms(with_slides, draws=60):
    found = []
    for seed in range(draws):
        rng = np.random.default_rng(seed)
        values, labels, slides = slides_of_one_class(rng)
        exchange = Exchange(labels, slides if with_slides else np.arange(len(labels)))
        score = outlier_score(values)
        share = share_of_outliers(score, labels == 1)[0]
        null = [share_of_outliers(score, exchange.draw(rng) == 1)[0] for _ in range(99)]
        found.append((1 + np.sum(np.array(null) >= share)) / 100 <= 0.05)
    return np.mean(found)


def test_what_is_a_slides_is_not_taken_for_its_classs():
    """The level is kept when slides are known; without them nearly all are false alarms."""
    assert alarms(with_slides=True) <= 0.1
    assert alarms(with_slides=False) > 0.5


@pytest.mark.long
def test_an_audit_knows_slides(tiles):
    pixels, labels = tiles
    stained = plant(pixels, labels, "stain", on=1, share=1.0, seed=1).pixels
    data = images_of(stained, labels)
    assert asked(Bluish(), data)["quality/tumour/tint"].flagged
    # One slide for each class: whether it is the slide's or the class's, nobody can tell.
    slides = ["a" if label else "b" for label in labels]
    bound = asked(Bluish(), data, groups=slides)["quality/tumour/tint"]
    assert not bound.flagged
    assert bound.p_seen > 0.4
    # Slides with both classes in them can.
    slides = np.arange(len(labels)) // 20
    assert asked(Bluish(), data, groups=slides)["quality/tumour/tint"].flagged


def test_groups_of_another_number_are_refused(tiles):
    pixels, labels = tiles
    with pytest.raises(DataError, match="groups has 3 entries for 400 images"):
        Described(images_of(pixels, labels), groups=[1, 2, 3])


@pytest.mark.slow
def test_chance_does_not_depend_on_what_was_asked_before(tiles):
    pixels, labels = tiles
    stained = plant(pixels, labels, "stain", on=1, share=0.3, seed=1).pixels
    material = gather(Bluish(), images_of(stained, labels), method="gradient")
    first, again = (
        list(find_qualities(Evidence(material), np.random.default_rng(3))) for _ in range(2)
    )
    assert [f.p_seen for f in first] == [f.p_seen for f in again]
    assert all(0 < f.p_seen <= 1 for f in first)


# Colours of one class


def test_the_palest_of_what_all_classes_have_is_no_colour_of_its_own():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 30)
    level = rng.uniform(0.4, 0.7, (60, 1, 1, 1)) + (labels * 0.05)[:, None, None, None]
    pixels = level * np.array([1.0, 0.7, 0.8])[:, None, None] + 0.02 * rng.normal(
        size=(60, 3, 32, 32)
    )
    pixels = torch.as_tensor(pixels.clip(0, 1), dtype=torch.float32)
    assert not foreign(pixels, labels, 1).any()
    marked = pixels.clone()
    marked[labels == 1, :, 4:9, 4:9] = torch.tensor([0.9, 0.8, 0.2])[:, None, None]
    found = foreign(marked, labels, 1)
    assert found[:, 5:8, 5:8].all()
    assert not found[:, 12:].any()


def test_tint_sees_the_hue_and_not_the_amount():
    rng = np.random.default_rng(0)
    density = rng.uniform(0.2, 0.8, (8, 3, 16, 16))
    hue = tint(torch.as_tensor(np.exp(-density)))
    thicker = tint(torch.as_tensor(np.exp(-1.3 * density)))
    assert thicker == pytest.approx(hue, abs=1e-6)
    factors = np.array([1.2, 1.0, 0.9])[:, None, None]
    shifted = tint(torch.as_tensor(np.exp(-0.6 * density.mean(1, keepdims=True) * factors)))
    assert shifted == pytest.approx(np.tile(np.log([1.2, 0.9]), (8, 1)), abs=1e-6)
