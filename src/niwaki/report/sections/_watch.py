"""New images at deployment: how many predictions are made in an unusual way, and the oddest."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from niwaki.report._section import RunFolder, Section, section

__all__ = ["watch"]

_LEVEL = 0.05  # of the test whether more predictions than usual are odd


@section
def watch(run: RunFolder) -> Section | None:
    """Show which predictions are odd, and what they were compared with."""
    told, shown = run.json("watch.json"), run.json("watch-shown.json")
    if not told or not shown:
        return None
    return Section(
        "Odd predictions",
        "watch.html.j2",
        {
            "verdict": shown["verdict"],
            "more": told["p_more"] < _LEVEL,
            "level": told["level"],
            "count": told["odd"],
            "oddest": [{**one, "photo": run.picture(one["photo"])} for one in shown["oddest"]],
            "reference": [
                [name, counts["learned"], counts["held_out"]]
                for name, counts in told["reference"].items()
            ],
        },
        facts=(
            ("Images", f"{told['images']:,}"),
            ("Odd predictions", f"{told['odd']:,}"),
            ("Expected of usual images", f"{told['level'] * told['judged']:.0f}"),
        ),
        cautions=tuple(_cautions(told)),
    )


def _cautions(told: dict[str, Any]) -> Iterator[str]:
    yield "An odd prediction need not be wrong, and a usual one need not be right."
    left = told["images"] - told["judged"]
    if left:
        yield (
            f"Nothing can be said of {left:,} images: the reference has too few images of the "
            "classes that the network predicts for them."
        )
