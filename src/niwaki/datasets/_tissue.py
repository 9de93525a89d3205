"""Synthetic tissue: tiles that look like H&E, drawn by us, with exact masks of every nucleus.

No patient is behind them: shapes, colours and counts follow what such sections look like, so that a
network can be trained and audited where nothing can be downloaded. They prove that a method finds
what was planted, never that it finds it in real tissue.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.ndimage import gaussian_filter

from niwaki.arrays import Array
from niwaki.data import Images, Preprocessing, register
from niwaki.datasets._tissue_layout import NUCLEI, Layout, lay_out
from niwaki.errors import DataError
from niwaki.ranges import FACTOR, FRACTION, ROUNDS, SEED, checked

__all__ = ["NUCLEI", "TISSUE", "Tissue", "draw_tissue"]


SIZE = 64
TISSUE = Preprocessing(SIZE, mean=(0.79, 0.61, 0.71), std=(0.12, 0.12, 0.08))
CLASSES = ["normal", "tumour"]

# Optical density of haematoxylin and eosin in red, green and blue (after Macenko et al. 2009).
_STAINS = np.array([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]])
_CHUNK = 200  # tiles drawn at once, which stay in the processor's cache
_MARGIN = 14  # around the canvas, so that shapes at the border need no clipping


@dataclass(frozen=True, eq=False)
class Tissue:
    """Drawn tiles and everything that is known of them.

    Attributes
    ----------
    pixels : ndarray
        Shape (N, 64, 64, 3), uint8.
    labels : ndarray
        Shape (N,): 1 for tumour.
    instances : ndarray
        Shape (N, 64, 64), int16: 0 where no nucleus is, k + 1 where the k-th is.
    types : ndarray
        Shape (N, K), int8: type of each nucleus as index of `NUCLEI`; 0 for none.
    centres : ndarray
        Shape (N, K, 2): row and column of each nucleus.
    necrosis : ndarray
        Shape (N, 64, 64), bool.
    """

    pixels: Array
    labels: Array
    instances: Array
    types: Array
    centres: Array
    necrosis: Array

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"Tissue({len(self)} tiles, {int(self.labels.sum())} of them tumour)"

    def mask(self, kind: str) -> Array:
        """Return where nuclei of a type of `NUCLEI` are, shape (N, 64, 64), bool."""
        if kind not in NUCLEI:
            raise DataError(f"there are no {kind!r} nuclei; types: {', '.join(NUCLEI[1:])}")
        padded = np.pad(self.types, ((0, 0), (1, 0)))
        of_pixel = np.take_along_axis(padded, self.instances.reshape(len(self), -1), 1)
        found: Array = (of_pixel == NUCLEI.index(kind)).reshape(self.instances.shape)
        return found

    def select(self, indices: Sequence[int] | Array) -> Tissue:
        """Return some of the tiles."""
        chosen = np.asarray(indices)
        return Tissue(**{name: value[chosen] for name, value in vars(self).items()})

    def images(
        self, preprocessing: Preprocessing | None = None, pixels: Array | None = None
    ) -> Images:
        """Return the tiles as a data set; `pixels`, of the same shape, in the place of its own."""
        shown = self.pixels if pixels is None else pixels
        return Images.of_pixels(shown, self.labels.tolist(), CLASSES, preprocessing or TISSUE)


@checked(count=ROUNDS, seed=SEED, centred=FRACTION, necrosis=FRACTION, stain_variation=FACTOR)
def draw_tissue(
    count: int,
    seed: int = 0,
    *,
    centred: float = 0.0,
    necrosis: float = 0.2,
    stain_variation: float = 1.0,
) -> Tissue:
    """Draw tiles of 64 x 64 pixels, half of them tumour.

    A tumour tile has three or more epithelial nuclei, at any place; a normal one has none.

    Parameters
    ----------
    count : int
        Number of tiles.
    seed : int
        The same seed draws the same tiles.
    centred : float
        Share of tiles with the *label bias*: labelled by what lies at the centre only. There a
        tumour tile has its epithelial nuclei around the centre, and most normal tiles have
        epithelial nuclei too, but away from it.
    necrosis : float
        Share of tiles, of either class, with a necrotic area.
    stain_variation : float
        How much tiles differ in colour; 0: not at all.

    """
    rng = np.random.default_rng(seed)
    layout = lay_out(rng, count, SIZE, centred, necrosis)
    parts = [
        _draw(rng, layout.part(start, start + _CHUNK), stain_variation)
        for start in range(0, count, _CHUNK)
    ]
    pixels, instances, dead = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Tissue(pixels, layout.labels, instances, layout.types, layout.centres, dead)


@register("tissue")
def open_tissue(preprocessing: Preprocessing | None, split: str) -> Images:
    """Open the unbiased tiles: 2,000 in "train", 600 in "test"."""
    if split not in ("train", "test", "val"):
        raise DataError(f"tissue has no split {split!r}; it has 'train' and 'test'")
    return _embedded(split == "train").images(preprocessing)


@lru_cache(maxsize=2)
def _embedded(train: bool) -> Tissue:
    return draw_tissue(2000, seed=1) if train else draw_tissue(600, seed=2)


def _draw(rng: np.random.Generator, layout: Layout, variation: float) -> tuple[Array, ...]:
    """Draw in amounts of the two stains, then let light through."""
    count = len(layout.labels)
    side = SIZE + 2 * _MARGIN
    shape = (count, side, side)
    fibres = _fibres(rng, count, side)
    grain = rng.standard_normal(shape, dtype=np.float32)
    coarse = _smooth(grain, 1.2)
    eosin = 0.42 + 0.16 * fibres + 0.04 * coarse
    haematoxylin = 0.06 + 0.03 * fibres
    dead = _areas(layout, side)
    soft = _smooth(dead.astype(np.float32), 1.0)
    eosin += soft * (0.62 + 0.10 * coarse - eosin)
    haematoxylin += soft * (0.10 + 0.05 * np.abs(coarse) - haematoxylin)
    _cytoplasm(layout, haematoxylin, eosin)
    instances = np.zeros(shape, np.int16)
    texture = 1 + 0.16 * coarse + 0.08 * grain
    for slot in range(layout.shapes.shape[1]):
        _nucleus(layout, slot, haematoxylin, eosin, texture, instances)
    inner = (slice(None), slice(_MARGIN, -_MARGIN), slice(_MARGIN, -_MARGIN))
    pixels = _light(rng, haematoxylin[inner], eosin[inner], variation)
    return pixels, instances[inner], dead[inner]


def _fibres(rng: np.random.Generator, count: int, side: int) -> Array:
    """Wavy bundles of collagen, each tile with its own direction; from about -1 to 1."""
    angle = rng.uniform(0, np.pi, (count, 1, 1))
    rows, columns = np.mgrid[:side, :side].astype(np.float32)
    across = (np.cos(angle) * rows + np.sin(angle) * columns).astype(np.float32)
    bend = 5 * _smooth(rng.standard_normal((count, side, side), dtype=np.float32), 7)
    waves = np.zeros((count, side, side), np.float32)
    for length in (5.0, 8.0, 13.0):
        phase = rng.uniform(0, 2 * np.pi, (count, 1, 1)).astype(np.float32)
        waves += np.sin(2 * np.pi / length * (across + bend) + phase)
    return waves / 3


def _smooth(noise: Array, sigma: float) -> Array:
    """Blur a stack of maps; white noise keeps a standard deviation of about 1."""
    blurred: Array = gaussian_filter(noise, (0, sigma, sigma), mode="wrap", truncate=3)
    return blurred * (2 * np.sqrt(np.pi) * sigma if noise.min() < 0 else 1)


def _areas(layout: Layout, side: int) -> Array:
    """Return the necrotic discs."""
    rows, columns = np.mgrid[:side, :side].astype(np.float32) - _MARGIN
    centre, radius = layout.necrosis[:, :2, None, None], layout.necrosis[:, 2, None, None]
    inside: Array = (rows - centre[:, 0]) ** 2 + (columns - centre[:, 1]) ** 2 < radius**2
    return inside


def _cytoplasm(layout: Layout, haematoxylin: Array, eosin: Array) -> None:
    """Surround epithelial nuclei by their pale violet cytoplasm."""
    side = haematoxylin.shape[1]
    field = np.zeros_like(haematoxylin)
    tiles, slots = np.nonzero(layout.types == NUCLEI.index("epithelial"))
    row, column = (layout.centres[tiles, slots] + _MARGIN).round().astype(int).clip(0, side - 1).T
    np.add.at(field, (tiles, row, column), 1)
    cover = 1 - np.exp(-60 * gaussian_filter(field, (0, 4, 4), truncate=2.5))
    haematoxylin += cover * (0.16 - haematoxylin)
    eosin += cover * (0.36 - eosin)


def _nucleus(
    layout: Layout,
    slot: int,
    haematoxylin: Array,
    eosin: Array,
    texture: Array,
    instances: Array,
) -> None:
    """Draw the slot's nucleus in every tile that has one: an ellipse with a rim, by windows."""
    long, short, angle, stain, vesicular = layout.shapes[:, slot].T
    tiles = np.flatnonzero(stain > 0)
    if len(tiles) == 0:
        return
    half = int(np.ceil(long[tiles].max() + 2))
    centre = layout.positions[tiles, slot] + _MARGIN
    corner = np.floor(centre).astype(int) - half
    steps = np.arange(2 * half + 1)
    rows, columns = corner[:, :1] + steps, corner[:, 1:] + steps
    dy = (rows - centre[:, :1])[:, :, None].astype(np.float32)
    dx = (columns - centre[:, 1:])[:, None, :].astype(np.float32)
    cosine, sine = (f(angle[tiles])[:, None, None].astype(np.float32) for f in (np.cos, np.sin))
    u = (cosine * dy + sine * dx) / long[tiles, None, None]
    v = (cosine * dx - sine * dy) / short[tiles, None, None]
    distance = np.sqrt(u * u + v * v)
    edge = np.clip((1 - distance) * short[tiles, None, None] * 1.1 + 0.5, 0, 1)
    where = (tiles[:, None, None], rows[:, :, None], columns[:, None, :])
    rim = 1 - vesicular[tiles, None, None] * np.clip(1.15 - distance, 0, 1)
    amount = stain[tiles, None, None] * rim * texture[where]
    haematoxylin[where] += edge * (amount - haematoxylin[where])
    eosin[where] += edge * (0.30 - eosin[where])
    if slot < layout.types.shape[1]:
        instances[where] = np.where(edge > 0.5, slot + 1, instances[where])


def _light(rng: np.random.Generator, haematoxylin: Array, eosin: Array, variation: float) -> Array:
    """Turn amounts of stain into pixels by the law of Beer and Lambert."""
    count = len(haematoxylin)
    strength = np.exp(variation * rng.normal(0, 0.10, (count, 2)))
    stains = _STAINS * np.exp(variation * rng.normal(0, 0.04, (count, 2, 3)))
    amounts = np.stack([haematoxylin, eosin], -1).clip(0) * strength[:, None, None]
    density = amounts @ stains[:, None].astype(np.float32)
    noise = rng.standard_normal(density.shape, dtype=np.float32)
    pixels: Array = 245 * np.exp(-density) + 2.5 * noise
    return pixels.clip(0, 255).astype(np.uint8)
