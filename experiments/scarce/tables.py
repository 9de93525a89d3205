"""Put the results of several runs together: tables.md and criteria.md beside this file.

    python experiments/scarce/tables.py results

RESULTS holds a folder per run of run.py. Of folders NETWORK-repairs, tables.md gets a table in
which the choice is the same and the repair varies, one in which the repair is the same and the
choice varies, and one of the methods as they are; of all others, criteria.md gets the criteria
without repair. Folders NETWORK and NETWORK+MORE go into the same table.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, stdev

from contenders import ALONE, OURS, SPLIT
from recipes import SHARES, means

from niwaki.files import write_text
from niwaki.pruning import Comparison, Summary, accuracy_at

HERE = Path(__file__).parent
ENDING = "-repairs"
#: Which rows of criteria.md answer which question.
LRP = ("lrp", "lrp, small steps", "lrp.z_plus_output", "lrp, score alone", "lrp, chosen rules")
KINDS = {
    "best LRP": lambda label: label in LRP,
    "best other criterion by its own recipe": lambda label: (
        not label.startswith(("lrp", "torch-pruning")) and not label.endswith("per cost")
    ),
    "best torch-pruning": lambda label: label.startswith("torch-pruning"),
    "best other criterion per cost": lambda label: label.endswith("per cost"),
}
#: What tables.md answers: title, which contenders belong to it, and beside which they are put.
QUESTIONS: dict[str, tuple[Callable[[str], bool], str]] = {
    "Choice by `lrp`, and each repair": (
        lambda label: label in (OURS, ALONE) or label.startswith(f"lrp{SPLIT}"),
        OURS,
    ),
    "Each choice, rebuilt layer by layer": (
        lambda label: label.endswith(f"{SPLIT}rebuild"),
        ALONE,
    ),
    "Each choice, rebuilt jointly": (
        lambda label: label.endswith(f"{SPLIT}rebuild jointly"),
        OURS,
    ),
    "Each method with its own choice and repair": (
        lambda label: label in (OURS, ALONE) or label.endswith(f"{SPLIT}its own"),
        OURS,
    ),
}
Means = dict[tuple[str, int], Summary]


def main() -> None:
    """Read all, write both files."""
    found = gathered(Path(sys.argv[1]))
    repaired = {n: c for n, c in found.items() if n.endswith(ENDING)}
    plain = {n: summed(c) for n, c in found.items() if n not in repaired}
    if repaired:
        parts = [ABOUT]
        for title, (fits, ours) in QUESTIONS.items():
            parts.append(f"## {title}")
            for name, comparison in repaired.items():
                table_of = beside(comparison, fits, ours)
                parts.append(f"### {name.removesuffix(ENDING)}\n\n{table_of}")
        write_text(HERE / "tables.md", "\n\n".join(parts) + "\n")
    if plain:
        parts = [overview(plain)]
        parts += [f"## {name}\n\n{table(rows)}" for name, rows in plain.items()]
        write_text(HERE / "criteria.md", "\n\n".join(parts) + "\n")


ABOUT = """Accuracy in % at 90, 80, ... 30 % of the MACs and, in bold where it is the best, the mean
over these seven steps with the standard deviation over the draws of reference images. *Beside
ours*: the mean difference to `lrp.rebuilt + rebuild jointly`, the default, on the same draws (and
in how many of them it is ahead), so that a positive number is a loss for niwaki; where each layer
is rebuilt by itself, to `lrp.rebuilt + rebuild`."""


def gathered(folder: Path) -> dict[str, Comparison]:
    """Read what was found for each network."""
    runs, settings = defaultdict(list), {}
    for path in sorted(folder.glob("*/comparison.json")):
        network = path.parent.name.split("+")[0]
        found = Comparison.from_json(json.loads(path.read_text(encoding="utf-8")))
        runs[network] += found.runs
        settings[network] = found.settings
    return {name: Comparison(tuple(runs[name]), settings[name]) for name in runs}


def summed(found: Comparison) -> Means:
    """Return the mean accuracies by contender and number of references."""
    return {(row.label, row.references): row for row in means(found)}


def beside(found: Comparison, fits: Callable[[str], bool], ours: str) -> str:
    """All contenders of a question, for each number of references the best first."""
    heads = [f"{100 * share:.0f} %" for share in SHARES]
    lines = [
        f"| per class | contender | draws | {' | '.join(heads)} | mean | beside ours |",
        "|---|---|---|" + "---|" * (len(SHARES) + 2),
    ]
    rows = {k: row for k, row in summed(found).items() if fits(k[0]) and row.mean is not None}
    for size in sizes(rows):
        here = sorted((r for (_, n), r in rows.items() if n == size), key=lambda r: -(r.mean or 0))
        for row in here:
            runs = found.select(row.label, size)
            steps = [fmean(accuracy_at(r.trajectory, share) for r in runs) for share in SHARES]
            shown = [f"{100 * step:.1f}" for step in steps]
            text = f"**{cell(row)}**" if row is here[0] else cell(row)
            first = [str(size), row.label, str(len(runs)), *shown, text]
            lines.append(f"| {' | '.join([*first, paired(found, row.label, ours, size)])} |")
    return "\n".join(lines)


def paired(found: Comparison, label: str, ours: str, size: int) -> str:
    """Write how far a contender is ahead of ours, over the draws that both have."""
    if label == ours:
        return ""
    known, theirs = (
        {run.seed: fmean(accuracy_at(run.trajectory, share) for share in SHARES) for run in runs}
        for runs in (found.select(ours, size), found.select(label, size))
    )
    apart = [
        100 * (mean - known[draw])
        for seed, mean in theirs.items()
        for draw in (known if seed is None else {seed} & set(known))
    ]
    if not apart:
        return "-"
    spread = f" ± {stdev(apart):.1f}" if len(apart) > 1 else ""
    return f"{fmean(apart):+.1f}{spread} ({sum(a > 0 for a in apart)} of {len(apart)})"


def overview(found: dict[str, Means]) -> str:
    """LRP beside the best of each kind, for each network and number of references."""
    lines = [
        "Mean accuracy at 90, 80, ... 30 % of the MACs, in %: LRP and the best of each kind.",
        "",
        f"| network | per class | draws | {' | '.join(KINDS)} |",
        "|---|---|---|" + "---|" * len(KINDS),
    ]
    for name, rows in found.items():
        for size in sizes(rows):
            cells = []
            for fits in KINDS.values():
                those = [r for (label, n), r in rows.items() if n == size and fits(label)]
                best = max(those, key=lambda row: row.mean or 0.0, default=None)
                cells.append("-" if best is None else f"{cell(best)} ({best.label})")
            values = [float(text.split(" ")[0].strip("-") or 0) for text in cells]
            leads = values.index(max(values))
            cells[leads] = f"**{cells[leads]}**"
            draws = max(len(r.values) for (_, n), r in rows.items() if n == size)
            lines.append(f"| {name} | {size} | {draws} | {' | '.join(cells)} |")
    return "\n".join(lines)


def table(rows: Means) -> str:
    """All contenders of a network, the best over all numbers of references first."""
    columns = sizes(rows)
    labels = list(dict.fromkeys(label for label, _ in rows))
    known = {
        label: [rows[label, n].mean or 0.0 for n in columns if (label, n) in rows]
        for label in labels
    }
    labels.sort(key=lambda label: -fmean(known[label]))
    best = {n: max(r.mean or 0.0 for (_, m), r in rows.items() if m == n) for n in columns}
    lines = [
        f"| contender | {' | '.join(f'{n} per class' for n in columns)} |",
        "|---|" + "---|" * len(columns),
    ]
    for label in labels:
        cells = []
        for n in columns:
            row = rows.get((label, n))
            text = "-" if row is None else cell(row)
            cells.append(f"**{text}**" if row and row.mean == best[n] else text)
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def sizes(rows: Means) -> list[int]:
    """List the numbers of references."""
    return sorted({size for _, size in rows})


def cell(row: Summary) -> str:
    """Write mean and standard deviation."""
    if row.mean is None:
        return "-"
    return f"{100 * row.mean:.1f}" + ("" if row.std is None else f" ± {100 * row.std:.1f}")


if __name__ == "__main__":
    main()
