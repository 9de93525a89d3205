"""What the tests of slides share."""

import sys
from pathlib import Path

import pytest

from niwaki.cli import main

HERE = Path(__file__).parent
NETS = f"""
import sys
sys.path.insert(0, {str(HERE)!r})
from synthetic import Purple, Whole, convolutional
def mapped(): return Purple(3)
def whole(): return Whole(Purple(3))
def strided(): return convolutional()
"""
NUMBERS = ["--size", "64", "--mean", "0,0,0", "--std", "1,1,1", "--threads", "1"]
NUMBERS += ["--names", "other,tumour", "--workers", "0"]


@pytest.fixture(scope="session")
def slide_command():
    """Return the words of a command on a slide, whose network lies in a folder."""
    pytest.importorskip("openslide", reason="the extra slides is not installed")
    pytest.importorskip("tifffile", reason="the extra slides is not installed")

    def words(home, slide, network, out, *more):
        if not (home / "nets.py").exists():  # a test may bring networks of its own
            (home / "nets.py").write_text(NETS)
        given = [slide, f"{home / 'nets.py'}:{network}", "--out", out, *NUMBERS, *more]
        return ["slide", *map(str, given)]

    return words


@pytest.fixture
def command(slide_command, tmp_path, monkeypatch, capfd):
    """Run a command in a folder of its own; return exit code, output and errors."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["niwaki", *map(str, words)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        return code, *capfd.readouterr()

    def slide(file, network="mapped", *words, out="out"):
        return run(*slide_command(tmp_path, file, network, out, *words))

    run.slide = slide
    return run
