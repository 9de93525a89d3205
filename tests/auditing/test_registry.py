"""What holds for every question that is registered, those of a user included."""

import re

import numpy as np
import pytest
import torch
from audit_networks import Coloured, looking

from niwaki.auditing import (
    Evidence,
    Finding,
    _question,
    audit,
    describe_question,
    examine,
    find_strategies,
    gather,
    gather_training,
    question,
    question_names,
)
from niwaki.auditing._question import choose, generator_of
from niwaki.data import Described
from niwaki.datasets import draw_tissue, plant
from niwaki.errors import DataError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def evidence():
    """Images with a mark that a network looks at, a region, and training images without it."""
    tiles = draw_tissue(120, seed=5)
    marked = plant(tiles.pixels, tiles.labels, "square", on=1, share=0.6, seed=1)
    centres = np.random.default_rng(0).permutation(np.repeat(["left", "right"], 60))
    images = Described(
        tiles.images(pixels=marked.pixels), regions={"mark": marked.mask}, centres=centres
    )
    material = gather(Coloured(), images, method="lrp.epsilon")
    learned = gather_training(material, draw_tissue(120, seed=6).images())
    accepted = np.flatnonzero(marked.chosen)[:10]
    strategies = tuple(find_strategies(material))
    return Evidence(material, strategies, learned, {"mark": accepted})


@pytest.fixture(scope="module")
def every(evidence):
    return examine(
        evidence.material,
        training=evidence.training,
        confirmed={name: found.tolist() for name, found in evidence.confirmed.items()},
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", question_names())
def test_every_question_finds_what_stands_on_its_own(name, evidence, every):
    (chosen,) = choose([name])
    found = list(chosen.find(evidence, generator_of(name, 0)))
    assert found, "it has nothing to say although all that it needs is there"
    assert describe_question(name).endswith("?")
    names = evidence.material.class_names
    for finding in found:
        who = names[finding.label]
        assert finding.key.startswith(f"{name}/{who}/")
        assert who in finding.title
        assert repr(who) in finding.question
        assert finding.question.endswith("?")
        assert 0 < finding.p_seen <= 1
        assert len(finding.evidence()) >= 2
        assert all(evidence.material.labels[list(finding.examples)] == finding.label)
        for place in range(len(finding.examples)):
            outline = finding.outline(place)
            assert outline is None or outline.shape == (64, 64)
        if finding.cause is not None:
            assert finding.sentence
            assert finding.advice
            assert finding.suspicious()
            assert finding.to_json()["cause"]["kind"] in ("change", "errors")
            assert len(finding.evidence()) >= 3
    assert len({finding.key for finding in found}) == len(found)
    # The same as among all questions: what else is asked changes nothing but the correction.
    for finding in found:
        other = every.get(finding.key)
        assert (other.p_seen, other.effect) == (finding.p_seen, finding.effect)
        assert other.cause == finding.cause
        assert finding.p_both <= other.p


def test_p_values_are_corrected_for_the_questions_that_are_asked(evidence, every):
    few = examine(evidence.material, training=evidence.training, questions=["colour", "region"])
    assert {finding.key.split("/")[0] for finding in few.findings} == {"colour", "region"}
    finding = few.get("region/tumour/mark")
    assert finding.flagged
    assert finding.p < every.get(finding.key).p


def test_a_question_of_ones_own_is_asked_like_the_others(tiles, monkeypatch):
    monkeypatch.setattr(_question, "_CATALOGUE", dict(_question._CATALOGUE))

    @question("brightness", "Does the network know a class by how bright its images are?")
    def find_brightness(evidence, rng):
        material = evidence.material
        for label in material.classes():
            who = material.class_names[label]
            yield Finding(
                key=f"brightness/{who}/mean",
                title=f"brightness (class {who})",
                question=f"Does the network know images of class {who!r} by their brightness?",
                label=label,
                effect=1.0,
                effect_name="brightness, in multiples of the other classes'",
                smallest=1.5,
                p_seen=float(rng.uniform()),
            )

    assert "brightness" in question_names()
    model = looking(torch.full((64, 64), 0.002))
    found = audit(model, tiles.images(), limit=40, questions=["brightness", "position"])
    assert {f.key.split("/")[0] for f in found.findings} == {"brightness", "position"}
    assert found.get("brightness/tumour/mean").title == "brightness (class tumour)"
    assert find_brightness(Evidence(found.material), np.random.default_rng(0)) is not None


@pytest.mark.parametrize(
    ("chosen", "told"),
    [
        (
            ["positoin"],
            r"no question 'positoin'; did you mean position or region\? All: centre,",
        ),
        ([], "no question is chosen; there are centre, colour, confirmed, position"),
    ],
)
def test_questions_that_do_not_exist_are_refused_before_any_work(tiles, chosen, told):
    model = looking(torch.full((64, 64), 0.002))
    model.register_forward_hook(lambda *_: pytest.fail("work was done"))
    with pytest.raises(ValueError, match=told):
        audit(model, tiles.images(), questions=chosen)


def test_what_is_known_of_images_comes_from_the_data_or_what_describes_them(tiles):
    images = tiles.images()
    plain = Described(images)
    assert plain.preprocessing == images.preprocessing
    assert plain.classes == images.classes
    assert plain.targets == images.targets
    assert plain.groups is None
    assert plain.regions == {}
    twice = Described(Described(images, groups=range(200)), class_names=["a", "b"])
    assert twice.groups.tolist() == list(range(200))
    assert twice.classes == ["a", "b"]
    assert twice[3][1] == images[3][1]
    with pytest.raises(DataError, match=re.escape("groups has 2 entries for 200 images")):
        Described(images, groups=["one", "other"])
