"""A whole slide: its overview, what was said of its tiles, and the most relevant of them."""

from __future__ import annotations

import csv
from typing import Any

from niwaki.report._section import RunFolder, Section, section

__all__ = ["slide"]

_SHOWN = 12  # tiles
_HEADS = {"tissue": "share of tissue"}


@section
def slide(run: RunFolder) -> Section | None:
    """Show the overview of a slide with its most relevant tiles."""
    found = run.json("slide.json")
    if not found:
        return None
    rows = _tiles(run)
    column = next((name for name in found["layers"] if name.startswith("relevance")), None)
    rows.sort(key=lambda row: -float(row.get(column or "", 0) or 0))
    shown = ["x", "y", "tissue", "prediction", *found["layers"]]
    columns = [name for name in shown if rows and name in rows[0]]
    said = ", ".join(f"{name} {count}" for name, count in found["predictions"].items())
    return Section(
        "The slide",
        "slide.html.j2",
        {
            **found,
            "picture": run.picture("overview.png"),
            "said": said,
            "column": column,
            "heads": [_HEADS.get(name, name) for name in columns],
            "rows": [[_cell(name, row[name]) for name in columns] for row in rows[:_SHOWN]],
            "differs": any(name.endswith("(difference)") for name in found["layers"]),
            "viewer": run.link("viewer.html"),
        },
        facts=_facts(found),
        cautions=_cautions(found),
    )


def _cell(name: str, value: str) -> str:
    if name == "prediction" or not value:
        return value
    number = float(value)
    if name in ("x", "y"):
        return f"{number:,.0f}"
    return f"{number:.1%}" if name.startswith(("tissue", "probability")) else f"{number:.3g}"


def _tiles(run: RunFolder) -> list[dict[str, str]]:
    if not run.has("tiles.csv"):
        return []
    with (run.path / "tiles.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _facts(found: dict[str, Any]) -> tuple[tuple[str, ...], ...]:
    width, height = found["size"]
    return (
        ("Slide", f"{width:,} × {height:,} pixels"),
        ("Read at", f"{found['mpp']:g} µm per pixel"),
        ("Tissue", f"{100 * found['tissue']:.0f} %"),
        ("Tiles", f"{found['tiles']:,}"),
        ("Most relevant regions", str(found["regions"])),
        *(
            [("Nuclei on these tiles", f"{found['nuclei_measured']:,} of {found['nuclei']:,}")]
            if "nuclei" in found
            else []
        ),
    )


def _cautions(found: dict[str, Any]) -> tuple[str, ...]:
    cautions = []
    if len(found["predictions"]) == 1:
        name = next(iter(found["predictions"]))
        cautions.append(
            f"The network predicts {name} for all tiles. It may have been trained at another "
            "resolution or on other stains."
        )
    if found["mpp"] > 1.5 * max(found["slide_mpp"]):
        cautions.append("The slide was read coarser than it was scanned, which hides detail.")
    for method, (tiles, share) in found["lost"].items():
        cautions.append(
            f"Under {method}, {tiles} of {found['tiles']} tiles lose relevance on its way to the "
            f"pixels, {share:.1%} at the most: their maps are not all of what the network looks "
            "at. tiles.csv has the share of each."
        )
    return tuple(cautions)
