"""``niwaki slide``: what a network predicts on a whole slide, and which pixels are the reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from niwaki import ranges as r
from niwaki.cli import _options as o
from niwaki.cli._acts import Acts
from niwaki.cli._json import say
from niwaki.cli._provenance import given_command, provenance, short_name, today
from niwaki.errors import DataError, NiwakiError
from niwaki.processes import goes_on_alone, held_by_first

if TYPE_CHECKING:
    from torch import nn

    from niwaki.slides import SlideMaps

__all__ = ["slide"]

_MPP = r.Range(0.05, 50, why="0.25 is a scan at 40x, 0.5 one at 20x")
MPP = Annotated[
    float | None,
    _MPP,
    typer.Option(
        help="Micrometres per pixel that the network was trained at. Default: the slide's own.",
        show_default=False,
    ),
]
SlideMpp = Annotated[
    float | None,
    _MPP.but(low=0.01),
    typer.Option(
        help="Micrometres per pixel of the slide in full resolution, if the file does not say it.",
        show_default=False,
    ),
]


@o.spread
def slide(
    context: typer.Context,
    slide: Annotated[
        str,
        typer.Argument(
            metavar="SLIDE",
            help="A slide that OpenSlide reads (.svs, .ndpi, .mrxs, DICOM, tiled TIFF), or an "
            "image.",
        ),
    ],
    model: o.ModelSpec,
    method: o.Methods = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            help="The class that is mapped, by its name or number; may be given several times. "
            "Default: the second of two.",
            show_default=False,
        ),
    ] = None,
    names: Annotated[
        str | None,
        typer.Option(
            help="Names of the outputs in order, such as normal,tumour, if they are not known.",
            show_default=False,
        ),
    ] = None,
    mpp: MPP = None,
    slide_mpp: SlideMpp = None,
    tile: Annotated[
        int | None,
        r.SIDE,
        typer.Option(
            help="Side of a tile in pixels. Default: the network's input.", show_default=False
        ),
    ] = None,
    overlap: Annotated[
        float,
        r.BELOW_ONE.but(high=0.9, why="tiles that overlap more only cost more"),
        typer.Option(help="Share of a tile's side by which tiles that are blended overlap."),
    ] = 0.25,
    least_tissue: Annotated[
        float,
        r.FRACTION,
        Acts(without=("everywhere",)),
        typer.Option(help="Share of a tile that must be tissue."),
    ] = 0.1,
    everywhere: Annotated[
        bool, typer.Option("--everywhere", help="Look at the whole slide, not only at tissue.")
    ] = False,
    nuclei: Annotated[
        Path | None,
        typer.Option(
            help="Nuclei as GeoJSON or CSV with x, y and type. The relevance on each is measured.",
            show_default=False,
        ),
    ] = None,
    beside: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Another network, such as a pruned one, whose maps and their difference are "
            "added.",
            show_default=False,
        ),
    ] = None,
    workers: Annotated[
        int, r.THREADS.but(low=0), typer.Option(help="Processes that read tiles ahead.")
    ] = 2,
    no_page: Annotated[
        bool,
        typer.Option("--no-page", help="Leave out viewer.html and its pictures."),
    ] = False,
    out: o.Folder = Path("slide"),
    *,
    common: o.Common,
) -> None:
    """Map what a network predicts on a whole slide, and which pixels are the reason.

    Writes pyramids for QuPath (maps/NAME.ome.tif, of numbers and in colours), tiles and the most
    relevant regions (objects.geojson, tiles.csv), the nuclei, if they are given, a page with an
    overview (index.html) and a viewer (viewer.html). The same command resumes an interrupted run.
    """
    from niwaki.files import write_json
    from niwaki.report import write_report
    from niwaki.slides import Tiling, explain_slide, open_slide, read_nuclei

    for flag, given in (("--outputs", common.outputs), ("--resize", common.resize)):
        if given is not None:
            raise NiwakiError(
                f"{flag} {given} does nothing here: a slide has no classes of its own, and its "
                "tiles are read at the resolution of --mpp. Leave it out"
            )
    common.check_output(out, model, slide, files=[nuclei] if nuclei else [])
    source = open_slide(slide, slide_mpp)
    if mpp is not None:
        source.check(mpp)
    known = read_nuclei(nuclei) if nuclei else []
    work = common.workplace(out)
    loaded = common.load(model)
    preprocessing = loaded.preprocessing
    if preprocessing is None:
        raise DataError(
            "nothing is known of the network's inputs: give --size, --mean and --std "
            "(for ImageNet's: --size 224 --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225)"
        )
    other = {Path(beside).name: _other(beside, common)} if beside else {}
    every = _names(names, loaded)
    with held_by_first(work.result) as folder:
        scratch = None if folder is None else folder / ".scratch"
        if scratch is not None:
            scratch.mkdir()
        with explain_slide(
            loaded.model,
            source,
            preprocessing,
            classes=_classes(target or [], every),
            methods=list(dict.fromkeys(method or ["lrp.epsilon_plus"])),
            tiling=Tiling(mpp, tile, overlap, least_tissue, everywhere),
            beside=other,
            class_names=every,
            batch_size=common.batch_size,
            workers=workers,
            folder=work,
            scratch=scratch,
        ) as found:
            if folder is None or not goes_on_alone():
                return
            made = {"Command": given_command(context), "Date": today(), "Network": model}
            about = _write(folder, found, known, made, page=not no_page)
        (folder / ".scratch").rmdir()
        title = f"{source.path.name} under {short_name(model)}"
        write_json(folder / "run.json", provenance(context, title, loaded.model))
        write_report(folder)
    if common.as_json:
        say({"folder": str(out), **about})
        return
    o.console().print(f"{_count(about['tiles'])} of {about['mpp']:g} um per pixel")
    o.console().print(about["joined"])
    for name, count in about["predictions"].items():
        o.console().print(f"{name}: {_count(count)}")
    for name, (tiles, share) in about["lost"].items():
        o.console().print(
            f"{name}: {_count(tiles)} lost relevance on its way, {share:.1%} at the most"
        )
    o.console().print(f"wrote {out / ('index.html' if no_page else 'viewer.html')}")


def _other(spec: str, common: o.Common) -> nn.Module:
    """Load the other network; the folder of a pruned one has weights and classes of its own."""
    from niwaki.models import is_saved

    known = replace(common, weights=None, classes=None) if is_saved(spec) else common
    return known.load(spec).model


def _names(given: str | None, loaded: o.Loaded) -> list[str]:
    if given is None:
        return list(loaded.class_names or [])
    names = [name.strip() for name in given.split(",")]
    if len(set(names)) < len(names) or not all(names):
        raise NiwakiError(f"--names {given!r}: give each output another name, none of them empty")
    return names


def _classes(given: list[str], names: list[str]) -> dict[int, str]:
    """Read ``--target``: names or numbers of outputs."""
    if not given:
        if len(names) > 2:
            raise NiwakiError(
                f"the network has {len(names)} classes: say which are mapped, such as --target "
                f"{names[0]!r}; it may be given several times"
            )
        return {1: names[1] if len(names) == 2 else "1"}
    found = {}
    for text in given:
        digits = text.removeprefix("#")
        if text in names:
            number = names.index(text)
        elif digits.isdecimal():
            number = int(digits)
        else:
            told = ", ".join(names[:12]) or "not known; give a number, or --names"
            raise NiwakiError(f"--target {text!r} is not the name of an output; these are {told}")
        found[number] = names[number] if number < len(names) else str(number)
    return found


def _write(
    folder: Path, found: SlideMaps, known: list[Any], made: Mapping[str, str], *, page: bool
) -> dict[str, Any]:
    """Write all that is handed on, and return what there is to say about it."""
    from niwaki.files import write_json
    from niwaki.report import slide_overview, write_slide_viewer
    from niwaki.slides import pyramids, write_maps, write_nuclei, write_objects

    with pyramids(found) as levels:
        maps = write_maps(folder / "maps", found, levels)
        regions = write_objects(folder, found, levels)
        measured = write_nuclei(folder, found, known) if known else None
        slide_overview(folder / "overview.png", found, levels)
        about = {
            "slide": found.slide.path.name,
            "size": list(found.slide.size),
            "slide_mpp": list(found.slide.mpp),
            "mpp": found.grid.mpp,
            "tissue": round(found.tissue.share, 6),
            "tiles": len(found.rows),
            "tile": found.grid.side,
            "joined": found.grid.joined,
            "predictions": _counted(found),
            "lost": {method: list(told) for method, told in found.lost.items()},
            "layers": [layer.title for layer in found.maps],
            "maps": maps,
            "regions": len(regions),
            **({} if measured is None else {"nuclei": len(known), "nuclei_measured": measured}),
        }
        if page:
            write_slide_viewer(folder, found, levels, regions, {**made, **_told(about)})
    write_json(folder / "slide.json", about)
    return about


def _counted(found: SlideMaps) -> dict[str, int]:
    said = [row["prediction"] for row in found.rows]
    return {name: said.count(name) for name in found.class_names if name in said}


def _count(tiles: int) -> str:
    return "1 tile" if tiles == 1 else f"{tiles} tiles"


def _told(about: Mapping[str, Any]) -> dict[str, str]:
    return {
        "Slide": about["slide"],
        "Resolution": f"{about['mpp']:g} µm per pixel",
        "Tiles": f"{about['tiles']}; {about['joined']}",
    }
