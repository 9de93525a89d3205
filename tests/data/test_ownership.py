"""What may be replaced: folders that niwaki wrote, and nothing that a person works in or reads."""

import os
import stat

import pytest
import torch
from safetensors.torch import save_file

from niwaki.errors import NiwakiError
from niwaki.files import new_folder, write_atomically, write_text
from niwaki.ownership import MARKER, check_apart, foreign


def write(folder, *names, overwrite=True):
    with new_folder(folder, overwrite=overwrite) as aside:
        for name in names:
            write_text(aside / name, name)


def listed(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_what_niwaki_wrote_is_replaced(tmp_path):
    write(tmp_path / "out", "a", "sub/b")
    assert listed(tmp_path / "out") == [MARKER, "a", "sub/b"]
    write(tmp_path / "out", "c")
    assert listed(tmp_path / "out") == [MARKER, "c"]
    assert foreign(tmp_path / "out") == []


@pytest.mark.parametrize("place", ["photo.jpg", "sub/photo.jpg", "deep/er/photo.jpg", ".hidden"])
def test_what_somebody_put_there_is_kept(tmp_path, place):
    write(tmp_path / "out", "a", "sub/b")
    photo = tmp_path / "out" / place
    photo.parent.mkdir(parents=True, exist_ok=True)
    photo.write_text("mine")
    with pytest.raises(NiwakiError, match=place):
        write(tmp_path / "out", "c")
    assert photo.read_text() == "mine"
    assert (tmp_path / "out" / "a").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_photograph_added_while_the_work_goes_on_is_kept(tmp_path):
    write(tmp_path / "out", "a")

    def work():
        with new_folder(tmp_path / "out", overwrite=True) as aside:
            write_text(aside / "c", "c")
            (tmp_path / "out" / "new.jpg").write_text("mine")

    with pytest.raises(NiwakiError, match=r"new\.jpg"):
        work()
    assert listed(tmp_path / "out") == [MARKER, "a", "new.jpg"]


@pytest.mark.parametrize(
    "marker",
    ["", "[]", "{}", '{"files": 3}', '{"files": {"photo.jpg": 1}, "x": NaN', "\0", "[" * 9999],
)
def test_a_broken_marker_owns_nothing(tmp_path, marker):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "photo.jpg").write_text("mine")
    (folder / MARKER).write_text(marker)
    with pytest.raises(NiwakiError, match=r"photo\.jpg"):
        write(folder, "c")
    assert (folder / "photo.jpg").read_text() == "mine"


def test_a_linked_folder_is_no_folder_of_ours(tmp_path):
    write(tmp_path / "out", "a")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a").write_text("mine")
    (tmp_path / "out" / "linked").symlink_to(tmp_path / "photos")
    with pytest.raises(NiwakiError, match="linked"):
        write(tmp_path / "out", "c")
    (tmp_path / "way").symlink_to(tmp_path / "photos")
    with pytest.raises(NiwakiError, match="did not write 'a'"):
        write(tmp_path / "way", "c")
    assert (tmp_path / "photos" / "a").read_text() == "mine"


def test_places_that_are_never_replaced(tmp_path, monkeypatch):
    work = tmp_path / "project" / "work"
    write(work, "a")
    write(tmp_path / "home", "a")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(work)
    for place, name in (
        (".", "the working directory"),
        ("..", "the working directory"),
        (work, "the working directory"),
        ("/", "the working directory"),
        (tmp_path / "home", "your home folder"),
    ):
        with pytest.raises(NiwakiError, match=name):
            write(place, "c")
    assert listed(work) == [MARKER, "a"]
    assert listed(tmp_path / "home") == [MARKER, "a"]


def test_an_output_stays_apart_from_what_is_read(tmp_path):
    photos = tmp_path / "photos"
    (photos / "cat").mkdir(parents=True)
    (photos / "cat" / "a.jpg").write_text("cat")
    (tmp_path / "way").symlink_to(photos)
    for given in (photos, tmp_path / "way"):
        for out, how in (
            (photos, "is"),
            (tmp_path / "way", "is"),
            (tmp_path, "contains"),
            (tmp_path / "way" / "..", "contains"),
        ):
            with pytest.raises(NiwakiError, match=how):
                check_apart(out, [given])
        for out in (photos / "new", photos / "cat" / "new", tmp_path / "way" / "x" / "y"):
            with pytest.raises(NiwakiError, match="lies inside"):
                check_apart(out, [], [given])
            check_apart(out, [given])
        check_apart(tmp_path / "photos2", [given], [given])
    with pytest.raises(NiwakiError, match="is read"):
        check_apart(photos / "cat" / "a.jpg", [photos / "cat" / "a.jpg"])


def test_files_are_readable_as_the_umask_says(tmp_path):
    before = os.umask(0o027)
    try:
        with new_folder(tmp_path / "out") as aside:
            save_file({"a": torch.zeros(2)}, aside / "weights.safetensors")
            write_text(aside / "sub" / "b", "b")
        write_atomically(
            tmp_path / "c.safetensors", lambda file: save_file({"a": torch.zeros(2)}, file)
        )
    finally:
        os.umask(before)
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert len(files) == 4
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o640}
