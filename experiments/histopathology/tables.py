"""Turn what `run.py` wrote into tables.

python experiments/histopathology/tables.py results/tissue.json
python experiments/histopathology/tables.py one/real.json two/real.json
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

from niwaki.auditing import bootstrap

Row = dict[str, Any]
Groups = dict[str, list[Row]]

# What each planted bias may be recognised by.
EXPECTED = {
    "centre": ("/centre",),
    "square": ("colour/tumour/foreign", "position/tumour/upper left corner"),
    "pen": ("colour/tumour/foreign", "strategy/tumour"),
    "blur": ("quality/tumour/sharpness",),
    "jpeg": ("quality/tumour/compression", "quality/tumour/sharpness"),
    "stain": ("quality/tumour/tint", "colour/tumour/foreign"),
}
ORDER = ("control", *EXPECTED, "missing", "cells", "squeezenet")


def hit(kind: str, flagged: Iterable[str]) -> bool:
    """Say whether an audit named what was planted."""
    return any(any(word in key for word in EXPECTED[kind]) for key in flagged)


def mean(values: Iterable[float | None]) -> str:
    """Write a mean and the standard deviation between networks."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    spread = f" ± {np.std(known, ddof=1):.3f}" if len(known) > 1 else ""
    return f"{np.mean(known):.3f}{spread}"


def with_interval(average: float, spread: float, count: int) -> str:
    """Write a mean over networks of an AUC with its 95 % interval (Student's t)."""
    half = float(student.ppf(0.975, count - 1)) * spread / count**0.5
    low, high = max(average - half, 0.0), min(average + half, 1.0)
    return f"{average:.3f} [{low:.3f}, {high:.3f}]"


def interval(values: Iterable[float]) -> str:
    """Write a mean with its interval, or the one value there is."""
    known = list(values)
    if len(known) < 2:
        return mean(known)
    return with_interval(float(np.mean(known)), float(np.std(known, ddof=1)), len(known))


def aucs(rows: Sequence[Row], names: Sequence[str]) -> str:
    """Write the AUCs of several networks as cells of a table."""
    return " | ".join(mean(row.get(f"auc {name}") for row in rows) for name in names)


def grouped(results: dict[str, Row]) -> Groups:
    """Sort cases by bias and strength, in an order that does not depend on when they ran."""
    groups: Groups = defaultdict(list)
    results = {name: row for name, row in results.items() if not name.startswith("scanner/")}
    for name in sorted(results, key=lambda name: int(name.rpartition("/")[2])):
        groups[name.rpartition("/")[0]].append(results[name])

    def place(name: str) -> tuple[int, float]:
        kind, _, share = name.partition("/")
        return ORDER.index(kind), float(share or 0)

    return {name: groups[name] for name in sorted(groups, key=place)}


def planted(groups: Groups) -> list[str]:
    """What the test AUC and the audit say of each bias."""
    lines = [
        "| bias | networks | AUC, biased test | AUC, clean | AUC, attacked | unbiased network, "
        "attacked | flagged as it is | other questions flagged |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, rows in groups.items():
        kind = name.split("/")[0]
        if kind == "control" or kind in EXPECTED:
            harm = [row["harm"][kind] for row in groups.get("control", []) if kind in row["harm"]]
            lines.append(_planted(name, kind, rows, harm))
        elif kind == "squeezenet":
            lines.append(_planted("SqueezeNet, control", "control", rows))
            marked = [row["square/0.5"] for row in rows]
            lines.append(_planted("SqueezeNet, square/0.5", "square", marked))
    return lines if len(lines) > 2 else []


def _planted(name: str, kind: str, rows: Sequence[Row], harm: Sequence[Row] = ()) -> str:
    asked = sum(row["audit"]["questions"] for row in rows)
    keys = [row["audit"]["flagged"] for row in rows]
    found, other = "-", sum(len(k) for k in keys)
    if kind != "control":
        found = f"{sum(hit(kind, k) for k in keys)} of {len(rows)}"
        other = sum(not hit(kind, [key]) for k in keys for key in k)
    numbers = f"{aucs(rows, ('test', 'clean', 'attacked'))} | {aucs(harm, ('attacked',))}"
    return f"| {name} | {len(rows)} | {numbers} | {found} | {other} of {asked} |"


USED = 0.02  # fall of the AUC under attack from which on a network uses the artefact


def by_use(groups: Groups) -> list[str]:
    """Whether the audit names an artefact where the network uses it, and is silent elsewhere."""
    lines = [
        "| share of the tumour patches | networks that use it | named | networks that do not | "
        "named | other questions flagged |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    shares: dict[float, list[tuple[str, Row]]] = defaultdict(list)
    for name, rows in groups.items():
        kind, _, share = name.partition("/")
        if kind in EXPECTED and share:
            shares[float(share)] += [(kind, row) for row in rows]
    for share, cases in sorted(shares.items()):
        cells = []
        for use in (True, False):
            which = [c for c in cases if (c[1]["auc clean"] - c[1]["auc attacked"] >= USED) is use]
            named = sum(hit(kind, row["audit"]["flagged"]) for kind, row in which)
            cells.append(f"{len(which)} | {named}")
        asked = sum(row["audit"]["questions"] for _, row in cases)
        other = sum(not hit(kind, [key]) for kind, row in cases for key in row["audit"]["flagged"])
        lines.append(f"| {share:.0%} | {' | '.join(cells)} | {other} of {asked} |")
    return lines if len(lines) > 2 else []


def retrieved(groups: Groups) -> list[str]:
    """How well images with the artefact are found among their class; AUROC and AP."""
    lines = [
        "| bias | method | networks | AUROC | average precision | IoU of the pixels |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, rows in groups.items():
        having = [row for row in rows if row.get("retrieved")]
        for method in dict.fromkeys(m for row in having for m in row["retrieved"]):
            found = [row["retrieved"][method] for row in having if method in row["retrieved"]]
            cells = [interval(value[place] for value in found) for place in (0, 1)]
            iou = mean(row.get("overlap") for row in having)
            lines.append(f"| {name} | {method} | {len(found)} | {' | '.join(cells)} | {iou} |")
    return lines if len(lines) > 2 else []


def false_alarms(groups: Groups) -> list[str]:
    """Which questions were answered by yes without a reason, in how many networks."""
    lines = ["| networks | question flagged | how often |", "| --- | --- | --- |"]
    for name, rows in groups.items():
        kind = name.split("/")[0]
        if kind not in ("control", "squeezenet", *EXPECTED):
            continue
        keys = [key for row in rows for key in row["audit"]["flagged"]]
        known = kind in EXPECTED
        other = sorted({key for key in keys if not (known and hit(kind, [key]))})
        lines += [f"| {name} | {key} | {keys.count(key)} of {len(rows)} |" for key in other]
    return lines if len(lines) > 2 else []


def repaired(groups: Groups) -> list[str]:
    """What the remedies do about artefacts."""
    lines = [
        "| bias | remedy | networks | accuracy, clean | attacked | AUC, clean | attacked "
        "| artefact moves the output by | still flagged |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, rows in groups.items():
        kind = name.split("/")[0]
        having = [row for row in rows if row.get("repaired")]
        if kind == "centre" or not having:
            continue
        lines.append(f"| {name} | none | {_repaired(kind, having)} |")
        for remedy in having[0]["repaired"]:
            after = [row["repaired"][remedy] for row in having if remedy in row["repaired"]]
            lines.append(f"| | {remedy} | {_repaired(kind, after)} |")
    return lines if len(lines) > 2 else []


def repaired_in_short(groups: Groups) -> list[str]:
    """The AUC under attack after each remedy, a column for each artefact."""
    having = {
        name: rows
        for name, group in groups.items()
        if name.split("/")[0] != "centre" and (rows := [row for row in group if "repaired" in row])
    }
    if len(having) < 2:
        return []
    lines = [
        f"| AUC clean / attacked; still flagged | {' | '.join(having)} |",
        f"| --- |{' --- |' * len(having)}",
    ]
    remedies = dict.fromkeys(name for rows in having.values() for name in rows[0]["repaired"])
    for remedy in (None, *remedies):
        cells = []
        for name, rows in having.items():
            after = [row if remedy is None else row["repaired"].get(remedy) for row in rows]
            known = [row for row in after if row is not None]
            still = sum(hit(name.split("/")[0], row["audit"]["flagged"]) for row in known)
            pair = [f"{np.mean([row[f'auc {w}'] for row in known]):.3f}" for w in _TESTS if known]
            cells.append(f"{' / '.join(pair)}; {still} of {len(known)}" if known else "-")
        lines.append(f"| {remedy or 'none'} | {' | '.join(cells)} |")
    return lines


def _repaired(kind: str, rows: Sequence[Row]) -> str:
    still = sum(hit(kind, row["audit"]["flagged"]) for row in rows)
    moves = mean(row.get("artefact moves") for row in rows)
    right = " | ".join(mean(row.get(f"accuracy {w}") for row in rows) for w in _TESTS)
    return f"{len(rows)} | {right} | {aucs(rows, _TESTS)} | {moves} | {still} of {len(rows)}"


_TESTS = ("clean", "attacked")


def centred(groups: Groups) -> list[str]:
    """What repairs of the label bias do, above all on shifted patches."""
    rows = [row for row in groups.get("centre", []) if "audit clean" in row]
    if not rows:
        return []
    lines = [
        "| trained on | networks | AUC, biased test | AUC, clean | AUC, shifted patches | gain on "
        "shifted patches | centre flagged, clean patches |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    names = ("test", "clean", "shifted")
    still = sum(hit("centre", row["audit clean"]["flagged"]) for row in rows)
    lines.append(
        f"| labels of the centre | {len(rows)} | {aucs(rows, names)} | - | {still} of {len(rows)} |"
    )
    for remedy in rows[0]["repaired"]:
        after = [row["repaired"][remedy] for row in rows]
        # The same images are drawn in each network's n-th resample.
        draws = np.mean([row["gain draws"] for row in after], axis=0)
        low, high = np.percentile(draws, [2.5, 97.5])
        gain = f"{np.mean([row['gain'] for row in after]):+.3f} [{low:+.3f}, {high:+.3f}]"
        still = sum(hit("centre", row["audit"]["flagged"]) for row in after)
        lines.append(
            f"| {remedy} | {len(after)} | {aucs(after, names)} | {gain} | {still} of {len(after)} |"
        )
    return lines


def absent(groups: Groups) -> list[str]:
    """What it costs that a group is missing from training."""
    rows = groups.get("missing", [])
    if not rows:
        return []
    lines = [
        "| trained | networks | AUC, tests without it | with it | normal patches taken for tumour, "
        "without it | with it | said to be unlike training | other questions flagged |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for trained in [name for name, value in rows[0].items() if "auc with" in _dict(value)]:
        nets = [row[trained] for row in rows]
        keys = [net["audit"]["flagged"] for net in nets]
        named = sum(any(key.startswith("training/") for key in k) for k in keys)
        others = sum(not key.startswith("training/") for k in keys for key in k)
        asked = sum(net["audit"]["questions"] for net in nets)
        errors = " | ".join(mean(net[f"errors {w}"] for net in nets) for w in ("without", "with"))
        lines.append(
            f"| {trained} | {len(nets)} | {aucs(nets, ('without', 'with'))} | {errors} | "
            f"{named} of {len(nets)} | {others} of {asked} |"
        )
    return lines


def _dict(value: Any) -> Row:
    return value if isinstance(value, dict) else {}


def methods(rows: Sequence[Row], title: str) -> list[str]:
    """Rank methods by the cell-level AUC of their heatmaps, mean over networks of each image."""
    if not rows:
        return []
    lines = [
        f"| {title}, {len(rows)} networks | AUC of an image's cells | AUC within a patch | "
        "images | seconds |",
        "| --- | --- | --- | --- | --- |",
    ]
    ranked = []
    for name in rows[0]["cells"]:
        judged = [row["cells"][name] for row in rows]
        found = [_over_images([one[level] for one in judged]) for level in ("image", "patch")]
        seconds = np.mean([one["seconds"] for one in judged])
        text = f"| {name} | {found[0]} | {found[1]} | {found[0].count} | {seconds:.1f} |"
        ranked.append((found[0].mean, text))
    return lines + [text for _, text in sorted(ranked, reverse=True)]


def _over_images(values: Sequence[Sequence[float | None]]) -> Any:
    """Mean over networks for each image, then the mean over images and its interval."""
    return bootstrap(np.array(values, dtype=float).mean(0))


def main() -> None:
    """Print all tables that the results give."""
    results: dict[str, Row] = {}
    for file in sys.argv[1:]:
        results.update(json.loads(Path(file).read_text()))
    groups = grouped(results)
    parts = [
        planted(groups),
        by_use(groups),
        retrieved(groups),
        false_alarms(groups),
        repaired(groups),
        repaired_in_short(groups),
        centred(groups),
        absent(groups),
        methods(groups.get("cells", []), "small network"),
        methods(groups.get("squeezenet", []), "SqueezeNet"),
    ]
    print("\n\n".join("\n".join(lines) for lines in parts if lines))


if __name__ == "__main__":
    main()
