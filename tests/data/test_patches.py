"""Patches around annotated cells: labels, points and what is refused."""

import numpy as np
import pytest
from PIL import Image

from niwaki.data import cut_patches, read_points
from niwaki.datasets import TISSUE
from niwaki.errors import DataError


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(2):
        image = np.full((90, 120, 3), 200, np.uint8)
        lines = ["x,y,type"]
        # Epithelial cells on the left, others on the right; each is a dark pixel.
        for _ in range(40):
            is_left = rng.random() < 0.5
            x = rng.integers(0, 50) if is_left else rng.integers(65, 120)
            y = rng.integers(0, 90)
            image[y, x] = 0
            lines.append(f"{x}.0,{y}.0,{'epithelial' if is_left else 'fibroblast'}")
        Image.fromarray(image).save(tmp_path / f"img{number}.png")
        (tmp_path / f"img{number}.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_patches_are_labelled_by_what_is_in_them(folder):
    found = cut_patches(folder, size=32, per_image=12, seed=1)
    assert set(found.labels) == {0, 1}
    assert found.pixels.shape[1:] == (32, 32, 3)
    for patch, label, points, types in zip(
        found.pixels, found.labels, found.points, found.types, strict=True
    ):
        count = types.count("epithelial")
        assert (count >= 3) if label else (count == 0)
        assert len(types) >= 3
        assert all((patch[int(row), int(column)] == 0).all() for row, column in points)
    assert (np.bincount(found.sources) <= 24).all()
    assert found.positive("epithelial").sum(1).tolist() == [
        t.count("epithelial") for t in found.types
    ]
    again = cut_patches(folder, size=32, per_image=12, seed=1)
    assert np.array_equal(again.pixels, found.pixels)
    assert len(found.images(TISSUE)) == len(found)


def test_patches_of_the_label_bias_have_their_cell_at_the_centre(folder):
    found = cut_patches(folder, size=32, label="centre", seed=1)
    for label, points, types in zip(found.labels, found.points, found.types, strict=True):
        distance = np.abs(points - 16).max(1)
        nearest = int(distance.argmin())
        assert distance[nearest] <= 1
        at_centre = {types[i] for i in np.flatnonzero(distance <= 1)}
        assert ("epithelial" if label else "fibroblast") in at_centre


def test_wrong_folders_are_refused(folder, tmp_path_factory):
    with pytest.raises(DataError, match="no NAME"):
        cut_patches(tmp_path_factory.mktemp("empty"))
    with pytest.raises(DataError, match="no room"):
        cut_patches(folder, size=100)
    with pytest.raises(DataError, match="one class"):
        cut_patches(folder, size=32, kind="plasma")
    broken = folder / "img0.csv"
    broken.write_text("x,y\n1,2\n")
    with pytest.raises(DataError, match="type"):
        read_points(broken)


def test_real_annotations_are_read(shared):
    found = cut_patches(shared / "data" / "crc_histology" / "val", per_image=4)
    assert len(found.files) == 10
    assert 0 < found.labels.mean() < 1
    assert {name for types in found.types for name in types} <= {
        "epithelial",
        "inflammatory",
        "fibroblast",
        "others",
    }
