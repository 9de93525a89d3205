"""``niwaki prune-weights``: single weights set to zero."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from niwaki import ranges as r
from niwaki.cli import _options as o
from niwaki.cli._json import say
from niwaki.cli._prune import check_references
from niwaki.cli._prune_options import Common
from niwaki.processes import goes_on_alone
from niwaki.stages import allowed

if TYPE_CHECKING:
    from niwaki.pruning import PrunedWeights, WeightStep

__all__ = ["prune_weights"]


@o.spread
def prune_weights(
    model: o.ModelSpec,
    data: o.DataSpec,
    criterion: Annotated[
        str, typer.Option(help="A criterion for single weights, see `niwaki methods`.")
    ] = "lrp",
    keep: Annotated[float, r.INSIDE, typer.Option(help="Share of the weights to keep.")] = 0.5,
    over: Annotated[
        Literal["network", "layer"],
        typer.Option(
            help="Whether to rank over the whole network, or to keep the same share of each layer."
        ),
    ] = "network",
    steps: Annotated[
        int, r.WEIGHT_STEPS, typer.Option(help="Number of steps. Weights are scored again in each.")
    ] = 1,
    ignore: Annotated[
        list[str] | None,
        typer.Option(
            help="Layer, module or pattern that keeps its weights. May be given several times.",
            show_default=False,
        ),
    ] = None,
    min_weights: Annotated[
        int,
        r.UNITS.but(low=0),
        typer.Option(help="Smallest number of weights that a layer may keep."),
    ] = 1,
    repair: Annotated[
        Literal["rebuild", "none"],
        typer.Option(
            help="Whether to fit the remaining weights to the outputs of the unpruned network "
            "after each step, or to leave them as they are."
        ),
    ] = "none",
    per_class: Annotated[
        int, r.SOME, typer.Option("--references", help="Reference images per class.")
    ] = 10,
    out: o.Folder = Path("sparse"),
    *,
    common: Common,
) -> None:
    """Set the weights that matter least to zero.

    The criterion looks at a few training images per class; the accuracy is measured on the test
    images. Shapes do not change, so the network becomes smaller to store but no faster. Writes the
    weights, the masks of every step and the trajectory; the folder is a MODEL again.
    """
    from niwaki import criteria, pruning
    from niwaki.data import decoded, in_memory, references

    common.check_output(out, model, data)
    work = common.workplace(out)
    seed = common.seed
    made = criteria.create(criterion, "weight").seeded(seed)
    check_references(per_class, made, None if repair == "none" else repair)
    loaded = common.load(model)
    test = common.images(data, loaded)
    loaded = loaded.named_by(test)
    training = common.training(data, loaded)
    o.check_labelled(test, data, "pruning")
    few = references(training, allowed("references", per_class), seed)
    shown = o.console(common.as_json)
    shown.print(f"{len(few)} reference images, {len(test)} test images, criterion {made}")
    shown.print(f"{'step':>4} {'weights':>12} {'sparsity':>9} {'accuracy':>9} {'seconds':>8}")
    pruned = pruning.prune_weights(
        loaded.model,
        in_memory(few),
        made,
        keep=keep,
        over=over,
        steps=allowed("steps", steps),
        test=decoded(test, description="reading test images"),
        ignore=ignore or [],
        min_weights=min_weights,
        repair=None if repair == "none" else repair,
        run=pruning.Run(work, common.batch_size, callback=lambda step: shown.print(_row(step))),
    )
    if not goes_on_alone():
        return
    whole = replace(
        pruned,
        plan=loaded.plan,
        architecture=loaded.architecture or pruned.architecture,
        settings={**pruned.settings, "data": data, "references": per_class, "seed": seed},
    )
    with work.result() as folder:
        whole.save(folder, about=loaded.about)
    _report(whole, out, common.as_json)


def _row(step: WeightStep) -> str:
    accuracy = "" if step.accuracy is None else f"{step.accuracy:.2%}"
    left = sum(step.left.values())
    return f"{step.step:>4} {left:>12,} {step.sparsity:>9.1%} {accuracy:>9} {step.seconds:>8.1f}"


def _report(pruned: PrunedWeights, out: Path, as_json: bool) -> None:
    if as_json:
        found = {
            "folder": str(out),
            "sparsity": pruned.sparsity,
            "trajectory": pruned.trajectory.to_json(),
            "settings": pruned.settings,
        }
        say(found)
        return
    show = o.console().print
    for layer, share in pruned.trajectory[-1].sparsities().items():
        show(f"  {layer:32} {share:>7.1%} gone")
    show(f"wrote {out}; it is a model again: niwaki explain {out} IMAGES")
