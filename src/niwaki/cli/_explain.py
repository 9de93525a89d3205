"""``niwaki explain``: heatmaps of images under one or several methods."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from niwaki.cli import _options as o
from niwaki.cli._heatmaps import Explained, explain_images, pick, print_rows
from niwaki.cli._json import say
from niwaki.cli._provenance import provenance, short_name
from niwaki.stages import allowed

__all__ = ["explain"]


@o.spread
def explain(
    context: typer.Context,
    model: o.ModelSpec,
    images: o.ImageSpec,
    method: o.Methods = None,
    target: o.Target = "predicted",
    out: o.Folder = Path("heatmaps"),
    format: Annotated[
        Literal["npy", "hdf5"],
        typer.Option(help="One METHOD.npy per method, or heatmaps.hdf5 as ViRelAy reads it."),
    ] = "npy",
    overlay: o.Overlay = False,
    colours: o.Colours = "bwr",
    percentile: o.Percentile = 99.5,
    shared_scale: o.Shared = False,
    limit: o.Limit = 8,
    *,
    common: o.Common,
) -> None:
    """Show which pixels speak for the prediction of the network.

    Writes a page (index.html) and a contact sheet (sheet.png) of the methods and at most 64 images,
    the heatmaps of all images as arrays, and the predictions (images.json). If the usual
    method loses relevance, as it does in many pruned networks, the lost share is reported. A method
    that you name is refused instead.
    """
    from niwaki.files import write_json
    from niwaki.report import (
        HeatmapFiles,
        contact_sheet,
        is_diverging,
        save_heatmaps,
        write_report,
    )

    common.check_output(out, model, images)
    is_diverging(colours)  # or it is refused: before the work, not after it
    work = common.workplace(out)
    chosen = list(dict.fromkeys(method or ["lrp.epsilon_plus"]))
    loaded = common.load(model)
    found_images = common.images(images, loaded)
    loaded = loaded.named_by(found_images)
    some = allowed("images", min(limit, len(found_images)), common.batch_size)
    picked = pick(found_images, some, common.seed, images)
    explained = loaded.choice(target, found_images)
    heading = f"{Path(model).name}: prediction and heatmaps"
    if explained != "predicted":
        heading += f" for {loaded.choice_name(explained)}"
    with work.result() as folder:
        with HeatmapFiles(folder, format, len(picked.indices)) as files:
            found = explain_images(
                loaded,
                picked,
                chosen,
                explained,
                common.batch_size,
                strict=bool(method),  # what nobody has chosen is shown with what gets lost
                folder=work,
                keep=files.write,
            )
        contact_sheet(
            folder / "sheet.png",
            found.images,
            found.heatmaps,
            titles=found.titles(),
            heading=found.heading(heading),
            colours=colours,
            percentile=percentile,
            shared=shared_scale,
            opacity=0.8 if overlay else None,
        )
        write_json(folder / "images.json", found.rows)
        save_heatmaps(folder, found.images, found.heatmaps, **found.told(loaded, explained))
        title = f"{short_name(model)} explained on {Path(images).name}"
        write_json(folder / "run.json", provenance(context, title, loaded.model))
        write_report(folder)
    _report(found, out, common.as_json)


def _report(found: Explained, out: Path, as_json: bool) -> None:
    if as_json:
        about: dict[str, Any] = {
            "folder": str(out),
            "methods": list(found.heatmaps),
            "lost": found.lost,
            "images": found.rows,
        }
        say(about)
        return
    print_rows(found.rows, o.console().print, f"see {out / 'images.json'}")
    for name, share in found.lost.items():
        o.console().print(f"{name}: up to {share:.1%} of the relevance is lost on the way")
    o.console().print(f"wrote {out / 'sheet.png'}")
    o.console().print(f"open {out / 'index.html'}")
