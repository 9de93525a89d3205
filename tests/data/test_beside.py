"""Slides by names, and masks in another folder."""

import numpy as np
import pytest
from PIL import Image

from niwaki.data import Masks, Preprocessing, groups_by_name, open_data
from niwaki.datasets import DIGITS
from niwaki.errors import DataError

PLAIN = Preprocessing(8, mean=(0.0,) * 3, std=(1.0,) * 3)


@pytest.fixture
def folder(tmp_path):
    """Two classes, three images of two slides each, 16 x 16."""
    rng = np.random.default_rng(0)
    for label in ("a", "b"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for number, slide in enumerate(("s1", "s1", "s2")):
            pixels = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / label / f"{slide}_x{number}.png")
    return tmp_path


def mask(size=(16, 16), rows=slice(0, 8)):
    values = np.zeros(size[::-1], np.uint8)
    values[rows] = 255
    return Image.fromarray(values)


def test_a_pattern_names_the_slide_of_each_image(folder):
    images = open_data(folder / "images", PLAIN)
    assert groups_by_name(images, "^(.+)_x") == ["s1", "s1", "s2"] * 2
    assert groups_by_name(images, r"s\d") == ["s1", "s1", "s2"] * 2


@pytest.mark.parametrize(("pattern", "match"), [("(", "no regular"), ("q", "s1_x0.png")])
def test_patterns_that_do_not_fit_are_refused(folder, pattern, match):
    with pytest.raises(DataError, match=match):
        groups_by_name(open_data(folder / "images", PLAIN), pattern)


def test_images_without_files_have_no_names():
    with pytest.raises(DataError, match="do not come from files"):
        groups_by_name(open_data("digits", DIGITS), "x")


def test_masks_are_found_by_name_and_fitted_as_their_images_are(folder):
    images = open_data(folder / "images", PLAIN)
    (folder / "masks" / "a").mkdir(parents=True)
    mask().save(folder / "masks" / "a" / "s1_x0.png")
    mask(rows=slice(8, 16)).save(folder / "masks" / "s2_x2.bmp")  # for both classes
    found = Masks(images, folder / "masks")
    assert len(found) == 6
    upper, lower = np.zeros((8, 8), bool), np.zeros((8, 8), bool)
    upper[:4], lower[4:] = True, True
    assert np.array_equal(found[0], upper)
    assert np.array_equal(found[2], lower)
    assert np.array_equal(found[5], lower)
    assert not found[1].any()
    assert [one.any() for one in found] == [True, False, True, False, False, True]
    assert len(found[:2]) == 2


def test_masks_that_fit_nothing_are_refused(folder):
    images = open_data(folder / "images", PLAIN)
    (folder / "masks").mkdir()
    mask().save(folder / "masks" / "other.png")
    with pytest.raises(DataError, match="no mask for any of the 6 images"):
        Masks(images, folder / "masks")
    with pytest.raises(DataError, match="no folder"):
        Masks(images, folder / "nowhere")
    mask((8, 16)).save(folder / "masks" / "s1_x1.png")
    with pytest.raises(DataError, match="8 x 16 pixels"):
        Masks(images, folder / "masks")[1]
