"""Put the results of several runs together: tables.md beside this file.

    python experiments/scarce/tables.py results

RESULTS holds a folder per run of run.py; NETWORK and NETWORK-50, say, go into the same table.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean

from niwaki.files import write_text
from niwaki.pruning import Comparison, Summary

#: Which rows answer which question.
OURS = ("lrp", "lrp, small steps", "lrp.z_plus_output", "lrp, score alone", "lrp, chosen rules")
KINDS = {
    "best LRP": lambda label: label in OURS,
    "best other criterion by its own recipe": lambda label: (
        not label.startswith(("lrp", "torch-pruning")) and not label.endswith("per cost")
    ),
    "best torch-pruning": lambda label: label.startswith("torch-pruning"),
    "best other criterion per cost": lambda label: label.endswith("per cost"),
}
Areas = dict[tuple[str, int], Summary]


def main() -> None:
    """Read all, write tables.md."""
    found = gathered(Path(sys.argv[1]))
    parts = [overview(found)]
    for name, areas in found.items():
        parts.append(f"## {name}\n\n{table(areas)}")
    text = "\n\n".join(parts) + "\n"
    write_text(Path(__file__).parent / "tables.md", text)
    print(text)


def gathered(folder: Path) -> dict[str, Areas]:
    """Read the areas of each network: (contender, references per class) to those of its draws."""
    found: dict[str, Areas] = defaultdict(dict)
    for path in sorted(folder.glob("*/comparison.json")):
        network = path.parent.name.split("+")[0]
        comparison = Comparison.from_json(json.loads(path.read_text(encoding="utf-8")))
        for row in comparison.areas():
            found[network][row.label, row.references] = row
    return dict(found)


def overview(found: dict[str, Areas]) -> str:
    """LRP beside the best of each kind, for each network and number of references."""
    lines = [
        "Mean accuracy from 100 % to 30 % of the MACs, in %: LRP and the best of each kind.",
        "",
        f"| network | per class | draws | {' | '.join(KINDS)} |",
        "|---|---|---|" + "---|" * len(KINDS),
    ]
    for name, areas in found.items():
        for size in sizes(areas):
            cells = []
            for fits in KINDS.values():
                rows = [r for (label, n), r in areas.items() if n == size and fits(label)]
                best = max(rows, key=lambda row: row.mean or 0.0, default=None)
                cells.append("-" if best is None else f"{cell(best)} ({best.label})")
            leads = max(range(len(cells)), key=lambda i: float(cells[i].split(" ")[0] or 0))
            cells[leads] = f"**{cells[leads]}**"
            draws = max(len(r.values) for (_, n), r in areas.items() if n == size)
            lines.append(f"| {name} | {size} | {draws} | {' | '.join(cells)} |")
    return "\n".join(lines)


def table(areas: Areas) -> str:
    """All contenders of a network, the best over all numbers of references first."""
    columns = sizes(areas)
    labels = list(dict.fromkeys(label for label, _ in areas))
    known = {
        label: [areas[label, n].mean or 0.0 for n in columns if (label, n) in areas]
        for label in labels
    }
    labels.sort(key=lambda label: -fmean(known[label]))
    best = {n: max(r.mean or 0.0 for (_, m), r in areas.items() if m == n) for n in columns}
    lines = [
        f"| contender | {' | '.join(f'{n} per class' for n in columns)} |",
        "|---|" + "---|" * len(columns),
    ]
    for label in labels:
        cells = []
        for n in columns:
            row = areas.get((label, n))
            text = "-" if row is None else cell(row)
            cells.append(f"**{text}**" if row and row.mean == best[n] else text)
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def sizes(areas: Areas) -> list[int]:
    """List the numbers of references."""
    return sorted({size for _, size in areas})


def cell(row: Summary) -> str:
    """Write mean and standard deviation."""
    if row.mean is None:
        return "-"
    return f"{100 * row.mean:.1f}" + ("" if row.std is None else f" ± {100 * row.std:.1f}")


if __name__ == "__main__":
    main()
