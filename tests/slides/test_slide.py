"""Slides are read at any resolution, from any file, and what cannot be is told in one line."""

import pickle

import numpy as np
import pytest
from PIL import Image
from synthetic import halved, picture, write_slide

from niwaki.errors import DataError
from niwaki.slides import find_tissue, open_slide

pytest.importorskip("openslide", reason="the extra slides is not installed")

NEST = (400, 240, 464, 320)


@pytest.fixture
def pixels():
    return picture(640, 768, NEST)


def test_a_pyramid_is_read_at_its_own_resolutions(tmp_path, pixels):
    slide = open_slide(write_slide(tmp_path / "a.tif", pixels))
    assert slide.size == (768, 640)
    assert slide.mpp == pytest.approx((0.25, 0.25))
    np.testing.assert_array_equal(slide.read(0, 0, 768, 640, 0.25), pixels)
    np.testing.assert_array_equal(slide.read(10, 20, 100, 50, 0.5), halved(pixels)[20:70, 10:110])
    quarter = halved(halved(pixels))
    np.testing.assert_array_equal(slide.read(3, 5, 90, 80, 1.0), quarter[5:85, 3:93])


def test_what_lies_outside_is_white(tmp_path, pixels):
    slide = open_slide(write_slide(tmp_path / "a.tif", pixels))
    part = slide.read(-8, -4, 16, 16, 0.25)
    assert (part[:4] == 255).all()
    assert (part[:, :8] == 255).all()
    np.testing.assert_array_equal(part[4:, 8:], pixels[:12, :8])
    part = slide.read(760, 0, 16, 16, 0.25)
    np.testing.assert_array_equal(part[:, :8], pixels[:16, 760:])
    assert (part[:, 8:] == 255).all()


@pytest.mark.parametrize("mpp", [0.3, 0.37, 0.5, 0.77, 2.0])
def test_a_pixel_does_not_depend_on_what_is_read_around_it(tmp_path, pixels, mpp):
    slide = open_slide(write_slide(tmp_path / "a.tif", pixels, levels=2))
    width, height = slide.canvas(mpp)
    whole = slide.read(0, 0, width, height, mpp)
    rng = np.random.default_rng(0)
    for _ in range(20):
        x, y = rng.integers(0, width - 20), rng.integers(0, height - 20)
        part = slide.read(int(x), int(y), 20, 20, mpp)
        np.testing.assert_array_equal(part, whole[y : y + 20, x : x + 20])
    np.testing.assert_array_equal(slide.overview(mpp), whole)


@pytest.mark.parametrize("mpp", [0.25, 0.4, 0.5, 0.9, 1.7])
def test_places_stay_where_they_are(tmp_path, pixels, mpp):
    """The middle of the nest is where its coordinates, divided by the scale, say."""
    slide = open_slide(write_slide(tmp_path / "a.tif", pixels))
    width, height = slide.canvas(mpp)
    dark = 255.0 - slide.read(0, 0, width, height, mpp)[..., 1]
    dark = (dark - dark.min()) * (dark > 150)
    rows, columns = np.mgrid[:height, :width] + 0.5
    scale = mpp / 0.25
    assert (dark * columns).sum() / dark.sum() == pytest.approx(432 / scale, abs=0.2)
    assert (dark * rows).sum() / dark.sum() == pytest.approx(280 / scale, abs=0.2)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_an_image_is_a_slide_of_one_level(tmp_path, pixels, suffix):
    file = tmp_path / f"image{suffix}"
    Image.fromarray(pixels).save(file, quality=95)
    with pytest.raises(DataError, match=r"how large its pixels are; state it: --slide-mpp"):
        open_slide(file)
    slide = open_slide(file, mpp=0.5)
    assert slide.size == (768, 640)
    assert np.abs(slide.read(0, 0, 768, 640, 0.5).astype(int) - pixels).mean() < 3
    assert slide.read(-5, 600, 40, 80, 1.0).shape == (80, 40, 3)


def test_the_stated_resolution_overrules_the_file(tmp_path, pixels):
    file = write_slide(tmp_path / "a.tif", pixels, mpp=0.25)
    assert open_slide(file, mpp=0.5).mpp == (0.5, 0.5)
    file = write_slide(tmp_path / "b.tif", pixels, mpp=None)
    with pytest.raises(DataError, match="--slide-mpp"):
        open_slide(file)


def test_a_resolution_that_was_never_scanned_is_refused(tmp_path, pixels):
    slide = open_slide(write_slide(tmp_path / "a.tif", pixels))
    with pytest.raises(DataError, match=r"has 0\.25 um per pixel and cannot be read at 0\.1"):
        slide.check(0.1)
    with pytest.raises(DataError, match="nothing is left"):
        slide.check(40)
    slide.check(0.24)


def test_broken_files_are_told(tmp_path, pixels):
    with pytest.raises(DataError, match="there is no slide"):
        open_slide(tmp_path / "missing.svs")
    (tmp_path / "text.svs").write_text("no slide")
    with pytest.raises(DataError, match=r"text\.svs"):
        open_slide(tmp_path / "text.svs", mpp=0.5)
    whole = write_slide(tmp_path / "a.tif", pixels).read_bytes()
    (tmp_path / "half.tif").write_bytes(whole[: len(whole) // 3])
    with pytest.raises(DataError, match=r"half\.tif"):
        open_slide(tmp_path / "half.tif", mpp=0.5).overview(1.0)


def test_a_slide_goes_to_other_processes(tmp_path, pixels):
    slide = open_slide(write_slide(tmp_path / "a.tif", pixels))
    twin = pickle.loads(pickle.dumps(slide))
    np.testing.assert_array_equal(twin.read(0, 0, 9, 9, 0.5), slide.read(0, 0, 9, 9, 0.5))


def test_tissue_is_found_without_dust_and_holes(tmp_path):
    pixels = picture(1600, 2000, (900, 700, 1000, 800), tissue=(400, 400, 1600, 1200))
    pixels[800:830, 600:630] = 244  # a hole
    pixels[60:80, 60:80] = (200, 90, 150)  # dust
    slide = open_slide(write_slide(tmp_path / "a.tif", pixels, mpp=1.0))
    tissue = find_tissue(slide)
    expected = np.zeros(tissue.mask.shape, bool)
    expected[50:150, 50:200] = True
    assert tissue.mpp == 8
    wrong = (tissue.mask != expected).sum()
    assert wrong < 0.02 * expected.sum()  # its rim alone
    assert tissue.mask[102, 77]
    assert not tissue.mask[5:12, 5:12].any()
    boxes = np.array([[400, 400, 160, 160], [0, 0, 160, 160], [320, 400, 160, 160]])
    np.testing.assert_allclose(tissue.shares(boxes, 1.0), [1, 0, 0.5], atol=0.08)


def test_nothing_but_tissue_and_nothing_but_glass(tmp_path):
    rng = np.random.default_rng(0)
    pink = (np.array((225, 150, 190)) + rng.integers(-25, 26, (500, 500, 1))).clip(0, 255)
    file = tmp_path / "tissue.png"
    Image.fromarray(pink.astype(np.uint8)).save(file)
    assert find_tissue(open_slide(file, mpp=0.5)).share == 1
    file = tmp_path / "glass.png"
    glass = 240 + rng.integers(-4, 5, (500, 500, 3))
    Image.fromarray(glass.astype(np.uint8)).save(file)
    with pytest.raises(DataError, match=r"no tissue was found on .*glass\.png.*--everywhere"):
        find_tissue(open_slide(file, mpp=0.5))


def test_a_real_slide(shared):
    slide = open_slide(shared / "data" / "slides" / "cmu-1-small-region.svs")
    assert slide.size == (2220, 2967)
    assert slide.mpp == pytest.approx((0.499, 0.499))
    assert 0.3 < find_tissue(slide).share < 0.95
