"""``niwaki tiles``: labelled tiles of annotated slides, in a folder for each class."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from niwaki import ranges as r
from niwaki.cli import _options as o
from niwaki.cli._json import say
from niwaki.cli._slide import MPP, SlideMpp
from niwaki.errors import DataError, NiwakiError

if TYPE_CHECKING:
    from niwaki.slides import Labelled, Slide, SlideObject

__all__ = ["tiles"]

_SUFFIXES = (".geojson", ".json", ".csv", ".tsv", ".png", ".tif", ".tiff")
_MASKS = (".png", ".tif", ".tiff")


@o.spread
def tiles(
    files: Annotated[
        list[str],
        typer.Argument(metavar="SLIDES...", help="Slides or images, as for `niwaki slide`."),
    ],
    annotations: Annotated[
        Path | None,
        typer.Option(
            help="GeoJSON of QuPath, a mask, or CSV of nuclei with x, y and type; for several "
            "slides, a folder with a file named after each slide. Default: beside the "
            "slides.",
            show_default=False,
        ),
    ] = None,
    size: Annotated[int, r.SIDE, typer.Option(help="Side of a tile in pixels.")] = 224,
    mpp: MPP = None,
    slide_mpp: SlideMpp = None,
    cover: Annotated[
        float, r.SHARE, typer.Option(help="Share of a tile that must be of one class.")
    ] = 0.75,
    rest: Annotated[
        str | None,
        typer.Option(
            metavar="CLASS",
            help="A class for tissue that is not annotated. Default: it is left out.",
            show_default=False,
        ),
    ] = None,
    names: Annotated[
        str | None,
        typer.Option(
            help="Classes of a mask's values from 1 on, such as normal,tumour, or that of 255.",
            show_default=False,
        ),
    ] = None,
    regions: Annotated[
        str | None,
        typer.Option(
            metavar="CLASSES",
            help="Annotated classes that are no labels, such as pen,fold. Masks of them are "
            "written to OUT-masks, for the option --region of `niwaki audit`.",
            show_default=False,
        ),
    ] = None,
    most: Annotated[
        int | None,
        r.SOME,
        typer.Option(help="Largest number of tiles of each class and slide.", show_default=False),
    ] = None,
    out: o.Folder = Path("tiles"),
    seed: o.Seed = 0,
    force: o.Force = False,
    as_json: o.AsJson = False,
) -> None:
    """Cut labelled tiles out of annotated slides: a folder for each class.

    A file is named after its slide and its place, SLIDE_x1024_y2048.png, so that `niwaki audit`
    knows the slides by --slides '^(.+)_x'.
    """
    from niwaki.cli._outputs import check_output
    from niwaki.files import new_folder, write_csv
    from niwaki.slides import labelled_places, open_slide

    given = [] if annotations is None else [annotations]
    asides = [name.strip() for name in regions.split(",")] if regions else []
    masks = out.with_name(f"{out.name}-masks")
    for folder in [out, masks] if asides else [out]:
        check_output(folder, force=force, data=files, files=given)
    slides = [open_slide(file, slide_mpp) for file in files]
    _check_names(slides)
    places = [_file(slide, annotations, len(slides)) for slide in slides]
    if names is not None and not any(place.suffix.lower() in _MASKS for place in places):
        raise NiwakiError(
            f"--names {names} does nothing: the classes of {places[0].name} have names of their "
            "own, and only the numbers of a mask have none"
        )
    jobs = []
    for slide in slides:
        objects = _annotated(slide, annotations, len(slides), names)
        resolution = max(slide.mpp) if mpp is None else mpp
        found = labelled_places(
            slide,
            [one for one in objects if one.class_name not in asides],
            size=size,
            mpp=resolution,
            cover=cover,
            rest=rest,
            most=most,
            seed=seed,
        )
        marked = [one for one in objects if one.class_name in asides]
        jobs.append(_Job(slide, found, size, resolution, marked))
    _check_regions(asides, jobs)
    with ExitStack() as stack:
        folder = stack.enter_context(new_folder(out, overwrite=force))
        rows = _cut_all(jobs, folder)
        write_csv(folder / "tiles.csv", rows)
        counts: dict[str, int] = {}
        if asides:
            counts = _draw_all(jobs, rows, stack.enter_context(new_folder(masks, overwrite=force)))
    _report(rows, out, masks, counts, as_json)


@dataclass(frozen=True)
class _Job:
    """A slide, its tiles, and what is annotated on them without being a label."""

    slide: Slide
    tiles: list[Labelled]
    size: int
    mpp: float
    marked: list[SlideObject]


def _cut_all(jobs: list[_Job], folder: Path) -> list[dict[str, Any]]:
    """Write all tiles, and return the rows of their table."""
    from niwaki.slides import cut, safe_names

    rows: list[dict[str, Any]] = []
    plain = safe_names(one.class_name for job in jobs for one in job.tiles)
    for job in jobs:
        across, down = job.slide.scale(job.mpp)
        pictures = cut(job.slide, job.tiles, job.size, job.mpp)
        for one, picture in zip(job.tiles, pictures, strict=True):
            x, y = round(one.x * across), round(one.y * down)
            place = Path(plain[one.class_name], f"{_stem(job.slide)}_x{x}_y{y}.png")
            (folder / place.parent).mkdir(exist_ok=True)
            picture.save(folder / place)
            rows.append(
                {"file": str(place), "class": one.class_name, "slide": job.slide.path.name,
                 "x": x, "y": y, "width": round(job.size * across, 2),
                 "height": round(job.size * down, 2)}
            )  # fmt: skip
    return rows


def _draw_all(jobs: list[_Job], rows: list[dict[str, Any]], folder: Path) -> dict[str, int]:
    """Write the masks of what is marked: a folder for each region, with files named like tiles.

    Returns on how many tiles each region lies, which must not be none.
    """
    from PIL import Image

    from niwaki.slides import region_masks, safe_names

    plain = safe_names(one.class_name or "" for job in jobs for one in job.marked)
    counts = dict.fromkeys(plain, 0)
    names = iter([str(row["file"]) for row in rows])
    for job in jobs:
        files = list(islice(names, len(job.tiles)))
        for region, safe in plain.items():
            objects = [one for one in job.marked if one.class_name == region]
            drawn = region_masks(job.slide, objects, job.tiles, job.size, job.mpp)
            for file, mask in zip(files, drawn, strict=True):
                if mask.any():
                    place = folder / safe / file
                    place.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(mask).save(place)
                    counts[region] += 1
    for region, count in counts.items():
        if not count:
            raise DataError(
                f"--regions {region}: what is annotated as {region!r} lies on none of the "
                f"{len(rows)} tiles. --rest CLASS cuts tiles of tissue that is not annotated "
                "otherwise"
            )
    return counts


def _check_regions(asked: list[str], jobs: list[_Job]) -> None:
    there = {one.class_name for job in jobs for one in job.marked}
    for name in asked:
        if name not in there:
            raise DataError(
                f"--regions {name}: nothing on the slides is annotated as {name!r}; the classes "
                f"that give tiles are {', '.join(sorted(_classes(jobs)))}"
            )


def _classes(jobs: list[_Job]) -> set[str]:
    return {one.class_name for job in jobs for one in job.tiles}


def _report(
    rows: list[dict[str, Any]], out: Path, masks: Path, marked: dict[str, int], as_json: bool
) -> None:
    counts = Counter(row["class"] for row in rows)
    if as_json:
        written = {"masks": str(masks), "marked": marked} if marked else {}
        say({"folder": str(out), "classes": dict(counts), **written})
        return
    for name, count in sorted(counts.items()):
        o.console().print(f"{name}: {_tiles(count)}")
    for name, count in marked.items():
        o.console().print(f"{name}: marked on {_tiles(count)}")
    o.console().print(f"wrote {out} and {masks}" if marked else f"wrote {out}")


def _tiles(count: int) -> str:
    return "1 tile" if count == 1 else f"{count} tiles"


def _stem(slide: Slide) -> str:
    from niwaki.slides import safe_names

    return safe_names([slide.name])[slide.name]


def _check_names(slides: list[Slide]) -> None:
    stems = [_stem(slide) for slide in slides]
    for number, stem in enumerate(stems):
        if stem in stems[:number]:
            other = slides[stems.index(stem)].path
            raise NiwakiError(
                f"{slides[number].path} and {other} have the same name, by which their tiles could "
                "not be told apart: rename one of them"
            )


def _annotated(
    slide: Slide, given: Path | None, count: int, names: str | None
) -> list[SlideObject]:
    """Read what belongs to a slide, by the kind of file."""
    from niwaki.slides import read_geojson, read_mask, read_nuclei

    file = _file(slide, given, count)
    if file.suffix.lower() in _MASKS:
        return read_mask(file, slide, names.split(",") if names else ())
    if file.suffix.lower() in (".csv", ".tsv"):
        return read_nuclei(file)
    return read_geojson(file)


def _file(slide: Slide, given: Path | None, count: int) -> Path:
    if given is not None and given.is_file():
        if count > 1:
            raise NiwakiError(
                f"--annotations {given} is one file for {count} slides; give the folder with a "
                "file of each slide's name"
            )
        return given
    folder = slide.path.parent if given is None else given
    found = [folder / f"{slide.name}{suffix}" for suffix in _SUFFIXES]
    there = [file for file in found if file.is_file() and file != slide.path]
    if len(there) != 1:
        what = "no annotations" if not there else f"{len(there)} files of annotations"
        raise DataError(
            f"there are {what} of {slide.path.name} in {folder}: name one {slide.name}.geojson, "
            "as QuPath exports it, or give it by --annotations"
        )
    return there[0]
