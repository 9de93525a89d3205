"""The gallery of a network's filters: what each responds to, and which classes it serves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from niwaki.filters import Enrichment
from niwaki.report._section import RunFolder, Section, section

__all__ = ["filters"]

_SIDE = 88  # pixels at which a patch is shown


@section
def filters(run: RunFolder) -> Section | None:
    """Show every filter, with search, selection and sorting."""
    told, gallery = run.json("filters.json"), run.json("gallery.json")
    if not told or not gallery:
        return None
    has_car = any(row.get("car") is not None for row in told["filters"])
    pruned = {
        (row["layer"], row["filter"]): row["pruned"]
        for row in told["filters"]
        if row.get("pruned") is not None
    }
    images = sum(told["images_per_class"])
    classes = sum(count > 0 for count in told["images_per_class"])
    return Section(
        "Filters",
        "filters.html.j2",
        {
            "images": images,
            "classes": classes,
            "method": told["relevance"],
            "patches": told["patches_for_colour"],
            "has_car": has_car,
            "oriented": any(layer["oriented"] for layer in gallery["layers"]),
            "pruned": len(pruned),
            "first": _enrichment(told.get("colour_filters_pruned_first")),
            "names": [layer["layer"] for layer in told["layers"]],
            "layers": _layers(run, told, gallery, pruned),
        },
        facts=(
            ("Filters", f"{len(told['filters']):,} in {len(told['layers'])} layers"),
            ("Images", f"{images:,} of {classes} classes"),
        ),
        cautions=tuple(_cautions(has_car, len(told["filters"]) * classes)),
    )


def _cautions(has_car: bool, intervals: int) -> Iterator[str]:
    yield (
        "A patch on which a filter is strong shows what activates it, not what it is for: a strong "
        "filter may be irrelevant for the prediction."
    )
    if has_car:
        yield (
            f"The intervals of what classes lose are for one filter and one class each. Of "
            f"{intervals:,} intervals about one in twenty excludes zero by chance."
        )


def _layers(
    run: RunFolder,
    told: Mapping[str, Any],
    gallery: Mapping[str, Any],
    pruned: Mapping[tuple[str, int], int],
) -> Iterator[dict[str, Any]]:
    for layer, shown in zip(told["layers"], gallery["layers"], strict=True):
        name = layer["layer"]
        yield {
            **layer,
            "name": name,
            "count": layer["filters"],
            "after": layer["diversity_after"],
            "first": _enrichment(layer["colour_filters_pruned_first"]),
            "together": layer["removed_together_with"],
            "cards": (
                _card(run, name, one, pruned.get((name, one["number"]))) for one in shown["filters"]
            ),
        }


def _enrichment(found: Mapping[str, Any] | None) -> str:
    return "" if found is None else str(Enrichment(**found))


def _card(run: RunFolder, layer: str, one: Mapping[str, Any], pruned: int | None) -> dict[str, Any]:
    kinds = ["colour"] if (one["colour"] or 0) > 0.25 else []
    kinds += ["silent"] if not one["active"] else []
    kinds += ["twins"] if one["twins"] else []
    kinds += ["pruned"] if pruned is not None else []
    classes = [row[0] for row in (*one["activations"], *one["relevance"])]
    classes += [row["name"] for row in (*one["most"], *one["least"])]
    return {
        **one,
        "pruned": pruned,
        "kinds": " ".join(kinds),
        "words": " ".join([layer, str(one["number"]), *dict.fromkeys(classes)]),
        "weights": run.picture(one["weights"]),
        "visualisation": run.picture(one["visualisation"]),
        "rows": [
            {"title": title, **row}
            for key, title in (
                ("by_activation", "strongest patches"),
                ("by_relevance", "most relevant patches"),
            )
            if (row := _row(run, one[key]))
        ],
    }


def _row(run: RunFolder, patches: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if patches is None:
        return None
    height, width = patches["shape"]
    count, times = len(patches["images"]), max(1.0, _SIDE / max(height, width))
    return {
        "patches": run.picture(patches["patches"]),
        "heatmaps": run.picture(patches["heatmaps"]),
        "wide": round(width * times * count),
        "high": round(height * times),
        "shape": f"{width}/{height}",
        "said": [
            f"{image}; strength {value:g}"
            for image, value in zip(patches["images"], patches["values"], strict=True)
        ],
    }
