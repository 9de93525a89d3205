"""Examples of a finding on the page: each image with its heatmap, its name, and where it lies."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion

from niwaki.auditing import Audit, Finding
from niwaki.report._colours import picture
from niwaki.report._pictures import SIDE, Pictures, encoded, heat_strip

_SHOWN = 8


def examples_of(
    audit: Audit, finding: Finding, stem: str, pictures: Pictures
) -> list[dict[str, Any]]:
    """Return the images that show a finding most clearly, and some that do not have it.

    Parameters
    ----------
    audit : Audit
        Has the images.
    finding : Finding
        One of its questions.
    stem : str
        How the names of the pictures begin.
    pictures : Pictures
        Where they are written.

    Returns
    -------
    list of dict
        For the page: the pictures, the image's name and what is known of it.
    """
    shown = [(p, finding.outline(n), True) for n, p in enumerate(finding.examples[:_SHOWN])]
    shown += [(position, None, False) for position in finding.ordinary[:_SHOWN]]
    found = []
    for number, (position, region, has_it) in enumerate(shown):
        place = region if region is not None and 0 < region.mean() < 1 else None
        name = f"{stem}-{number:02}"
        found.append(
            {
                **example(audit, int(position), name, pictures, place),
                "facts": _facts(audit, int(position), place, has_it),
                "has_it": has_it,
            }
        )
    return found


def example(
    audit: Audit,
    position: int,
    stem: str,
    pictures: Pictures,
    region: NDArray[Any] | None = None,
) -> dict[str, Any]:
    """Write an image and its heatmap, and return their names with that of the image."""
    heat = torch.from_numpy(np.asarray(audit.material.relevance[position]))
    strip, limit = heat_strip(heat[None, None])
    image = _outlined(audit, position, region)
    return {
        "name": audit.material.describe(position)["name"],
        "photo": pictures.add(f"{stem}-photograph.webp", image),
        "heat": pictures.add(f"{stem}-heatmap.webp", strip),
        "limit": limit,
    }


def _facts(audit: Audit, position: int, region: NDArray[Any] | None, has_it: bool) -> str:
    image = audit.material.describe(position)
    facts = [f"image {image['index']} of the data set", f"class {image['class']}"]
    facts.append(f"the network predicts {image['prediction']}")
    if "slide" in image:
        facts.insert(0, f"slide {image['slide']}")
    if region is not None:
        facts.append(_place(region))
    if not has_it:
        facts.append("without it")
    return "; ".join(facts)


def _place(region: NDArray[Any]) -> str:
    """Name the pixels of a place in words."""
    rows, columns = (np.flatnonzero(region.any(axis)) for axis in (1, 0))
    return (
        f"outlined: rows {rows[0]} to {rows[-1]}, columns {columns[0]} to {columns[-1]} of "
        f"{region.shape[0]} x {region.shape[1]}"
    )


def _outlined(audit: Audit, position: int, region: NDArray[Any] | None) -> bytes:
    """Encode an image, enlarged, with the place outlined in black within white."""
    pixels = picture(audit.material.pixels[position])
    times = max(1, SIDE // max(pixels.shape[:2]))
    if region is None:
        return encoded((pixels * 255).round().astype(np.uint8), exact=max(pixels.shape[:2]) <= 32)
    large = pixels.repeat(times, 0).repeat(times, 1)
    inside = region.repeat(times, 0).repeat(times, 1)
    inner = binary_erosion(inside, iterations=2)
    large[inside & ~inner] = 0
    large[inner & ~binary_erosion(inner, iterations=1)] = 1
    return encoded((large * 255).round().astype(np.uint8), exact=max(pixels.shape[:2]) <= 32)
