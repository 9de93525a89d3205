"""``niwaki filters``: what each filter responds to, and for which classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from niwaki import ranges as r
from niwaki.cli import _options as o
from niwaki.cli._acts import Acts
from niwaki.cli._heatmaps import Picked, pick, table
from niwaki.cli._json import say
from niwaki.cli._provenance import provenance, short_name
from niwaki.errors import NiwakiError
from niwaki.processes import goes_on_alone
from niwaki.stages import allowed, stage

if TYPE_CHECKING:
    from niwaki.filters import Diversity, Enrichment, FilterPictures, LayerProfile, Profile

__all__ = ["filters"]

_SELECTIVE = 0.25  # colour selectivity from which a filter counts as one for colour


@o.spread
def filters(
    context: typer.Context,
    model: o.ModelSpec,
    data: o.DataSpec,
    layer: Annotated[
        list[str] | None,
        typer.Option(
            help="A layer, or a module that stands for all convolutions in it; may be given "
            "several times. Default: all hidden convolutions.",
            show_default=False,
        ),
    ] = None,
    out: o.Folder = Path("filters"),
    limit: o.Limit = 500,
    patches: Annotated[int, r.PATCHES, typer.Option(help="Patches to show of each kind.")] = 8,
    method: Annotated[
        str, typer.Option(help="The method that computes relevance, see `niwaki methods`.")
    ] = "lrp.epsilon_plus",
    heatmaps: Annotated[
        bool, typer.Option(help="Whether to compute heatmaps of the patches for each filter.")
    ] = True,
    steps: Annotated[
        int,
        r.STEPS.but(low=0),
        typer.Option(help="Steps of the feature visualisation of each filter; 0: none."),
    ] = 48,
    with_car: Annotated[
        bool,
        typer.Option(
            "--car/--no-car",
            help="Remove each filter in turn to see which classes it serves.",
        ),
    ] = True,
    pruned: Annotated[
        Path | None,
        typer.Option(
            help="The folder of a network pruned from MODEL: compares diversity, and counts colour "
            "filters among the first pruned.",
            show_default=False,
        ),
    ] = None,
    first: Annotated[
        int,
        r.SOME,
        Acts(beside=("pruned",)),
        typer.Option(help="Number of filters pruned first that are counted."),
    ] = 20,
    *,
    common: o.Common,
) -> None:
    """Show what each filter responds to, and for which classes.

    Writes a page with all filters, to be opened in a browser (index.html), the numbers
    (filters.csv, filters.json), and what the page shows (gallery.json, pictures.zip).
    """
    from niwaki import attribution, car, models
    from niwaki import filters as rooms
    from niwaki.data import decoded
    from niwaki.files import write_json
    from niwaki.report import save_filters, write_report
    from niwaki.runs import digest, identified, open_run

    common.check_output(out, model, data, files=[pruned] if pruned else [])
    if pruned is not None and not models.is_saved(pruned):
        raise NiwakiError(f"--pruned {pruned}: is no folder of a pruned network")
    work = common.workplace(out)
    loaded = common.load(model)
    every = common.images(data, loaded)
    loaded = loaded.named_by(every)
    attribution.create(method, loaded.model)  # so that a wrong name does not come out at the end
    some = allowed("images", min(limit, len(every)), common.batch_size)
    picked = pick(every, some, common.seed, data)
    preprocessing = picked.data.preprocessing
    images = decoded(picked.subset, description="reading")
    index = None
    if with_car and picked.data.labelled:
        index = car.index(
            loaded.model,
            images,
            layers=layer,
            folder=work,
            batch_size=common.batch_size,
            description="removing each filter",
        )
    profile = rooms.profile(
        loaded.model,
        images,
        layers=layer,
        patches=max(32, patches),
        method=method,
        index=index,
        preprocessing=preprocessing,
        folder=work,
        batch_size=common.batch_size,
        description="profiling",
    )
    names = _names(loaded, profile)
    compared = _Compared.to(pruned, profile, images, first, common) if pruned else _Compared()
    asked: dict[str, Any] = {
        "count": allowed("patches", patches),
        "heatmaps": heatmaps,
        "steps": allowed("steps", steps) if steps else 0,
        "method": method,
        "seed": common.seed,
    }

    def make(layer: LayerProfile, units: Sequence[int]) -> Iterable[FilterPictures]:
        return rooms.pictures(
            loaded.model, images, layer, filters=units, preprocessing=preprocessing, **asked
        )

    def identity() -> dict[str, Any]:
        known = {"model": identified(loaded.model), "data": digest(images, ordered=True)}
        return {"visualised": layer, **known, **asked}

    told: dict[str, Any] = {
        "names": names,
        "after": compared.after,
        "pruned_first": compared.first,
        "order": compared.order,
    }
    about = provenance(context, f"The filters of {short_name(model)}", loaded.model)
    with open_run(work, identity) as kept:
        parts = _parts(profile)
        with stage("drawing filters"):
            rooms.draw_pictures(kept, parts, make, "drawing filters")

        def show(layer: LayerProfile) -> Iterable[FilterPictures]:
            own = [units for one, units in parts if one is layer]
            return rooms.kept_pictures(kept, layer, make, own)

        if not goes_on_alone():
            return
        with work.result() as folder:
            save_filters(folder, profile, show, images=_images(loaded, picked), **told)
            write_json(folder / "run.json", about)
            write_report(folder)
    _report(profile, compared, out, common.as_json)


def _parts(profile: Profile) -> list[tuple[LayerProfile, range]]:
    """List the filters of all layers, a few at a time; evenly fewer in a trial of an estimate."""
    from niwaki.filters import parts_of

    every = [(layer, units) for layer in profile.values() for units in parts_of(layer)]
    some = allowed("parts", len(every))
    return [every[(2 * number + 1) * len(every) // (2 * some)] for number in range(some)]


@dataclass(frozen=True)
class _Compared:
    """What a pruned network adds: diversity after, removed filters, colour filters among them."""

    after: Mapping[str, Diversity] | None = None
    first: Mapping[str, Enrichment] | None = None
    order: Sequence[tuple[str, int]] = ()

    @classmethod
    def to(
        cls, folder: Path, profile: Profile, images: Any, first: int, common: o.Common
    ) -> _Compared:
        from niwaki import filters as rooms

        here = o.Common(device=common.device, threads=common.threads, trust=common.trust)
        small = here.load(str(folder))
        after = rooms.layer_diversity(
            small.model, images, layers=list(profile), batch_size=common.batch_size
        )
        order = rooms.removal_order(
            small.plan, {name: len(layer) for name, layer in profile.items()}
        )
        marked = [
            (name, unit)
            for name, layer in profile.items()
            for unit, value in enumerate(layer.colour.tolist())
            if value > _SELECTIVE
        ]
        found: dict[str, Enrichment] = {}
        for name in ["", *profile]:
            mine = [unit for unit in order if name in ("", unit[0])]
            if mine:
                among = sum(len(layer) for key, layer in profile.items() if name in ("", key))
                kind = [unit for unit in marked if name in ("", unit[0])]
                found[name] = rooms.enrichment(mine, kind, among, min(first, len(mine)))
        return cls(after, found, order)


def _images(loaded: o.Loaded, picked: Picked) -> list[str]:
    """Say of each image its class, where it is known, and its file."""
    files = [picked.file_name(place) for place in range(len(picked.indices))]
    if not picked.data.labelled:
        return files
    targets = [picked.data.targets[index] for index in picked.indices]
    pairs = zip(targets, files, strict=True)
    return [f"class {loaded.class_name(target)}, {file}" for target, file in pairs]


def _names(loaded: o.Loaded, profile: Profile) -> dict[int, str]:
    """Name of each class."""
    return {label: loaded.class_name(label) for label in range(len(profile.samples))}


def _report(profile: Profile, compared: _Compared, out: Path, as_json: bool) -> None:
    rows = [
        {
            "layer": name,
            "filters": len(layer),
            "field": "x".join(map(str, layer.field.size)),
            "never active": len(layer) - layer.diversity.alive,
            "effective": round(layer.diversity.effective, 1),
            "clusters": layer.diversity.clusters,
            "colour": int((layer.colour > _SELECTIVE).sum()),
        }
        for name, layer in profile.items()
    ]
    if as_json:
        say({"folder": str(out), "layers": rows})
        return
    show = o.console().print
    show(table(rows))
    if compared.first and "" in compared.first:
        show(f"colour filters: {compared.first['']}")
    show(f"open {out / 'index.html'}")
