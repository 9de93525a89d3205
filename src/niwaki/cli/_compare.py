"""``niwaki compare``: one picture of several methods on several images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from niwaki.cli import _options as o
from niwaki.cli._heatmaps import Explained, by_default, explain_images, pick, print_rows
from niwaki.cli._json import say
from niwaki.cli._provenance import provenance, short_name
from niwaki.errors import NiwakiError
from niwaki.stages import allowed

__all__ = ["compare"]


@o.spread
def compare(
    context: typer.Context,
    model: o.ModelSpec,
    images: o.ImageSpec,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="Method to show; may be given several times. Default: the usual ones. "
            "See `niwaki methods`.",
            show_default=False,
        ),
    ] = None,
    target: o.Target = "predicted",
    out: Annotated[
        Path,
        o.Written(),
        typer.Option(help="Folder to write, or a PNG file for the picture alone."),
    ] = Path("compared"),
    rows: Annotated[
        Literal["images", "methods"], typer.Option(help="What a row of the picture stands for.")
    ] = "images",
    overlay: o.Overlay = False,
    colours: o.Colours = "bwr",
    percentile: o.Percentile = 99.5,
    shared_scale: o.Shared = False,
    limit: o.Limit = 6,
    *,
    common: o.Common,
) -> None:
    """Put several methods side by side, on the same images.

    A usual method that loses relevance is shown with the lost share, and one that cannot explain
    the network is left out. A method that you name must fit the network, as in `explain`. The
    titles say what the network predicts, how sure it is, and what the image shows. Writes a page
    (index.html), the picture (sheet.png) and the predictions (images.json).
    """
    from niwaki.files import write_json
    from niwaki.report import contact_sheet, is_diverging, save_heatmaps, write_report

    alone = out.suffix.lower() == ".png"
    _check_name(out, alone)
    common.check_output(out, model, images)
    is_diverging(colours)  # is known, or says so
    work = None if alone else common.workplace(out)
    chosen = list(dict.fromkeys(method or by_default()))
    loaded = common.load(model)
    found_images = common.images(images, loaded)
    loaded = loaded.named_by(found_images)
    some = allowed("images", min(limit, len(found_images)), common.batch_size)
    picked = pick(found_images, some, common.seed, images)
    explained = loaded.choice(target, found_images)
    strict = method is not None
    found = explain_images(loaded, picked, chosen, explained, common.batch_size, strict=strict)

    def draw(path: Path) -> None:
        contact_sheet(
            path,
            found.images,
            {_title(name, found, rows == "images"): h for name, h in found.heatmaps.items()},
            titles=found.titles(),
            heading=found.heading(
                f"{Path(model).name}: what speaks for {loaded.choice_name(explained)}"
            ),
            across="methods" if rows == "images" else "images",
            colours=colours,
            percentile=percentile,
            shared=shared_scale,
            opacity=0.8 if overlay else None,
        )

    if work is None:
        draw(out)
    else:
        made = provenance(context, f"Methods compared on {short_name(model)}", loaded.model)
        with work.result() as folder:
            draw(folder / "sheet.png")
            write_json(folder / "images.json", found.rows)
            save_heatmaps(folder, found.images, found.heatmaps, **found.told(loaded, explained))
            write_json(folder / "run.json", made)
            write_report(folder)
    _report(found, out, alone, common.as_json)


def _check_name(out: Path, alone: bool) -> None:
    if out.suffix.lower() in (".jpg", ".jpeg", ".svg", ".pdf", ".webp", ".gif", ".html"):
        raise NiwakiError(
            f"{out}: the picture is a PNG; give --out a name that ends in .png, or a folder"
        )
    if alone and out.is_dir():
        raise NiwakiError(f"--out {out} is a folder; give the path of a PNG file")


def _report(found: Explained, out: Path, alone: bool, as_json: bool) -> None:
    if as_json:
        about = {
            "file" if alone else "folder": str(out),
            "methods": list(found.heatmaps),
            "lost": found.lost,
            "left_out": found.left_out,
            "images": found.rows,
        }
        say(about)
        return
    rest = "give --out a folder to keep them" if alone else f"see {out / 'images.json'}"
    print_rows(found.rows, o.console().print, rest)
    for name, share in found.lost.items():
        o.console().print(f"{name}: up to {share:.1%} of the relevance is lost on the way")
    for name, reason in found.left_out.items():
        o.console().print(f"{name} is left out: {reason}")
    o.console().print(f"wrote {out}" if alone else f"open {out / 'index.html'}")


def _title(name: str, found: Explained, fold: bool) -> str:
    """Return a method's name as it stands on the sheet, with what its maps lack."""
    title = _folded(name) if fold else name
    return f"{title}\n{found.lost[name]:.1%} lost" if name in found.lost else title


def _folded(name: str) -> str:
    """Break a long name after its dot or an underscore, so that it fits above a picture."""
    if len(name) <= 16:
        return name
    places = [place + 1 for place, letter in enumerate(name) if letter in "._"]
    middle = min(places, key=lambda place: abs(place - len(name) / 2), default=None)
    return name if middle is None else f"{name[:middle]}\n{name[middle:]}"
