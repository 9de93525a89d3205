"""The gallery of a network's filters: one page that needs nothing beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from niwaki.files import write_csv, write_json
from niwaki.filters import Diversity, Enrichment, FilterPictures, LayerProfile, Profile, Served
from niwaki.report._page import heat_strip, strip, thumbnail, weights_thumbnail, write_page

__all__ = ["filter_gallery", "save_filters"]

_LISTED = 3  # classes in a list

Pictures = Callable[[LayerProfile], Iterable[FilterPictures]]


def filter_gallery(
    path: str | Path,
    profile: Profile,
    pictures: Pictures,
    *,
    heading: str,
    names: Mapping[int, str] | None = None,
    after: Mapping[str, Diversity] | None = None,
    pruned_first: Mapping[str, Enrichment] | None = None,
    order: Sequence[tuple[str, int]] = (),
) -> None:
    """Write a page that shows every filter: patches, heatmaps, classes, indices.

    Parameters
    ----------
    path : str or Path
        Where the HTML goes. All pictures are in it.
    profile : Profile
        From `niwaki.filters.profile`.
    pictures : callable
        Gives the pictures of a layer's filters, as `niwaki.filters.pictures` does; called for one
        layer after another, so that only one filter's pictures are in memory.
    heading : str
        Title.
    names : mapping of int to str, optional
        Name of each class; default: its number.
    after : mapping of str to Diversity, optional
        Of the layers of the pruned network.
    pruned_first : mapping of str to Enrichment, optional
        Colour filters among the first pruned, by layer; under ``""`` of all layers together.
    order : sequence of pair of str and int
        Layer and number of the filters that were pruned, the first to go first.
    """
    known = names or {}
    told = [known.get(c, str(c)) for c in range(len(profile.samples))]
    write_page(
        path,
        "filters.html.j2",
        heading=heading,
        profile=profile,
        images=sum(profile.samples),
        class_count=sum(n > 0 for n in profile.samples),
        has_car=any(layer.served is not None for layer in profile.values()),
        whole=(pruned_first or {}).get(""),
        pruned=len(order),
        layers=_layers(profile, pictures, told, after or {}, pruned_first or {}, _places(order)),
    )


def save_filters(
    folder: str | Path,
    profile: Profile,
    *,
    names: Mapping[int, str] | None = None,
    after: Mapping[str, Diversity] | None = None,
    pruned_first: Mapping[str, Enrichment] | None = None,
    order: Sequence[tuple[str, int]] = (),
) -> None:
    """Write the numbers: filters.csv (a line per filter) and filters.json (layers too).

    Parameters
    ----------
    folder : str or Path
        Where they go.
    profile, names, after, pruned_first, order
        As for `filter_gallery`.
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


def _layers(
    profile: Profile,
    pictures: Pictures,
    names: Sequence[str],
    after: Mapping[str, Diversity],
    first: Mapping[str, Enrichment],
    place: Mapping[tuple[str, int], int],
) -> Iterator[dict[str, Any]]:
    for name, layer in profile.items():
        yield {
            "name": name,
            "count": len(layer),
            "field": layer.field,
            "oriented": layer.orientation is not None,
            "diversity": layer.diversity,
            "after": after.get(name),
            "first": first.get(name),
            "together": layer.served.together if layer.served else (),
            "filters": (
                {**shown, "pruned": place.get((name, shown["number"]))}
                for shown in _filters(layer, pictures(layer), names)
            ),
        }


def _filters(
    layer: LayerProfile, pictures: Iterable[FilterPictures], names: Sequence[str]
) -> Iterator[dict[str, Any]]:
    twins = layer.twins()
    for unit, shown in enumerate(pictures):
        yield {
            "number": unit,
            "weights": weights_thumbnail(shown.weights),
            "visualisation": thumbnail(shown.visualisation),
            "patches": strip(shown.by_activation.pixels),
            "heatmaps": heat_strip(shown.by_activation.heatmaps),
            "relevant": strip(shown.by_relevance.pixels),
            "relevant_heatmaps": heat_strip(shown.by_relevance.heatmaps),
            "active": _plain(layer.active, unit),
            "active_images": _plain(layer.active_images, unit),
            "class_selectivity": _plain(layer.class_selectivity, unit),
            "colour": _plain(layer.colour, unit),
            "orientation": _plain(layer.orientation, unit),
            "angle": _plain(layer.angle, unit),
            "car": _plain(layer.served.total, unit) if layer.served else None,
            "twins": twins[unit],
            "activations": _ratios(layer.class_means[unit], names),
            "relevance": _ratios(layer.class_relevance[unit], names),
            **_served(layer.served, unit, names),
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
