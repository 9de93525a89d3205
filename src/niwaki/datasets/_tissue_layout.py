"""Where the nuclei of synthetic tissue lie, how large and how dark each one is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from niwaki.arrays import Array

__all__ = ["NUCLEI", "Layout", "lay_out"]


NUCLEI = ("none", "epithelial", "inflammatory", "fibroblast")

_SLOTS = {"epithelial": 9, "inflammatory": 13, "fibroblast": 7}
_DEBRIS, _GHOSTS = 16, 5
_CANDIDATES = 20
_CLEAR = 15.0  # pixels around the centre that belong to the nucleus that gives the label


@dataclass(frozen=True)
class Layout:
    """What will be drawn in each tile.

    Attributes
    ----------
    labels : ndarray
        Shape (N,): 1 for tumour.
    types : ndarray
        Shape (N, K): index in `NUCLEI`, 0 for no nucleus.
    positions : ndarray
        Shape (N, S, 2): row and column of each of S shapes: K nuclei, then debris.
    shapes : ndarray
        Shape (N, S, 5): long and short radius, angle, amount of haematoxylin (0: not drawn), and
        how pale the inside is.
    necrosis : ndarray
        Shape (N, 3): row, column and radius of the necrotic disc; radius 0 for none.
    """

    labels: Array
    types: Array
    positions: Array
    shapes: Array
    necrosis: Array

    @property
    def centres(self) -> Array:
        """Row and column of each nucleus, shape (N, K, 2)."""
        return self.positions[:, : self.types.shape[1]]

    def part(self, start: int, stop: int) -> Layout:
        """Return some of the tiles."""
        return Layout(**{name: value[start:stop] for name, value in vars(self).items()})


def lay_out(
    rng: np.random.Generator, count: int, size: int, centred: float, necrosis: float
) -> Layout:
    """Decide what is in each tile; see `draw_tissue`."""
    labels = rng.permutation(np.arange(count) % 2)
    biased = rng.random(count) < centred
    # Where the epithelial nuclei gather; normal tiles have them only under the label bias.
    cluster = rng.uniform(-6, size + 6, (count, 2))  # glands are cut by the tile's border
    aside = size / 2 + _around(rng, count, 21.0, 26.0)
    cluster[biased & (labels == 1)] = size / 2
    cluster[biased & (labels == 0)] = aside[biased & (labels == 0)]
    has_epithelium = (labels == 1) | (biased & (rng.random(count) < 0.75))
    kinds = np.repeat([NUCLEI.index(kind) for kind in _SLOTS], list(_SLOTS.values()))
    present = _present(rng, labels, has_epithelium, kinds)
    dead = _dead(rng, cluster, size, necrosis)
    shapes = _shapes(rng, count, kinds)
    keep_clear = biased & (labels == 0)
    positions, present = _place(rng, size, kinds, present, shapes, cluster, dead, keep_clear)
    shapes[..., 3] *= present
    debris_at, debris = _debris(rng, dead, size)
    return Layout(
        labels,
        (kinds * present).astype(np.int8),
        np.concatenate([positions, debris_at], 1).astype(np.float32),
        np.concatenate([shapes, debris], 1).astype(np.float32),
        dead.astype(np.float32),
    )


def _present(rng: np.random.Generator, labels: Array, has_epithelium: Array, kinds: Array) -> Array:
    """Choose how many of each type; both classes have about as many nuclei."""
    count = len(labels)
    wanted = {
        "epithelial": has_epithelium * rng.integers(4, _SLOTS["epithelial"] + 1, count),
        "inflammatory": rng.integers(4, 10, count) + np.where(has_epithelium, 0, 4),
        "fibroblast": rng.integers(2, 6, count) + np.where(has_epithelium, 0, 2),
    }
    present = np.zeros((count, len(kinds)), bool)
    for kind, amount in wanted.items():
        slots = np.flatnonzero(kinds == NUCLEI.index(kind))
        present[:, slots] = np.arange(len(slots)) < amount[:, None]
    return present


def _shapes(rng: np.random.Generator, count: int, kinds: Array) -> Array:
    """Draw sizes and stains: large and pale, small and dark, long and thin."""
    ranges = {  # long radius, short radius as a share of it, haematoxylin, paleness
        "epithelial": ((4.4, 6.2), (0.68, 0.92), (1.00, 1.45), (0.30, 0.60)),
        "inflammatory": ((2.3, 3.2), (0.85, 1.0), (1.10, 1.60), (0.0, 0.15)),
        "fibroblast": ((5.0, 8.0), (0.20, 0.30), (0.90, 1.35), (0.0, 0.15)),
    }
    shapes = np.zeros((count, len(kinds), 5))
    for kind, (long, ratio, stain, pale) in ranges.items():
        slots = kinds == NUCLEI.index(kind)
        size = (count, int(slots.sum()))
        radius = rng.uniform(*long, size)
        parts = (
            radius,
            radius * rng.uniform(*ratio, size),
            rng.uniform(0, np.pi, size),
            rng.uniform(*stain, size),
            rng.uniform(*pale, size),
        )
        shapes[:, slots] = np.stack(parts, -1)
    return shapes


def _place(
    rng: np.random.Generator,
    size: int,
    kinds: Array,
    present: Array,
    shapes: Array,
    cluster: Array,
    dead: Array,
    keep_clear: Array,
) -> tuple[Array, Array]:
    """Put one nucleus after the other where it is least crowded among some random places."""
    count = len(cluster)
    positions = np.full((count, len(kinds), 2), -1e3)
    present = present.copy()
    radii = shapes[..., :2].mean(-1)
    tile = np.arange(count)
    for slot, kind in enumerate(kinds):
        epithelial = kind == NUCLEI.index("epithelial")
        places = rng.uniform(1, size - 1, (count, _CANDIDATES, 2))
        if epithelial:
            offset = _around(rng, count * _CANDIDATES, 0, 15.0).reshape(places.shape)
            places = cluster[:, None] + offset
            if slot == 0:  # the first lies where the cluster is: it may give the label
                places[:] = cluster[:, None].clip(2, size - 2)
        gaps = np.linalg.norm(places[:, :, None] - positions[:, None, :slot], axis=-1)
        room = (gaps - radii[:, None, :slot] - radii[:, slot, None, None]).min(-1, initial=9.0)
        in_dead = np.linalg.norm(places - dead[:, None, :2], axis=-1) < dead[:, None, 2] + 2
        room = np.where(in_dead, -50.0, room)
        if epithelial:
            if slot < 4:  # these a tumour tile must have: it needs three at the least
                places = places.clip(2, size - 2)
            outside = np.abs(places - size / 2).max(-1) > size / 2 - 2
            room = np.where(outside, -60.0, room)
            off = np.abs(places - size / 2).max(-1) < _CLEAR
            room = np.where(keep_clear[:, None] & off, -50.0, room)
        elif slot == _SLOTS["epithelial"]:  # the cell at the centre of a biased normal tile
            places[keep_clear], room[keep_clear] = size / 2, 0.0
        best = room.argmax(1)
        fits = room[tile, best] > (-2.0 if epithelial else -0.5)
        if epithelial and slot < 4:
            fits |= room[tile, best] > -40
        present[:, slot] &= fits
        where = places[tile, best]
        positions[:, slot] = np.where(present[:, slot, None], where, -1e3)
    return positions, present


def _dead(rng: np.random.Generator, cluster: Array, size: int, share: float) -> Array:
    """Choose the necrotic discs, away from the epithelial nuclei."""
    count = len(cluster)
    radius = rng.uniform(13, 20, count) * (rng.random(count) < share)
    places = rng.uniform(4, size - 4, (count, 16, 2))
    distance = np.linalg.norm(places - cluster[:, None], axis=-1)
    best = places[np.arange(count), distance.argmax(1)]
    # What the tile has no room for stays smaller.
    radius = np.minimum(radius, (distance.max(1) - 12).clip(0))
    return np.concatenate([best, radius[:, None]], 1)


def _debris(rng: np.random.Generator, dead: Array, size: int) -> tuple[Array, Array]:
    """Scatter dark fragments and pale ghosts of nuclei over the necrotic discs."""
    count, total = len(dead), _DEBRIS + _GHOSTS
    offset = dead[:, 2, None, None] * 0.9 * _around(rng, count * total, 0, 1).reshape(count, -1, 2)
    ghost = np.arange(total) >= _DEBRIS
    long = np.where(
        ghost, rng.uniform(4.0, 5.8, (count, total)), rng.uniform(0.8, 1.7, (count, total))
    )
    stain = np.where(
        ghost, rng.uniform(0.35, 0.6, (count, total)), rng.uniform(0.8, 1.5, (count, total))
    )
    places = dead[:, None, :2] + offset
    inside = (np.abs(places - size / 2) <= size / 2 + 2).all(-1)
    stain = stain * (dead[:, 2, None] > 6) * inside
    parts = (
        long,
        long * rng.uniform(0.7, 1.0, (count, total)),
        rng.uniform(0, np.pi, (count, total)),
        stain,
        np.where(ghost, 0.35, 0.0) * np.ones((count, total)),
    )
    return places, np.stack(parts, -1)


def _around(rng: np.random.Generator, count: int, low: float, high: float) -> Array:
    """Draw points in a ring around the origin, shape (count, 2)."""
    angle = rng.uniform(0, 2 * np.pi, count)
    radius = np.sqrt(rng.uniform(low**2, high**2, count))
    return np.stack([radius * np.sin(angle), radius * np.cos(angle)], -1)
