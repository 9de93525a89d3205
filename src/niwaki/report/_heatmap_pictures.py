"""Heatmaps as their page shows them: photographs and grey levels, with what is said of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from niwaki.files import write_json
from niwaki.ranges import FRACTION, SOME, checked
from niwaki.report._pictures import SIDE, Pictures, heat_strip, photograph

__all__ = ["save_heatmaps"]

_MANY = 150  # heatmaps above which they are shown at half the side


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
