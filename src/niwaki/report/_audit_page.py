"""One page per audit, self-contained: what was found, in words, with its evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from niwaki.auditing import ANSWERS, MATTERS, POWER, Audit, Finding, side_by_side
from niwaki.files import write_json
from niwaki.report._audit_examples import examples_of
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
    made: Mapping[str, str] | None = None,
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
    made : mapping of str to str, optional
        How the audits were made, such as the command and the date; versions, fingerprints of the
        networks and seeds are added.

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
        made={**(made or {}), **_made(named)},
        answers=ANSWERS,
        power=POWER,
        matters=MATTERS,
    )
    reports = {name or "audit": found.to_json() for name, found in named.items()}
    rows = [dict(row) for row in table]
    write_json(home / "audit.json", {"made": made or {}, "audits": reports, "table": rows})
    return home / "audit.html"


def _section(home: Path, name: str, audit: Audit) -> dict[str, Any]:
    prefix = f"{_slug(name)}-" if name else ""
    flagged = []
    for number, finding in enumerate(audit.distinct, 1):
        file = home / f"{prefix}finding-{number}.png"
        plot_examples(file, audit, finding)
        flagged.append(
            {
                "finding": finding,
                "examples": examples_of(audit, finding),
                "echoes": audit.echoes(finding),
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
    return {
        "name": name,
        "anchor": _slug(name) if name else "finding",
        "audit": audit,
        "flagged": flagged,
        "rest": _rest(audit.findings),
        "pictures": pictures,
        "clusters": clusters,
    }


def _rest(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """Return the questions that were not answered by yes, by their answer."""
    titles = {
        "no": "Answered by no",
        "too few images": "Too few images for an answer",
        "unreliable": "Asked, and of this network not to be relied on",
    }
    kinds = [
        {"title": title, "findings": [found for found in findings if found.answer == answer]}
        for answer, title in titles.items()
    ]
    return [kind for kind in kinds if kind["findings"]]


def _made(audits: Mapping[str, Audit]) -> dict[str, str]:
    """Return versions, and the fingerprints and seeds of all audits, for the page."""
    found: dict[str, str] = {}
    for name, audit in audits.items():
        made = audit.made()
        ending = f" ({name})" if name else ""
        found["Versions"] = f"niwaki {made['niwaki']}, torch {made['torch']}"
        found[f"Fingerprint of the network and its weights{ending}"] = made["fingerprint"]
        found[f"Seed{ending}"] = str(made["seed"])
    return found


def _cells(table: Sequence[Mapping[str, Any]], audits: Mapping[str, Audit]) -> dict[str, list[Any]]:
    """Return head and rows for people: a column for each network."""
    if not table:
        return {}
    rows = side_by_side(table, audits)
    return {"head": ["", *list(rows[0])[1:]], "rows": [list(row.values()) for row in rows]}


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in text.lower()).strip("-") or "x"
