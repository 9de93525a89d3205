"""What accuracy the network loses with each filter, over all classes and by class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from niwaki.report._chart import Axis, Chart, Line, Point
from niwaki.report._section import RunFolder, Section, margin, section

__all__ = ["car", "removed"]

_LISTED = 40  # units in the table by class, half of them the most needed


@section
def car(run: RunFolder) -> Section | None:
    """Show the classification accuracy reduction of each unit."""
    found = run.json("index.json")
    if not found or "units" not in found:
        return None
    units = found["units"]
    classes = list(units[0]["by_class"]) if units else []
    return Section(
        "What each filter carries",
        "car.html.j2",
        {
            "chart": _chart(units),
            "classes": classes,
            "rows": list(_rows(units, classes)),
            "all": len(units),
        },
        facts=(
            ("Accuracy", f"{found['accuracy']:.2%}"),
            ("Images", f"{found['samples']:,}"),
            ("Units", f"{len(units):,}"),
            ("Without effect or harmful", f"{sum(unit['car'] <= 0 for unit in units):,}"),
        ),
        cautions=tuple(_cautions(found)),
    )


def _chart(units: Sequence[Mapping[str, Any]]) -> Chart:
    points = tuple(
        Point(place, unit["car"], f"{_name(unit)}\nCAR {unit['car']:+.2%}\n{_most(unit)}")
        for place, unit in enumerate(units, 1)
    )
    return Chart(
        "Accuracy that is lost with each unit, the least needed first",
        Axis("units, the least needed first"),
        Axis("accuracy lost without the unit (CAR)", percent=True),
        (Line("CAR", points),),
    )


def _most(unit: Mapping[str, Any]) -> str:
    name, value = max(unit["by_class"].items(), key=lambda pair: pair[1], default=("", 0.0))
    return f"most for class {name}: {value:+.1%}"


def _name(unit: Mapping[str, Any]) -> str:
    return f"{unit['layer']} {', '.join(map(str, unit['channels']))}"


def _rows(units: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Return the most and the least needed units, with a shade for each class."""
    half = _LISTED // 2
    chosen = list(units) if len(units) <= _LISTED else [*units[:half], *units[-half:]]
    largest = max((abs(unit["by_class"][c]) for unit in units for c in classes), default=0) or 1
    for unit in reversed(chosen):
        yield {
            "name": _name(unit),
            "car": unit["car"],
            "cells": [
                (unit["by_class"][name], round(4 * abs(unit["by_class"][name]) / largest))
                for name in classes
            ],
        }


def _cautions(found: Mapping[str, Any]) -> Iterator[str]:
    yield margin(found["accuracy"], found["samples"])
    if found.get("near_ties"):
        yield (
            f"On {found['near_ties']} images two classes are so close that rounding could decide "
            "between them."
        )
    yield (
        "Filters that can replace one another each look superfluous here: several of them together "
        "carry more than the sum of what each carries alone."
    )


@section
def removed(run: RunFolder) -> Section | None:
    """Show the units that a greedy search removed, in their order."""
    settings = (run.json("niwaki.json") or {}).get("settings") or {}
    if not settings.get("removals"):
        return None
    steps = {step["step"]: step for step in run.json("trajectory.json") or ()}
    rows = [
        (
            str(number),
            f"{gone['layer']} {gone['unit']}",
            f"{gone['accuracy']:.2%}",
            _share(steps.get(number, {}).get("accuracy")),
        )
        for number, gone in enumerate(settings["removals"], 1)
    ]
    return Section(
        "Filters in the order of their removal",
        "removed.html.j2",
        {"rows": rows, "images": settings["search_images"]},
    )


def _share(accuracy: float | None) -> str:
    return "" if accuracy is None else f"{accuracy:.2%}"
