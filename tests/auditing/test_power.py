"""What could have been found: stated effects against brute force, planted marks, and no effect."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from audit_networks import Coloured

from niwaki.auditing import (
    ANSWERS,
    MATTERS,
    Power,
    audit,
    examine,
    gather,
    group_test,
    sign_test,
)
from niwaki.auditing._interventions import TRIED
from niwaki.auditing._outliers import FEWEST, RARE, SMALLEST, share_of_outliers
from niwaki.auditing._power import (
    RATIO,
    Exchanged,
    Tries,
    of_errors,
    of_group,
    of_mark,
    of_place,
    of_property,
)
from niwaki.auditing._statistics import Exchange, shifted
from niwaki.datasets import draw_tissue, plant
from niwaki.models import zoo

LEVEL = 0.05 / 26
RUNS = 50
LEAST = 1.5


def spots(rng, count, zone=None):
    """Heatmaps of one bright pixel each, anywhere or in a zone, on a faint ground."""
    maps = np.full((count, 16, 16), 1e-3)
    places = np.argwhere(np.ones((16, 16), bool) if zone is None else zone)
    chosen = places[rng.integers(0, len(places), count)]
    maps[np.arange(count), chosen[:, 0], chosen[:, 1]] = 1
    return maps


def behaviour(rng, count):
    """Margins of a good network, and what unrelated changes do to them."""
    margins = rng.normal(1.5, 1.0, count)
    unrelated = rng.normal(0.1, 0.4, (count, 4))
    return margins, np.stack([unrelated[:, 0], unrelated[:, 1:].mean(1)], 1)


def is_found(margins, changed, having, rng):
    """What a question makes of images, having counted: the rules written out again."""
    fall = np.where(having, np.abs(margins), changed[:, 0])
    right = margins > 0
    return (
        sign_test(fall - changed[:, 1], rng) < LEVEL
        and fall.mean() >= RATIO * max(changed[:, 1].mean(), 1e-9)
        and (having & right).sum() >= ANSWERS * right.sum()
    )


@pytest.mark.parametrize("count", [40, 150])
def test_the_stated_effect_at_a_place_is_found_in_four_of_five_samples(count):
    zone = np.zeros((16, 16), bool)
    zone[5:11, 5:11] = True
    rng = np.random.default_rng(count)
    margins, changed = behaviour(rng, count)
    shifts = shifted(spots(rng, count), zone, rng)
    stated = of_place(shifts, LEAST, Tries(margins, changed), TRIED).smallest(LEVEL)
    assert 0.05 < stated < 0.6
    found = 0
    for seed in range(RUNS):
        draw = np.random.default_rng([seed, count])
        having = draw.random(count) < stated
        maps = np.where(having[:, None, None], spots(draw, count, zone) - 1e-3, spots(draw, count))
        seen = shifted(maps, zone, draw)
        again = draw.integers(0, count, count)
        found += (
            seen.p < LEVEL
            and seen.share >= LEAST * seen.expected
            and is_found(margins[again], changed[draw.permutation(count)], having, draw)
        )
    assert 0.65 <= found / RUNS <= 0.93


def test_the_stated_effect_of_a_mark_is_found_in_four_of_five_samples():
    rng = np.random.default_rng(0)
    margins, changed = behaviour(rng, 80)
    stated = of_mark(80, 5, Tries(margins, changed), TRIED).smallest(LEVEL)
    assert 0.1 < stated < 0.4
    found = 0
    for seed in range(2 * RUNS):
        draw = np.random.default_rng(seed)
        marked = draw.binomial(80, stated)
        again = draw.integers(0, 80, marked)
        every = np.ones(marked, bool)
        found += marked >= 5 and is_found(margins[again], changed[again], every, draw)
    assert 0.68 <= found / (2 * RUNS) <= 0.92


@pytest.mark.parametrize("grouped", [False, True])
def test_the_stated_number_of_outliers_is_found_in_four_of_five_samples(grouped):
    is_class = np.arange(120) % 2 == 1
    groups = np.arange(120) // 10 if grouped else np.arange(120)
    exchanged = Exchanged(is_class, groups)
    stated = Power(60, exchanged.chance).smallest(LEVEL)
    assert 0.05 < stated < 0.3
    exchange, found = Exchange(is_class.astype(int), groups), 0
    drawn = [exchange.draw(np.random.default_rng(99 + n)) == 1 for n in range(2000)]
    for seed in range(RUNS):
        draw = np.random.default_rng(seed)
        values = draw.normal(size=120) + 100 * (is_class & (draw.random(120) < stated))
        share, beyond = share_of_outliers(lambda _, values=values: values, is_class)
        null = [share_of_outliers(lambda _, v=values: v, one)[0] for one in drawn[:2000]]
        p = (1 + np.sum(np.array(null) >= share - 1e-12)) / 2001
        found += p < LEVEL and share >= RARE * SMALLEST and beyond.sum() >= FEWEST
    assert 0.62 <= found / RUNS <= 0.95


def test_the_stated_errors_are_found_in_four_of_five_samples():
    is_new = np.arange(160) >= 80
    power = of_errors(Exchanged(is_new, np.arange(160)), 0.1, 80, 0.05)
    stated = power.smallest(LEVEL)
    assert 0.05 < stated < 0.5
    found = 0
    for seed in range(RUNS):
        draw = np.random.default_rng(seed)
        unlike = draw.random(80) < stated
        wrong = np.where(unlike, True, draw.random(80) < 0.1).astype(float)
        seen = Power(80, Exchanged(is_new, np.arange(160)).chance).chance(unlike.sum(), LEVEL)
        found += seen * (group_test(wrong, unlike, draw, 2000) < LEVEL)
    assert 0.62 <= found / RUNS <= 0.97


def test_more_images_show_smaller_things_and_too_few_show_none():
    rng = np.random.default_rng(0)
    zone = np.zeros((16, 16), bool)
    zone[:4, :4] = True
    stated = {}
    for count in (5, 10, 30, 100, 400):
        tries = Tries(*behaviour(rng, count))
        shifts = shifted(spots(rng, count), zone, rng)
        stated[count] = of_place(shifts, LEAST, tries, TRIED).smallest(LEVEL)
    assert stated[5] is None
    assert stated[10] is None or stated[10] > MATTERS
    assert stated[30] > stated[100] > stated[400]
    assert stated[400] < 0.15
    assert of_group(100, 10).smallest(LEVEL) < 0.1
    assert of_group(12, 10).smallest(LEVEL) is None
    tries = Tries(*behaviour(rng, 3))
    assert of_property(Exchanged(np.arange(60) % 20 > 0, np.arange(60)), tries, 9).images == 57


def test_one_slide_for_each_class_is_too_few():
    is_class = np.arange(200) < 100
    assert Power(100, Exchanged(is_class, is_class.astype(int)).chance).smallest(LEVEL) is None
    assert Power(0, lambda *_: 1.0).smallest(LEVEL) is None


def test_the_same_images_give_the_same_statement():
    rng = np.random.default_rng(0)
    behaved = behaviour(rng, 50)
    first, again = (of_mark(50, 5, Tries(*behaved), TRIED).smallest(LEVEL) for _ in range(2))
    assert first == again
    power = of_mark(50, 5, Tries(*behaved), TRIED)
    assert power.at(first, LEVEL) == pytest.approx(0.8, abs=0.01)
    assert power.smallest(LEVEL / 3) > first


# Whole audits


def marked(count, seed, share=0.6):
    tiles = draw_tissue(count, seed=seed)
    planted = plant(tiles.pixels, tiles.labels, "square", on=1, share=share, seed=seed)
    return tiles.images(pixels=planted.pixels)


@pytest.mark.slow
@pytest.mark.parametrize("count", [20, 60, 200])
def test_a_planted_mark_is_found_or_the_images_are_said_to_be_too_few(count):
    questions = ["colour", "position", "quality"]
    found = audit(Coloured(), marked(count, 5), method="lrp.epsilon", questions=questions)
    finding = found.get("colour/tumour/foreign")
    if count == 20:
        assert finding.answer == "too few images"
        assert finding.detectable is None or finding.detectable > 0.6
        assert found.verdict == "too few images"
        assert "Too few images for 20 questions" in str(found)
        assert "Suspicious, and worth more images: " in str(found)
    else:
        assert finding.answer == "yes"
        assert finding.detectable < 0.6
        assert found.verdict == "found"
    for other in found.findings:
        told = other.to_json()
        assert told["answer"] == other.answer
        assert told["could_show"]
        if other.answer == "no":
            assert other.detectable <= MATTERS
            assert f"{other.detectable:.0%} of them or more" in other.could_show()


def test_a_change_that_changes_no_answer_is_no_finding(tiles):
    planted = plant(tiles.pixels, tiles.labels, "square", on=1, share=0.6, seed=1)
    found = audit(
        Coloured(),
        tiles.images(pixels=planted.pixels),
        method="lrp.epsilon",
        questions=["colour"],
    )
    finding = found.get("colour/tumour/foreign")
    assert finding.flagged
    same, kept = (
        replace(tried, flips=tried.control_flips + ANSWERS / 2)
        for tried in (finding.cause, finding.spread)
    )
    assert not replace(finding, cause=same, spread=kept).flagged
    assert replace(finding, spread=kept).flagged
    assert replace(finding, cause=same).flagged  # on images of other classes it makes an answer
    assert not replace(finding, cause=same, spread=replace(finding.spread, p=0.2)).flagged
    assert not replace(finding, reliable=False).flagged
    assert replace(finding, reliable=False).answer == "unreliable"
    assert replace(finding, cause=same, spread=kept, power=None).answer == "no"
    assert "does not say" in replace(finding, power=None).could_show()


@pytest.mark.slow
def test_the_same_pixels_and_images_are_one_finding_with_echoes(tiles):
    planted = plant(tiles.pixels, tiles.labels, "square", on=1, share=0.6, seed=1)
    found = audit(Coloured(), tiles.images(pixels=planted.pixels), method="lrp.epsilon")
    assert len(found.flagged) > len(found.distinct) == 1
    echoes = found.echoes(found.distinct[0])
    assert {*found.distinct, *echoes} == set(found.flagged)
    assert "of the same cause: " in str(found)
    told = found.to_json()
    assert told["distinct"] == [found.distinct[0].key]
    assert {f["echo_of"] for f in told["findings"] if f["flagged"]} == {None, told["distinct"][0]}


@pytest.mark.long
def test_the_effect_that_an_audit_states_is_found_in_four_of_five_audits():
    questions, count = ["colour", "position", "quality"], 60
    options = {"method": "lrp.epsilon", "questions": questions}
    stated = audit(Coloured(), marked(count, 5), **options).get("colour/tumour/foreign").detectable
    found = 0
    for seed in range(RUNS):
        share = np.random.default_rng(seed).binomial(count // 2, stated) / (count // 2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            finding = audit(Coloured(), marked(count, 100 + seed, share), **options).get(
                "colour/tumour/foreign"
            )
        found += replace(finding, reliable=True).flagged
    assert 0.65 <= found / RUNS <= 0.95


@pytest.mark.long
def test_exchanged_labels_give_hardly_any_finding_and_no_lack_of_images():
    material = gather(Coloured(), marked(200, 5), method="lrp.epsilon")
    flagged = 0
    for seed in range(40):
        labels = np.random.default_rng(seed).permutation(material.labels)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = examine(replace(material, labels=labels), seed=seed)
        answers = [replace(finding, reliable=True).answer for finding in found.findings]
        flagged += "yes" in answers
        assert "too few images" not in answers
        assert not found.flagged
    assert flagged <= 5  # of 40 with a probability of 5 % each, more than 5 have 1.4 %


@pytest.mark.long
@pytest.mark.parametrize("seed", range(10))
def test_untrained_networks_get_no_finding(seed):
    torch.manual_seed(seed)
    model = zoo.tissue_net().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = audit(model, draw_tissue(200, seed=11).images())
    assert found.flagged == ()
    assert found.verdict != "nothing found" or not found.caution
    if found.caution:
        assert found.verdict == "unreliable"
        assert {finding.answer for finding in found.findings} == {"unreliable"}
        assert str(found).startswith("CAUTION")
