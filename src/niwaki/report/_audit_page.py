"""One page per audit, self-contained: what was found, in words, with its evidence."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment

from niwaki.audit import Audit, Cause, Finding, side_by_side
from niwaki.files import write_json, write_text
from niwaki.report._audit_pictures import (
    SHOWN,
    plot_examples,
    plot_maps,
    plot_stains,
    plot_strategies,
)
from niwaki.report._audit_template import TEMPLATE
from niwaki.report._policy import policy

__all__ = ["write_audit"]


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
        Rows that compare the audits, see `niwaki.audit.before_and_after`.

    Returns
    -------
    Path
        Of the page.
    """
    home = Path(folder)
    named = {"": audits} if isinstance(audits, Audit) else dict(audits)
    sections = [_section(home, name, found) for name, found in named.items()]
    page = (
        Environment(autoescape=True)
        .from_string(TEMPLATE)
        .render(
            policy=policy(TEMPLATE),
            heading=heading,
            remarks=remarks,
            sections=sections,
            table=_cells(table, named),
        )
    )
    write_text(home / "audit.html", page)
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
                "picture": _embedded(file),
                "outlined": finding.region is not None or finding.outlines is not None,
                "rows": _evidence(finding),
            }
        )
    plot_maps(home / f"{prefix}maps.png", audit)
    pictures = {"maps": _embedded(home / f"{prefix}maps.png")}
    if audit.stains:
        plot_stains(home / f"{prefix}stains.png", audit)
        pictures["stains"] = _embedded(home / f"{prefix}stains.png")
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
                "picture": _embedded(file),
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


def _evidence(finding: Finding) -> list[tuple[str, str]]:
    effect = f"{finding.effect:.2f} (worth an alarm from {finding.smallest:g})"
    rows = [
        (_capital(finding.effect_name), effect),
        ("Probability by chance, corrected for all questions", f"{finding.p:.2g}"),
    ]
    if finding.cause is not None and finding.compared:
        rows.append(_errors(finding, finding.cause))
    elif finding.cause is not None:
        cause = finding.cause
        least = finding.smallest_drop
        worth = f", worth an alarm from {least:.2f}" if least > 0 else ""
        rows += [
            (
                "Change of the network's output, in its own units, when the thing is changed",
                f"{cause.drop:.2f}; by an unrelated change of the same size {cause.control:.2f} "
                f"(mean of {cause.count} images, p = {cause.p:.2g} before correction{worth})",
            ),
            (
                "Images whose answer changes with it",
                f"{cause.flips:.1%}; by the unrelated change {cause.control_flips:.1%}",
            ),
        ]
    return rows


def _errors(finding: Finding, cause: Cause) -> tuple[str, str]:
    return (
        "Of these images the network gets wrong",
        f"{cause.flips:.1%}; of the others {cause.control_flips:.1%} (p = "
        f"{cause.p:.2g} before correction, worth an alarm from {finding.smallest_drop:.1%})",
    )


def _cells(table: Sequence[Mapping[str, Any]], audits: Mapping[str, Audit]) -> dict[str, list[Any]]:
    """Return head and rows for people: a column for each network."""
    if not table:
        return {}
    rows = side_by_side(table, audits)
    return {"head": ["", *list(rows[0])[1:]], "rows": [list(row.values()) for row in rows]}


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _embedded(file: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in text.lower()).strip("-") or "x"
