"""``niwaki audit``: look for what a network should not be looking at, over a data set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from niwaki import ranges as r
from niwaki.cli import _options as o
from niwaki.cli._acts import Acts
from niwaki.cli._json import say
from niwaki.cli._provenance import provenance, short_name
from niwaki.errors import NiwakiError
from niwaki.machine import check_alone
from niwaki.processes import goes_on_alone, held_by_first, is_first
from niwaki.stages import allowed

if TYPE_CHECKING:
    from torch.utils.data import Dataset

    from niwaki.auditing import Audit, Collection, Watched
    from niwaki.data import Described, Images
    from niwaki.runs import Workplace


_NOT_WATCHING = Acts(without=("watch",))
_OF_THE_DEMO = {"demo", "out", "device", "threads", "seed", "force", "as_json", "fail_on_finding"}


@o.spread
def audit_command(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL", help="The model, named as for `niwaki explain`.", show_default=False
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Argument(
            metavar="DATA",
            help="A folder with one folder per class, webdataset:PATTERN (tar files), hf:NAME "
            "(Hugging Face), torchvision:NAME, digits, or tissue.",
            show_default=False,
        ),
    ] = None,
    method: Annotated[
        str, _NOT_WATCHING, typer.Option(help="Attribution method, see `niwaki methods`.")
    ] = "lrp.epsilon_plus",
    target: Annotated[
        Literal["predicted", "true"],
        _NOT_WATCHING,
        typer.Option(help="The class that is explained."),
    ] = "predicted",
    limit: Annotated[
        int,
        r.SOME.but(low=20, why="fewer images are no evidence"),
        typer.Option(help="Largest number of images, drawn evenly from the classes."),
    ] = 1000,
    tissue: Annotated[
        bool,
        _NOT_WATCHING,
        typer.Option("--tissue", help="The images are H&E: sort relevance by stain."),
    ] = False,
    training: Annotated[
        str | None,
        _NOT_WATCHING,
        typer.Option(
            metavar="DATA",
            help="The images that the network was trained on, named like DATA. The audit then "
            "also asks whether DATA has a kind of image that training lacks.",
            show_default=False,
        ),
    ] = None,
    slides: Annotated[
        str | None,
        typer.Option(
            metavar="PATTERN",
            help="A regular expression that finds the slide, or patient, in an image's file "
            "name, such as '^(.+)_x', or FILE.csv:COLUMN. Images of a slide are alike, and "
            "the audit does not take that for evidence.",
            show_default=False,
        ),
    ] = None,
    centres: Annotated[
        str | None,
        _NOT_WATCHING,
        typer.Option(
            metavar="PATTERN",
            help="The hospital, laboratory or scanner of each image, given in the same way. The "
            "audit then also asks whether the network goes by where an image comes from.",
            show_default=False,
        ),
    ] = None,
    region: Annotated[
        list[str] | None,
        _NOT_WATCHING,
        typer.Option(
            metavar="NAME=FOLDER",
            help="Masks of a region to ask about, named like the images. May be repeated.",
            show_default=False,
        ),
    ] = None,
    questions: Annotated[
        str | None,
        _NOT_WATCHING,
        typer.Option(
            metavar="NAMES",
            help="Questions to ask, such as position,colour; see `niwaki methods`. Default: all.",
            show_default=False,
        ),
    ] = None,
    confirm: Annotated[
        Path | None,
        _NOT_WATCHING,
        typer.Option(
            metavar="FILE",
            help="The candidates.csv of an earlier audit of the same images, with yes beside the"
            " images that show something they should not be recognised by. The audit then finds "
            "similar images and asks whether predictions depend on it.",
            show_default=False,
        ),
    ] = None,
    watch: Annotated[
        str | None,
        typer.Option(
            metavar="REFERENCE",
            help="Images on which the network is known to work, named like DATA. Instead of "
            "asking questions, the command says which images of DATA get their answer in an"
            " unusual way. DATA needs no labels.",
            show_default=False,
        ),
    ] = None,
    heatmaps: Annotated[
        bool,
        _NOT_WATCHING,
        typer.Option(
            "--heatmaps", help="Also write the heatmaps of all images, as a project of ViRelAy."
        ),
    ] = False,
    fail_on_finding: Annotated[
        bool,
        typer.Option(
            "--fail-on-finding",
            help="End with exit code 1 if something was found. The page is written in any case.",
        ),
    ] = False,
    demo: Annotated[
        bool,
        typer.Option(
            "--demo", help="Embedded tissue and a biased network: find the bias and repair it."
        ),
    ] = False,
    out: o.Folder = Path("audit"),
    *,
    common: o.Common,
) -> None:
    """Find what a network should not be looking at, with evidence, in words.

    Writes a page (index.html), audit.json and the pictures.
    """
    from niwaki.auditing import audit, read_confirmed
    from niwaki.cli._audit_demo import run_demo
    from niwaki.data import Described, Masks, groups_named
    from niwaki.report import write_audit

    made = provenance(context, "Audit")
    masks = _regions(region or [])
    common.check_output(
        out,
        model,
        data,
        training,
        watch,
        files=[folder for _, folder in masks] + ([confirm] if confirm else []),
    )
    if demo:
        check_alone("niwaki audit --demo")
        _check_demo(context)
        place = o.prepare(common.device, common.threads)
        said = run_demo(out, place, common.seed, common.force, common.as_json, made=made)
        if common.as_json:
            say(said)
        _end(fail_on_finding and bool(said["flagged"]))
        return
    if not model or not data:
        raise NiwakiError("give MODEL and DATA, or --demo")
    if watch:
        watched = _watched(model, data, watch, out, common, limit=limit, slides=slides, made=made)
        _tell(watched, out / "index.html", common.as_json)
        _end(fail_on_finding and watched.p_more < 0.05)
        return
    work = common.workplace(out)
    loaded = common.load(model)
    loaded, images, learned = _open(loaded, data, training, common)
    described = Described(
        images,
        class_names=loaded.class_names,
        groups=groups_named(images, slides) if slides else None,
        centres=groups_named(images, centres) if centres else None,
        regions={name: Masks(images, place) for name, place in masks},
    )
    known: Dataset[Any] | None = learned
    if learned and slides:
        known = Described(learned, groups=groups_named(learned, slides))
    with held_by_first(work.result) as folder:
        found = audit(
            loaded.model,
            described,
            method=method,
            target=target,
            limit=allowed("images", min(limit, len(images)), common.batch_size),
            batch_size=common.batch_size,
            seed=common.seed,
            tissue=tissue or data == "tissue",
            training=known,
            confirmed=read_confirmed(confirm) if confirm else None,
            questions=[name.strip() for name in questions.split(",")] if questions else None,
            folder=work,
        )
        if heatmaps:
            there = (folder or out) / "virelay"  # written by the first process
            _collect(there, work, loaded, described, found, target)
        if folder is None or not goes_on_alone():
            return
        heading = f"Audit of {short_name(model)} on {Path(data).name}"
        remarks = _remarks(images, found, training)
        write_audit(folder, found, heading=heading, remarks=remarks, made=made)
    _tell(found, out / "index.html", common.as_json)
    _end(fail_on_finding and bool(found.flagged))


def _check_demo(context: typer.Context) -> None:
    """Refuse all that the demonstration brings itself."""
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        given = source is not None and source.name not in ("DEFAULT", "DEFAULT_MAP")
        if given and parameter.name not in _OF_THE_DEMO:
            raise NiwakiError(
                f"--demo brings its own network, data and settings: leave {_flag(parameter)} out"
            )


def _flag(parameter: Any) -> str:
    return str(parameter.opts[0] if parameter.opts[0].startswith("-") else parameter.metavar)


def _tell(found: Audit | Watched, page: Path, as_json: bool) -> None:
    if as_json:
        say({"folder": str(page.parent), **found.to_json()})
    else:
        o.console().print(str(found))
        o.console().print(f"open {page}")


def _end(failed: bool) -> None:
    if failed:
        raise typer.Exit(1)


def _open(
    loaded: o.Loaded, data: str, training: str | None, common: o.Common
) -> tuple[o.Loaded, Images, Images | None]:
    """Open the audited images and those of training, which name the outputs if nothing else does.

    Outputs that are given are those of the audited images' classes.
    """
    if training is None or common.outputs is not None:
        images = common.images(data, loaded)
        loaded = loaded.named_by(images)
        return loaded, images, o.load_images(training, loaded, split="train") if training else None
    learned = common.images(training, loaded, "train")
    loaded = loaded.named_by(learned)
    return loaded, common.images(data, loaded), learned


def _collect(
    folder: Path,
    work: Workplace,
    loaded: o.Loaded,
    images: Described,
    found: Audit,
    target: Literal["predicted", "true"],
) -> Collection:
    from niwaki.auditing import collect, write_analysis, write_project

    method = found.material.method
    collection = collect(loaded.model, images, folder, method=method, target=target, run=work)
    if is_first():
        write_analysis(folder, found.material, found.strategies)
        write_project(folder, method=method, target=target, model=type(loaded.model).__name__)
    return collection


def _regions(given: list[str]) -> list[tuple[str, Path]]:
    """Read NAME=FOLDER."""
    pairs = [text.partition("=") for text in given]
    for text, (name, _, folder) in zip(given, pairs, strict=True):
        if not name or not folder:
            raise NiwakiError(f"--region {text!r} is not of the form NAME=FOLDER")
    return [(name, Path(folder)) for name, _, folder in pairs]


def _remarks(images: Images, found: Audit, training: str | None) -> list[str]:
    remarks = [_remark(images, found)]
    remarks += [f"The network learned from {training}."] if training else []
    return remarks + ([found.centres.told()] if found.centres else [])


def _remark(images: Images, found: Audit) -> str:
    whole = len(found.material) == len(images)
    which = "all" if whole else f"{len(found.material)} of the"
    groups = len(set(found.material.groups.tolist()))
    slides = f", from {groups} slides" if groups < len(found.material) else ""
    return f"{which[0].upper()}{which[1:]} {len(images)} images were looked at{slides}."


def _watched(
    model: str,
    data: str,
    reference: str,
    out: Path,
    common: o.Common,
    *,
    limit: int,
    slides: str | None,
    made: Mapping[str, Any],
) -> Watched:
    """Compare new images with a reference that the network is right on; write what is odd."""
    from niwaki.auditing import watch
    from niwaki.data import Described, groups_named
    from niwaki.models import fingerprint
    from niwaki.report import write_watch

    work = common.workplace(out)
    loaded = common.load(model)
    known = common.images(reference, loaded)
    loaded = loaded.named_by(known)
    images = o.load_images(data, loaded, split="test")
    if len(images) == 0:
        raise NiwakiError(f"{data} has no images to watch")
    groups = groups_named(known, slides) if slides else None
    described = Described(known, class_names=loaded.class_names, groups=groups)
    with work.result() as folder:
        found = watch(
            loaded.model,
            described,
            images,
            limit=limit,
            batch_size=common.batch_size,
            seed=common.seed,
        )
        heading = f"{short_name(model)} watched on {Path(data).name}"
        remarks = [f"The reference is {reference}."]
        known_by = {**made, "fingerprint": fingerprint(loaded.model)}
        write_watch(folder, found, images, heading=heading, remarks=remarks, made=known_by)
    return found
