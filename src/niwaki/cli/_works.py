"""What the work of each command consists of, for ``niwaki estimate``.

A new command calls `niwaki.stages.allowed` where it knows how many images or steps there are, and
gets a line here. Limits are those of trials, from the shortest to the longest: of images in
batches, of all else in numbers.
"""

from __future__ import annotations

from niwaki.estimation import Work

__all__ = ["WORKS"]

_IMAGES = (1, 3, 8, 20)
_PER_IMAGE = ("1", "images")
_STEPS = {"steps": (2, 3, 3, 3), "references": (1, 2, 4, 8), "test images": _IMAGES}
_PER_STEP = ("steps", "steps * references")
# The sheet and the page show so many images at the most, and only these stay in memory.
_SHEET = Work(
    {"images": _IMAGES},
    {"explaining": _PER_IMAGE, "hashing images": _PER_IMAGE},
    other=("1", "images<64"),
    memory=("1", "images<64"),
    disk=_PER_IMAGE,
)

WORKS: dict[str, Work] = {
    "explain": _SHEET,
    "compare": _SHEET,
    "evaluate": Work(
        {"images": _IMAGES},
        {
            "hashing images": _PER_IMAGE,
            "perturbing": _PER_IMAGE,
            "randomising": _PER_IMAGE,
            "measuring lost relevance": _PER_IMAGE,
        },
        memory=_PER_IMAGE,
        disk=_PER_IMAGE,
    ),
    "prune": Work(
        {**_STEPS, "epochs": (1, 1, 1, 1), "training images": (1.5, 2, 3, 4)},
        {
            "reading images": ("references", "test images"),
            "hashing images": ("references", "test images"),
            "scoring": _PER_STEP,
            "choosing": _PER_STEP,
            "rebuilding": _PER_STEP,
            # Each step and the network before them; the page compares the first and the last.
            "measuring accuracy": ("steps+3", "steps+3 * test images"),
            "fine-tuning": ("steps * epochs * training images",),
        },
        other=("1", "steps"),
        memory=("1", "references", "test images"),
        disk=("1", "steps"),
    ),
    "prune-weights": Work(
        _STEPS,
        {
            "reading images": ("references", "test images"),
            "hashing images": ("references", "test images"),
            "scoring": _PER_STEP,
            "rebuilding": _PER_STEP,
            "measuring accuracy": ("steps+1", "steps+1 * test images"),
        },
        other=("1", "steps"),
        memory=("1", "references", "test images"),
        disk=("1", "steps"),
    ),
    "car": Work(
        {"images": _IMAGES},
        {"removing filters": _PER_IMAGE, "hashing images": _PER_IMAGE},
        memory=_PER_IMAGE,
    ),
    "filters": Work(
        {
            "images": _IMAGES,
            "parts": (6, 6, 12, 12),
            "steps": (1, 8, 1, 16),
            "patches": (2, 8, 8, 8),
        },
        {
            "reading images": _PER_IMAGE,
            "hashing images": _PER_IMAGE,
            "removing filters": _PER_IMAGE,
            "profiling": _PER_IMAGE,
            "drawing filters": ("parts", "parts * steps", "parts * patches"),
            "showing filters": ("1", "parts", "parts * patches"),
        },
        memory=_PER_IMAGE,
        disk=("1", "images", "parts * patches"),
    ),
    "audit": Work(
        {"images": (8, 30, 60)},
        {
            "explaining": _PER_IMAGE,
            "hashing images": _PER_IMAGE,
            "asking": ("1", "images", "images * images"),  # some questions compare pairs of images
            "collecting heatmaps": _PER_IMAGE,
            "drawing findings": _PER_IMAGE,  # more images show more
        },
        memory=_PER_IMAGE,
        disk=_PER_IMAGE,
    ),
    "slide": Work(
        {"tiles": _IMAGES}, other=("1", "tiles"), memory=("1", "tiles"), disk=("1", "tiles")
    ),
}
