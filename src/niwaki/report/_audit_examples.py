"""Examples of a finding on the page: each image with its heatmap, its name, and where it lies."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_erosion

from niwaki.auditing import Audit, Finding
from niwaki.report._colours import overlay, picture
from niwaki.report._page import data_uri

_SHOWN = 8
_SIDE = 224  # pixels; smaller images are enlarged to about this, without smoothing
_GAP = 4


def examples_of(audit: Audit, finding: Finding) -> list[dict[str, Any]]:
    """Return the images that show a finding most clearly, and some that do not have it.

    Parameters
    ----------
    audit : Audit
        Has the images.
    finding : Finding
        One of its questions.

    Returns
    -------
    list of dict
        For the page: a picture, the image's name and what is known of it.
    """
    shown = [(p, finding.outline(n), True) for n, p in enumerate(finding.examples[:_SHOWN])]
    shown += [(position, None, False) for position in finding.ordinary[:_SHOWN]]
    return [_example(audit, int(p), region, has_it) for p, region, has_it in shown]


def _example(
    audit: Audit, position: int, region: NDArray[Any] | None, has_it: bool
) -> dict[str, Any]:
    image = audit.material.describe(position)
    facts = [f"image {image['index']} of the data set", f"class {image['class']}"]
    facts.append(f"the network says {image['said']}")
    if "slide" in image:
        facts.insert(0, f"slide {image['slide']}")
    if region is not None and 0 < region.mean() < 1:
        facts.append(_place(region))
    if not has_it:
        facts.append("does not have it")
    return {
        "name": image["name"],
        "facts": "; ".join(facts),
        "picture": _picture(audit, position, region),
        "has_it": has_it,
    }


def _place(region: NDArray[Any]) -> str:
    """Name the pixels of a place in words."""
    rows, columns = (np.flatnonzero(region.any(axis)) for axis in (1, 0))
    return (
        f"outlined: rows {rows[0]} to {rows[-1]}, columns {columns[0]} to {columns[-1]} of "
        f"{region.shape[0]} x {region.shape[1]}"
    )


def _picture(audit: Audit, position: int, region: NDArray[Any] | None) -> str:
    """Lay an image and its heatmap side by side, with the place outlined."""
    image = audit.material.pixels[position]
    heat = torch.from_numpy(audit.material.relevance[position])
    times = max(1, _SIDE // max(image.shape[1:]))
    parts = [
        part.repeat(times, 0).repeat(times, 1) for part in (picture(image), overlay(image, heat))
    ]
    if region is not None and 0 < region.mean() < 1:
        large = region.repeat(times, 0).repeat(times, 1)
        edge = large & ~binary_erosion(large, iterations=2)
        for part in parts:
            part[edge] = 0
    gap = np.ones((len(parts[0]), _GAP, 3))
    joined = np.concatenate([parts[0], gap, parts[1]], 1)
    buffer = io.BytesIO()
    Image.fromarray((joined * 255).round().astype(np.uint8)).save(buffer, "PNG", optimize=True)
    return data_uri(buffer.getvalue())
