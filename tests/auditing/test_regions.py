"""Marked regions as questions: what the network reads is flagged, what it does not read is not."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from audit_networks import Coloured, looking

from niwaki.auditing import Evidence, audit, gather
from niwaki.auditing.questions import find_regions
from niwaki.data import Described
from niwaki.datasets import plant
from niwaki.errors import DataError
from niwaki.report import write_audit


@pytest.fixture(scope="module")
def marked(tiles):
    return plant(tiles.pixels, tiles.labels, "square", on=1, share=0.6, seed=1)


@pytest.fixture(scope="module")
def material(tiles, marked):
    return gather(Coloured(), tiles.images(pixels=marked.pixels), method="lrp.epsilon")


@pytest.fixture(scope="module")
def found(tiles, marked):
    regions = {"mark": marked.mask, "opposite": marked.mask[:, ::-1, ::-1]}
    images = Described(tiles.images(pixels=marked.pixels), regions=regions)
    return audit(Coloured(), images, method="lrp.epsilon", limit=150)


def asked(material, regions):
    """Ask about regions of images that are explained already."""
    evidence = Evidence(replace(material, regions=regions))
    return {f.key: f for f in find_regions(evidence, np.random.default_rng(0))}


@pytest.mark.slow
def test_a_region_that_is_read_is_flagged_and_named(found, marked):
    keys = [finding.key for finding in found.flagged]
    assert "region/tumour/mark" in keys
    assert not [key for key in keys if "opposite" in key or key.startswith("region/normal")]
    finding = found.get("region/tumour/mark")
    assert "'mark'" in finding.sentence
    assert finding.advice
    assert finding.cause.ratio > 1.5
    assert finding.numbers["share"] > 0.5
    assert finding.numbers["expected"] == pytest.approx(0.01, abs=0.005)
    # Examples are images that have it, and the outlines are theirs, also of a drawn sample.
    where = found.material.indices[list(finding.examples)]
    assert marked.chosen[where].all()
    assert np.array_equal(finding.outlines, marked.mask[where])


@pytest.mark.slow
def test_regions_come_on_top_and_change_no_other_question(found, tiles, marked):
    images = tiles.images(pixels=marked.pixels)
    plain = audit(Coloured(), images, method="lrp.epsilon", limit=150)
    assert len(found.findings) == len(plain.findings) + 4
    for finding in plain.findings:
        again = found.get(finding.key)
        assert (again.effect, again.p_seen) == (finding.effect, finding.p_seen)
        assert again.p >= finding.p  # corrected for more questions


def test_points_are_asked_about_as_discs(material, marked):
    points = [np.argwhere(mask) for mask in marked.mask]
    points = [one.mean(0, keepdims=True) if len(one) else one for one in points]
    found = asked(material, {"p": points})
    finding = found["region/tumour/p"]
    assert finding.effect > 10
    assert finding.cause.p < 0.01
    assert finding.numbers["images_with_it"] == marked.chosen.sum()
    area = finding.outlines.sum((1, 2))
    assert area.max() == pytest.approx(np.pi * 4**2, rel=0.15)
    assert found["region/normal/p"].cause is None


@pytest.mark.slow
def test_a_network_of_nuclei_looks_at_nuclei_and_not_at_necrosis(tiles):
    model = looking(torch.full((64, 64), 0.002))
    nuclei = tiles.instances > 0
    material = gather(model, tiles.images(), method="lrp.epsilon")
    regions = {"nuclei": nuclei, "gaps": ~nuclei, "everything": np.ones_like(nuclei)}
    found = asked(material, regions)
    assert found["region/tumour/nuclei"].cause.p < 0.01
    # Without its nuclei a tile is all the more normal to this network: they do not make the class.
    assert found["region/normal/nuclei"].cause.drop < 0
    for who in ("normal", "tumour"):
        assert found[f"region/{who}/gaps"].cause is None
        assert found[f"region/{who}/everything"].effect == pytest.approx(1)


def test_regions_that_do_not_fit_are_refused(material, marked):
    for wrong, match in (
        (marked.mask[:50], "50 images"),
        (marked.mask[:, ::2], r"\(64, 64\)"),
        ([np.zeros((3, 3))] * 200, "points"),
    ):
        with pytest.raises(DataError, match=match):
            asked(material, {"r": wrong})


@pytest.mark.slow
def test_the_page_shows_regions(found, tmp_path):
    text = write_audit(tmp_path, found).read_text()
    assert "&#39;mark&#39;" in text
    assert "&#39;opposite&#39;" in text  # among what was answered with no
