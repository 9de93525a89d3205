"""What an audit leaves: its answers as plain data, the pictures that show them, and the page."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from PIL import Image

from niwaki.auditing import Audit, Cluster, Strategies, Watched, side_by_side, write_candidates
from niwaki.files import write_json
from niwaki.report._audit_examples import example, examples_of
from niwaki.report._audit_pictures import (
    plot_examples,
    plot_maps,
    plot_stains,
    plot_strategies,
    plot_strip,
)
from niwaki.report._pictures import Pictures, encoded
from niwaki.report._report import write_report
from niwaki.report._section import PROVENANCE
from niwaki.stages import stage


@stage("drawing findings")
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
        title = f"{words}{candidate.layer} that carry the prediction"
        strips.append({"title": title, "picture": file})
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


_SHOWN = 24
_SIDE = 128


def write_watch(
    folder: str | Path,
    watched: Watched,
    images: Any,
    *,
    heading: str = "Watch",
    remarks: Sequence[str] = (),
    made: Mapping[str, Any] | None = None,
) -> Path:
    """Write the page ``index.html``, ``watch.csv`` and ``watch.json``.

    Parameters
    ----------
    folder : str or Path
        Where they go; it must exist.
    watched : Watched
        The result of `niwaki.auditing.watch`.
    images : Images
        The images that were watched.
    heading : str
        Heading of the page.
    remarks : sequence of str
        Paragraphs below the heading.
    made : mapping, optional
        How it was made, such as the command and the date.

    Returns
    -------
    Path
        Path of the page.
    """
    home = Path(folder)
    watched.save(home)
    odd = [int(place) for place in watched.order() if watched.odd[place]][:_SHOWN]
    rows = {row["image"]: row for row in watched.rows()}
    with Pictures(home) as pictures:
        shown = [
            {
                **rows[watched.names[place]],
                "photo": pictures.add(f"odd-{number:02}.png", _thumbnail(images.image(place))),
            }
            for number, place in enumerate(odd)
        ]
    write_json(home / "watch-shown.json", {"verdict": str(watched), "oddest": shown})
    given = {name: value for name, value in (made or {}).items() if value is not None}
    write_json(home / PROVENANCE, {**given, "title": heading, "remarks": list(remarks)})
    return write_report(home)


def _thumbnail(image: Image.Image) -> bytes:
    small = image.convert("RGB")
    small.thumbnail((_SIDE, _SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "PNG")
    return buffer.getvalue()


_IMAGES = 240  # with pictures, of all groups together
_FEWEST, _MOST = 4, 16  # of one group
_AVERAGED = 1000  # images of a group, the most typical first


def write_clusters(audit: Audit, stem: str, pictures: Pictures) -> list[dict[str, Any]]:
    """Write the typical images of all groups, and return what the page shows.

    Parameters
    ----------
    audit : Audit
        Has the groups.
    stem : str
        How the names of the pictures begin.
    pictures : Pictures
        Where they are written.
    """
    groups = sum(len(found.clusters) for found in audit.strategies)
    each = max(_FEWEST, min(_MOST, _IMAGES // max(groups, 1)))
    written: dict[int, dict[str, Any]] = {}  # an image is in one group of each kind

    def image(position: int) -> dict[str, Any]:
        if position not in written:
            name = f"{stem}-image-{position:05}"
            written[position] = example(audit, position, name, pictures)
        return written[position]

    shown = []
    for number, found in enumerate(audit.strategies):
        name = f"{stem}-{number:02}"
        shown.append(
            {
                "class": audit.material.class_names[found.label],
                "features": found.features,
                "eigenvalues": [float(value) for value in found.eigenvalues[:12]],
                "dots": _dots(audit, found),
                "clusters": [_cluster(audit, c, name, pictures) for c in found.clusters],
                "images": [
                    {"cluster": cluster.number, "typical": place < _FEWEST, **image(position)}
                    for cluster in found.clusters
                    for place, position in enumerate(cluster.positions[:each])
                ],
            }
        )
    return shown


def _dots(audit: Audit, found: Strategies) -> list[list[Any]]:
    """Return place, group and words of each image: from 0 to 1, rounded."""
    low, high = found.plane.min(0), found.plane.max(0)
    places = (found.plane - low) / np.where(high > low, high - low, 1)
    dots = []
    for (x, y), cluster, position in zip(places, found.assigned, found.positions, strict=True):
        told = audit.material.describe(int(position))
        words = f"{told['name']}, the network predicts {told['prediction']}"
        dots.append([round(float(x), 3), round(float(y), 3), int(cluster), words])
    return dots


def _cluster(audit: Audit, cluster: Cluster, stem: str, pictures: Pictures) -> dict[str, Any]:
    mean = audit.material.strength(list(cluster.positions[:_AVERAGED])).mean(0)
    shade = colormaps["magma"]((mean / (mean.max() or 1)) ** 0.5)[..., :3]
    pixels = (shade * 255).round().astype(np.uint8)
    return {
        "number": cluster.number,
        "images": len(cluster),
        "oddness": cluster.oddness,
        "mean": pictures.add(f"{stem}-{cluster.number}-mean.webp", encoded(pixels, exact=True)),
    }
