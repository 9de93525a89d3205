"""Writing a picture, whatever the names in it are."""

from __future__ import annotations

import warnings
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.text import Text

from niwaki.files import write_atomically
from niwaki.terminal import clean

__all__ = ["save_figure"]


def save_figure(path: str | Path, figure: Figure) -> None:
    """Write a figure as PNG.

    All text is taken as it is: dollar signs in a file's name are no formula, control characters
    are written out, and a letter that the font lacks is a box.
    """
    for text in figure.findobj(Text):
        if isinstance(text, Text):
            text.set_parse_math(False)
            text.set_text(clean(text.get_text()))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        write_atomically(path, lambda aside: figure.savefig(aside, format="png"))
