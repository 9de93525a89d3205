"""Put synthetic and real results side by side, in short: the tables of the README.

python experiments/histopathology/summary.py results/tissue.json results/real.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tables import EXPECTED, Groups, Row, grouped, hit, mean

Cells = dict[str, list[str]]
KINDS = ("synthetic", "real")


def beside(title: str, columns: Sequence[str], sides: Sequence[Cells]) -> list[str]:
    """A row for each case, with the same columns for synthetic and for real patches."""
    heads = [f"{kind}: {name}" for kind in KINDS for name in columns]
    lines = [f"| {title} | {' | '.join(heads)} |", f"| --- |{' ---: |' * len(heads)}"]
    for name in dict.fromkeys(name for side in sides for name in side):
        cells = [cell for side in sides for cell in side.get(name, ["-"] * len(columns))]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def planted(groups: Groups) -> Cells:
    """What the test AUC and the audit say of each bias."""
    unbiased = [row["harm"] for row in groups.get("control", [])]
    found: Cells = {}
    for name, rows in groups.items():
        kind = name.split("/")[0]
        if kind != "control" and kind not in EXPECTED:
            continue
        keys = [row["audit"]["flagged"] for row in rows]
        others = sum(kind == "control" or not hit(kind, [key]) for k in keys for key in k)
        found[name] = [
            mean(row["auc test"] for row in rows),
            mean(row.get("auc attacked") for row in rows),
            mean(harm[kind]["auc attacked"] for harm in unbiased if kind in harm),
            "-" if kind == "control" else _named(kind, rows),
            f"{others} of {sum(row['audit']['questions'] for row in rows)}",
        ]
    return found


def remedies(groups: Groups) -> Cells:
    """What remedies do to the AUC, on clean images and under attack."""
    found: Cells = {}
    for name, rows in groups.items():
        kind = name.split("/")[0]
        having = [row for row in rows if row.get("repaired")]
        if kind == "centre" or not having:
            continue
        cases = {"none": having}
        for remedy in having[0]["repaired"]:
            cases[remedy] = [r["repaired"][remedy] for r in having if remedy in r["repaired"]]
        for remedy, networks in cases.items():
            aucs = [mean(row[f"auc {what}"] for row in networks) for what in ("clean", "attacked")]
            found[f"{name}, {remedy}"] = [*aucs, _named(kind, networks)]
    return found


def _named(kind: str, rows: Sequence[Row]) -> str:
    return f"{sum(hit(kind, row['audit']['flagged']) for row in rows)} of {len(rows)}"


def main() -> None:
    """Print both tables."""
    sides = [grouped(json.loads(Path(file).read_text())) for file in sys.argv[1:3]]
    columns = ("test AUC", "attacked", "unbiased, attacked", "named", "others")
    print("\n".join(beside("bias", columns, [planted(side) for side in sides])))
    columns = ("AUC, clean", "attacked", "still flagged")
    print("\n" + "\n".join(beside("bias, remedy", columns, [remedies(side) for side in sides])))


if __name__ == "__main__":
    main()
