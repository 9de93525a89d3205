"""Coloured shapes, drawn here: what they are and what colour they have are independent.

The label is the shape (``shapes``) or the colour (``shapes:colour``) of the very same images, so
that it is known which of the two a network needs. Shapes stand out from the background by their
brightness, the colours are equally bright, and the background has colours of its own: colour helps
to find no shape.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from niwaki.data import Images, Preprocessing, register
from niwaki.errors import DataError

__all__ = ["SHAPES"]

SHAPES = Preprocessing(32, mean=(0.4, 0.4, 0.4), std=(0.25, 0.25, 0.25))

_KINDS = ("circle", "square", "triangle", "cross", "ring", "bar")
_COLOURS = ("red", "yellow", "green", "cyan", "blue", "magenta")
# Directions of the colours in the plane of equal brightness (Cb to the right, Cr up), in degrees.
_HUES = (109, 163, 232, 289, 343, 52)
_COUNTS = {"train": 3000, "test": 1200}
_SIDE = 32
_FINE = 4  # shapes are drawn so many times larger, for smooth edges
_BRIGHT, _DARK = 0.66, 0.26
_CHROMA = 0.2


@register("shapes")
def open_shapes(preprocessing: Preprocessing | None, split: str) -> Images:
    """Open the images with the shape as the label: 3,000 in "train", 1,200 in "test"."""
    return _open(preprocessing, split, by_colour=False)


@register("shapes:colour")
def open_colours(preprocessing: Preprocessing | None, split: str) -> Images:
    """Open the same images with the colour as the label."""
    return _open(preprocessing, split, by_colour=True)


def _open(preprocessing: Preprocessing | None, split: str, *, by_colour: bool) -> Images:
    split = "test" if split == "val" else split
    if split not in _COUNTS:
        raise DataError(f"shapes has no split {split!r}; it has 'train' and 'test'")
    pairs = [_pair(split, index) for index in range(_COUNTS[split])]
    return Images(
        partial(_draw, split),
        [pair[by_colour] for pair in pairs],
        _COLOURS if by_colour else _KINDS,
        preprocessing or SHAPES,
    )


def _pair(split: str, index: int) -> tuple[int, int]:
    """Shape and colour of an image: every pair comes equally often."""
    return index % len(_KINDS), index // len(_KINDS) % len(_COLOURS)


def _draw(split: str, index: int) -> Image.Image:
    """Draw an image, the same each time."""
    random = np.random.default_rng([list(_COUNTS).index(split), index])
    kind, colour = _pair(split, index)
    cover = _cover(_KINDS[kind], random)[..., None]
    tint = random.uniform(0, 360), random.uniform(0, _CHROMA)
    back = _rgb(_DARK + random.uniform(-0.1, 0.1), *tint)
    front = _rgb(_BRIGHT + random.uniform(-0.08, 0.08), _HUES[colour], _CHROMA)
    pixels = cover * front + (1 - cover) * back + random.normal(0, 0.05, (_SIDE, _SIDE, 3))
    return Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8))


def _cover(kind: str, random: np.random.Generator) -> NDArray[np.float64]:
    """How much of each pixel the shape covers, at a random place, size and angle."""
    radius = random.uniform(6, 10)
    centre = random.uniform(radius + 1, _SIDE - radius - 1, 2)
    turn = random.uniform(0, 2 * math.pi)
    canvas = Image.new("L", (_SIDE * _FINE, _SIDE * _FINE))
    draw = ImageDraw.Draw(canvas)

    def polygon(corners: list[tuple[float, float]]) -> None:
        """Fill a polygon told as radius (in units of the shape's) and angle of its corners."""
        points = [
            tuple(
                _FINE * (centre + radius * r * np.array([math.cos(a + turn), math.sin(a + turn)]))
            )
            for r, a in corners
        ]
        draw.polygon(points, fill=255)

    def disc(share: float, fill: int) -> None:
        box = [*(_FINE * (centre - share * radius)), *(_FINE * (centre + share * radius))]
        draw.ellipse(box, fill=fill)

    def rectangle(long: float, wide: float, angle: float = 0.0) -> None:
        reach, corner = math.hypot(long, wide), math.atan2(wide, long)
        angles = (corner, math.pi - corner, math.pi + corner, -corner)
        polygon([(reach, a + angle) for a in angles])

    if kind in ("circle", "ring"):
        disc(0.85, 255)
        if kind == "ring":
            disc(0.5, 0)
    elif kind == "triangle":
        polygon([(1.1, 2 * math.pi * i / 3) for i in range(3)])
    elif kind == "square":
        rectangle(0.7, 0.7)
    elif kind == "cross":
        rectangle(1.0, 0.28)
        rectangle(1.0, 0.28, math.pi / 2)
    else:
        rectangle(1.05, 0.3)
    small = canvas.resize((_SIDE, _SIDE), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float64) / 255


def _rgb(brightness: float, hue: float, chroma: float) -> NDArray[np.float64]:
    """Turn brightness, and direction and strength of the colour, into RGB (BT.601)."""
    cb, cr = chroma * math.cos(math.radians(hue)), chroma * math.sin(math.radians(hue))
    return np.array(
        [brightness + 1.402 * cr, brightness - 0.344 * cb - 0.714 * cr, brightness + 1.772 * cb]
    )
