"""``niwaki prune``: a smaller network from a handful of images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from niwaki import ranges as r
from niwaki.cli import _options as o
from niwaki.cli._acts import Acts
from niwaki.cli._heatmaps import pick, some_of
from niwaki.cli._json import say
from niwaki.cli._log import Log
from niwaki.cli._provenance import machine, provenance, short_name
from niwaki.cli._prune_options import (
    Common,
    Limiting,
    Scheduling,
    Tuning,
    named_files,
    parse_criterion,
    repair_of,
)
from niwaki.errors import NiwakiError
from niwaki.processes import decided, goes_on_alone, is_first
from niwaki.stages import allowed

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.utils.data import Subset

    from niwaki.cli._heatmaps import Picked
    from niwaki.cli._prune_pictures import Photographs
    from niwaki.criteria import Criterion
    from niwaki.data import Data, Images
    from niwaki.pruning import Pruned, Schedule, Step, Trajectory
    from niwaki.runs import Workplace

__all__ = ["check_references", "hold_out", "prune"]

_REFERENCES = 10  # images per class


@o.spread
def prune(
    context: typer.Context,
    model: o.ModelSpec,
    data: o.DataSpec,
    criterion: Annotated[
        str | None,
        typer.Option(
            help="The criterion that scores the units, see `niwaki methods`; with options as in "
            "lrp:composite=rules.json. With .rebuilt behind its name, scores only decide "
            "how many units each layer loses, and the units that others can replace are "
            "removed. Default: lrp.rebuilt, or lrp if the network is not rebuilt.",
            show_default=False,
        ),
    ] = None,
    per_class: Annotated[
        int, r.SOME, typer.Option("--references", help="Reference images per class.")
    ] = _REFERENCES,
    held_out: Annotated[
        int,
        r.SOME,
        Acts(beside=("floor", "epochs")),
        typer.Option(
            "--validation",
            help="Training images per class that decide about the floor and the best epoch of "
            "fine-tuning.",
        ),
    ] = 10,
    photographs: Annotated[
        int,
        r.PHOTOGRAPHS,
        typer.Option(help="Number of test images that the page explains after each step."),
    ] = 12,
    log: Annotated[
        Path | None,
        o.Written(),
        typer.Option(
            help="Folder for TensorBoard: accuracy and cost of each step, loss and learning rate "
            "of each epoch of fine-tuning (extra `log`).",
            show_default=False,
        ),
    ] = None,
    out: o.Folder = Path("pruned"),
    *,
    scheduling: Scheduling,
    limiting: Limiting,
    tuning: Tuning,
    common: Common,
) -> None:
    """Remove the filters that matter least.

    The criterion looks at a few training images per class; the accuracy is measured on the test
    images. Writes a page (index.html), the weights, the plan, the trajectory and its plot; the
    folder is a MODEL again. Until then, finished steps are kept in OUT.run, and the same command
    resumes from there.
    """
    from niwaki import models, pruning
    from niwaki.cli._prune_pictures import Photographs
    from niwaki.data import batches, decoded, in_memory, references

    common.check_output(out, model, data, files=named_files(criterion or ""))
    logged = Log(log if is_first() else None)
    work = common.workplace(out)
    tuning.bundle(common.seed)  # refuses what does not go together, before anything is read
    seed, made = common.seed, None if criterion is None else _made(criterion, common.seed)
    limits, repair = limiting.bundle(), repair_of(limiting.repair)
    check_references(per_class, made, repair)
    loaded = common.load(model)
    test = common.images(data, loaded)
    loaded = loaded.named_by(test)
    limits.of(loaded.model)  # before anything is measured
    training = common.training(data, loaded)
    o.check_labelled(test, data, "pruning")
    if tuning.epochs:
        classes = len(set(training.targets))
        training = some_of(training, "training images", classes * (per_class + held_out))
    decides = tuning.epochs > 0 or scheduling.floor is not None
    rest, held = hold_out(training, held_out, seed) if decides else (training, None)
    few = references(rest, allowed("references", per_class), seed)
    shown = o.console(common.as_json)
    told = made or pruning.usual_criterion(repair)
    shown.print(f"{len(few)} reference images, {len(test)} test images, criterion {told}")
    example, _ = next(iter(batches(test, common.batch_size, models.home(loaded.model))))
    prices = _prices(loaded, example, work) if scheduling.of == "seconds" else None
    judged = decoded(test, description="reading test images")
    picked = pick(test, photographs, seed, data)
    looking = Photographs(loaded, picked, example, common.batch_size)

    def tell(step: Step) -> None:
        shown.print(_row(step))
        logged.write(step)

    shown.print(_HEAD)
    pruned = pruning.prune(
        loaded.model,
        in_memory(few),
        made,
        keep=scheduling.keep,
        of="macs" if scheduling.of == "seconds" else scheduling.of,
        schedule=_schedule(scheduling, prices, "rebuild" in (repair or "") and not tuning.epochs),
        limits=limits,
        repair=repair,
        tune=replace(tuning, epochs=allowed("epochs", tuning.epochs)).bundle(seed, rest)
        if tuning.epochs
        else None,
        test=judged,
        validation=None if held is None else in_memory(held),
        run=pruning.Run(work, common.batch_size, tell, looking),
    )
    if not goes_on_alone():
        return
    before, after = _seconds(loaded, pruned, example)
    settings = {**pruned.settings, "data": data, "references": per_class, "seed": seed}
    whole = replace(
        pruned,
        plan=pruning.Plan((*loaded.plan.steps, *pruned.plan.steps)),
        architecture=loaded.architecture or pruned.architecture,
        settings=settings,
    )
    title = f"{short_name(model)}, pruned on {Path(data).name}"
    name = criterion or pruning.usual_criterion(pruned.settings["repair"])
    made_by = provenance(context, title, loaded.model)
    with work.result() as finished:
        whole.save(finished, about=loaded.about)
        result = {
            "seconds": {"before": before, "after": after, "batch": len(example)},
            "bytes": {"before": _bytes(loaded.model), "after": _bytes(whole.model)},
            "test_images": len(test),
            "criterion": str(name),
            "reference_images": len(few),
            "repair": repair,
            "epochs": tuning.epochs,
        }
        compared = _Compared(loaded, test, judged, common.batch_size)
        _write_page(finished, whole, looking, picked, compared, {"run": made_by, "result": result})
        _plot(finished, {name: pruned.trajectory}, model)
    _report(whole, before, after, len(example), out, common.as_json)


def _schedule(scheduling: Scheduling, prices: dict[str, float] | None, rebuilt: bool) -> Schedule:
    """Return the steps, or fewer where `niwaki estimate` tries the command."""
    asked = scheduling.bundle(prices)
    steps = len(asked.paced(rebuilt=rebuilt).targets(scheduling.keep))
    fewer = allowed("steps", steps)
    return asked if fewer == steps else replace(asked, steps=fewer, per_step=None)


@dataclass(frozen=True)
class _Compared:
    """The network before pruning, and the images whose predictions are compared."""

    loaded: o.Loaded
    images: Images
    data: Data
    batch_size: int


def _write_page(
    folder: Path,
    pruned: Pruned,
    looking: Photographs,
    picked: Picked,
    compared: _Compared,
    about: dict[str, Any],
) -> None:
    """Write what the page shows, and the page."""
    from niwaki.cli._prune_pictures import answers, write_changed
    from niwaki.files import write_json
    from niwaki.report import Pictures, write_report

    for name, content in about.items():
        write_json(folder / f"{name}.json", content)
    before, after = (
        answers(network, compared.data, compared.batch_size)
        for network in (compared.loaded.model, pruned.model)
    )
    with Pictures(folder) as pictures:
        looking.write(folder, compared.loaded, picked, pruned, pictures)
        write_changed(folder, compared.loaded, compared.images, before, after, pictures)
    write_report(folder)


def _plot(folder: Path, curves: dict[str, Trajectory], heading: str) -> None:
    from niwaki.report import plot_trajectories

    plot_trajectories(folder / "trajectory.png", curves, heading=heading)


def _bytes(network: nn.Module) -> int:
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _made(text: str, seed: int) -> Criterion:
    from niwaki import criteria

    name, chosen = parse_criterion(text)
    return criteria.create(name, **chosen).seeded(seed)


def _prices(loaded: o.Loaded, example: Tensor, work: Workplace) -> dict[str, float]:
    """Measure what a MAC costs in each layer; a run that goes on takes what it had measured."""
    from niwaki.evaluation import seconds_per_mac
    from niwaki.runs import identified, open_run

    def identity() -> dict[str, Any]:
        return {
            "measured": "seconds per MAC",
            "model": identified(loaded.model),
            "data": [list(example.shape), str(example.dtype)],
            "machine": machine(str(example.device)),
        }

    with open_run(work, identity) as kept:
        found = kept.read("seconds")
        if found is not None:
            return {str(name): float(value) for name, value in found.about["seconds"].items()}
        measured = decided(lambda: seconds_per_mac(loaded.model, example))
        kept.write("seconds", seconds=measured)
        return measured


def check_references(per_class: int, criterion: Criterion | None, repair: str | None) -> None:
    """Refuse a number of reference images where nothing looks at them."""
    blind = criterion is not None and not criterion.needs_data and repair is None
    if blind and per_class != _REFERENCES:
        raise NiwakiError(
            f"--references {per_class} does nothing: neither {criterion} nor --repair none "
            "looks at images. Leave it out"
        )


def hold_out(training: Images, per_class: int, seed: int) -> tuple[Subset[Any], Subset[Any]]:
    """Take some images of each class out of the training images, to decide by."""
    from torch.utils.data import Subset

    from niwaki.data import references

    held = references(training, per_class, seed)
    taken = set(held.indices)
    return Subset(training, [i for i in range(len(training)) if i not in taken]), held


_HEAD = f"{'step':>4} {'units':>8} {'parameters':>12} {'MACs':>15} {'accuracy':>9} {'seconds':>8}"


def _row(step: Step) -> str:
    found = step.accuracy if step.accuracy_tuned is None else step.accuracy_tuned
    accuracy = "" if found is None else f"{found:.2%}"
    return (
        f"{step.step:>4} {step.units:>8,} {step.params:>12,} {step.macs:>15,} {accuracy:>9} "
        f"{step.seconds:>8.1f}"
        + (" below the floor" if step.rejected else "")
        + ("" if step.kept is None else f"\n     {step.kept}")
    )


def _accuracy(step: Step) -> str:
    if step.accuracy_tuned is None:
        return f"{step.accuracy:.2%}, without fine-tuning"
    return f"{step.accuracy_tuned:.2%}, fine-tuned (before: {step.accuracy:.2%})"


def _seconds(loaded: o.Loaded, pruned: Pruned, example: Tensor) -> tuple[float, float]:
    """Seconds per batch before and after; measured in turns, so that both see the same machine."""
    from niwaki.evaluation import latency

    rounds = [
        (latency(loaded.model, example, repeats=3), latency(pruned.model, example, repeats=3))
        for _ in range(3)
    ]
    before, after = zip(*rounds, strict=True)
    return min(before), min(after)


def _report(
    pruned: Pruned, before: float, after: float, batch: int, out: Path, as_json: bool
) -> None:
    first, last = pruned.trajectory[0], pruned.trajectory.final
    if as_json:
        say(
            {
                "folder": str(out),
                "trajectory": pruned.trajectory.to_json(),
                "seconds_per_batch": {"before": before, "after": after, "batch": batch},
                "settings": pruned.settings,
            }
        )
        return
    show = o.console().print
    show(
        f"kept {last.macs / first.macs:.1%} of the MACs, {last.params / first.params:.1%} of the "
        f"parameters, {last.units / first.units:.1%} of the units"
    )
    if first.accuracy is not None and last.accuracy is not None:
        show(f"accuracy on the test images {first.accuracy:.2%} -> {_accuracy(last)}")
        if last.kept is not None:
            show(f"fine-tuning {last.kept}")
    show(f"{1e3 * before:.1f} -> {1e3 * after:.1f} ms for {batch} images ({before / after:.2f}x)")
    show(f"wrote {out}; it is a model again: niwaki explain {out} IMAGES")
    show(f"open {out / 'index.html'}")
