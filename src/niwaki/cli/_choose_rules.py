"""``niwaki choose-rules``: which rules of relevance prune this network best."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from niwaki import ranges as r
from niwaki.cli import _options as o
from niwaki.cli._json import say
from niwaki.cli._outputs import signed
from niwaki.cli._prune import hold_out
from niwaki.cli._prune_options import Common
from niwaki.cli._spread import Listed, numbers
from niwaki.ownership import MARKER

if TYPE_CHECKING:
    from niwaki.pruning import Choice

__all__ = ["choose_rules"]

_FILES = {"choice.json", "trials.txt", "composite.json", "trials"}

_SPAN = Listed(r.EXPONENT, most=2)


@o.spread
def choose_rules(
    model: o.ModelSpec,
    data: o.DataSpec,
    trials: Annotated[int, r.STEPS, typer.Option(help="Number of settings to try.")] = 20,
    per_class: Annotated[
        int, r.SOME, typer.Option("--references", help="Reference images per class.")
    ] = 10,
    held_out: Annotated[
        int,
        r.SOME,
        typer.Option("--validation", help="Training images per class on which trials are judged."),
    ] = 20,
    keep: Annotated[float, r.INSIDE, typer.Option(help="Share at which the curves end.")] = 0.3,
    of: Annotated[
        Literal["units", "params", "macs"], typer.Option(help="What --keep is a share of.")
    ] = "macs",
    steps: Annotated[int, r.STEPS, typer.Option(help="Number of steps of equal size.")] = 7,
    per_cost: Annotated[
        str,
        _SPAN,
        typer.Option(
            help="Exponent of what a unit costs, see `niwaki prune`: a number, or a range to "
            "choose from as in 0,1."
        ),
    ] = "0.6",
    out: o.Resumed = Path("rules"),
    *,
    common: Common,
) -> None:
    """Choose the rules by which relevance prunes a network best.

    Each trial prunes by other rules and measures the accuracy on the way, on training images that
    are not references. Test images are not used. Writes the rules (composite.json), for `niwaki
    prune --criterion lrp:composite=FILE`, and all trials (trials.txt, choice.json).
    """
    from niwaki.data import in_memory, references
    from niwaki.pruning import Run, Schedule
    from niwaki.pruning import choose_rules as choose

    span = _span(per_cost)
    _prepare(out, model, data, common)
    loaded = common.load(model)
    training = common.training(data, loaded)
    o.check_labelled(training, data, "pruning")
    rest, held = hold_out(training, held_out, common.seed)
    few = references(rest, per_class, common.seed)
    shown = o.console(common.as_json)
    shown.print(f"{len(few)} reference images, {len(held)} validation images")
    shown.print(f"{'trial':>5} {'area':>7} {'seconds':>8}  settings")
    with signed(out, _FILES):
        found = choose(
            loaded.model,
            in_memory(few),
            validation=in_memory(held),
            trials=trials,
            keep=keep,
            of=of,
            schedule=Schedule(steps),
            per_cost=span,
            seed=common.seed,
            run=Run(out, common.batch_size, callback=lambda trial: shown.print(str(trial))),
        )
    if common.as_json:
        best = {"folder": str(out), "criterion": _text(found, out), "best": found.best.number}
        say({**best, **found.to_json()})
        return
    shown.print(f"best: trial {found.best.number}, area {found.best.area:.4f}")
    shown.print(f"wrote {out}; use it: niwaki prune {model} {data} --of {of}", soft_wrap=True)
    shown.print(f"  --criterion {_text(found, out)} --per-cost {found.per_cost}", soft_wrap=True)


def _text(found: Choice, out: Path) -> str:
    """Write the criterion as the command line takes it."""
    file, reduce = out / "composite.json", found.best.settings["reduce"]
    return f"lrp:composite={file},reduce={reduce},max_loss=null"


def _span(text: str) -> float | tuple[float, float]:
    found = numbers("--per-cost", text, _SPAN)
    return found[0] if len(found) == 1 else (found[0], found[1])


def _prepare(out: Path, model: str, data: str, common: o.Common) -> None:
    """Resume a search of ours; else start from scratch, or in a folder that is free."""
    from niwaki.files import clear_leftovers
    from niwaki.runs import discard

    clear_leftovers(out)
    ours = (out / MARKER).is_file() and {path.name for path in out.iterdir()} <= {*_FILES, MARKER}
    common.check_output(out, model, data, goes_on=ours)
    if common.force:
        (out / "choice.json").unlink(missing_ok=True)
        discard(out / "trials")
