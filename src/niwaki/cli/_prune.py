"""``niwaki prune``: a smaller network from a handful of images."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer
from torch import Tensor

from niwaki import criteria, pruning
from niwaki.cli import _options as o
from niwaki.data import batches, in_memory, references
from niwaki.errors import NiwakiError
from niwaki.evaluation import latency
from niwaki.pruning import Pruned, Step
from niwaki.report import plot_trajectories

__all__ = ["prune"]


def prune(
    model: o.ModelSpec,
    data: o.DataSpec,
    criterion: Annotated[str, typer.Option(help="See `niwaki methods`.")] = "lrp",
    keep: Annotated[float, typer.Option(help="Share to keep, between 0 and 1.")] = 0.5,
    of: Annotated[Literal["units", "params", "macs"], typer.Option(help="Of what.")] = "macs",
    steps: Annotated[
        int | None, typer.Option(help="Number of steps of equal size.", show_default=False)
    ] = None,
    per_step: Annotated[
        float | None,
        typer.Option(
            help="Share of the whole that goes in each step. Default: 0.05.", show_default=False
        ),
    ] = None,
    per_class: Annotated[
        int, typer.Option("--references", help="Reference images per class.", min=1)
    ] = 10,
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("pruned"),
    weights: o.Weights = None,
    classes: o.Classes = None,
    outputs: o.Outputs = None,
    size: o.Size = None,
    resize: o.Resize = None,
    mean: o.Mean = None,
    std: o.Std = None,
    batch_size: o.BatchSize = 32,
    device: o.Device = "cpu",
    threads: o.Threads = None,
    seed: o.Seed = 0,
    force: o.Force = False,
    as_json: o.AsJson = False,
) -> None:
    """Remove the filters that matter least, without fine-tuning.

    The criterion looks at a few training images per class; the accuracy is measured on the test
    images. Writes the weights, the plan, the trajectory and its plot; the folder is a MODEL again.
    """
    if out.exists() and not force:
        raise NiwakiError(f"{out} exists; choose another folder with --out, or replace it: --force")
    machine = o.Machine.prepare(device, threads)
    made = criteria.create(criterion, **({"seed": seed} if criterion == "random" else {}))
    loaded = o.load_model(
        model,
        machine,
        weights=weights,
        classes=classes,
        size=size,
        resize=resize,
        mean=mean,
        std=std,
    )
    test = o.load_images(data, loaded, split="test", outputs=outputs)
    training = o.load_images(data, loaded, split="train", outputs=outputs)
    if not test.labelled:
        raise NiwakiError(f"{data} has no labels: pruning needs a folder for each class")
    few = references(training, per_class, seed)
    shown = o.console(as_json)
    shown.print(f"{len(few)} reference images, {len(test)} test images, criterion {made}")
    shown.print(_HEAD)
    pruned = pruning.prune(
        loaded.model,
        in_memory(few),
        made,
        keep=keep,
        of=of,
        steps=steps,
        per_step=per_step,
        test=in_memory(test, description="reading test images"),
        batch_size=batch_size,
        callback=lambda step: shown.print(_row(step)),
    )
    example = next(iter(batches(test, batch_size, machine.device)))[0]
    before, after = _seconds(loaded, pruned, example)
    settings = {**pruned.settings, "data": data, "references": per_class, "seed": seed}
    whole = replace(
        pruned,
        plan=pruning.Plan((*loaded.plan.steps, *pruned.plan.steps)),
        architecture=loaded.architecture or pruned.architecture,
        settings=settings,
    )
    whole.save(out, about=loaded.about, overwrite=force)
    plot_trajectories(out / "trajectory.png", {criterion: pruned.trajectory}, heading=model)
    _report(whole, before, after, len(example), out, as_json)


_HEAD = f"{'step':>4} {'units':>8} {'parameters':>12} {'MACs':>15} {'accuracy':>9} {'seconds':>8}"


def _row(step: Step) -> str:
    accuracy = "" if step.accuracy is None else f"{step.accuracy:.2%}"
    return (
        f"{step.step:>4} {step.units:>8,} {step.params:>12,} {step.macs:>15,} {accuracy:>9} "
        f"{step.seconds:>8.1f}"
    )


def _seconds(loaded: o.Loaded, pruned: Pruned, example: Tensor) -> tuple[float, float]:
    """Seconds per batch before and after; measured in turns, so that both see the same machine."""
    rounds = [
        (latency(loaded.model, example, repeats=3), latency(pruned.model, example, repeats=3))
        for _ in range(3)
    ]
    before, after = zip(*rounds, strict=True)
    return min(before), min(after)


def _report(
    pruned: Pruned, before: float, after: float, batch: int, out: Path, as_json: bool
) -> None:
    first, last = pruned.trajectory[0], pruned.trajectory[-1]
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "folder": str(out),
                    "trajectory": pruned.trajectory.to_json(),
                    "seconds_per_batch": {"before": before, "after": after, "batch": batch},
                    "settings": pruned.settings,
                },
                indent=2,
            )
        )
        return
    show = o.console().print
    show(
        f"kept {last.macs / first.macs:.1%} of the MACs, {last.params / first.params:.1%} of the "
        f"parameters, {last.units / first.units:.1%} of the units"
    )
    if first.accuracy is not None and last.accuracy is not None:
        show(f"accuracy {first.accuracy:.2%} -> {last.accuracy:.2%}, without fine-tuning")
    show(f"{1e3 * before:.1f} -> {1e3 * after:.1f} ms for {batch} images ({before / after:.2f}x)")
    show(f"wrote {out}; it is a model again: niwaki explain {out} IMAGES")
