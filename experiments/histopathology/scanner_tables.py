"""Turn what `run.py --only scanner` wrote into a table.

python experiments/histopathology/scanner_tables.py results/real.json
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

Row = dict[str, Any]
WORTH = 0.05  # a cost from which a scanner has to be named


def named(row: Row) -> bool:
    """Say whether the audit said that the network goes by the scanner."""
    return any(key.startswith("centre/") for key in row["audit"]["flagged"])


def line(name: str, rows: list[Row]) -> str:
    """Return a row of the table."""
    _, strength, agreement = name.split("/")
    accuracy = [
        f"{np.mean([row['accuracy'][test] for row in rows]):.3f}"
        for test in ("biased", "by chance", "swapped")
    ]
    cost = " ".join(f"{100 * row['cost']:.1f}" for row in rows)
    worth = [row for row in rows if row["cost"] >= WORTH]
    others = sum(not key.startswith("centre/") for row in rows for key in row["audit"]["flagged"])
    cells = [
        strength,
        f"{float(agreement):.0%}",
        str(len(rows)),
        *accuracy,
        cost,
        f"{sum(map(named, rows))} of {len(rows)}",
        f"{sum(map(named, worth))} of {len(worth)}",
        f"{others} of {sum(row['audit']['questions'] for row in rows)}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for file in sys.argv[1:]:
        for name, row in json.loads(Path(file).read_text()).items():
            if name.startswith("scanner/"):
                groups[name.rpartition("/")[0]].append(row)
    print(
        "| scanner | scans of a class by its own | networks | accuracy, biased test | by chance | "
        "swapped | cost in points | named | where it costs 5 points | all keys flagged beside |"
    )
    print("|" + " --- |" * 10)
    for name, rows in groups.items():
        print(line(name, rows))


if __name__ == "__main__":
    main()
