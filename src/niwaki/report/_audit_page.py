"""What an audit leaves: its answers as plain data, the pictures that show them, and the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from niwaki.auditing import Audit, side_by_side, write_candidates
from niwaki.files import write_json
from niwaki.report._audit_clusters import write_clusters
from niwaki.report._audit_examples import examples_of
from niwaki.report._audit_pictures import (
    plot_examples,
    plot_maps,
    plot_stains,
    plot_strategies,
    plot_strip,
)
from niwaki.report._pictures import Pictures
from niwaki.report._report import write_report
from niwaki.report._run_folder import PROVENANCE


def write_audit(
    folder: str | Path,
    audits: Audit | Mapping[str, Audit],
    *,
    heading: str = "Audit",
    remarks: Sequence[str] = (),
    table: Sequence[Mapping[str, Any]] = (),
    made: Mapping[str, Any] | None = None,
) -> Path:
    """Write the page ``index.html``, ``audit.json`` and the pictures as PNG.

    Parameters
    ----------
    folder : str or Path
        Where they go; it must exist.
    audits : Audit or mapping of str to Audit
        One audit, or several of the same images by name, such as before and after a repair.
    heading : str
        Heading of the page.
    remarks : sequence of str
        Paragraphs below the heading: what was audited, and on which data.
    table : sequence of mapping
        Rows that compare the audits, see `niwaki.auditing.before_and_after`.
    made : mapping, optional
        How the audits were made, such as the command (``line``) and the ``date``; versions,
        fingerprints of the networks and seeds are added.

    Returns
    -------
    Path
        Path of the page.
    """
    home = Path(folder)
    named = {"": audits} if isinstance(audits, Audit) else dict(audits)
    with Pictures(home) as pictures:
        shown = [
            _shown(home, number, name, found, pictures)
            for number, (name, found) in enumerate(named.items())
        ]
    given = {name: value for name, value in (made or {}).items() if value is not None}
    about = {**_made(named), **given}
    reports = {name or "audit": found.to_json() for name, found in named.items()}
    rows = [dict(row) for row in table]
    write_json(home / "audit.json", {"made": about, "audits": reports, "table": rows})
    write_json(home / "audit-shown.json", {"audits": shown, "table": _cells(table, named)})
    write_json(home / PROVENANCE, {**about, "title": heading, "remarks": list(remarks)})
    return write_report(home)


def _shown(home: Path, number: int, name: str, audit: Audit, pictures: Pictures) -> dict[str, Any]:
    """Draw the pictures of an audit, and return what the page shows of each finding."""
    prefix = f"{_slug(name)}-" if name else ""
    findings = []
    for place, finding in enumerate(audit.distinct, 1):
        plot_examples(home / f"{prefix}finding-{place}.png", audit, finding)
        stem = f"audit/{number}-{place:02}"
        findings.append(
            {
                "key": finding.key,
                "examples": examples_of(audit, finding, stem, pictures),
                "outlined": finding.outline(0) is not None,
                "ordinary": bool(finding.ordinary),
                "evidence": finding.evidence(),
                "echoes": [echo.key for echo in audit.echoes(finding)],
            }
        )
    plot_maps(home / f"{prefix}maps.png", audit)
    if audit.stains:
        plot_stains(home / f"{prefix}stains.png", audit)
    for found in audit.strategies:
        who = _slug(audit.material.class_names[found.label])
        plot_strategies(home / f"{prefix}strategies-{who}-{found.features}.png", audit, found)
    return {
        "name": name,
        "findings": findings,
        "maps": f"{prefix}maps.png",
        "classes": [audit.material.class_names[label] for label in audit.maps],
        "stains": f"{prefix}stains.png" if audit.stains else None,
        "clusters": write_clusters(audit, f"clusters/{number}", pictures),
        "strips": _strips(home, prefix, audit),
        "table_of_candidates": f"{prefix}candidates.csv",
        "side": max(audit.material.pixels.shape[-2:]),
    }


def _strips(home: Path, prefix: str, audit: Audit) -> list[dict[str, str]]:
    """Draw the groups for a person to judge, and write the table in which that is done."""
    if not audit.candidates:
        return []
    write_candidates(home / f"{prefix}candidates.csv", audit.candidates, audit.material)
    strips = []
    for candidate in audit.candidates:
        file = f"{prefix}candidate-{_slug(candidate.name)}.png"
        plot_strip(home / file, audit, candidate)
        what = "alike in" if candidate.kind == "group" else "unlike all others in"
        words = f"{candidate.name}: {candidate.count} images, {what} the channels of "
        strips.append({"title": f"{words}{candidate.layer} that carry the answer", "picture": file})
    return strips


def _made(audits: Mapping[str, Audit]) -> dict[str, Any]:
    """Return versions, and the fingerprints and seeds of all audits, for the page."""
    made = {name: audit.made() for name, audit in audits.items()}
    first = next(iter(made.values()))

    def every(key: str) -> Any:
        if len(made) == 1:
            return first[key]
        return {f"{name}:": one[key] for name, one in made.items()}

    return {
        "versions": {"niwaki": first["niwaki"], "torch": first["torch"]},
        "fingerprint": every("fingerprint"),
        "seed": every("seed"),
    }


def _cells(table: Sequence[Mapping[str, Any]], audits: Mapping[str, Audit]) -> dict[str, list[Any]]:
    """Return head and rows for people: a column for each network."""
    if not table:
        return {}
    rows = side_by_side(table, audits)
    return {"head": ["", *list(rows[0])[1:]], "rows": [list(row.values()) for row in rows]}


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in text.lower()).strip("-") or "x"
