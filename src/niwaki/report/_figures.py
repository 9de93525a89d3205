"""Writing a picture, whatever the names in it are."""

from __future__ import annotations

import warnings
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text

from niwaki.files import write_atomically
from niwaki.ownership import SIGNATURE
from niwaki.terminal import clean

__all__ = ["save_figure"]

_LONGEST = 50  # letters of a name in a legend


def save_figure(path: str | Path, figure: Figure, *, vector: bool = False) -> None:
    """Write a figure as PNG, and as SVG and PDF beside it where it is made of lines.

    All text is taken as it is: dollar signs in a file's name are no formula, control characters
    are written out, and a letter that the font lacks is a box. Long names in a legend lose their
    middle, because they would leave the axes no room.
    """
    for text in figure.findobj(Text):
        if isinstance(text, Text):
            text.set_parse_math(False)
            text.set_text(clean(text.get_text()))
    for legend in figure.findobj(Legend):
        if isinstance(legend, Legend):
            for text in legend.get_texts():
                text.set_text(_shortened(text.get_text()))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        for kind in ("png", "svg", "pdf") if vector else ("png",):
            _write(Path(path).with_suffix(f".{kind}"), figure, kind)


# What a file says of itself; without a date, so that equal figures are equal files.
_ABOUT: dict[str, dict[str, str | None]] = {
    "png": {"Software": SIGNATURE},
    "svg": {"Creator": SIGNATURE, "Date": None},
    "pdf": {"Producer": SIGNATURE, "CreationDate": None},
}


def _write(path: Path, figure: Figure, kind: str) -> None:
    with rc_context({"svg.hashsalt": "niwaki", "svg.fonttype": "none"}):
        write_atomically(
            path, lambda aside: figure.savefig(aside, format=kind, metadata=_ABOUT[kind])
        )


def _shortened(name: str) -> str:
    half = (_LONGEST - 3) // 2
    return name if len(name) <= _LONGEST else f"{name[:half]} … {name[-half:]}"
