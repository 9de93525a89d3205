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


@pytest.fixture
def command(tmp_path, monkeypatch, capfd):
    """Run a command in a folder of its own; return exit code, output and errors."""
    pytest.importorskip("openslide", reason="the extra slides is not installed")
    pytest.importorskip("tifffile", reason="the extra slides is not installed")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(NETS)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["niwaki", *map(str, words)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        return code, *capfd.readouterr()

    def slide(file, network="mapped", *words, out="out"):
        given = [file, f"nets.py:{network}", "--out", out]
        return run("slide", *given, *NUMBERS, *words)

    run.slide = slide
    return run
