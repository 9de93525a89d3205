"""Folders that are named like parts of a data set, and names in two ways of writing letters."""

import pytest
from PIL import Image

from niwaki.data import Preprocessing, match_classes, open_data
from niwaki.errors import DataError

LOOK = Preprocessing(8, mean=(0,) * 3, std=(1,) * 3)
ONE, TWO = "caf\u00e9", "cafe\u0301"  # a letter, and a letter with a mark behind it


def fill(folder, *places):
    for place in places:
        (folder / place).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(folder / place / "x.png")
    return folder


@pytest.mark.parametrize(
    "names", [("Train", "Test"), ("training", "testing"), ("TRAIN", "Validation"), ("dev",)]
)
def test_parts_of_other_names_are_no_classes(tmp_path, names):
    fill(tmp_path, *(f"{name}/{kind}" for name in names for kind in ("cat", "dog")))
    with pytest.raises(DataError, match=r"named like parts of a data set .*: rename them to train"):
        open_data(tmp_path, LOOK)
    assert open_data(tmp_path / names[0], LOOK).classes == ["cat", "dog"]


@pytest.mark.parametrize("places", [("Test", "train_a"), ("dev", "valid"), ("eval/deep", "cat")])
def test_classes_of_such_names_are_classes(tmp_path, places):
    found = open_data(fill(tmp_path, *places), LOOK)
    assert found.classes == sorted(place.partition("/")[0] for place in places)


def test_a_class_is_the_same_however_its_letters_are_written(tmp_path):
    fill(tmp_path, f"train/{ONE}", "train/zoo", f"test/{TWO}", "test/zoo")
    for split in ("train", "test"):
        found = open_data(tmp_path, LOOK, split=split)
        assert found.classes == [ONE, "zoo"]
        assert found.targets == [0, 1]
    assert match_classes([TWO, "zoo"], ["zoo", ONE]) == [1, 0]


def test_two_folders_of_one_name_are_refused(tmp_path):
    fill(tmp_path, ONE, TWO)
    with pytest.raises(DataError, match="two ways of writing"):
        open_data(tmp_path, LOOK)
