"""What `niwaki filters` leaves: the numbers of each filter, and what its page shows of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from niwaki.files import write_csv, write_json
from niwaki.filters import (
    Diversity,
    Enrichment,
    FilterPictures,
    LayerProfile,
    Patches,
    Profile,
    Served,
)
from niwaki.report._colours import picture
from niwaki.report._pictures import Pictures, encoded, levels
from niwaki.stages import stage

__all__ = ["heat_strip_of", "save_filters", "strip_of", "weights_picture"]

_LISTED = 3  # classes in a list

Shown = Callable[[LayerProfile], Iterable[FilterPictures]]


@stage("showing filters")
def save_filters(
    folder: str | Path,
    profile: Profile,
    pictures: Shown | None = None,
    *,
    images: Sequence[str] = (),
    names: Mapping[int, str] | None = None,
    after: Mapping[str, Diversity] | None = None,
    pruned_first: Mapping[str, Enrichment] | None = None,
    order: Sequence[tuple[str, int]] = (),
) -> None:
    """Write the numbers of all filters, and the pictures that their page shows.

    The files are filters.csv (a line per filter), filters.json (layers too), and, with pictures,
    gallery.json and pictures.zip, which `write_report` makes a page of.

    Parameters
    ----------
    folder : str or Path
        Where they go.
    profile : Profile
        From `niwaki.filters.profile`.
    pictures : callable, optional
        Gives the pictures of a layer's filters, as `niwaki.filters.pictures` does; called for one
        layer after another, so that only one filter's pictures are in memory.
    images : sequence of str
        What is to be said of each image, such as its class and file, by its number in the data.
    names : mapping of int to str, optional
        Name of each class; default: its number.
    after : mapping of str to Diversity, optional
        Diversity of the layers of the pruned network.
    pruned_first : mapping of str to Enrichment, optional
        Colour filters among the first pruned, by layer; ``""`` stands for all layers together.
    order : sequence of pair of str and int
        Layer and number of the filters that were pruned, in the order of their removal.
    """
    place = _places(order)
    rows = [
        {**row, "pruned": place.get((row["layer"], row["filter"]))} for row in profile.rows(names)
    ]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    write_csv(Path(folder) / "filters.csv", rows, columns)
    layers = [
        {
            "layer": layer.name,
            "filters": len(layer),
            "field": list(layer.field.size),
            "diversity": vars(layer.diversity),
            "diversity_after": vars(after[name]) if after and name in after else None,
            "colour_filters_pruned_first": (
                vars(pruned_first[name]) if pruned_first and name in pruned_first else None
            ),
            "removed_together_with": list(layer.served.together) if layer.served else [],
        }
        for name, layer in profile.items()
    ]
    about = {
        "images_per_class": list(profile.samples),
        "relevance": profile.method,
        "patches_for_colour": profile.patches,
        "fingerprint": profile.fingerprint,
        "colour_filters_pruned_first": (
            vars(pruned_first[""]) if pruned_first and "" in pruned_first else None
        ),
    }
    write_json(Path(folder) / "filters.json", {**about, "layers": layers, "filters": rows})
    if pictures is not None:
        known = names or {}
        told = [known.get(c, str(c)) for c in range(len(profile.samples))]
        with Pictures(Path(folder)) as kept:
            gallery = _gallery(profile, pictures, images, told, kept)
        write_json(Path(folder) / "gallery.json", {"layers": gallery})


def _gallery(
    profile: Profile,
    shown: Shown,
    images: Sequence[str],
    told: Sequence[str],
    pictures: Pictures,
) -> list[dict[str, Any]]:
    return [
        {
            "field": list(layer.field.size),
            "oriented": layer.orientation is not None,
            "filters": [
                {
                    "number": unit,
                    "twins": layer.twins()[unit],
                    "activations": _ratios(layer.class_means[unit], told),
                    "relevance": _ratios(layer.class_relevance[unit], told),
                    **_served(layer.served, unit, told),
                    **_numbers(layer, unit),
                    **_drawn(f"filters/{number:03}-{unit:04}", one, images, pictures),
                }
                for unit, one in enumerate(shown(layer))
            ],
        }
        for number, layer in enumerate(profile.values())
    ]


def _numbers(layer: LayerProfile, unit: int) -> dict[str, float | None]:
    return {
        "active": _plain(layer.active, unit),
        "active_images": _plain(layer.active_images, unit),
        "class_selectivity": _plain(layer.class_selectivity, unit),
        "colour": _plain(layer.colour, unit),
        "orientation": _plain(layer.orientation, unit),
        "angle": _plain(layer.angle, unit),
        "car": _plain(layer.served.total, unit) if layer.served else None,
    }


def _drawn(
    name: str, shown: FilterPictures, images: Sequence[str], pictures: Pictures
) -> dict[str, Any]:
    """Write the pictures of a filter and return their names."""
    visual = None if shown.visualisation is None else strip_of(shown.visualisation[None])
    return {
        "weights": pictures.add(f"{name}-weights.webp", weights_picture(shown.weights)),
        "visualisation": pictures.add(f"{name}-visualisation.webp", visual),
        "by_activation": _patches(f"{name}-activation", shown.by_activation, images, pictures),
        "by_relevance": _patches(f"{name}-relevance", shown.by_relevance, images, pictures),
    }


def _patches(
    name: str, patches: Patches, images: Sequence[str], pictures: Pictures
) -> dict[str, Any] | None:
    if not len(patches):
        return None
    numbers = patches.images.tolist()
    return {
        "patches": pictures.add(f"{name}.webp", strip_of(patches.pixels)),
        "heatmaps": pictures.add(f"{name}-heatmaps.webp", heat_strip_of(patches.heatmaps)),
        "shape": list(patches.pixels.shape[-2:]),
        "images": [images[n] if n < len(images) else f"image {n}" for n in numbers],
        "values": [float(f"{value:.4g}") for value in patches.values.tolist()],
    }


def _places(order: Sequence[tuple[str, int]]) -> dict[tuple[str, int], int]:
    return {unit: place for place, unit in enumerate(order, 1)}


def _plain(values: Tensor | None, unit: int) -> float | None:
    value = torch.nan if values is None else float(values[unit])
    return value if abs(value) < torch.inf else None


def _ratios(values: Tensor, names: Sequence[str]) -> list[tuple[str, float]]:
    """List the classes with the highest values, as multiples of the mean over the classes."""
    known = values.isfinite()
    mean = float(values[known].mean()) if bool(known.any()) else 0.0
    if mean <= 0:
        return []
    order = values.nan_to_num(-torch.inf).argsort(descending=True, stable=True)
    chosen = [label for label in order.tolist() if known[label]][:_LISTED]
    return [(names[label], float(values[label]) / mean) for label in chosen]


def _served(served: Served | None, unit: int, names: Sequence[str]) -> dict[str, Any]:
    """List the classes that lose most without the filter, and those that lose least or gain."""
    if served is None or not bool(served.change[unit].isfinite().any()):
        return {"most": [], "least": [], "unchanged": 0}
    values = served.change[unit]
    order = values.nan_to_num(-torch.inf).argsort(descending=True, stable=True).tolist()
    order = [label for label in order if bool(values[label].isfinite())]

    def told(label: int) -> dict[str, Any]:
        low, high = float(served.low[unit, label]), float(served.high[unit, label])
        return {
            "name": names[label],
            "change": float(values[label]),
            "low": low,
            "high": high,
            "sure": low > 0 or high < 0,
        }

    count = min(_LISTED, len(order) // 2)
    most = [told(label) for label in order[:count] if values[label] > 0]
    # Where the lowest is no change, any three of those that do not change would be arbitrary.
    least = [told(label) for label in reversed(order[len(order) - count :]) if values[label] != 0]
    return {"most": most, "least": least, "unchanged": int((values == 0).sum())}


_SHARP = 16  # up to this side pictures are kept exactly, larger ones as a photograph is


def strip_of(patches: Tensor) -> bytes | None:
    """Lay patches of shape (N, C, H, W) in a row; NaN is transparent. None without patches."""
    if not len(patches):
        return None
    parts = [(picture(patch.nan_to_num(0)) * 255).round().astype(np.uint8) for patch in patches]
    holes = [patch.isnan().any(0) for patch in patches]
    return _row(parts, holes, exact=max(patches.shape[-2:]) <= _SHARP)


def heat_strip_of(heatmaps: Tensor) -> bytes | None:
    """Lay heatmaps of shape (N, H, W) in a row of grey levels, on one scale. None without any."""
    if not len(heatmaps) or bool(heatmaps.isnan().all()):
        return None
    limit = float(heatmaps.nan_to_num(0).abs().max()) or 1.0
    parts = [levels(heat.nan_to_num(0), limit)[..., None].repeat(3, 2) for heat in heatmaps]
    return _row(parts, [heat.isnan() for heat in heatmaps], exact=True)


def weights_picture(weights: Tensor | None) -> bytes | None:
    """Show the weights of a filter that reads 1 or 3 channels; grey is 0."""
    if weights is None or len(weights) not in (1, 3):
        return None
    return strip_of((0.5 + weights / (2 * float(weights.abs().max()) or 1.0))[None])


def _row(parts: list[NDArray[np.uint8]], holes: list[Tensor], *, exact: bool) -> bytes:
    alpha = [255 * (~hole).cpu().numpy().astype(np.uint8)[..., None] for hole in holes]
    if any(bool(hole.any()) for hole in holes):
        parts = [np.concatenate(pair, 2) for pair in zip(parts, alpha, strict=True)]
    return encoded(np.concatenate(parts, 1), exact=exact)
