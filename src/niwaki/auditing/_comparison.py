"""Before and after: what remedies did, in one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from niwaki.auditing._result import Audit


def before_and_after(
    audits: Mapping[str, Audit], more: Mapping[str, Mapping[str, float]] | None = None
) -> list[dict[str, Any]]:
    """Compare audits of several networks on the same images, question by question.

    Parameters
    ----------
    audits : mapping of str to Audit
        Name of the network to its audit; the first one is the network as it was.
    more : mapping of str to mapping of str to float, optional
        Further numbers of each network, such as its AUC on other data.

    Returns
    -------
    list of dict
        A row per network: its name, accuracy, AUC, the robustness index where centres are known,
        further numbers, how many questions were
        flagged, and, for each question that was flagged in any of the audits, the effect
        ("seen") and by how much the output moved beyond the control ("moved"; of images unlike
        those of training, how much more often the network is wrong on them).
    """
    keys = list(dict.fromkeys(f.key for found in audits.values() for f in found.flagged))
    rows = []
    for name, found in audits.items():
        row: dict[str, Any] = {
            "network": name,
            "accuracy": found.accuracy,
            "auc": found.auc,
            **({"robustness index": found.centres.robustness} if found.centres else {}),
            **(more or {}).get(name, {}),
            "flagged": len(found.flagged),
        }
        known = {finding.key: finding for finding in found.findings}
        for key in keys:
            finding = known.get(key)
            row[f"{key}: seen"] = None if finding is None else finding.effect
            cause = None if finding is None else finding.cause
            row[f"{key}: moved"] = None if cause is None else cause.drop - cause.control
        rows.append(row)
    return rows


def side_by_side(
    rows: Sequence[Mapping[str, Any]], audits: Mapping[str, Audit]
) -> list[dict[str, str]]:
    """Turn the table around, in words: a row for each measure, a column for each network.

    Parameters
    ----------
    rows : sequence of mapping
        From `before_and_after`.
    audits : mapping of str to Audit
        Those they are of, or some of them: they know the questions' names in words.

    Returns
    -------
    list of dict
        A row per measure: its name as "measure", and its value for each network.
    """
    titles = {f.key: f.title for found in audits.values() for f in found.findings}
    table = []
    for measure in [name for name in rows[0] if name != "network"]:
        row = {"measure": _named(measure, titles)}
        for network in rows:
            row[str(network["network"])] = _shown(network[measure])
        table.append(row)
    return table


def _named(measure: str, titles: Mapping[str, str]) -> str:
    key, _, what = measure.rpartition(": ")
    if key in titles:
        return f"{titles[key]}: {what}"
    if measure == "flagged":
        return "questions answered with yes"
    return measure.replace("auc", "AUC")


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows of equal keys as a table in Markdown."""
    head = list(rows[0])
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    lines += ["| " + " | ".join(_shown(row[name]) for name in head) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _shown(value: Any) -> str:
    if value is None:
        return "not tried"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
