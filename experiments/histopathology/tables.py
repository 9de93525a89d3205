"""Turn what `run.py` wrote into tables.

python experiments/histopathology/tables.py results/tissue.json
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

# What each planted bias may be recognised by.
EXPECTED = {
    "centre": ("centre",),
    "square": ("foreign", "upper left corner"),
    "pen": ("foreign", "strategy"),
    "blur": ("sharpness",),
    "jpeg": ("compression", "sharpness"),
    "stain": ("tint", "foreign"),
}


def hit(kind, flagged):
    return any(any(word in key for word in EXPECTED[kind]) for key in flagged)


def mean(values):
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    spread = f" ± {np.std(known, ddof=1):.3f}" if len(known) > 1 else ""
    return f"{np.mean(known):.3f}{spread}"


def grouped(results):
    groups = defaultdict(list)
    for name, row in results.items():
        groups[name.rpartition("/")[0]].append(row)
    return groups


def planted(groups):
    lines = [
        "| bias | networks | AUC, biased test | AUC, clean | AUC, attacked | flagged as it is | "
        "other questions flagged |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, rows in groups.items():
        kind = name.split("/")[0]
        if kind == "necrosis":
            continue
        asked = sum(row["audit"]["questions"] for row in rows)
        keys = [row["audit"]["flagged"] for row in rows]
        found, other = "-", sum(len(k) for k in keys)
        if kind != "control":
            found = f"{sum(hit(kind, k) for k in keys)} of {len(rows)}"
            other = sum(not hit(kind, [key]) for k in keys for key in k)
        cells = [mean([row.get(f"auc {w}") for row in rows]) for w in ("test", "clean", "attacked")]
        lines.append(
            f"| {name} | {len(rows)} | {' | '.join(cells)} | {found} | {other} of {asked} |"
        )
    return lines


def repaired(groups):
    lines = [
        "| bias | remedy | networks | AUC, clean | AUC, attacked | still flagged |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, rows in groups.items():
        kind = name.split("/")[0]
        having = [row for row in rows if row.get("repaired")]
        if not having:
            continue
        before = [mean([row.get(f"auc {w}") for row in having]) for w in ("clean", "attacked")]
        still = sum(hit(kind, row["audit"]["flagged"]) for row in having)
        lines.append(f"| {name} | none | {len(having)} | {' | '.join(before)} | {still} |")
        for remedy in having[0]["repaired"]:
            after = [row["repaired"][remedy] for row in having if remedy in row["repaired"]]
            cells = [mean([row.get(f"auc {w}") for row in after]) for w in ("clean", "attacked")]
            still = sum(hit(kind, row["audit"]["flagged"]) for row in after)
            lines.append(f"| | {remedy} | {len(after)} | {' | '.join(cells)} | {still} |")
    return lines


def necrotic(groups):
    lines = ["| trained | AUC, no necrosis | AUC, necrotic tiles |", "| --- | --- | --- |"]
    rows = groups.get("necrosis", [])
    for trained in ("without necrosis", "with necrosis"):
        cells = [
            mean([row[trained][f"auc {where}"] for row in rows])
            for where in ("without", "necrotic")
        ]
        lines.append(f"| {trained} | {' | '.join(cells)} |")
    return lines if rows else []


def main():
    results = json.loads(Path(sys.argv[1]).read_text())
    groups = grouped(results)
    parts = [planted(groups), repaired(groups), necrotic(groups)]
    print("\n\n".join("\n".join(lines) for lines in parts if lines))


if __name__ == "__main__":
    main()
