"""Stains of H&E images: how much of the relevance is on which."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from niwaki.auditing._material import Material

Array = NDArray[Any]


def stains(pixels: Tensor) -> dict[str, Array]:
    """Sort the pixels of H&E images by stain: shape (N, H, W), bool, one True for each pixel.

    By scikit-image's separation: *haematoxylin* where there is much of it, on either side of Otsu's
    threshold over all images; *eosin* is the rest of the tissue; *neither* where hardly any stain
    is (glass, lumen), or where the third component is far from what these two have of it
    everywhere else in the images (ink, marks).
    """
    from skimage.color import rgb2hed
    from skimage.filters import threshold_otsu

    amounts = rgb2hed(pixels.permute(0, 2, 3, 1).double().numpy())
    both = amounts[..., :2]
    # The stains of a laboratory are not quite the reference's: what the third component has of
    # them is fitted, and only what is left is foreign.
    flat = both.reshape(-1, 2)
    share = np.linalg.lstsq(flat, amounts[..., 2].ravel(), rcond=None)[0]
    left = np.abs(amounts[..., 2] - both @ share)
    scaled = both / np.quantile(flat, 0.95, axis=0).clip(1e-6)
    neither = (left > 8 * np.median(left) + 1e-3) | (scaled.max(-1) < 0.15)
    # Not where it is the stronger one: nuclei lie in eosin, and the two are known up to a scale.
    threshold: float = threshold_otsu(amounts[..., 0])  # type: ignore[no-untyped-call]
    is_nuclear = amounts[..., 0] > threshold
    return {
        "haematoxylin": is_nuclear & ~neither,
        "eosin": ~is_nuclear & ~neither,
        "neither": neither,
    }


def by_stain(material: Material) -> dict[str, dict[str, dict[str, float]]]:
    """Say for each class how much of the area and of the relevance each stain has."""
    groups = stains(material.pixels[:])
    table = {}
    for label in material.classes():
        members = material.members(label)
        strength = material.strength(members)
        table[material.class_names[label]] = {
            name: {
                "area": float(mask[members].mean()),
                "relevance": float((strength * mask[members]).sum((1, 2)).mean()),
            }
            for name, mask in groups.items()
        }
    return table
