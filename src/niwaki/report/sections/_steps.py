"""The network and the same photographs after each step of pruning, moved by one slider."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from niwaki.report._section import RunFolder, Section, section

__all__ = ["changed", "steps"]

_HIGH = 150  # of a layer's bar
_NAMED = 10  # layers at the most, whose bars are wide enough for their names


@section
def steps(run: RunFolder) -> Section | None:
    """Show what is left of each layer, and what the network looks at, step by step."""
    found = run.json("steps.json")
    if not found:
        return None
    rows, bar = found["steps"], 48 if len(found["layers"]) <= _NAMED else 9
    return Section(
        "Step by step",
        "steps.html.j2",
        {
            "words": [_words(row, rows[0]) for row in rows],
            "last": len(rows) - 1,
            "bars": list(_bars(found["layers"], rows, bar)),
            "wide": len(found["layers"]) * (bar + bar // 3),
            "named": len(found["layers"]) <= _NAMED,
            "high": _HIGH,
            "layers": _table(found["layers"], rows),
            "photos": _photos(run, found),
            "count": len(found.get("photos", ())),
            "pixels": found.get("side", 0) <= 64,
            "method": found.get("method"),
            "lost": found.get("lost", 0.0),
        },
        cautions=tuple(_cautions(found)),
    )


def _words(row: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    said = [f"step {row['step']}"]
    if row.get("accuracy") is not None:
        said.append(f"accuracy {row['accuracy']:.2%}")
    said.append(f"{row['macs'] / first['macs']:.1%} of the MACs")
    said.append(f"{row['params'] / first['params']:.1%} of the parameters")
    said.append(f"{1000 * row['seconds']:.3g} ms per image")
    return ", ".join(said)


def _bars(
    layers: Sequence[str], rows: Sequence[Mapping[str, Any]], wide: int
) -> Iterator[dict[str, Any]]:
    """Return a bar for each layer, as high as the root of its units."""
    widest = max(rows[0]["units"].values(), default=1)
    for number, name in enumerate(layers):
        units = [row["units"].get(name, 0) for row in rows]
        height = round(max(6.0, _HIGH * (units[0] / widest) ** 0.5), 1)
        kept = round(height * units[-1] / max(units[0], 1), 1)
        yield {
            "name": name,
            "x": number * (wide + wide // 3),
            "wide": wide,
            "top": round(_HIGH - height, 1),
            "height": height,
            "kept": kept,
            "kept_top": round(_HIGH - kept, 1),
            "units": " ".join(map(str, units)),
            "said": f"{units[-1]} of {units[0]} units",
        }


def _table(layers: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    first, last = rows[0]["units"], rows[-1]["units"]
    return [
        (name, str(first[name]), str(last[name]), f"{last[name] / max(first[name], 1):.0%}")
        for name in layers
        if name in first and name in last
    ]


def _photos(run: RunFolder, found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for photo in found.get("photos", ()):
        true = photo["class"]
        yield {
            "name": photo["name"],
            "class": true,
            "photo": run.picture(photo["photo"]),
            "heat": run.picture(photo["heat"]),
            "limit": photo["limit"],
            "frames": len(photo["answers"]),
            "answers": [
                {"said": said, "probability": sure, "right": None if true is None else said == true}
                for said, sure in photo["answers"]
            ],
        }


def _cautions(found: Mapping[str, Any]) -> Iterator[str]:
    if found.get("lost", 0) > 0:
        yield (
            f"In the heatmaps of the steps, up to {found['lost']:.1%} of the relevance is lost on "
            f"its way ({found['method']}); what they show is not all of what the network looks at."
        )
    if found.get("photos"):
        yield (
            f"The {len(found['photos'])} images are examples, drawn at random: they are no "
            "evidence of what the network looks at in general."
        )


@section
def changed(run: RunFolder) -> Section | None:
    """Show images whose prediction differs after pruning."""
    found = run.json("changed.json")
    if not found:
        return None
    return Section(
        "Images whose prediction changed",
        "changed.html.j2",
        {
            **found,
            "shown": [
                {**image, "photo": run.picture(image.get("photo"))} for image in found["shown"]
            ],
            "pixels": found.get("side", 0) <= 64,
        },
    )
