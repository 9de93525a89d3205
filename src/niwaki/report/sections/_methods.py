"""Attribution methods judged: perturbation curves, and randomised networks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from niwaki.display import readable
from niwaki.evaluation import PerturbationCurves
from niwaki.report._chart import Axis, Chart, Line, Point
from niwaki.report._section import RunFolder, Section, section

__all__ = ["methods"]

_ORDERS = {
    "most": ("most relevant first", "lower is better"),
    "least": ("least relevant first", "higher is better"),
}
_HEADS = {
    "most": "most relevant first",
    "least": "least relevant first",
    "ms/image": "ms per image",
    "lost": "relevance lost",
}


@section
def methods(run: RunFolder) -> Section | None:
    """Show how faithful the heatmaps of several methods are."""
    told, rows = run.json("perturbation.json"), run.json("table.json")
    if not told or not rows:
        return None
    found = [PerturbationCurves.from_json(one) for one in told]
    randomised = run.json("randomisation.json") or []
    images = len(next(iter(found[0].scores.values())))
    return Section(
        "Methods judged",
        "methods.html.j2",
        {
            "charts": [_perturbed(found, order) for order in _ORDERS],
            "randomised": _randomised(randomised) if randomised else None,
            "score": str(found[0].settings.get("score", "score")),
            **_table(rows),
        },
        facts=(
            ("Methods", str(len(found))),
            ("Images", str(images)),
            ("Largest gap between the orders", rows[0]["method"]),
        ),
        cautions=tuple(_cautions(rows, images)),
    )


def _table(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the columns that say something, under heads that can be understood."""
    told = [readable(row) for row in rows]
    names = [name for name in told[0] if any(row[name] for row in told)]
    return {
        "head": [_HEADS.get(name, name) for name in names],
        "rows": [[row[name] for name in names] for row in told],
        "lost": "lost" in names,
    }


def _perturbed(found: Sequence[PerturbationCurves], order: str) -> Chart:
    title, better = _ORDERS[order]
    lines = []
    curves = [(one.method, one, order) for one in found]
    if "random" in found[0].scores:
        curves.append(("random order", found[0], "random"))
    for name, one, which in curves:
        mean, error = one.mean(which).tolist(), one.error(which).nan_to_num(0).tolist()
        points = tuple(
            Point(
                x, y, f"{name}\n{x:.0%} of the regions perturbed: {y:.3f} ± {e:.3f}", y - e, y + e
            )
            for x, y, e in zip(one.share.tolist(), mean, error, strict=True)
        )
        lines.append(Line(name, points, dashed=which == "random"))
    score = str(found[0].settings.get("score", "score"))
    shares = found[0].share.tolist()
    return Chart(
        f"The network's {score} while regions are perturbed, {title}: {better}",
        Axis(f"regions perturbed, {title}", percent=True),
        Axis(f"{score} of the class; {better}; the band is one standard error over the images"),
        tuple(lines),
        ("method", *(f"{share:.0%}" for share in shares)),
        tuple((line.name, *(f"{point.y:.3f}" for point in line.points)) for line in lines),
        name=title,
    )


def _randomised(told: Sequence[Mapping[str, Any]]) -> Chart:
    layers = ["none", *told[0]["layers"]]
    lines = []
    for one in told:
        means = [1.0, *(sum(row) / len(row) for row in one["spearman"])]
        points = tuple(
            Point(place, value, f"{one['method']}\nrandomised down to {layer}: {value:.3f}")
            for place, (layer, value) in enumerate(zip(layers, means, strict=True))
        )
        lines.append(Line(one["method"], points))
    numbered = ", ".join(f"{place} {layer}" for place, layer in enumerate(layers[1:], 1))
    return Chart(
        "Rank correlation of heatmaps with those of a network randomised from the output down; "
        "near 0 is good",
        Axis("layers randomised, from the output down"),
        Axis("rank correlation with the heatmap of the whole network; near 0 is good"),
        tuple(lines),
        ("method", *layers),
        tuple((line.name, *(f"{point.y:.3f}" for point in line.points)) for line in lines),
        note=f"The layers are {numbered}.",
    )


def _cautions(rows: Sequence[Mapping[str, Any]], images: int) -> Iterator[str]:
    if images < 50:
        yield f"The methods were judged on {images} images: mind the standard errors."
    blind = [
        row["method"] for row in rows if row.get("randomised") and row["randomised"]["mean"] > 0.5
    ]
    if blind:
        yield (
            "The heatmaps of these methods stay much the same when the network's weights are drawn "
            f"at random, so they say little about what it has learned: {', '.join(blind)}."
        )
    lost = [row["method"] for row in rows if row.get("lost")]
    if lost:
        yield f"These methods lose relevance on its way to the pixels: {', '.join(lost)}."
    yield (
        "A perturbed image is unlike any that the network knows: how its output falls also depends "
        "on what replaces the perturbed regions."
    )
