"""One page per audit, self-contained: what was found, in words, with its evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from niwaki.auditing import Audit, side_by_side
from niwaki.files import write_json
from niwaki.report._audit_pictures import (
    SHOWN,
    plot_examples,
    plot_maps,
    plot_stains,
    plot_strategies,
)
from niwaki.report._page import data_uri, write_page


def write_audit(
    folder: str | Path,
    audits: Audit | Mapping[str, Audit],
    *,
    heading: str = "Audit",
    remarks: Sequence[str] = (),
    table: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Write ``audit.html``, ``audit.json`` and the pictures as PNG.

    Parameters
    ----------
    folder : str or Path
        Where they go; it must exist.
    audits : Audit or mapping of str to Audit
        One audit, or several of the same images by name, such as before and after a repair.
    heading : str
        Of the page.
    remarks : sequence of str
        Paragraphs below the heading: what was audited, and on which data.
    table : sequence of mapping
        Rows that compare the audits, see `niwaki.auditing.before_and_after`.

    Returns
    -------
    Path
        Of the page.
    """
    home = Path(folder)
    named = {"": audits} if isinstance(audits, Audit) else dict(audits)
    sections = [_section(home, name, found) for name, found in named.items()]
    write_page(
        home / "audit.html",
        "audit.html.j2",
        heading=heading,
        remarks=remarks,
        sections=sections,
        table=_cells(table, named),
    )
    reports = {name or "audit": found.to_json() for name, found in named.items()}
    write_json(home / "audit.json", {"audits": reports, "table": [dict(row) for row in table]})
    return home / "audit.html"


def _section(home: Path, name: str, audit: Audit) -> dict[str, Any]:
    prefix = f"{_slug(name)}-" if name else ""
    flagged = []
    for number, finding in enumerate(audit.flagged, 1):
        file = home / f"{prefix}finding-{number}.png"
        plot_examples(file, audit, finding)
        flagged.append(
            {
                "finding": finding,
                "picture": data_uri(file.read_bytes()),
                "outlined": finding.outline(0) is not None,
                "rows": finding.evidence(),
            }
        )
    plot_maps(home / f"{prefix}maps.png", audit)
    pictures = {"maps": data_uri((home / f"{prefix}maps.png").read_bytes())}
    if audit.stains:
        plot_stains(home / f"{prefix}stains.png", audit)
        pictures["stains"] = data_uri((home / f"{prefix}stains.png").read_bytes())
    clusters = []
    for found in audit.strategies:
        who = audit.material.class_names[found.label]
        file = home / f"{prefix}strategies-{_slug(who)}-{found.features}.png"
        plot_strategies(file, audit, found)
        kind = "where they lie" if found.features == "place" else "their pattern, at any place"
        count = len(found.clusters)
        some = f", the {SHOWN} oddest shown" if count > SHOWN else ""
        clusters.append(
            {
                "title": f"Class {who}, heatmaps compared by {kind}: {count} groups{some}",
                "picture": data_uri(file.read_bytes()),
            }
        )
    rest = [finding for finding in audit.findings if not finding.flagged]
    return {
        "name": name,
        "anchor": _slug(name) if name else "finding",
        "audit": audit,
        "flagged": flagged,
        "rest": rest,
        "pictures": pictures,
        "clusters": clusters,
    }


def _cells(table: Sequence[Mapping[str, Any]], audits: Mapping[str, Audit]) -> dict[str, list[Any]]:
    """Return head and rows for people: a column for each network."""
    if not table:
        return {}
    rows = side_by_side(table, audits)
    return {"head": ["", *list(rows[0])[1:]], "rows": [list(row.values()) for row in rows]}


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in text.lower()).strip("-") or "x"
