"""Which images belong together: by a pattern in their names, or by a column of a table."""

from pathlib import Path

import pytest
from PIL import Image

from niwaki.data import Described, Images, Preprocessing, groups_from_table, groups_named
from niwaki.errors import DataError

GREYS = Preprocessing(8, mean=(0.5,), std=(0.5,), channels=1)


def images(*names, paths=True):
    files = [Path("/data") / name for name in names]
    return Images(
        lambda i: Image.new("L", (8, 8)),
        [0] * len(names),
        ["one"],
        GREYS,
        paths=files if paths else None,
    )


def table(tmp_path, *lines, name="slides.csv"):
    path = tmp_path / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_column_says_where_images_come_from(tmp_path):
    path = table(tmp_path, "file,stain,scanner", "a.png,x,left", "normal/b.png,x,right", "c,x,left")
    data = images("tumour/a.png", "normal/b.png", "normal/c.png")
    assert groups_from_table(data, path, "scanner") == ["left", "right", "left"]
    assert groups_named(data, f"{path}:scanner") == ["left", "right", "left"]
    assert groups_named(data, "([abc])[.]png") == ["a", "b", "c"]


def test_a_name_with_its_folder_comes_first(tmp_path):
    path = table(tmp_path, "file,scanner", "a.png,one", "tumour/a.png,other")
    assert groups_from_table(images("tumour/a.png", "normal/a.png"), path, "scanner") == [
        "other",
        "one",
    ]


def test_tabs(tmp_path):
    path = table(tmp_path, "file\tscanner", "a.png\tleft, upper", name="t.tsv")
    assert groups_named(images("a.png"), f"{path}:scanner") == ["left, upper"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["file,scanner", "b.png,left"], "no row for a.png"),
        (["file,stain", "a.png,left"], "no column 'scanner'.*file, stain"),
        (["file,scanner", "a.png,"], "row 2: there is nothing"),
        (["file,scanner", "a.png,left", "a.png,right"], "into 'left' and into 'right'"),
        ([], "no column"),
    ],
)
def test_what_a_table_lacks_is_said(tmp_path, lines, message):
    with pytest.raises(DataError, match=message):
        groups_from_table(images("a.png"), table(tmp_path, *lines), "scanner")


def test_no_table_and_no_files(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        groups_from_table(images("a.png"), tmp_path / "none.csv", "scanner")
    with pytest.raises(DataError, match="do not come from files"):
        groups_from_table(images("a.png", paths=False), tmp_path / "none.csv", "scanner")


def test_centres_are_one_for_each_image():
    described = Described(images("a.png", "b.png"), centres=["one", "other"])
    assert Described(described).centres.tolist() == ["one", "other"]
    with pytest.raises(DataError, match="centres has 1 entries for 2 images"):
        Described(images("a.png", "b.png"), centres=["one"])


@pytest.mark.parametrize(
    ("row", "names"),
    [
        ("1.png", ("cat/1.png", "dog/1.png")),
        ("1", ("cat/1.png", "dog/1.png")),
        ("cat/1", ("cat/1.png", "cat/1.jpg")),
        ("cat/1.png", ("train/cat/1.png", "test/cat/1.png")),
    ],
)
def test_a_row_that_two_images_are_named_like_is_refused(tmp_path, row, names):
    path = table(tmp_path, "file,scanner", f"{row},left", "other.png,right")
    with pytest.raises(DataError, match=rf"the row '{row}' of .* may be of /data/{names[0]} or of"):
        groups_from_table(images(*names), path, "scanner")
    assert groups_from_table(images(names[0], names[0]), path, "scanner") == ["left"] * 2


def test_quoted_values_and_letters_with_marks(tmp_path):
    rows = [
        "file,scanner",
        '"a, b.png","left\nwing"',
        "c.png,Ko\u0308ln",
        "cafe\u0301.png,K\u00f6ln",
    ]
    text = "\r\n".join(rows)
    (tmp_path / "x.csv").write_bytes(text.encode())
    data = images("a, b.png", "c.png", "caf\u00e9.png")
    found = groups_from_table(data, tmp_path / "x.csv", "scanner")
    assert found == ["left\nwing", "K\u00f6ln", "K\u00f6ln"]


def test_a_column_that_is_there_twice_is_refused(tmp_path):
    path = table(tmp_path, "file,scanner,scanner", "a.png,left,right")
    with pytest.raises(DataError, match="has the column 'scanner' 2 times"):
        groups_from_table(images("a.png"), path, "scanner")


@pytest.mark.parametrize("pattern", ["(z)?a", "^", "(z*)a"])
def test_a_pattern_that_finds_nothing_in_names_is_refused(pattern):
    with pytest.raises(DataError, match=r"finds nothing in the name 'a\.png'"):
        groups_named(images("a.png", "ab.png"), pattern)
