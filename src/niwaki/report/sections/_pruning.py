"""Accuracy against what is left after each step of pruning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from niwaki.pruning import Step, Trajectory
from niwaki.report._chart import Axis, Chart, Line, Point
from niwaki.report._section import RunFolder, Section, margin, section

__all__ = ["cost_charts", "cost_facts", "pruning"]

_COSTS = {"macs": "MACs", "params": "parameters", "units": "units", "seconds": "milliseconds"}
_LONG = {
    "macs": "multiply-accumulates kept",
    "params": "parameters kept",
    "units": "units kept",
    "seconds": "time per image, of the unpruned network's",
}
_ACCURACY = Axis("accuracy on test images", percent=True)


@section
def pruning(run: RunFolder) -> Section | None:
    """Show the trajectory of one run of pruning."""
    rows = run.json("trajectory.json")
    if not isinstance(rows, list) or not rows or "macs" not in rows[0]:
        return None
    trajectory = Trajectory.from_json(rows)
    times = _times(run)
    return Section(
        "Accuracy and cost",
        "pruning.html.j2",
        {"charts": cost_charts({"": trajectory}, {"": times}), "rejected": trajectory[-1].rejected},
        facts=(*cost_facts(trajectory), *_measured(run), *_chosen(run)),
        cautions=tuple(_cautions(run, trajectory, times)),
    )


def cost_charts(
    runs: Mapping[str, Trajectory], times: Mapping[str, Mapping[int, float]] | None = None
) -> list[Chart]:
    """Draw accuracy against each cost, a chart for each.

    Parameters
    ----------
    runs : mapping of str to Trajectory
        By name; an empty name is not shown.
    times : mapping, optional
        By name and step the seconds per image.
    """
    measured = times or {}
    charts = []
    for cost, name in _COSTS.items():
        if cost == "seconds" and not any(measured.values()):
            continue
        lines = [
            line
            for label, trajectory in runs.items()
            for line in _lines(label, trajectory, cost, measured.get(label, {}))
        ]
        first = next(iter(runs.values()))
        single = len(runs) == 1
        charts.append(
            Chart(
                f"Accuracy on test images against the share of {_LONG[cost]}, step by step",
                Axis(_LONG[cost], percent=True, reverse=True),
                _ACCURACY,
                tuple(lines),
                _HEAD if single else (),
                _table(first, next(iter(measured.values()), {})) if single else (),
                name=name,
            )
        )
    return charts


def _lines(label: str, trajectory: Trajectory, cost: str, times: Mapping[int, float]) -> list[Line]:
    tuned = any(step.accuracy_tuned is not None for step in trajectory)
    found = []
    for words, attribute, dashed in (
        ("before fine-tuning" if tuned else "accuracy", "accuracy", tuned),
        ("fine-tuned", "accuracy_tuned", False),
        ("on the validation images that decided", "validation", True),
    ):
        points = [
            Point(share, value, _said(step, trajectory, value, times, words))
            for step in trajectory
            if (value := getattr(step, attribute)) is not None
            and (share := _share(step, trajectory, cost, times)) is not None
        ]
        name = f"{label}, {words}" if label and words != "accuracy" else label or words
        if points:
            found.append(Line(name, tuple(points), dashed))
    return found


def _share(
    step: Step, trajectory: Trajectory, cost: str, times: Mapping[int, float]
) -> float | None:
    first = trajectory[0]
    if cost == "seconds":
        now, before = times.get(step.step), times.get(first.step)
        return None if now is None or not before else now / before
    return float(getattr(step, cost) / getattr(first, cost))


def _said(
    step: Step, trajectory: Trajectory, value: float, times: Mapping[int, float], words: str
) -> str:
    first = trajectory[0]
    lines = [f"step {step.step}: {value:.2%} ({words})"]
    for cost in ("macs", "params", "units"):
        now = getattr(step, cost)
        lines.append(f"{now:,} {_COSTS[cost]} ({now / getattr(first, cost):.1%})")
    if step.step in times:
        lines.append(f"{1000 * times[step.step]:.3g} ms per image")
    return "\n".join(lines + (["undone: below the floor"] if step.rejected else []))


_HEAD = ("step", "units", "parameters", "MACs", "MACs kept", "ms per image", "accuracy",
         "fine-tuned", "validation", "remark")  # fmt: skip


def _table(trajectory: Trajectory, times: Mapping[int, float]) -> tuple[tuple[str, ...], ...]:
    def share(value: float | None) -> str:
        return "" if value is None else f"{value:.2%}"

    return tuple(
        (
            str(step.step),
            f"{step.units:,}",
            f"{step.params:,}",
            f"{step.macs:,}",
            f"{kept:.1%}",
            f"{1000 * times[step.step]:.3g}" if step.step in times else "",
            share(step.accuracy),
            share(step.accuracy_tuned),
            share(step.validation),
            "undone" if step.rejected else "",
        )
        for step, kept in zip(trajectory, trajectory.kept("macs"), strict=True)
    )


def _times(run: RunFolder) -> dict[int, float]:
    found = run.json("steps.json") or {}
    return {int(row["step"]): float(row["seconds"]) for row in found.get("steps", ())}


def cost_facts(trajectory: Trajectory) -> tuple[tuple[str, ...], ...]:
    """Return the accuracy and the size before and after, for the summary."""
    first, last = trajectory[0], trajectory.final
    rows: list[tuple[str, ...]] = []
    now = last.accuracy if last.accuracy_tuned is None else last.accuracy_tuned
    if first.accuracy is not None and now is not None:
        rows.append(("Accuracy on test images", f"{first.accuracy:.2%}", f"{now:.2%}"))
    for cost, name in (("macs", "MACs"), ("params", "Parameters"), ("units", "Units")):
        before, left = getattr(first, cost), getattr(last, cost)
        rows.append((name, f"{before:,}", f"{left:,} ({left / before:.0%})"))
    return tuple(rows)


def _measured(run: RunFolder) -> Iterator[tuple[str, ...]]:
    measured: Sequence[tuple[str, str, float, str]] = (
        ("seconds", "Time of a batch", 1000, "ms"),
        ("bytes", "Size of the weights", 1e-6, "MB"),
    )
    result: Mapping[str, Any] = run.json("result.json") or {}
    for key, name, factor, unit in measured:
        if key in result:
            count = result[key].get("batch")
            values = (factor * result[key][when] for when in ("before", "after"))
            yield (
                f"Time of {count:,} images" if count else name,
                *(f"{value:.3g} {unit}" for value in values),
            )


def _chosen(run: RunFolder) -> Iterator[tuple[str, str]]:
    """Say by what filters were chosen and what was done to the rest."""
    result: Mapping[str, Any] = run.json("result.json") or {}
    if "criterion" in result:
        yield "Criterion", str(result["criterion"])
        yield "Reference images", f"{result['reference_images']:,}"
        yield "Repair", str(result["repair"] or "none")
        epochs = result["epochs"]
        yield "Fine-tuning", f"{epochs} epochs each time" if epochs else "none"


def _cautions(run: RunFolder, trajectory: Trajectory, times: Mapping[int, float]) -> list[str]:
    last, told = trajectory.final, []
    count = (run.json("result.json") or {}).get("test_images")
    if count and last.accuracy is not None:
        told.append(margin(last.accuracy, int(count)))
    if last.accuracy is None:
        told.append("No accuracy was measured, so it is not known what pruning has cost.")
    if last.kept is not None and last.kept.may_be_chance:
        told.append(f"Fine-tuning {last.kept}.")
    if any(step.validation is not None for step in trajectory):
        told.append(
            "The accuracy on validation images is too high for a held-out figure: these images "
            "decided what to remove or keep, or when to stop."
        )
    if times:
        told.append(
            "Milliseconds were measured on this machine, with whatever else ran on it; they differ "
            "on other machines and with other batch sizes."
        )
    return told
