"""Small pictures for pages: heatmaps as grey levels, their colour maps, photographs."""

from __future__ import annotations

import base64
import io
import zipfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.colors import Colormap, LinearSegmentedColormap
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from niwaki.files import write_json
from niwaki.ranges import FRACTION, SOME, checked
from niwaki.ranges import SIDE as PIXELS
from niwaki.report._colours import colour_range, picture

__all__ = [
    "MAPS",
    "PICTURES",
    "Pictures",
    "data_uri",
    "encoded",
    "filters",
    "heat_strip",
    "levels",
    "photograph",
    "ramp",
    "save_heatmaps",
]

PICTURES = "pictures.zip"
SIDE = 224  # pixels of a picture on a page, at the most
_EXACT = 32  # up to this side photographs are kept exactly, larger ones as a photograph is
_WIDEST = 16_000  # pixels of a WebP
_MANY = 150  # heatmaps above which they are shown at half the side
#: Name of each map on a page, and what its ends mean.
MAPS = {
    "red-blue": "red speaks for the class, blue against it, white neither",
    "orange-purple": "orange speaks for the class, purple against it, white neither",
    "on-black": "orange speaks for the class, blue against it, black neither",
    "only-for": "the brighter, the more it speaks for the class; what speaks against it is dark",
}
_STOPS = 33  # colours of a map that a page is given; it interpolates between them


class Pictures:
    """The pictures of a run in one file, ``pictures.zip``, which any tool unpacks.

    They are written as they come, so that none of them stays in memory.

    Parameters
    ----------
    folder : Path
        Folder of the run.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = zipfile.ZipFile(folder / PICTURES, "w", zipfile.ZIP_STORED)

    def __enter__(self) -> Pictures:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def add(self, name: str, content: bytes | None) -> str | None:
        """Write a picture and return its name; None stays None.

        Parameters
        ----------
        name : str
            A name that we chose, such as ``filters/3-patches.webp``: no name of a class or a file.
        content : bytes or None
            The encoded picture.
        """
        if content is None:
            return None
        self._file.writestr(zipfile.ZipInfo(name), content)  # without a date: equal runs are equal
        return name


def data_uri(content: bytes, kind: str = "png") -> str:
    """Return a picture of this kind as text that a page can embed."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


@checked(side=PIXELS)
def photograph(image: Tensor, side: int = SIDE) -> bytes:
    """Encode an image of shape (C, H, W), from 0 to 1, as WebP."""
    pixels = _small(image, side)
    exact = max(pixels.shape[-2:]) <= _EXACT
    return encoded((picture(pixels) * 255).round().astype(np.uint8), exact=exact)


@checked(side=PIXELS)
def heat_strip(heatmaps: Tensor, side: int = SIDE) -> tuple[bytes, float]:
    """Encode heatmaps of shape (N, C, H, W) side by side as grey levels, on one scale.

    A page gives the levels their colours. Large maps are averaged down to `side`.

    Returns
    -------
    bytes
        A WebP without loss.
    float
        The relevance that is white; as much against is black, and none is the middle grey.
    """
    flat = heatmaps.detach().double().cpu().sum(1, keepdim=True)
    maps = torch.stack([_small(one, min(side, _WIDEST // len(flat))) for one in flat])
    limit = max(colour_range(one[None]) for one in maps)
    grey = levels(maps[:, 0], limit)
    return encoded(np.concatenate(list(grey), 1), exact=True), limit


def levels(values: Tensor, limit: float) -> NDArray[np.uint8]:
    """Turn relevance into grey levels: -limit becomes 1, none 128, and limit 255."""
    scaled = (values / limit).clamp(-1, 1)
    found: NDArray[np.uint8] = (128 + 127 * scaled).round().numpy().astype(np.uint8)
    return found


def encoded(pixels: NDArray[np.uint8], *, exact: bool) -> bytes:
    """Encode pixels of shape (H, W), (H, W, 3) or (H, W, 4) as WebP."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", quality=88, lossless=exact, method=4)
    return buffer.getvalue()


def _small(image: Tensor, side: int) -> Tensor:
    """Average an image of shape (C, H, W) down to a side, if it is larger."""
    largest = max(image.shape[-2:])
    if largest <= side:
        return image
    size = [max(1, round(length * side / largest)) for length in image.shape[-2:]]
    return F.interpolate(image[None].double(), size=size, mode="area")[0]


@checked(every=SOME, lost=FRACTION)
def save_heatmaps(
    folder: str | Path,
    images: Tensor,
    heatmaps: Mapping[str, Tensor],
    *,
    rows: Sequence[Mapping[str, Any]] = (),
    target: str = "the predicted class",
    lost: Mapping[str, float] | None = None,
    left_out: Mapping[str, str] | None = None,
    every: int | None = None,
) -> None:
    """Write what a page of heatmaps needs: heatmaps.json and pictures.zip, see `write_report`.

    Parameters
    ----------
    folder : str or Path
        Where they go.
    images : Tensor
        Shape (N, C, H, W), from 0 to 1.
    heatmaps : mapping of str to Tensor
        Name of a method to heatmaps of shape (N, C, H, W).
    rows : sequence of mapping
        For each image its name (``image``), ``class``, ``prediction`` and ``probability``; each may
        be missing.
    target : str
        What was explained, in words.
    lost : mapping of str to float, optional
        By method the share of the relevance that does not reach the pixels.
    left_out : mapping of str to str, optional
        Methods that cannot explain the network: why.
    every : int, optional
        How many images there were, if more than are shown.
    """
    side = SIDE if len(images) * len(heatmaps) <= _MANY else SIDE // 2
    told = list(rows) or [{"image": f"image {number}"} for number in range(len(images))]
    with Pictures(Path(folder)) as pictures:
        shown = [
            _shown(number, image, {n: maps[number] for n, maps in heatmaps.items()}, side, pictures)
            for number, image in enumerate(images)
        ]
    write_json(
        Path(folder) / "heatmaps.json",
        {
            "methods": list(heatmaps),
            "target": target,
            "side": max(images.shape[-2:]),
            "every": every or len(images),
            "lost": dict(lost or {}),
            "left_out": dict(left_out or {}),
            "images": [
                {**dict(row), **one} for row, one in zip(told[: len(shown)], shown, strict=True)
            ],
        },
    )


def _shown(
    number: int, image: Tensor, heatmaps: Mapping[str, Tensor], side: int, pictures: Pictures
) -> dict[str, Any]:
    maps = []
    for place, heat in enumerate(heatmaps.values()):
        strip, limit = heat_strip(heat[None], side)
        name = pictures.add(f"heatmaps/{number:04}-{place:02}.webp", strip)
        maps.append({"heat": name, "limit": limit})
    photo = pictures.add(f"heatmaps/{number:04}.webp", photograph(image, side))
    return {"photo": photo, "maps": maps}


def _map(name: str) -> Colormap:
    if name == "red-blue":
        return colormaps["RdBu_r"]
    if name == "orange-purple":
        return colormaps["PuOr_r"]
    if name == "on-black":
        ends = ["#bfe6ff", "#3f9fd8", "#000000", "#e08a00", "#fff0c0"]
        return LinearSegmentedColormap.from_list(name, ends)
    return colormaps["cividis"]


@cache
def filters() -> list[dict[str, Any]]:
    """Return for each map the tables of an SVG filter: red, green, blue, and how dense it covers.

    As an overlay, a map is the denser the stronger the relevance is.
    """
    place = np.linspace(0, 1, _STOPS)
    found = []
    for name in MAPS:
        sequential = name == "only-for"
        where = (2 * place - 1).clip(0) if sequential else place
        colours = _map(name)(where)[:, :3]
        cover = where if sequential else np.abs(2 * place - 1)
        tables = {
            channel: " ".join(f"{value:.3f}" for value in values)
            for channel, values in zip("RGB", colours.T, strict=True)
        }
        found.append({"name": name, **tables, "A": " ".join(f"{value:.3f}" for value in cover)})
    return found


@cache
def ramp() -> str:
    """Return all grey levels from left to right, as a picture for a colour bar."""
    line = np.arange(1, 256, dtype=np.uint8)[None].repeat(2, 0)
    return data_uri(encoded(line, exact=True), "webp")
