"""Writing aside and renaming, and the progress bar."""

import json

import pytest
import torch

from niwaki.data import batches
from niwaki.errors import NiwakiError
from niwaki.files import new_folder, write_atomically, write_json, write_text
from niwaki.ownership import MARKER
from niwaki.progress import bar, track


def content(folder):
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != MARKER]
    return {str(p.relative_to(folder)): p.read_text() for p in files}


def fail(path):
    path.write_text("half")
    raise RuntimeError("out of paper")


def test_files_are_whole_or_absent(tmp_path):
    write_text(tmp_path / "deep" / "a.txt", "ä\n")
    write_json(tmp_path / "b.json", {"ü": [1, 2.5, None]})
    assert json.loads((tmp_path / "b.json").read_text("utf-8")) == {"ü": [1, 2.5, None]}
    before = content(tmp_path)
    for name in ("b.json", "new.json"):
        with pytest.raises(RuntimeError, match="paper"):
            write_atomically(tmp_path / name, fail)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "b.json", float("nan"))
    assert content(tmp_path) == before
    suffixes = []
    write_atomically(tmp_path / "c.png", lambda p: suffixes.append(p.suffix) or p.write_text("x"))
    assert suffixes == [".png"]


def test_folders_are_whole_or_absent(tmp_path):
    target = tmp_path / "runs" / "one"
    with new_folder(target) as folder:
        write_text(folder / "a", "1")
        assert not target.exists()
    assert content(tmp_path) == {"runs/one/a": "1"}
    with pytest.raises(NiwakiError, match="one exists and is not empty"), new_folder(target):
        pass
    with pytest.raises(RuntimeError), new_folder(target, overwrite=True) as folder:
        fail(folder / "a")
    assert content(tmp_path) == {"runs/one/a": "1"}
    with new_folder(target, overwrite=True) as folder:
        write_text(folder / "b", "2")
    assert content(tmp_path) == {"runs/one/b": "2"}
    assert [p.name for p in target.parent.iterdir()] == ["one"]
    with pytest.raises(NiwakiError, match="b is a file"), new_folder(target / "b"):
        pass


def test_an_empty_folder_may_stand_there(tmp_path):
    (tmp_path / "empty").mkdir()
    with new_folder(tmp_path / "empty") as folder:
        write_text(folder / "a", "1")
    assert content(tmp_path) == {"empty/a": "1"}


def test_track_is_silent_without_a_terminal(capfd):
    assert list(track(range(3), "counting")) == [0, 1, 2]
    assert capfd.readouterr() == ("", "")


def test_track_shows_on_stderr(capfd):
    assert list(track(iter(range(3)), "counting [x]", total=3, show=True)) == [0, 1, 2]
    out, err = capfd.readouterr()
    assert out == ""
    assert "counting [x]" in err
    assert "3/3" in err


def test_batches_count_samples(capfd, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    data = torch.zeros(10, 3), torch.zeros(10, dtype=torch.int64)
    assert [len(x) for x, _ in batches(data, 4, description="reading")] == [4, 4, 2]
    assert "10/10" in capfd.readouterr().err


def test_a_bar_moves_by_what_was_done(capfd):
    with bar("explaining", 8, show=True) as advance:
        for _ in range(3):
            advance(8 / 3)
    assert "8/8" in capfd.readouterr().err
