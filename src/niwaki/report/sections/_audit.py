"""An audit: what was found, with its evidence, mean maps, and groups of heatmaps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from niwaki.auditing import ANSWERS, MATTERS, POWER
from niwaki.report._chart import Axis, Chart, Line, Point
from niwaki.report._section import RunFolder, Section, section

__all__ = ["answers", "clusters", "findings"]

_COLOURS = {
    "unreliable": "doubt",
    "found": "finding",
    "too few images": "few",
    "nothing found": "clean",
}
_ANSWERS = {
    "no": "Answered with no",
    "too few images": "Too few images for an answer",
    "unreliable": "Asked, but not to be relied on for this network",
}


@section
def findings(run: RunFolder) -> Section | None:
    """Show the findings of all audits, the evidence of each, and how the audits compare."""
    read = _read(run)
    if read is None:
        return None
    audits, table = read
    return Section(
        "What was found",
        "audit.html.j2",
        {
            "audits": [_findings(run, report, shown) for report, shown in audits],
            "colours": _COLOURS,
            "table": table,
        },
        facts=tuple(_facts(audits)),
        cautions=tuple(_cautions(audits)),
    )


@section
def clusters(run: RunFolder) -> Section | None:
    """Show where the network looks on average, and the groups of heatmaps."""
    read = _read(run)
    if read is None:
        return None
    audits = [
        {
            "name": shown["name"],
            "classes": shown["classes"],
            "maps": run.picture(shown["maps"]),
            "stains": run.picture(shown["stains"]),
            "pixels": shown["side"] <= 64,
            "clusters": (_strategies(run, found) for found in shown["clusters"]),
            "strips": [
                {**one, "picture": run.picture(one["picture"])} for one in shown.get("strips", ())
            ],
            "table_of_candidates": shown.get("table_of_candidates"),
        }
        for _, shown in read[0]
    ]
    return Section("Where the network looks", "clusters.html.j2", {"audits": audits})


@section
def answers(run: RunFolder) -> Section | None:
    """Show the questions that were not answered with yes, and how to read all of it."""
    read = _read(run)
    if read is None:
        return None
    audits = [
        {"name": shown["name"], "rest": _rest(report["findings"])} for report, shown in read[0]
    ]
    values = {"answers": ANSWERS, "power": POWER, "matters": MATTERS, "audits": audits}
    methods = [report["method"] for report, _ in read[0]]
    return Section("All other questions", "answers.html.j2", {**values, "method": methods[0]})


def _read(run: RunFolder) -> tuple[list[tuple[Any, Any]], Any] | None:
    told, shown = run.json("audit.json"), run.json("audit-shown.json")
    if not told or not shown:
        return None
    pairs = zip(told["audits"].values(), shown["audits"], strict=True)
    return list(pairs), shown["table"]


def _facts(audits: Sequence[tuple[Any, Any]]) -> Iterator[tuple[str, ...]]:
    for report, shown in audits:
        ending = f" ({shown['name']})" if shown["name"] else ""
        yield (
            f"Answered with yes{ending}",
            f"{len(report['flagged'])} of {report['questions']} questions",
        )
        yield f"Accuracy{ending}", f"{report['accuracy']:.1%}"
        yield f"AUC{ending}", f"{report['auc']:.3f}"
    yield "Images", f"{audits[0][0]['images']:,} of {len(audits[0][0]['classes'])} classes"


def _cautions(audits: Sequence[tuple[Any, Any]]) -> Iterator[str]:
    for report, shown in audits:
        name = f"{shown['name']}: " if shown["name"] else ""
        if report["caution"]:
            yield f"{name}no answer can be relied on: {report['caution']}."
        if report["limits"]:
            yield f"{name}{report['limits']}"
    yield "A good accuracy does not rule out any of this. What was not asked was not ruled out."


def _findings(run: RunFolder, report: Any, shown: Any) -> dict[str, Any]:
    by_key = {finding["key"]: finding for finding in report["findings"]}
    return {
        "name": shown["name"],
        "report": report,
        "pixels": shown["side"] <= 64,
        "flagged": [
            {
                **one,
                "finding": by_key[one["key"]],
                "echoes": [by_key[key] for key in one["echoes"]],
                "examples": [
                    {**e, "photo": run.picture(e["photo"]), "heat": run.picture(e["heat"])}
                    for e in one["examples"]
                ],
            }
            for one in shown["findings"]
        ],
    }


def _rest(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the questions that were not answered with yes, by their answer."""
    kinds = [
        {"title": title, "findings": [one for one in found if one["answer"] == answer]}
        for answer, title in _ANSWERS.items()
    ]
    return [kind for kind in kinds if kind["findings"]]


def _strategies(run: RunFolder, found: Mapping[str, Any]) -> dict[str, Any]:
    kind = "where they lie" if found["features"] == "place" else "their pattern, at any place"
    count = len(found["clusters"])
    return {
        "title": f"Class {found['class']}, heatmaps compared by {kind}: {count} groups",
        "dots": [(10 + 460 * x, 10 + 320 * y, c, c % 8, words) for x, y, c, words in found["dots"]],
        "clusters": [
            {**one, "mean": run.picture(one["mean"]), "kind": one["number"] % 8}
            for one in found["clusters"]
        ],
        "images": (
            {**one, "photo": run.picture(one["photo"]), "heat": run.picture(one["heat"])}
            for one in found["images"]
        ),
        "eigenvalues": _eigenvalues(found["eigenvalues"], count),
    }


def _eigenvalues(values: Sequence[float], count: int) -> Chart:
    points = tuple(
        Point(
            n, value, f"eigenvalue {n}: {value:.4f}" + ("; the gap follows" if n == count else "")
        )
        for n, value in enumerate(values, 1)
    )
    return Chart(
        f"Eigenvalues of the Laplacian; the gap behind number {count} gives the number of groups",
        Axis("number of the eigenvalue"),
        Axis("eigenvalue"),
        (Line("eigenvalues", points),),
        ("number", "eigenvalue"),
        tuple((str(n), f"{value:.4f}") for n, value in enumerate(values, 1)),
    )
