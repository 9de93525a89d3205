"""``niwaki car``: what the network loses with each filter, and pruning by it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from niwaki import ranges as r
from niwaki.cli import _options as o
from niwaki.cli._acts import Acts
from niwaki.cli._json import say
from niwaki.cli._provenance import provenance, short_name
from niwaki.cli._spread import Bytes
from niwaki.errors import DataError
from niwaki.processes import goes_on_alone
from niwaki.stages import allowed

if TYPE_CHECKING:
    from niwaki.car import CarIndex
    from niwaki.data import Images
    from niwaki.runs import Workplace

__all__ = ["car"]


@o.spread
def car(
    context: typer.Context,
    model: o.ModelSpec,
    data: o.DataSpec,
    layer: Annotated[
        list[str] | None,
        typer.Option(
            "--layer",
            help="Only this layer, or the layers in this module. May be given several times.",
            show_default=False,
        ),
    ] = None,
    per_class: Annotated[
        int | None,
        r.SOME,
        typer.Option(help="Images per class. Default: all.", show_default=False),
    ] = None,
    greedy: Annotated[
        int | None,
        r.SOME,
        typer.Option(
            help="Number of filters to remove, the least needed first.", show_default=False
        ),
    ] = None,
    floor: Annotated[
        float | None,
        r.FRACTION,
        Acts(beside=("greedy",)),
        typer.Option(
            help="With --greedy: stop before the accuracy on the images of the search falls below "
            "this.",
            show_default=False,
        ),
    ] = None,
    max_memory: Annotated[
        str, Bytes(), typer.Option(help="Memory to stay below, such as 500MB.")
    ] = "2GB",
    top: Annotated[
        int, r.SOME, Acts(without=("greedy",)), typer.Option(help="Filters to list.")
    ] = 20,
    out: o.Folder = Path("car"),
    *,
    common: o.Common,
) -> None:
    """Show exactly how much accuracy the network loses without each filter.

    Writes a page (index.html), the whole index (index.safetensors, index.json), and a table of each
    class's losses (car.csv), all on the test images. With --greedy, the least needed filter is
    removed, the index is computed again, and so on; the folder is then a MODEL. The search uses
    training images, and the accuracy is measured on the test images. If DATA has no such parts, a
    quarter of each class is held out.
    """
    from torch.utils.data import Subset

    from niwaki import car as room
    from niwaki import pruning
    from niwaki.data import decoded, references
    from niwaki.files import write_json
    from niwaki.report import write_report

    common.check_output(out, model, data)
    work = common.workplace(out)
    loaded = common.load(model)
    images = common.images(data, loaded)
    loaded = loaded.named_by(images)
    o.check_labelled(images, data, "accuracy")
    search, held, words = (
        (images, images, "") if greedy is None else _parts(data, images, loaded, common)
    )
    chosen: Any = search if per_class is None else references(search, per_class, common.seed)
    some = allowed("images", len(chosen), common.batch_size)
    if some < len(chosen):
        chosen = Subset(chosen, range(0, len(chosen), len(chosen) // some)[:some])
    shared: dict[str, Any] = {
        "layers": layer or None,
        "batch_size": common.batch_size,
        "max_memory": max_memory,
        "folder": work,
    }
    made = provenance(context, _title(short_name(model), greedy), loaded.model)
    if greedy is None:
        index = room.index(loaded.model, chosen, description="judging filters", **shared)
        if goes_on_alone():
            _write_index(work, index, loaded, made)
            _report(index, loaded, top, out, common.as_json)
        return
    shown = o.console(common.as_json)
    shown.print(f"the search sees {len(chosen)} images; accuracy is measured on {words}")
    pruned = room.greedy(
        loaded.model,
        chosen,
        room.Stop(remove=allowed("removals", greedy), floor=floor),
        test=decoded(held, description="reading held-out images"),
        callback=lambda step: shown.print(
            f"{step.units:>8,} units left, accuracy {step.accuracy or 0:.2%} on held-out images, "
            f"{step.validation or 0:.2%} on those of the search"
        ),
        **shared,
    )
    if not goes_on_alone():
        return
    whole = replace(
        pruned,
        plan=pruning.Plan((*loaded.plan.steps, *pruned.plan.steps)),
        architecture=loaded.architecture or pruned.architecture,
    )
    with work.result() as folder:
        whole.save(folder, about=loaded.about)
        write_json(folder / "result.json", {"test_images": len(held)})
        write_json(folder / "run.json", made)
        write_report(folder)
    if common.as_json:
        told = {
            "folder": str(out),
            "accuracy_on": words,
            "trajectory": pruned.trajectory.to_json(),
        }
        say({**told, "settings": pruned.settings})
        return
    for gone in pruned.settings["removals"]:
        shown.print(
            f"{gone['layer']} {gone['unit']}: accuracy {gone['accuracy']:.2%} without it, on the "
            "images of the search"
        )
    first, last = pruned.trajectory[0], pruned.trajectory.final
    shown.print(f"accuracy {first.accuracy:.2%} -> {last.accuracy:.2%} on {words}")
    shown.print(f"{pruned.settings['evaluated']:.1%} of all (filter, image) pairs were evaluated")
    shown.print(f"wrote {out}; it is a model again: niwaki explain {out} IMAGES")
    shown.print(f"open {out / 'index.html'}")


def _title(name: str, greedy: int | None) -> str:
    if greedy is None:
        return f"What each filter of {name} carries"
    return f"The filters that {name} needs least"


def _write_index(work: Workplace, index: CarIndex, loaded: o.Loaded, made: dict[str, Any]) -> None:
    from niwaki.files import write_json
    from niwaki.report import write_report

    with work.result() as folder:
        index.save(folder / "index.safetensors")
        _write_numbers(folder, _told(index, loaded))
        write_json(folder / "run.json", made)
        write_report(folder)


def _parts(data: str, images: Images, loaded: o.Loaded, common: o.Common) -> tuple[Any, Any, str]:
    """Return the images of a search, those held out, and words for the latter."""
    from collections import Counter

    from niwaki.cli._prune import hold_out

    try:
        training = common.training(data, loaded)
    except DataError:  # there is a test part alone
        training = images
    if training.paths is None or training.paths != images.paths:
        return training, images, f"the {len(images)} test images"
    fewest = min(Counter(images.targets).values())
    if fewest < 2:
        raise DataError(
            f"{data} has a class with a single image, so that none can be held out for the "
            "accuracy: give train and test folders, or more images"
        )
    rest, held = hold_out(images, max(1, fewest // 4), common.seed)
    return rest, held, f"{len(held)} images held out of the search, as many of each class"


def _told(index: CarIndex, loaded: o.Loaded) -> dict[str, Any]:
    """Return the index as plain data, the least needed unit first."""
    rows = [_row(index, name, unit, loaded) for name, unit in index.ranking()]
    return {
        "accuracy": index.baseline.accuracy,
        "samples": index.baseline.total,
        "near_ties": index.baseline.near_ties,
        "units": rows,
    }


def _write_numbers(folder: Path, told: dict[str, Any]) -> None:
    """Write index.json and, a line per unit and a column per class, car.csv."""
    from niwaki.files import write_csv, write_json

    write_json(folder / "index.json", told)
    rows = [
        {
            "layer": unit["layer"],
            "channels": " ".join(map(str, unit["channels"])),
            "car": unit["car"],
            **{f"class {name}": value for name, value in unit["by_class"].items()},
        }
        for unit in told["units"]
    ]
    write_csv(folder / "car.csv", rows)


def _row(index: CarIndex, name: str, unit: int, loaded: o.Loaded) -> dict[str, Any]:
    layer = index[name]
    by_class = {
        loaded.class_name(i): float(value)
        for i, value in enumerate(layer.by_class[unit])
        if index.baseline.samples[i]
    }
    return {
        "layer": name,
        "channels": list(layer.units[unit]),
        "car": float(layer.car[unit]),
        "loss_change": float(layer.loss_change[unit]),
        "margin_change": float(layer.margin_change[unit]),
        "near_ties": int(layer.near_ties[unit]),
        "by_class": by_class,
        "path": layer.paths[unit],
    }


def _report(index: CarIndex, loaded: o.Loaded, top: int, out: Path, as_json: bool) -> None:
    told = _told(index, loaded)
    if as_json:
        say({"folder": str(out), **told})
        return
    show = o.console().print
    show(f"accuracy {index.baseline.accuracy:.2%} on {index.baseline.total} images")
    table = Table("filter", "CAR", "margin", "most for", "least for", title="needed least first")
    for row in told["units"][:top]:
        classes = sorted(row["by_class"], key=row["by_class"].__getitem__)
        table.add_row(
            f"{row['layer']} {', '.join(map(str, row['channels']))}",
            f"{row['car']:+.2%}",
            f"{row['margin_change']:+.3f}",
            f"{classes[-1]} {row['by_class'][classes[-1]]:+.1%}",
            f"{classes[0]} {row['by_class'][classes[0]]:+.1%}",
        )
    show(table)
    show(f"wrote {out / 'index.safetensors'} and {out / 'index.json'}")
    show(f"open {out / 'index.html'}")
