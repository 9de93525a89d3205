"""Principal components of what images look like to a network."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
DIMENSIONS = 10
_ROUNDING = 1e-6


def components(features: Array) -> Array:
    """Return the first principal components of standardised features, all of variance 1."""
    spread = features.std(0)
    standard = ((features - features.mean(0)) / np.where(spread > 0, spread, 1)).astype(float)
    values, vectors = np.linalg.eigh(standard @ standard.T)
    # Of few features there are few components; the rest is rounding.
    kept = vectors[:, -DIMENSIONS:][:, values[-DIMENSIONS:] > _ROUNDING * max(values[-1], 1e-300)]
    found: Array = kept * len(features) ** 0.5
    return found
