"""Heatmaps of images under one or several methods, each photograph beside its maps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from niwaki.report._section import RunFolder, Section, section

__all__ = ["heatmaps"]


@section
def heatmaps(run: RunFolder) -> Section | None:
    """Show photographs with their heatmaps."""
    found = run.json("heatmaps.json")
    if not found:
        return None
    images = found["images"]
    return Section(
        "Heatmaps",
        "heatmaps.html.j2",
        {
            "methods": found["methods"],
            "target": found["target"],
            "images": _images(run, found),
            "count": len(images),
            "every": found["every"],
            "pixels": found["side"] <= 64,
            "classes": sorted({str(i["class"]) for i in images if i.get("class") is not None}),
            "left_out": found["left_out"],
        },
        facts=tuple(_facts(found)),
        cautions=tuple(_cautions(found)),
    )


_NAMED = 3  # methods, and more are counted


def _facts(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "Images", f"{found['every']:,}"
    known = [
        image["class"] == image["prediction"]
        for image in found["images"]
        if image.get("class") is not None and image.get("prediction") is not None
    ]
    if known and len(known) == found["every"]:
        yield "Predicted correctly", f"{sum(known):,} of {len(known):,}"
    methods = found["methods"]
    if len(methods) <= _NAMED:
        yield ("Method" if len(methods) == 1 else "Methods"), ", ".join(methods)
    else:
        yield "Methods", str(len(methods))


def _images(run: RunFolder, found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for number, image in enumerate(found["images"]):
        true, said, sure = (image.get(key) for key in ("class", "prediction", "probability"))
        right = None if true is None or said is None else true == said
        name = str(image.get("image", f"image {number}"))
        words = [name] + ([f"class {true}"] if true is not None else [])
        words += [f"the network predicts {said}"] if said is not None else []
        yield {
            "number": number,
            "name": name,
            "class": true,
            "said": said,
            "sure": sure,
            "right": right,
            "words": ", ".join(words),
            "kinds": "" if right is None else "right" if right else "wrong",
            "photo": run.picture(image["photo"]),
            "maps": [
                {"method": method, "heat": run.picture(one["heat"]), "limit": one["limit"]}
                for method, one in zip(found["methods"], image["maps"], strict=True)
            ],
        }


def _cautions(found: Mapping[str, Any]) -> Iterator[str]:
    for method, share in found["lost"].items():
        yield (
            f"Under {method}, up to {share:.1%} of the relevance is lost on its way to the pixels: "
            "its maps do not show all of what the network looks at."
        )
    for method, why in found["left_out"].items():
        yield f"{method} is left out: {why}"
    yield (
        "A heatmap shows what a method finds, and methods differ; which of them can be believed on "
        "a network is measured by “niwaki evaluate”."
    )
