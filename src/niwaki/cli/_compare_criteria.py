"""``niwaki compare-criteria``: which criterion keeps the most accuracy at equal cost."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from niwaki import ranges as r
from niwaki.cli import _options as o
from niwaki.cli._heatmaps import pick
from niwaki.cli._json import say
from niwaki.cli._outputs import signed
from niwaki.cli._provenance import provenance, short_name
from niwaki.cli._prune_options import Repair, named_files, parse_criterion, repair_of
from niwaki.errors import NiwakiError
from niwaki.ownership import MARKER, foreign

if TYPE_CHECKING:
    from niwaki.data import Images
    from niwaki.pruning import Comparison, Contender, Outcome

__all__ = ["compare_criteria"]

_USUAL = ("lrp.rebuilt", "lrp", "weight", "gradient", "taylor", "activation", "random")
_RUN = re.compile(r"runs/(niwaki-run\.json|niwaki\.lock|[^/]+\.[0-9a-f]{8}\.safetensors)")
_KINDS = ("png", "svg", "pdf")
_FILES = {
    "table.md",
    "table.csv",
    "curves.csv",
    "comparison.json",
    "run.json",
    "index.html",
    *(f"{name}.{kind}" for name in ("curves", "layers", "rank_correlation") for kind in _KINDS),
}
_PLACES = {*_FILES, "runs", MARKER}


@o.spread
def compare_criteria(
    context: typer.Context,
    model: o.ModelSpec,
    data: o.DataSpec,
    criterion: Annotated[
        list[str] | None,
        typer.Option(
            help="Criterion to compare, may be given several times; with options as in "
            " lrp:reduce=signed,normalise=sum. "
            "Default: niwaki's own and those that most papers compare. See `niwaki methods`.",
            show_default=False,
        ),
    ] = None,
    per_class: Annotated[
        list[int] | None,
        r.SOME,
        typer.Option(
            "--references",
            help="Reference images per class; may be given several times. Default: 10.",
            show_default=False,
        ),
    ] = None,
    seeds: Annotated[int, r.FEW, typer.Option(help="Number of draws of reference images.")] = 5,
    keep: Annotated[float, r.INSIDE, typer.Option(help="Share that is kept at the end.")] = 0.3,
    of: Annotated[
        Literal["units", "params", "macs"], typer.Option(help="What --keep is a share of.")
    ] = "macs",
    steps: Annotated[
        int | None,
        r.STEPS,
        typer.Option(help="Number of steps of equal size.", show_default=False),
    ] = None,
    per_step: Annotated[
        float | None,
        r.PER_STEP,
        typer.Option(
            help="Share of the whole that is removed in each step. Default: 0.05.",
            show_default=False,
        ),
    ] = None,
    repair: Repair = "rebuild",
    limit: Annotated[
        int | None,
        r.SOME,
        typer.Option(help="Largest number of test images. Default: all.", show_default=False),
    ] = None,
    count: Annotated[
        int | None,
        r.SOME,
        typer.Option(
            help="Size of the sets of least and most relevant units whose overlap is measured. "
            "Default: a tenth of all units.",
            show_default=False,
        ),
    ] = None,
    out: o.Resumed = Path("comparison"),
    *,
    common: o.Common,
) -> None:
    """Prune by several criteria on the same reference images, without fine-tuning.

    Writes a page (index.html), the table (table.md, table.csv), the curves (curves.csv), all
    numbers (comparison.json), and pictures: accuracy against cost, what each layer lost, rank
    correlations. Every finished run is kept, and the same command resumes where it was interrupted.
    """
    from niwaki.data import decoded
    from niwaki.files import together, write_json
    from niwaki.pruning import Run, Schedule, compare
    from niwaki.report import write_report

    texts = criterion or _USUAL
    chosen = [_contender(text) for text in dict.fromkeys(texts)]
    files = [file for text in texts for file in named_files(text)]
    _prepare(out, model, data, files, common)
    loaded = common.load(model)
    test, training = common.images(data, loaded), common.training(data, loaded)
    o.check_labelled(test, data, "pruning")
    _check_count(count, loaded, test)
    judged = test if limit is None else pick(test, limit, common.seed, data).subset
    shown = o.console(common.as_json)
    sizes = sorted(set(per_class or [10]))
    shown.print(f"{len(chosen)} criteria, {sizes} reference images per class, {seeds} draws")
    with signed(out, _FILES), o.resumable(out):
        found = compare(
            loaded.model,
            training,
            chosen,
            test=decoded(judged, description="reading test images"),
            references=sizes,
            seeds=range(common.seed, common.seed + seeds),
            keep=keep,
            of=of,
            run=Run(out / "runs", common.batch_size, lambda run: shown.print(_line(run, of, keep))),
            schedule=Schedule(steps, per_step),
            repair=repair_of(repair),
        )
        heading = f"{Path(model).name} on {Path(data).name}, without fine-tuning"
        title = f"Criteria compared on {short_name(model)}"
        made = provenance(context, title, loaded.model)
        with together(out) as folder:
            _write(folder, found, count, heading)
            write_json(folder / "run.json", made)
            write_report(folder)
    if common.as_json:
        say({"folder": str(out), "table": found.rows()})
        return
    shown.print(str(found))
    shown.print(f"area: mean accuracy between {keep:.0%} and 100 % of the {of} kept; wrote {out}")
    shown.print(f"open {out / 'index.html'}")


def _check_count(count: int | None, loaded: o.Loaded, test: Images) -> None:
    """Refuse sets of more units than there are, before the work is done rather than after it."""
    from niwaki.criteria import hidden_layers
    from niwaki.data import batches
    from niwaki.models import device_of

    if count is None:
        return
    example = next(iter(batches(test, 1, device_of(loaded.model))))[0]
    units = sum(layer.units for layer in hidden_layers(loaded.model, example))
    if count > units:
        raise NiwakiError(f"--count {count}: the network has {units} units in its hidden layers")


def _contender(text: str) -> Contender:
    from niwaki.pruning import Contender

    name, options = parse_criterion(text)
    return Contender(text, name, options)


def _prepare(out: Path, model: str, data: str, files: list[str], common: o.Common) -> None:
    """Resume a comparison of ours; else start from scratch, or in a folder that is free."""
    from niwaki.files import clear_leftovers
    from niwaki.runs import discard

    clear_leftovers(out)
    clear_leftovers(out / "runs")
    ours = (out / MARKER).is_file() and {path.name for path in out.iterdir()} <= _PLACES
    ours = ours and all(_RUN.fullmatch(name) for name in foreign(out))
    common.check_output(out, model, data, files=files, goes_on=ours)
    if common.force and out.exists():
        discard(out / "runs")


def _line(run: Outcome, of: Literal["units", "params", "macs"], keep: float) -> str:
    from niwaki.pruning import area

    draw = [] if run.references is None else [f"{run.references} per class"]
    draw += [] if run.seed is None else [f"seed {run.seed}"]
    found = area(run.trajectory, of, (keep, 1.0))
    return f"{run.label:<28} {', '.join(draw):<24} area {found:.4f}"


def _write(folder: Path, found: Comparison, count: int | None, heading: str) -> None:
    from niwaki.files import write_csv, write_json, write_text
    from niwaki.report import plot_agreement, plot_comparison, plot_removed

    rows = found.rows()
    agreement = found.agreement(count)
    write_text(folder / "table.md", _markdown(rows))
    write_csv(folder / "table.csv", rows)
    write_csv(folder / "curves.csv", _curves(found))
    summary = {"table": rows, "agreement": [asdict(row) for row in agreement]}
    write_json(folder / "comparison.json", {**summary, **found.to_json()})
    of = found.settings["of"]
    plot_comparison(folder / "curves.png", found, of=of, heading=heading)
    plot_removed(folder / "layers.png", found, heading=heading)
    if agreement:
        plot_agreement(folder / "rank_correlation.png", agreement, heading=heading)


def _curves(found: Comparison) -> list[dict[str, Any]]:
    """One row per step of each run."""
    return [
        {
            "contender": run.label,
            "references": run.references,
            "seed": run.seed,
            **step,
        }
        for run in found.runs
        for step in run.trajectory.to_json()
    ]


def _markdown(rows: list[dict[str, Any]]) -> str:
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + " --- |" * len(rows[0])]
    for row in rows:
        cells = [_cell(value) for value in row.values()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
