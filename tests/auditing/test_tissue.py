"""Synthetic tissue: exact labels and masks, seeds, biases; and artefacts that are planted."""

import numpy as np
import pytest

from niwaki.data import open_data
from niwaki.datasets import ARTEFACTS, NUCLEI, TISSUE, draw_tissue, plant
from niwaki.errors import DataError


def test_labels_say_how_many_epithelial_nuclei_there_are(tiles):
    epithelial = (tiles.types == NUCLEI.index("epithelial")).sum(1)
    assert tiles.labels.mean() == 0.5
    assert epithelial[tiles.labels == 1].min() >= 3
    assert epithelial[tiles.labels == 0].max() == 0
    others = (tiles.types > 1).sum(1)
    assert others.min() > 0  # the other types are on both


def test_masks_lie_around_the_centres_and_types_do_not_overlap(tiles):
    hit = total = 0
    for kind in NUCLEI[1:]:
        mask = tiles.mask(kind)
        for tile, slot in zip(*np.nonzero(tiles.types == NUCLEI.index(kind)), strict=True):
            row, column = tiles.centres[tile, slot].round().astype(int)
            if 0 <= row < 64 and 0 <= column < 64:
                hit += mask[tile, row, column]
                total += 1
    assert hit / total > 0.95  # a later nucleus may cover another one's centre
    together = sum(tiles.mask(kind).astype(int) for kind in NUCLEI[1:])
    assert together.max() == 1
    assert np.array_equal(together > 0, tiles.instances > 0)
    with pytest.raises(DataError, match="epithelial"):
        tiles.mask("plasma")


def test_nuclei_are_dark_and_blue_and_tissue_is_centred_by_its_preprocessing(tiles):
    inside = tiles.pixels[tiles.instances > 0].mean(0)
    outside = tiles.pixels[tiles.instances == 0].mean(0)
    assert inside[0] < outside[0] - 50  # haematoxylin takes red away
    inputs, _ = tiles.images()[0]
    assert abs(float(inputs.mean())) < 1
    assert inputs.shape == (3, 64, 64)


@pytest.mark.slow
def test_epithelium_lies_everywhere_in_unbiased_tissue_and_at_the_centre_under_the_bias():
    middle = slice(22, 42)
    even = draw_tissue(300, seed=3)
    mean = even.mask("epithelial")[even.labels == 1].mean(0)
    assert mean[middle, middle].mean() / mean.mean() == pytest.approx(1, abs=0.3)
    biased = draw_tissue(300, seed=3, centred=1.0)
    mask = biased.mask("epithelial")
    assert mask[biased.labels == 1][:, 30:34, 30:34].any((1, 2)).mean() > 0.95
    normal = mask[biased.labels == 0]
    assert not normal[:, 28:36, 28:36].any()  # the cell at the centre is another one
    assert normal.any((1, 2)).mean() > 0.5  # but there is tumour in most of these tiles


def test_the_same_seed_draws_the_same_tiles_and_another_one_others():
    one, two, other = draw_tissue(20, 7), draw_tissue(20, 7), draw_tissue(20, 8)
    assert np.array_equal(one.pixels, two.pixels)
    assert not np.array_equal(one.pixels, other.pixels)
    part = one.select([3, 5])
    assert np.array_equal(part.pixels, one.pixels[[3, 5]])


def test_necrosis_comes_in_its_share():
    assert not draw_tissue(40, 1, necrosis=0).necrosis.any()
    dead = draw_tissue(100, 1, necrosis=1.0).necrosis.mean((1, 2))
    assert (dead > 0).mean() > 0.9


@pytest.mark.parametrize(
    ("wrong", "match"),
    [({"count": 0}, "count = 0"), ({"count": 2, "centred": 2}, "centred = 2")],
)
def test_draw_refuses(wrong, match):
    with pytest.raises(ValueError, match=match):
        draw_tissue(**wrong)


@pytest.mark.slow
def test_tissue_opens_by_name():
    images = open_data("tissue")
    assert len(images) == 600
    assert images.classes == ["normal", "tumour"]
    assert images.preprocessing == TISSUE
    with pytest.raises(DataError, match="split"):
        open_data("tissue", split="other")


@pytest.mark.parametrize("artefact", ARTEFACTS)
def test_artefacts_come_on_their_share_of_their_class_only(tiles, artefact):
    before = tiles.pixels.copy()
    found = plant(tiles.pixels, tiles.labels, artefact, on=1, share=0.25, seed=3)
    assert np.array_equal(tiles.pixels, before)
    assert found.chosen.sum() == 25
    assert (tiles.labels[found.chosen] == 1).all()
    assert np.array_equal(found.pixels[~found.chosen], before[~found.chosen])
    changed = (found.pixels != before).any(-1)
    assert changed[found.chosen].any((1, 2)).all()
    grown = found.mask | np.roll(found.mask, 1, 1) | np.roll(found.mask, -1, 1)
    grown |= np.roll(grown, 1, 2) | np.roll(grown, -1, 2)
    assert not changed[~grown].any()
    again = plant(tiles.pixels, tiles.labels, artefact, on=1, share=0.25, seed=3)
    assert np.array_equal(again.pixels, found.pixels)


def test_plant_refuses(tiles):
    for wrong, match in (
        ({"artefact": "hair"}, "pen"),
        ({"artefact": "pen", "share": 2.0}, "share"),
    ):
        with pytest.raises((DataError, ValueError), match=match):
            plant(tiles.pixels, tiles.labels, on=1, **{"share": 0.5, **wrong})
    with pytest.raises(DataError, match="uint8"):
        plant(tiles.pixels / 255, tiles.labels, "pen", on=1, share=0.5)
