"""Small pictures for pages: heatmaps as grey levels, photographs, and the one file they lie in."""

from __future__ import annotations

import base64
import io
import zipfile
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from niwaki.ranges import SIDE as PIXELS
from niwaki.ranges import checked
from niwaki.report._colours import colour_range, picture

__all__ = ["PICTURES", "Pictures", "data_uri", "encoded", "heat_strip", "levels", "photograph"]

PICTURES = "pictures.zip"
SIDE = 224  # pixels of a picture on a page, at the most
_EXACT = 32  # up to this side photographs are kept exactly, larger ones as a photograph is
_WIDEST = 16_000  # pixels of a WebP


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
