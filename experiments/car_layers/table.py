"""The tables: agreement with CAR, and what is kept of its quality at what cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, product
from statistics import mean, stdev
from typing import Any

import torch

from niwaki.criteria import Scores

__all__ = ["table"]

QUARTER = 0.25
SCOPES = {"one": "one layer", "all": "all layers", "rescored": "all, rescored"}
LEAD = 0.05  # of CAR over chance, below which no share of it is told
Found = Mapping[str, Any]
Drawn = dict[int, dict[str, list[float]]]


def table(results: Mapping[str, Found], criteria: Sequence[str], shares: Sequence[float]) -> str:
    """Write a section for each network."""
    lines = []
    for network, found in results.items():
        whole = mean(values(found, "whole"))
        lines += [f"## {network}", "", _about(found, whole), "", *_agreement(found, criteria), ""]
        lines += [*_quality(found, criteria, shares), ""]
    return "\n".join(lines)


def values(found: Found, what: str, field: str | None = None) -> list[Any]:
    """List a result over all draws."""
    rows = [value for key, value in found.items() if key.partition(" ")[2] == what]
    return rows if field is None else [row[field] for row in rows if field in row]


def _about(found: Found, whole: float) -> str:
    told = found["about"]
    return (
        f"{len(values(found, 'whole'))} draws of {told['per_class']} images per class, "
        f"{told['test']} test images, unpruned {whole:.1%}."
    )


def _agreement(found: Found, criteria: Sequence[str]) -> list[str]:
    """Compare the rankings within each layer with CAR's, mean over layers, then draws."""
    rows = [
        "| within a layer, against CAR | rank correlation | in common of the lowest 25 % |",
        "| --- | ---: | ---: |",
    ]
    car = _drawn(found, "car")
    pairs = [compared(car[a], car[b]) for a, b in combinations(car, 2)]
    if pairs:
        rows.append(_row("car itself, on other images", *zip(*pairs, strict=True)))
    for criterion in criteria:
        other = _drawn(found, criterion)
        if criterion != "car" and other:
            pairs = [compared(car[d], other.get(d, next(iter(other.values())))) for d in car]
            rows.append(_row(criterion, *zip(*pairs, strict=True)))
    return rows


def _drawn(found: Found, criterion: str) -> Drawn:
    end = f" scores {criterion}"
    return {int(k.split()[0]): v["scores"] for k, v in found.items() if k.endswith(end)}


def compared(a: Mapping[str, list[float]], b: Mapping[str, list[float]]) -> tuple[float, float]:
    """Correlate ranks, and count what the lowest quarters have in common; mean over layers."""
    one, other = (
        [Scores({"": torch.tensor(x[layer], dtype=torch.float64)}) for layer in a] for x in (a, b)
    )
    counts = [max(1, round(QUARTER * len(a[layer]))) for layer in a]
    return (
        mean(x.rank_correlation(y) for x, y in zip(one, other, strict=True)),
        mean(x.overlap(y, n) for x, y, n in zip(one, other, counts, strict=True)),
    )


def _row(name: str, correlations: Iterable[float], overlaps: Iterable[float]) -> str:
    return f"| {name} | {spread(correlations, '.2f')} | {spread(overlaps, '.0f', 100)} % |"


def spread(numbers: Iterable[float], form: str, times: float = 1) -> str:
    """Mean ± standard deviation; nothing if there is none."""
    told = [times * number for number in numbers]
    if not told:
        return ""
    more = f" ± {stdev(told):{form}}" if len(told) > 1 else ""
    return f"{mean(told):{form}}{more}"


def _quality(found: Found, criteria: Sequence[str], shares: Sequence[float]) -> list[str]:
    """Put accuracy without filters beside the seconds of scoring."""
    places = list(product(SCOPES, shares))
    heads = [f"{SCOPES[scope]}, {share:.0%} gone" for scope, share in places]
    heads += ["seconds", "of CAR's", "rescored", "of CAR's"]
    rows = ["| accuracy in % | " + " | ".join(heads) + " |", "| --- |" + " ---: |" * len(heads)]
    for criterion in criteria:
        cells = [_kept(found, scope, criterion, str(share)) for scope, share in places]
        for what in ("scores", "rescored"):
            mine, car = _paid(found, f"{what} {criterion}"), _paid(found, f"{what} car")
            cells += [f"{mine:.3g}", f"{mine / car:.2g}"] if mine and car else ["", ""]
        rows.append(f"| {criterion} | " + " | ".join(cells) + " |")
    seconds, alone = _paid(found, "one greedy"), _paid(found, "one index")
    if seconds and alone:
        cells = [_kept(found, scope, "greedy", str(share)) for scope, share in places]
        cells += [f"{seconds:.3g}", f"{seconds / alone:.2g} × the index of the layer", "", ""]
        rows.append("| car, greedy | " + " | ".join(cells) + " |")
    return rows


def _kept(found: Found, scope: str, criterion: str, share: str) -> str:
    """Accuracy, and in brackets what is kept of CAR's lead over chance."""
    mine = values(found, f"{scope} {criterion}", share)
    told = spread(mine, ".1f", 100)
    floor = values(found, f"{'all' if scope == 'rescored' else scope} random", share)
    car = values(found, f"{scope} car", share)
    if mine and floor and car and mean(car) - mean(floor) >= LEAD:
        told += f" ({(mean(mine) - mean(floor)) / (mean(car) - mean(floor)):.0%})"
    return told


def _paid(found: Found, what: str) -> float | None:
    seconds = values(found, what, "seconds")
    return mean(seconds) if seconds else None
