"""The page of watched images: how many predictions are unusual, and which."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from niwaki.auditing import Watched
from niwaki.report._page import write_page
from niwaki.report._pictures import data_uri

_SHOWN = 24
_SIDE = 128


def write_watch(
    folder: str | Path,
    watched: Watched,
    images: Any,
    *,
    heading: str = "Watch",
    remarks: Sequence[str] = (),
    made: Mapping[str, Any] | None = None,
) -> Path:
    """Write ``watch.html``, ``watch.csv`` and ``watch.json``.

    Parameters
    ----------
    folder : str or Path
        Where they go; it must exist.
    watched : Watched
        What `niwaki.auditing.watch` said.
    images : Images
        That it said it of.
    heading : str
        Heading of the page.
    remarks : sequence of str
        Paragraphs below the heading.
    made : mapping, optional
        How it was made, such as the command and the date.

    Returns
    -------
    Path
        Path of the page.
    """
    home = Path(folder)
    watched.save(home)
    odd = [place for place in watched.order() if watched.odd[place]][:_SHOWN]
    rows = {row["image"]: row for row in watched.rows()}
    shown = [
        {**rows[watched.names[place]], "picture": _thumbnail(images.image(int(place)))}
        for place in odd
    ]
    write_page(
        home / "watch.html",
        "watch.html.j2",
        heading=heading,
        remarks=remarks,
        watched=watched,
        shown=shown,
        made={name: value for name, value in (made or {}).items() if isinstance(value, str)},
    )
    return home / "watch.html"


def _thumbnail(image: Image.Image) -> str:
    small = image.convert("RGB")
    small.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "PNG")
    return data_uri(buffer.getvalue())
