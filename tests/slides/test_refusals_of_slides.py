"""What cannot be done is one clear line and exit code 2, and nothing is half-written."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from synthetic import picture, write_slide

pytest.importorskip("openslide", reason="the extra slides is not installed")

NEST = (300, 300, 400, 400)


@pytest.fixture
def slide(tmp_path):
    return write_slide(tmp_path / "a.tif", picture(800, 900, NEST), mpp=0.5)


def check(found, tmp_path, *words):
    code, _, err = found
    assert code == 2, err
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, err
    assert "Traceback" not in err
    for word in words:
        assert word in errors[0], errors[0]
    left = {path.name for path in tmp_path.iterdir()}
    assert not {name for name in left if name.startswith(("out", ".out"))}, left


def test_a_truncated_slide(command, slide, tmp_path):
    whole = slide.read_bytes()
    for share in (0.1, 0.5, 0.9, 0.99):
        (tmp_path / "half.tif").write_bytes(whole[: int(share * len(whole))])
        check(command.slide("half.tif"), tmp_path, "half.tif")


def test_a_slide_that_is_damaged_in_the_middle(command, tmp_path):
    """The directories are whole, so that it opens; a tile of the finest level is not."""
    import tifffile

    file = write_slide(tmp_path / "a.tif", picture(800, 900, NEST), mpp=0.5, levels=1)
    with tifffile.TiffFile(file) as opened:
        page = opened.pages[0]
        where, size = page.dataoffsets[5], page.databytecounts[5]
    with file.open("r+b") as opened:
        opened.seek(where)
        opened.write(b"\xff" * size)
    check(command.slide("a.tif"), tmp_path, "a.tif is damaged or incomplete", "copy it again")


def test_a_real_slide_that_is_truncated(command, shared, tmp_path):
    whole = (shared / "data" / "slides" / "cmu-1-small-region.svs").read_bytes()
    (tmp_path / "cmu.svs").write_bytes(whole[: len(whole) // 2])
    check(command.slide("cmu.svs"), tmp_path, "cmu.svs")


@pytest.mark.slow
def test_a_slide_without_tissue(command, tmp_path):
    write_slide(tmp_path / "glass.tif", np.full((800, 900, 3), 243, np.uint8))
    check(command.slide("glass.tif"), tmp_path, "no tissue was found", "--everywhere")
    assert command.slide("glass.tif", "mapped", "--everywhere", "--no-page")[0] == 0


def test_wrong_resolutions(command, slide, tmp_path):
    check(command.slide(slide, "mapped", "--mpp", 0.1), tmp_path, "0.5 um", "--mpp 0.5")
    check(command.slide(slide, "mapped", "--mpp", 50), tmp_path, "nothing is left")
    check(command.slide(slide, "mapped", "--mpp", -1), tmp_path, "--mpp")
    Image.new("RGB", (300, 300)).save(tmp_path / "a.png")
    check(command.slide("a.png"), tmp_path, "--slide-mpp")


def test_other_wrong_words(command, slide, tmp_path):
    check(command.slide("missing.svs"), tmp_path, "there is no slide")
    check(command.slide(slide, "mapped", "--target", "nobody"), tmp_path, "other, tumour")
    check(command.slide(slide, "mapped", "--target", "7"), tmp_path, "2 outputs", "7")
    check(command.slide(slide, "mapped", "--method", "grad"), tmp_path, "gradient")
    (tmp_path / "n.csv").write_text("a,b\n1,2\n")
    check(command.slide(slide, "mapped", "--nuclei", "n.csv"), tmp_path, "n.csv", "x, y")


def test_a_full_disk(command, slide, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip(f"no small disk can be mounted: {made.stderr.decode()}")
    try:
        found = command.slide(slide, "whole", "--mpp", 0.5, out=disk / "out")
        check(found, tmp_path, "no space is left on the disk")
        assert not (disk / "out").exists()
        assert not [p for p in disk.rglob("*") if ".scratch" in p.parts or p.suffix == ".tif"]
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_without_the_extra_it_says_how_to_install_it(command, slide, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openslide", None)
    check(command.slide(slide), tmp_path, "pip install 'niwaki[slides]'")


HOSTILE = "<img src=x onerror=alert(1)>\u202e'\"[red]$x$"


def test_hostile_names_are_words(command, tmp_path):
    file = write_slide(tmp_path / f"{HOSTILE}.tif", picture(500, 600, NEST), mpp=0.5)
    names = f"=cmd()|{HOSTILE},</script><script>alert(2)</script>"
    code, out, err = command.slide(file, "mapped", "--names", names, "--method", "gradient")
    assert code == 0, err
    assert "\u202e" not in out
    made = tmp_path / "out"
    page = (made / "viewer.html").read_text()
    assert "<img src=x" not in page
    assert "<script>alert" not in page
    assert page.count("<script") == 3
    assert "&lt;img src=x" in page  # as words
    for path in made.rglob("*"):
        assert path.resolve().is_relative_to(made)
        assert not set(path.name) & set("<>'\"|=\u202e$ ")
    cells = (made / "tiles.csv").read_text().splitlines()[1].split(",")
    assert not [cell for cell in cells if cell.startswith(("=", '"='))]
    found = json.loads((made / "objects.geojson").read_text())["features"]
    assert found[-1]["properties"]["classification"]["name"] in names  # data are data
