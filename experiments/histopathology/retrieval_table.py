"""Turn the retrieval tables of `tables.py` into one with a row for each artefact.

    python experiments/histopathology/retrieval_table.py tables-tenth.md

Files with means and standard deviations of several networks are read as well; what is printed are
means with their 95 % intervals over networks (Student's t).
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from pathlib import Path

from tables import with_interval

#: Columns, by the beginning of the method's name.
METHODS = {
    "concept vector": "concept vector of the 6",
    "nearest": "nearest of the 6, by channel relevance",
    "outliers": "outliers of channel relevance",
    "SpRAy, oddest group by place": "SpRAy, oddest group by place",
    "SpRAy, oddest group by pattern": "SpRAy, oddest group by pattern",
}
_SPREAD = re.compile(r"([0-9.]+) ± ([0-9.]+)")


def shown(cell: str, networks: int) -> str:
    """Return a cell with an interval in place of a standard deviation."""
    found = _SPREAD.fullmatch(cell)
    if found is None:
        return cell
    return with_interval(float(found[1]), float(found[2]), networks)


def rows(text: str) -> dict[str, dict[str, list[str]]]:
    """Return the cells of each artefact by method: networks, AUROC, AP and IoU."""
    found: dict[str, dict[str, list[str]]] = defaultdict(dict)
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        for start, column in METHODS.items():
            if len(cells) == 6 and cells[1].startswith(start):
                found[cells[0]][column] = cells[2:]
    return found


def main() -> None:
    """Print the table."""
    print("| artefact | " + " | ".join(METHODS.values()) + " | IoU of the pixels |")
    print("|" + " --- |" * (len(METHODS) + 2))
    for file in sys.argv[1:]:
        for name, methods in rows(Path(file).read_text()).items():
            cells = []
            for column in METHODS.values():
                networks, first, second, overlap = methods[column]
                both = [shown(cell, int(networks)) for cell in (first, second)]
                cells.append(" / ".join(both))
            cells.append(shown(overlap, int(networks)))
            print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
