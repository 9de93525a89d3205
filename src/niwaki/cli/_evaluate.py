"""``niwaki evaluate``: how faithful the heatmaps of several methods are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from math import ceil, isnan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from niwaki import ranges as r
from niwaki.cli import _options as o
from niwaki.cli._heatmaps import Picked, attribute_with_loss, by_default, pick, table
from niwaki.cli._json import say
from niwaki.cli._provenance import provenance, short_name
from niwaki.display import readable
from niwaki.errors import NiwakiError
from niwaki.processes import goes_on_alone
from niwaki.stages import allowed, stage

if TYPE_CHECKING:
    from torch import Tensor

    from niwaki.attribution import ClassChoice
    from niwaki.evaluation import Estimate, Order, PerturbationCurves, Randomisation
    from niwaki.runs import Run

__all__ = ["evaluate"]

_EXPLANATION = (
    "area while regions are perturbed, most relevant first (low is good) and least first (high); "
    "gap: least - most (high);\nrandomised: rank correlation of absolute heatmaps with those of a "
    "network randomised from the output down (near 0 is good);\nlost: relevance that does not "
    "reach the input, where `niwaki explain` refuses the heatmap for it"
)


@o.spread
def evaluate(
    context: typer.Context,
    model: o.ModelSpec,
    data: o.DataSpec,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="Method to judge; may be given several times. Default: the usual ones. "
            "See `niwaki methods`.",
            show_default=False,
        ),
    ] = None,
    target: o.Target = "predicted",
    out: o.Folder = Path("evaluation"),
    limit: o.Limit = 16,
    region: Annotated[
        int | None,
        r.SIDE,
        typer.Option(
            help="Side of a region in pixels. Default: 9, or an eighth of a small image.",
            show_default=False,
        ),
    ] = None,
    steps: Annotated[int, r.STEPS, typer.Option(help="Perturbation steps.")] = 10,
    share: Annotated[
        float, r.SHARE, typer.Option(help="Share of the regions that is perturbed in the end.")
    ] = 0.3,
    replacement: Annotated[
        Literal["zero", "gaussian", "mean", "invert"],
        typer.Option(help="What replaces the perturbed regions."),
    ] = "zero",
    layers: Annotated[
        int,
        r.STEPS.but(low=0),
        typer.Option(help="Layers at which to look at the randomised network; 0: none."),
    ] = 4,
    *,
    common: o.Common,
) -> None:
    """Judge methods: perturb what they call relevant, and randomise the network they explain.

    Writes a page (index.html), the table (table.md, table.json), both kinds of curves as pictures,
    and the numbers behind them (perturbation.json, randomisation.json).
    """
    from niwaki.evaluation import Perturbation, perturbation_curves, randomisation_test
    from niwaki.files import write_json
    from niwaki.report import write_report
    from niwaki.runs import digest, identified, open_run

    common.check_output(out, model, data)
    work = common.workplace(out)
    chosen = list(dict.fromkeys(method or by_default()))
    loaded = common.load(model)
    images = common.images(data, loaded)
    some = allowed("images", min(limit, len(images)), common.batch_size)
    picked = pick(images, some, common.seed, data)
    which = loaded.named_by(images).choice(target, images)
    options: dict[str, Any] = {
        "target": which,
        "seed": common.seed,
        "batch_size": common.batch_size,
    }
    side = region or min(9, max(1, picked.data.preprocessing.size // 8))
    if side > picked.data.preprocessing.size:
        raise NiwakiError(
            f"--region {side}: the images have a side of {picked.data.preprocessing.size} pixels, "
            "and a region is a part of it"
        )
    regions, asked = ceil(picked.data.preprocessing.size / side) ** 2, steps
    per_step, steps = _schedule(regions, share, asked)
    o.console(common.as_json).print(_told(regions, per_step, steps, asked))
    how = Perturbation((side, side), steps, per_step, replacement=replacement)

    def perturb(name: str, orders: Sequence[Order]) -> PerturbationCurves:
        return perturbation_curves(
            loaded.model,
            picked.subset,
            [name],
            replace(how, orders=orders),
            description=f"perturbing {name}",
            **options,
        )[name]

    randomise = partial(
        randomisation_test,
        loaded.model,
        picked.subset,
        layers=layers,
        absolute=True,  # negative outputs turn the signs of some methods' heatmaps
        **options,
    )
    about = {**options, "side": side, "steps": steps, "per_step": per_step, "layers": layers}

    def identity() -> dict[str, Any]:
        known = {"model": identified(loaded.model), "data": digest(picked.subset, ordered=True)}
        return {"evaluated": replacement, **known, **about}

    curves: dict[str, PerturbationCurves] = {}
    randomised: dict[str, Randomisation] = {}
    with open_run(work, identity) as kept:
        for name in chosen:
            # The random order is the same for all methods.
            shared = next((c.scores["random"] for c in curves.values()), None)
            curves[name] = _perturbed(kept, name, shared, perturb)
            if layers:
                randomised[name] = _randomised(kept, name, randomise)
    if not goes_on_alone():
        return
    milliseconds = _milliseconds(loaded, picked, chosen, common.batch_size)
    lost = _lost(loaded, picked, chosen, which, common.batch_size)
    rows = _rows(curves, randomised, milliseconds, lost)
    heading = f"{Path(model).name}, {len(picked.indices)} images of {Path(data).name}"
    made = provenance(context, f"Methods judged on {short_name(model)}", loaded.model)
    with work.result() as folder:
        _write(folder, curves, randomised, rows, heading)
        write_json(folder / "run.json", made)
        write_report(folder)
    if common.as_json:
        say({"folder": str(out), "methods": rows})
        return
    show = o.console().print
    show(table([readable(row) for row in rows]))
    show(_EXPLANATION)
    show(f"open {out / 'index.html'}")


def _perturbed(
    kept: Run, name: str, random: Tensor | None, perturb: Callable[..., PerturbationCurves]
) -> PerturbationCurves:
    """Measure a method's curves, or read them where that is done."""
    from niwaki.evaluation import PerturbationCurves

    part = kept.read(f"curves of {name}")
    if part is not None:
        share = part.tensors.pop("share")
        return PerturbationCurves(name, share, part.tensors, part.about["settings"])
    found = perturb(name, ["most", "least", *(["random"] if random is None else [])])
    if random is not None:
        found = replace(found, scores={**found.scores, "random": random})
    tensors = {**found.scores, "share": found.share}
    kept.write(f"curves of {name}", tensors, settings=dict(found.settings))
    return found


def _randomised(kept: Run, name: str, randomise: Callable[..., Any]) -> Randomisation:
    """Compare a method's heatmaps with those of randomised networks, or read how alike they are."""
    from niwaki.evaluation import Randomisation

    part = kept.read(f"randomised {name}")
    if part is not None:
        alike, ssim = part.tensors["spearman"], part.tensors.get("ssim")
        layers = tuple(part.about["layers"])
        return Randomisation(name, layers, alike, ssim, part.about["settings"])
    found: Randomisation = randomise([name], description=f"randomising {name}")[name]
    tensors = {"spearman": found.spearman}
    tensors |= {} if found.ssim is None else {"ssim": found.ssim}
    settings = dict(found.settings)
    kept.write(f"randomised {name}", tensors, layers=list(found.layers), settings=settings)
    return found


def _schedule(regions: int, share: float, steps: int) -> tuple[int, int]:
    """Regions per step and steps, so that about the share is perturbed in the end."""
    gone = max(1, round(share * regions))
    per_step = max(1, round(gone / steps))
    return per_step, min(steps, ceil(gone / per_step))


def _told(regions: int, per_step: int, steps: int, asked: int) -> str:
    """Say how many regions are replaced in how many steps, and why these are so few."""
    gone = min(regions, steps * per_step)
    said = f"perturbing {gone} of {regions} regions in {steps} steps"
    return said if steps == asked else f"{said}, not {asked}: a step takes whole regions"


def _milliseconds(
    loaded: o.Loaded, picked: Picked, methods: list[str], batch_size: int
) -> dict[str, float]:
    from niwaki import models
    from niwaki.data import batches
    from niwaki.evaluation import seconds_per_image

    inputs, _ = next(iter(batches(picked.subset, batch_size, models.home(loaded.model))))
    seconds = seconds_per_image(loaded.model, inputs, methods)
    return {name: 1000 * value for name, value in seconds.items()}


@stage("measuring lost relevance")
def _lost(
    loaded: o.Loaded, picked: Picked, methods: list[str], target: ClassChoice, batch_size: int
) -> dict[str, float]:
    """Share of the relevance that is lost under each method, of the image that loses most."""
    from niwaki import attribution, models
    from niwaki.data import batches
    from niwaki.propagation import per_class

    place = models.home(loaded.model)
    example, _ = next(iter(batches(picked.subset, 1, place)))
    judged = per_class(loaded.model, example)
    lost = dict.fromkeys(methods, 0.0)
    made = {name: attribution.create(name, judged) for name in methods}
    for inputs, labels in batches(picked.subset, batch_size, place):
        classes = attribution.chosen_classes(
            models.class_outputs(judged, inputs, "a choice of classes"), labels, target
        )
        for name, how in made.items():
            if isinstance(how, attribution.Propagating) and how.max_loss is not None:
                lost[name] = max(lost[name], attribute_with_loss(how, inputs, classes)[1])
    return lost


def _rows(
    curves: dict[str, PerturbationCurves],
    randomised: dict[str, Randomisation],
    milliseconds: dict[str, float],
    lost: dict[str, float],
) -> list[dict[str, Any]]:
    """One row per method, the largest gap first, and one for the random order."""
    rows: list[dict[str, Any]] = [
        {
            "method": name,
            "most": _plain(found.area("most")),
            "least": _plain(found.area("least")),
            "gap": _plain(found.gap()),
            "randomised": _plain(randomised[name].similarity()) if name in randomised else None,
            "ms": milliseconds[name],
            "lost": lost[name],
        }
        for name, found in curves.items()
    ]
    rows.sort(key=lambda row: -row["gap"]["mean"])
    random = _plain(next(iter(curves.values())).area("random"))
    nothing = {"gap": None, "randomised": None, "ms": None, "lost": None}
    return [*rows, {"method": "(random order)", "most": random, "least": random, **nothing}]


def _plain(estimate: Estimate) -> dict[str, float | None]:
    return {"mean": estimate.mean, "error": None if isnan(estimate.error) else estimate.error}


def _write(
    folder: Path,
    curves: dict[str, PerturbationCurves],
    randomised: dict[str, Randomisation],
    rows: list[dict[str, Any]],
    heading: str,
) -> None:
    from niwaki.files import write_json, write_text
    from niwaki.report import plot_perturbation, plot_randomisation

    shown = [readable(row) for row in rows]
    lines = ["| " + " | ".join(shown[0]) + " |", "|" + " --- |" * len(shown[0])]
    for row in shown:
        lines.append("| " + " | ".join(row.values()) + " |")
    write_text(folder / "table.md", "\n".join([*lines, "", _EXPLANATION, ""]))
    write_json(folder / "table.json", rows)
    write_json(folder / "perturbation.json", [found.to_json() for found in curves.values()])
    plot_perturbation(folder / "perturbation.png", curves, heading=heading)
    if randomised:
        write_json(folder / "randomisation.json", [f.to_json() for f in randomised.values()])
        plot_randomisation(folder / "randomisation.png", randomised, heading=heading)
